"""Holding some of the training images out, for data sets that publish no validation split with answers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from madtp_cli.data.packing import Sample


@dataclass(frozen=True)
class Part:
    """One of the two parts that training samples are divided into: the `share` that is held out, or what is left.

    A hash decides for each unit (an image, or a set of images that belong together), so a sample is on the same side
    in every run and on every machine, and no image is on both.
    """

    share: float
    held_out: bool

    def has(self, unit: str) -> bool:
        """Tell whether a unit is in this part."""
        digest = hashlib.blake2b(unit.encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "big") < self.share * 2**64) == self.held_out

    def takes(self, sample: Sample) -> bool:
        """Tell whether a sample is in this part."""
        return self.has(sample.unit or sample.images[0])

    def describe(self) -> str:
        """Name the part in a message."""
        return f"the {'held-out' if self.held_out else 'remaining'} part (data.validation_share is {self.share:g})"
