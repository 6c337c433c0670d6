"""Which files, and which part of their samples, a recipe's data section names for each split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from madtp_cli.data.holdout import Part
from madtp_cli.errors import SourceError
from madtp_cli.recipe_sections import DataSection, SplitFiles, SplitNames

WHOLE = ("coco", "flickr30k")  # data sets whose one file tells the splits of its entries


def questions_of(data: DataSection, split: str) -> list[Path]:
    """Return the questions of a split of vqav2."""
    assert data.questions is not None
    return files_of(data.questions, split)


def annotations_of(data: DataSection, split: str) -> list[Path] | None:
    """Return the official annotations of a split of vqav2, if it has any."""
    given = data.annotations
    if not isinstance(given, SplitFiles):
        return None
    assert data.questions is not None
    if (given.validation is None) != (data.questions.validation is None):
        raise SourceError(
            "data.questions and data.annotations: one names a validation file and the other does not; name both or none"
        )
    return files_of(given, split)


def named(given: SplitFiles | SplitNames, split: str) -> Any:
    """Return what a recipe names for a split; validation without a name of its own is held out of training."""
    own = getattr(given, split)
    return given.train if own is None and split == "validation" else own


def part_of(data: DataSection, split: str) -> Part | None:
    """Return which part of the training samples a split is, where validation is held out of them."""
    given = _given(data)
    if split == "test" or isinstance(given, str) or given is None or given.validation is not None:
        return None
    return Part(data.validation_share, held_out=split == "validation")


def sources_of(data: DataSection, split: str) -> frozenset[str]:
    """Name what a split is read from where its samples are all that are there; nothing where a file tells them apart.

    Validation that is held out of training has nothing of its own.
    """
    given: Any = None if data.name in WHOLE else _given(data)
    own = getattr(given, split, None)
    return frozenset(() if own is None else _several(own))


def check_apart(data: DataSection) -> None:
    """Refuse to train on what validation or test are read from; raises SourceError."""
    for split in ("validation", "test"):
        if both := sorted(sources_of(data, "train") & sources_of(data, split)):
            raise SourceError(
                f"data: train and {split} are both read from {both[0]}; what was trained on measures nothing, name "
                "another one" + (", or none to hold some of the training images out" if split == "validation" else "")
            )


def files_of(given: SplitFiles, split: str) -> list[Path]:
    """Return the files of a split, which may be several."""
    return [Path(name) for name in _several(named(given, split))]


def file_of(data: DataSection, split: str) -> Path:
    """Return the one file of annotations of a split."""
    assert data.annotations is not None
    if isinstance(data.annotations, str):
        if data.name not in WHOLE:
            raise SourceError(f"data.annotations: {data.name} reads a file for each split; name them")
        return Path(data.annotations)
    first, *more = files_of(data.annotations, split)
    if more:
        raise SourceError(f"data.annotations.{split}: {data.name} reads one file for each split; name one")
    return first


def images_of(data: DataSection) -> Path:
    """Return the folder of images."""
    assert data.images is not None
    return Path(data.images)


def _given(data: DataSection) -> Any:
    """Return what names the samples of each split; None for generated data."""
    return {"custom": data.splits, "vqav2": data.questions, "shapes": None}.get(data.name, data.annotations)


def _several(named: str | tuple[str, ...]) -> tuple[str, ...]:
    return (named,) if isinstance(named, str) else named
