"""Which files, and which part of their samples, a recipe's data section names for each split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from madtp_cli.data.holdout import Part
from madtp_cli.data.slices import share_rows
from madtp_cli.errors import SourceError
from madtp_cli.recipe_sections import DataSection, SplitFiles, SplitNames

SAME_SAMPLES = "validation and test are the same samples: what is reported as test also chose weights and strength"
SHARED_SAMPLES = "validation and test share samples: a part of what is reported as test also chose weights and strength"
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


def check_apart(data: DataSection, sizes: Mapping[str, int] | None = None) -> None:
    """Refuse to train on what validation or test are read from; raises SourceError.

    `sizes` of the splits of custom data tell slices apart whose names do not.
    """
    for split in ("validation", "test"):
        if both := _shared(data, "train", split, sizes):
            none = split == "validation"
            raise SourceError(
                f"data: train and {split} are both read from {both}; what was trained on measures nothing, name "
                "another one" + (", or none to hold some of the training images out" if none else "")
            )


def apart_note(data: DataSection) -> str | None:
    """Say that validation and test are the same samples or share some, if their names tell so."""
    if not _shared(data, "validation", "test"):
        return None
    same = data.name != "custom" or data.splits.validation == data.splits.test
    return SAME_SAMPLES if same else SHARED_SAMPLES


def _shared(data: DataSection, one: str, other: str, sizes: Mapping[str, int] | None = None) -> str | None:
    """Name what two splits are both read from, if anything.

    Validation that is held out of training has nothing of its own, and of one file that tells its samples' splits
    each has its part.
    """
    given: Any = None if data.name in WHOLE else _given(data)
    first, second = getattr(given, one, None), getattr(given, other, None)
    if first is None or second is None:
        return None
    if data.name != "custom":
        return next(iter(sorted({*_several(first)} & {*_several(second)})), None)
    if not share_rows(first, second, sizes):
        return None
    return first if first == second else f"the same rows of {data.source} ({first} and {second})"


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
