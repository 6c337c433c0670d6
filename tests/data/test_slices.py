"""Slices of splits: which a single table has, and which of them have rows in common."""

from __future__ import annotations

import pytest

from madtp_cli.data.slices import check_only, rows_of, share_rows
from madtp_cli.errors import SourceError


@pytest.mark.parametrize("split", ["val", "test", "trian[:60%]", "train[:50%]+val", "all"])
def test_one_table_has_no_split_but_train(split: str) -> None:
    """The message has the split, the file, what there is and what to try."""
    with pytest.raises(SourceError) as caught:
        check_only("my/q.csv", split)
    name = {"trian[:60%]": "trian", "train[:50%]+val": "val"}.get(split, split)
    assert str(caught.value) == (
        f"my/q.csv: has no split '{name}', all that one table has is 'train'; name slices of it in data.splits, such "
        "as 'train[:80%]', 'train[80%:90%]' and 'train[90%:]', or give a folder in data.source with a file for each "
        "split (train.csv, validation.csv, test.csv)"
    )


def test_one_table_has_train_and_slices_of_it_but_not_in_a_stream() -> None:
    for split in ("train", "train[:60%]", "train[5:9]+train[-3:]", "train[:33%](pct1_dropremainder)"):
        check_only("q.csv", split)
    check_only("q.csv", "train", streaming=True)
    with pytest.raises(SourceError, match=r"q\.csv: a stream has no slices, got 'train\[:60%\]'; set data\.streaming"):
        check_only("q.csv", "train[:60%]", streaming=True)


def test_rows_are_counted_as_datasets_does() -> None:
    sizes = {"train": 20, "test": 7}
    assert rows_of("train[:60%]", sizes) == [("train", 0, 12)]
    assert rows_of("train[-5:]+test[2:4]", sizes) == [("train", 15, 20), ("test", 2, 4)]
    assert rows_of("all", sizes) == [("train", 0, 20), ("test", 0, 7)]
    with pytest.raises(ValueError, match="val"):
        rows_of("val", sizes)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("train", "train", True),
        ("train", "test", False),
        ("train", "train[80%:]", True),
        ("train[:80%]", "train[80%:]", False),
        ("train[:81%]", "train[80%:]", True),
        ("train[:80%]", "train[-20%:]", False),
        ("train[:80%]", "train[-21%:]", True),
        ("train[:100]", "train[100:200]", False),
        ("train[:101]", "train[100:]", True),
        ("train[:1_000]", "train[999:]", True),
        ("train", "train[-5:]", False),  # true of any size, but only a size tells how much
        ("train[:10%]+train[50%:60%]", "train[55%:]", True),
        ("train[:10%]+test", "test[5:9]", False),  # percents and numbers: see the sizes below
        ("train+test", "test", True),
        ("all", "test[:5%]", True),
        ("train[x]", "train[80%:]", False),  # opening it says what is wrong with it
    ],
)
def test_rows_that_names_alone_tell_to_be_shared(one: str, other: str, shared: bool) -> None:
    assert share_rows(one, other) is share_rows(other, one) is shared


@pytest.mark.parametrize(("rows", "shared"), [(1000, False), (124, True), (125, False)])
def test_sizes_tell_percents_and_numbers_apart(rows: int, shared: bool) -> None:
    """Oracle by hand: 80% of 125 rows is 100, of 124 it is 99."""
    assert share_rows("train[:100]", "train[80%:]", {"train": rows}) is shared


def test_sizes_tell_rows_counted_from_the_end() -> None:
    assert share_rows("train", "train[-5:]", {"train": 20})
    assert not share_rows("train[:15]", "train[-5:]", {"train": 20})
    assert share_rows("train[:16]", "train[-5:]", {"train": 20})
