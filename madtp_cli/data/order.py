"""The order in which training reads a split: shuffled anew in every epoch, and the same again for the same seed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from madtp_cli.data.batch import Batch, Split

BatchT = TypeVar("BatchT", bound=Batch)
BatchT_co = TypeVar("BatchT_co", bound=Batch, covariant=True)


class Gathering(Protocol[BatchT_co]):
    """A split that can return any samples."""

    def __len__(self) -> int: ...

    def gather(self, indices: Sequence[int]) -> BatchT_co:
        """Return the samples of some indices, in their order."""


class Shuffled(Generic[BatchT]):
    """Serve a split endlessly: positions 0 .. len - 1 are the first epoch, the next len the second, and so on.

    A position alone says which sample it is, so a run that is resumed at a step reads on as if it had never stopped.
    """

    def __init__(self, split: Gathering[BatchT], seed: int = 0) -> None:
        self.split = split
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split)

    @property
    def broken(self) -> list[str]:
        """Name the broken images of the split."""
        return getattr(self.split, "broken", [])

    @property
    def left_out(self) -> int:
        """Count the samples left out so far for such an image."""
        return getattr(self.split, "left_out", 0)

    def batch(self, start: int, size: int) -> BatchT:
        """Return the samples at positions start to start + size, which may reach into the next epoch."""
        if start < 0 or size < 1:
            raise ValueError(f"positions start at 0 and sizes at 1, got start {start} and size {size}")
        return self.split.gather(self.indices(start, size))

    def indices(self, start: int, size: int) -> list[int]:
        """Return which samples of the split lie at some positions."""
        return [
            int(permutation(len(self), self.seed, position // len(self))[position % len(self)])
            for position in range(start, start + size)
        ]


class Repeated(Generic[BatchT]):
    """Serve whole batches of a split over and over, in its own order: for data that are generated in random order."""

    def __init__(self, split: Split[BatchT]) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, start: int, size: int) -> BatchT:
        """Return the samples at positions start to start + size, a multiple of `size`; positions run on without end."""
        return self.split.batch(start % (len(self) // size * size), size)


@functools.lru_cache(maxsize=4)
def permutation(samples: int, seed: int, epoch: int) -> NDArray[Any]:
    """Return the order of an epoch: int64 [samples]."""
    return np.random.default_rng([seed, epoch]).permutation(samples)
