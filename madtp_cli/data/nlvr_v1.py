"""Cornell NLVR v1: sentences about drawn images with three boxes (Suhr et al., ACL 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from madtp_cli.data.annotations import DOCS, Entry, read_entries
from madtp_cli.data.batch import PairBatch, Preparation
from madtp_cli.data.file_split import FileSplit, Finder
from madtp_cli.data.holdout import Part
from madtp_cli.data.images import ImageFolder, stem
from madtp_cli.data.packing import PairSample
from madtp_cli.data.words import MAX_SENTENCE_WORDS, clean_caption

PERMUTATIONS = 6


class NlvrV1Pairs(FileSplit[PairSample, PairBatch]):
    """Serve NLVR v1 as pairs: each permutation of an example's boxes is a sample of its own.

    An image shows all three boxes, and sentences speak of all of them, so the whole image is both the left and the
    right image of its pair: the model needs no change, and each image is encoded once. Images are
    `<split>/images/<directory>/<split>-<identifier>-<k>.png` with k from 0 to 5; the split is the name of the
    annotation file. An example may have fewer than six images, but none may be missing in between. The groups are the
    keys of the official consistency: one sentence and its up to four examples.
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
        finder = Finder(ImageFolder(images))
        samples = [
            sample
            for entry in read_entries(annotations)
            for sample in _permutations(entry, finder, annotations.stem, max_words)
        ]
        super().__init__(
            samples, finder.missing, finder.folder, prepare, where=annotations, max_broken=max_broken, part=part
        )


def _permutations(entry: Entry, finder: Finder, split: str, max_words: int) -> Iterator[PairSample]:
    identifier = entry.text("identifier")
    group, dash, _ = identifier.partition("-")
    if not dash:
        raise entry.error(f"identifier must be <sentence>-<position>, got {identifier!r}; {DOCS}")
    names = [f"{split}-{identifier}-{k}.png" for k in range(PERMUTATIONS)]
    directory = str(entry.get("directory"))
    places = [
        [f"{top}{name}" for top in (f"{split}/images/{directory}/", f"images/{directory}/", f"{directory}/", "")]
        for name in names
    ]
    last = max((k for k in range(PERMUTATIONS) if finder.folder.find(places[k])), default=0)
    for name, candidates in zip(names[: last + 1], places, strict=False):
        image = finder.find(candidates)
        yield PairSample(
            id=stem(name),
            images=(image, image),
            text=clean_caption(entry.text("sentence"), max_words),
            group=f"{split}-{group}",
            unit=f"{split}-{group}",
            label=entry.truth("label"),
        )
