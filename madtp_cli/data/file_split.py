"""A split whose samples are listed in annotation files and whose images are files in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar, cast

from madtp_cli.data.batch import Batch, Preparation
from madtp_cli.data.holdout import Part
from madtp_cli.data.images import ImageFolder, ImageReader
from madtp_cli.data.packing import Packer, Sample
from madtp_cli.errors import SourceError

SampleT = TypeVar("SampleT", bound=Sample)
BatchT = TypeVar("BatchT", bound=Batch)


class FileSplit(Generic[SampleT, BatchT]):
    """Serve samples in the order of their annotations.

    A subclass gives `samples` whose images are names relative to `folder` (those it could not find: wherever they
    should be) and the images that are missing. Of these samples a split serves those of its `part`, if it has one.
    Samples with a missing image are left out at once, those with an unreadable one when it is read: their batch is
    shorter, or even empty.
    """

    task: str

    def __init__(
        self,
        samples: Iterable[SampleT],
        missing: Iterable[str],
        folder: ImageFolder,
        prepare: Preparation,
        *,
        where: Path,
        max_broken: int,
        prompt: str = "",
        max_tokens: int | None = None,
        part: Part | None = None,
    ) -> None:
        self._folder = folder
        self._reader = ImageReader(prepare, max_broken=max_broken)
        self._packer = Packer(prepare, prompt, max_tokens)
        wanted = [sample for sample in samples if part is None or part.takes(sample)]
        if part is not None and not wanted:
            raise SourceError(
                f"{where}: has no samples in {part.describe()}; change the share, or name a file for each split"
            )
        lost = frozenset(missing)
        if part is not None:
            lost = lost.intersection(name for sample in wanted for name in sample.images)
        self._reader.report_missing(sorted(lost))
        self.samples = [sample for sample in wanted if not lost.intersection(sample.images)]
        if not self.samples:
            raise SourceError(f"{where}: no sample has its images in {folder.root}; docs/data.md has its layout")
        self._unopened = len(wanted) - len(self.samples)
        self._spoilt: set[str] = set()
        name, count = Counter(sample.id for sample in self.samples).most_common(1)[0]
        if count > 1:
            raise SourceError(f"{where}: has the sample {name} {count} times; is a file given twice?")

    @property
    def broken(self) -> list[str]:
        """Name the images found missing or unreadable so far, each with the reason."""
        return self._reader.broken

    @property
    def left_out(self) -> int:
        """Count the samples left out so far for such an image."""
        return self._unopened + len(self._spoilt)

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, start: int, size: int) -> BatchT:
        """Return samples start to start + size, without those whose images are broken."""
        if start < 0 or size < 1 or start + size > len(self):
            raise ValueError(f"there are samples 0 to {len(self) - 1}, got start {start} and size {size}")
        return self.gather(range(start, start + size))

    def gather(self, indices: Sequence[int]) -> BatchT:
        """Return the samples of some indices in their order, without those whose images are broken."""
        samples = [self.samples[index] for index in indices]
        names = dict.fromkeys(name for sample in samples for name in sample.images)
        pixels = self._reader.read({name: self._folder.path(name) for name in names})
        whole = [sample for sample in samples if all(name in pixels for name in sample.images)]
        if len(whole) < len(samples):
            self._spoilt.update({sample.id for sample in samples} - {sample.id for sample in whole})
        return cast(BatchT, self._packer.pack(self.task, whole, pixels))


class Places(Protocol):
    """What tells where an image of an annotation lies."""

    def find(self, candidates: Sequence[str]) -> str:
        """Return the one of several candidates that is there, else the first one."""

    def full(self, name: str) -> str:
        """Return an image that was found as a path of its own."""


class Unsought:
    """Take the first place for every image without looking: for reading annotations where no images are."""

    def find(self, candidates: Sequence[str]) -> str:
        """Return the first candidate."""
        return candidates[0]

    def full(self, name: str) -> str:
        """Return the name as it is."""
        return name


class Finder:
    """Find images and remember those that are nowhere."""

    def __init__(self, folder: ImageFolder) -> None:
        self.folder = folder
        self.missing: dict[str, None] = {}

    def full(self, name: str) -> str:
        """Return an image that was found as a path of its own."""
        return str(self.folder.path(name))

    def find(self, candidates: Sequence[str]) -> str:
        """Return the first candidate that exists; where none does, the first one, which is then missing."""
        found = self.folder.find(candidates)
        if found is None:
            self.missing[candidates[0]] = None
        return found or candidates[0]
