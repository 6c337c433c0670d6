"""NLVR2: sentences about pairs of photographs (Suhr et al., ACL 2019), from either of its two annotation formats."""

from __future__ import annotations

import re
from pathlib import Path

from madtp_cli.data.annotations import DOCS, Entry, read_entries
from madtp_cli.data.batch import PairBatch, Preparation
from madtp_cli.data.file_split import FileSplit, Finder
from madtp_cli.data.holdout import Part
from madtp_cli.data.images import ImageFolder, stem
from madtp_cli.data.packing import PairSample
from madtp_cli.data.words import MAX_SENTENCE_WORDS, clean_caption

_IDENTIFIER = re.compile(r"(.+)-(\d+)-(\d+)-(\d+)")  # split, set of eight images, pair in the set, sentence
_IMAGE = re.compile(r"(.+)-(\d+)-(\d+)-img[01]")


class Nlvr2Pairs(FileSplit[PairSample, PairBatch]):
    """Serve NLVR2 from its official JSON lines, or from BLIP's JSON list with `images: [left, right]`.

    Official entries name no files: identifier `dev-850-2-0` means `dev-850-2-img0.png` (left) and `-img1.png`, looked
    for in the folder itself, in `<split>/`, `<split>/<directory>/`, and in the same below `images/`. The groups are
    the keys of the official consistency: one sentence about one set of images.
    """

    task = "nlvr2"

    def __init__(
        self,
        annotations: Path,
        images: Path,
        prepare: Preparation,
        *,
        max_words: int = MAX_SENTENCE_WORDS,
        max_broken: int = 0,
        part: Part | None = None,
    ) -> None:
        entries = read_entries(annotations)
        finder = Finder(ImageFolder(images))
        samples = [
            _listed(entry, finder, max_words, f"{annotations.stem}/{index}")
            if "images" in entry.values
            else _official(entry, finder, max_words)
            for index, entry in enumerate(entries)
        ]
        super().__init__(
            samples, finder.missing, finder.folder, prepare, where=annotations, max_broken=max_broken, part=part
        )


def _official(entry: Entry, finder: Finder, max_words: int) -> PairSample:
    identifier = entry.text("identifier")
    parts = _IDENTIFIER.fullmatch(identifier)
    if not parts:
        raise entry.error(f"identifier must be <split>-<set>-<pair>-<sentence>, got {identifier!r}; {DOCS}")
    split, images, pair, sentence = parts.groups()
    folders = ["", f"{split}/"]
    if "directory" in entry.values:
        folders.append(f"{split}/{entry.values['directory']}/")
    places = [f"{top}{folder}{split}-{images}-{pair}" for top in ("", "images/") for folder in folders]
    left, right = (finder.find([f"{place}-img{side}.png" for place in places]) for side in (0, 1))
    return PairSample(
        id=identifier,
        images=(left, right),
        text=clean_caption(entry.text("sentence"), max_words),
        group=f"{split}-{images}--{sentence}",
        unit=f"{split}-{images}",  # the eight images of a set are those of all its sentences
        label=entry.truth("label"),
    )


def _listed(entry: Entry, finder: Finder, max_words: int, name: str) -> PairSample:
    files = entry.texts("images")
    if len(files) != 2:
        raise entry.error(f"images must be [left, right], got {len(files)}; {DOCS}")
    left, right = (finder.find([file, file.removeprefix("images/")]) for file in files)
    text = entry.text("sentence")
    # The list has no sentence numbers, but sentences about one set differ in their words.
    parts = _IMAGE.fullmatch(stem(files[0]))
    group = f"{parts[1]}-{parts[2]}--{text}" if parts else text
    return PairSample(
        id=name,
        images=(left, right),
        text=clean_caption(text, max_words),
        group=group,
        unit=f"{parts[1]}-{parts[2]}" if parts else "",
        label=entry.truth("label"),
    )
