"""Reading image files: where they lie, several at once, and what happens to those that are missing or broken."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray

from madtp_cli.data.batch import Preparation
from madtp_cli.errors import SourceError

Array = NDArray[Any]
Source = Any
"""An image as data sets have it: a path, the bytes of a file, a PIL image, or one of them that is Embedded."""
_NAMED = 5  # images that a message names; the others are counted


@dataclass(frozen=True, slots=True)
class Embedded:
    """An image inside a table, and where it is there."""

    data: Any
    where: str


class ImageFolder:
    """Find image files below a folder; a folder is listed once, not asked for every image."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise SourceError(
                f"{root}: no such folder of images; give the folder in data.images, docs/data.md says what it must hold"
            )
        self.root = root
        self._listings: dict[str, frozenset[str]] = {}

    def find(self, candidates: Sequence[str]) -> str | None:
        """Return the first of several places, relative to the folder, where there is a file."""
        return next((name for name in candidates if self._holds(name)), None)

    def path(self, name: str) -> Path:
        """Return where an image lies."""
        return self.root / name

    def _holds(self, name: str) -> bool:
        parent, _, file = name.rpartition("/")
        if parent not in self._listings:
            folder = self.root / parent
            self._listings[parent] = frozenset(os.listdir(folder) if folder.is_dir() else ())
        return file in self._listings[parent]


class ImageReader:
    """Decode and prepare images in threads, and keep count of those that cannot be.

    `broken` names each missing or unreadable image once, with the reason. More than `max_broken` of them raise
    SourceError.
    """

    def __init__(self, prepare: Preparation, *, max_broken: int = 0, workers: int | None = None) -> None:
        self.prepare = prepare
        self.max_broken = max_broken
        self.workers = workers or min(8, os.cpu_count() or 1)
        self.broken: list[str] = []
        self._given_up: set[str] = set()

    def report_missing(self, names: Iterable[str]) -> None:
        """Count images that are not there; raises SourceError where they are too many."""
        self._give_up((name, "no such file") for name in names)

    def read(self, sources: Mapping[str, Source]) -> dict[str, Array]:
        """Return prepared images [H, W, 3] uint8 by name, without those that cannot be read."""
        wanted = [name for name in sources if name not in self._given_up]
        if self.workers == 1 or len(wanted) < 2:
            results = [self._decode(sources[name]) for name in wanted]
        else:
            with ThreadPoolExecutor(min(self.workers, len(wanted))) as pool:
                results = list(pool.map(lambda name: self._decode(sources[name]), wanted))
        found = dict(zip(wanted, results, strict=True))
        self._give_up((name, result) for name, result in found.items() if isinstance(result, str))
        return {name: result for name, result in found.items() if not isinstance(result, str)}

    def _decode(self, source: Source) -> Array | str:
        """Return an image, or why there is none."""
        if not isinstance(source, Embedded):
            return self._decode_plain(source)
        found = self._decode_plain(source.data)
        return f"{source.where}: {found}" if isinstance(found, str) else found

    def _decode_plain(self, source: Any) -> Array | str:
        from PIL import Image

        try:
            if isinstance(source, (bytes, bytearray)):
                source = BytesIO(source)
            if isinstance(source, Image.Image):
                image = source.convert("RGB")
            elif source is None:
                return "no image"
            else:
                with Image.open(source) as opened:
                    image = opened.convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # PIL raises many kinds for broken files
            return "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
        array: Array = self.prepare.image(image)  # outside the try: its faults are not the file's
        return array

    def _give_up(self, faults: Iterable[tuple[str, str]]) -> None:
        for name, reason in faults:
            if name not in self._given_up:
                self._given_up.add(name)
                self.broken.append(f"{name} ({reason})")
        if len(self.broken) > self.max_broken:
            named = ", ".join(self.broken[:_NAMED]) + (", ..." if len(self.broken) > _NAMED else "")
            count = f"{len(self.broken)} image" + ("s are" if len(self.broken) != 1 else " is")
            raise SourceError(
                f"{count} missing or unreadable: {named}; data.max_broken is {self.max_broken}: fetch them again, "
                "or raise it to leave their samples out"
            )


def stem(name: str) -> str:
    """Return the name of a file without folders and extension."""
    return PurePosixPath(name).stem
