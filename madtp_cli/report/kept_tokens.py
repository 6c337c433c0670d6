"""What a pruned model made of one sample: its answer, its cost, and the tokens that were kept in each pruned layer.

Plain records, so that whatever draws or writes them needs no torch. A position is a token's place in what entered its
tower: 0 the class token, then patches row by row; for a text, its words in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import Any, TypeVar

from numpy.typing import NDArray

Pixels = NDArray[Any]
"""[H, W, 3] uint8."""

TEXT = "text"
TITLES: Mapping[str, str] = {"vision": "image", "vision_left": "left image", "vision_right": "right image"}
"""How people call the images of a sample, by tower."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class KeptTokens:
    """What leaves one layer that prunes: positions of tokens that stand for themselves alone, and how many merged ones.

    What is in neither was folded into the merged tokens, or dropped where there is none.
    """

    layer: int
    alone: tuple[int, ...]
    merged: int


@dataclass(frozen=True)
class TowerView:
    """What a tower did to one image or text: `tokens` entered it, and `layers` are those that prune, in order."""

    tokens: int
    layers: tuple[KeptTokens, ...]

    @property
    def side(self) -> int:
        """How many patches are beside each other in an image, which is square and has a class token."""
        return isqrt(self.tokens - 1)

    def patches(self, layer: KeptTokens) -> list[int]:
        """Return the patches, counted from 0, that leave a layer alone."""
        return [position - 1 for position in layer.alone if position]


@dataclass(frozen=True)
class Sample:
    """One sample and what a model made of it; costs are in 1e9 multiply-adds.

    images are as the model sees them before normalising; words the pieces that the tokenizer cuts the text into;
    `answer` is what the model said and `reference` what was right, None where there is no such thing, as for `right`.
    towers holds `text` and, for every image, `vision` or `vision_left` and `vision_right`, in the order of images.
    """

    id: str
    images: tuple[Pixels, ...] = field(repr=False)
    words: tuple[str, ...]
    answer: str | None
    reference: str | None
    right: bool | None
    gmacs: float
    dense_gmacs: float
    towers: Mapping[str, TowerView]

    @property
    def views(self) -> list[tuple[str, Pixels, TowerView]]:
        """Each image with its tower's name and view."""
        names = [name for name in self.towers if name != TEXT]
        return [(name, image, self.towers[name]) for name, image in zip(names, self.images, strict=True)]


def described(kept: KeptTokens, tokens: int, unit: str) -> str:
    """Say what is left of so many tokens: `41 of 144 patches, the others in 1 merged token`.

    For `patches`, `tokens` and what was kept leave the class token out.
    """
    special = unit == "patches" and 0 in kept.alone
    alone, entered = len(kept.alone) - special, tokens - special
    if alone == entered:
        return f"all {entered} {unit}"
    text = f"{alone} of {entered} {unit}"
    if kept.merged:
        return f"{text}, the others in {kept.merged} merged token{'s' * (kept.merged > 1)}"
    return f"{text}, the others dropped"


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """Pick at most so many items evenly, the first and the last among them; of two at least."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]
