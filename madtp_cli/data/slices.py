"""Names of splits and slices of them, `train[:80%]+test[5:9]`: which a single table has, and which share rows.

The grammar is that of `datasets`, which also turns slices into rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from madtp_cli.errors import SourceError

ONLY = "train"  # what the rows of a table are called that has no splits
EVERY = "all"  # every split of a source
_BOUNDS = re.compile(r"\[([^\]]*)\]")
# Sizes that tell slices apart as well as the true ones: percents fall on whole rows, and no number is beyond the end.
_PERCENTS, _NUMBERS = 10_000, 10**12


def names_in(split: str) -> list[str]:
    """Return the splits that a name and its slices start from, each once."""
    parts = (re.split(r"[\[(]", part)[0].strip() for part in split.split("+"))
    return list(dict.fromkeys(parts))


def check_only(source: str, split: str, *, streaming: bool = False) -> None:
    """Refuse every split of a single table but `train` and slices of it; raises SourceError."""
    folder = "give a folder in data.source with a file for each split (train.csv, validation.csv, test.csv)"
    if unknown := [name for name in names_in(split) if name != ONLY]:
        raise SourceError(
            f"{source}: has no split {unknown[0]!r}, all that one table has is {ONLY!r}; name slices of it in "
            f"data.splits, such as 'train[:80%]', 'train[80%:90%]' and 'train[90%:]', or {folder}"
        )
    if streaming and split != ONLY:
        raise SourceError(f"{source}: a stream has no slices, got {split!r}; set data.streaming to false, or {folder}")


def rows_of(split: str, sizes: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Return what a name of a split stands for: splits of the source with their first row and the one after the last.

    Raises ValueError for what is no such name, or names a split that is not there.
    """
    import datasets

    if split == EVERY:
        return [(name, 0, size) for name, size in sizes.items()]
    found = datasets.ReadInstruction.from_spec(split).to_absolute(dict(sizes))
    return [(each.splitname, each.from_, each.to) for each in found]


def share_rows(one: str, other: str, sizes: Mapping[str, int] | None = None) -> bool:
    """Tell whether two splits of one source have rows in common.

    Without the `sizes` of its splits, what only these can tell (`train[:100]` and `train[80%:]`) counts as apart, and
    so does a name that cannot be read, which opening it explains.
    """
    if one == other:
        return True
    names = [*names_in(one), *names_in(other)]
    if sizes is None:
        size = _telling_size(one + other)
        if size is None:
            return False
        sizes = dict.fromkeys((name for name in names if name != EVERY), size)
    try:
        spans = rows_of(one, sizes), rows_of(other, sizes)
    except (ValueError, AssertionError):
        return False
    return any(
        name == another and max(start, first) < min(end, last)
        for name, start, end in spans[0]
        for another, first, last in spans[1]
    )


def _telling_size(slices: str) -> int | None:
    """Return a size at which slices overlap where they do at any size; None where that depends on it."""
    inside = [bound.strip() for found in _BOUNDS.findall(slices) for bound in found.split(":")]
    bounds = [bound for bound in inside if bound]
    if all(bound.endswith("%") for bound in bounds):
        return _PERCENTS
    return _NUMBERS if all(bound.replace("_", "").isdigit() for bound in bounds) else None
