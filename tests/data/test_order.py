"""The shuffle: every epoch is a permutation, another one each time, and a position alone says what comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from madtp_cli.data.order import Shuffled


class Numbers:
    broken: ClassVar = ["x"]

    def __len__(self) -> int:
        return 10

    def gather(self, indices: Sequence[int]) -> Any:
        return list(indices)


def test_every_epoch_has_every_sample_once_in_another_order() -> None:
    data: Shuffled[Any] = Shuffled(Numbers(), seed=3)
    epochs: list[Any] = [data.batch(10 * epoch, 10) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_positions_say_what_comes_whatever_was_read_before() -> None:
    """A resumed run reads on: batches cut from one long read are what a fresh object returns, over epochs too."""
    whole: Any = Shuffled[Any](Numbers(), seed=3).batch(0, 40)
    again: Shuffled[Any] = Shuffled(Numbers(), seed=3)
    for start in (28, 8, 0, 37):
        assert again.batch(start, 3) == whole[start : start + 3]


def test_seeds_give_different_orders() -> None:
    orders = {tuple(Shuffled[Any](Numbers(), seed=seed).indices(0, 10)) for seed in range(5)}
    assert len(orders) == 5


def test_it_has_the_length_and_the_broken_images_of_its_split() -> None:
    data: Shuffled[Any] = Shuffled(Numbers())
    assert len(data) == 10
    assert data.broken == ["x"]
    with pytest.raises(ValueError, match="positions start at 0"):
        data.batch(-1, 2)
