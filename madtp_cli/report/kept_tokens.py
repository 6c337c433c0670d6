"""What a pruned model made of one sample: its answer, its cost, and the tokens that were kept in each pruned layer.

Plain records, so that whatever draws or writes them needs no torch. A position is a token's place in its image or text
before any pruning: the prefix (a class token) first, then patches row by row; for a text, its words in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from math import isqrt
from typing import Any, Literal, TypeVar

from numpy.typing import NDArray

Pixels = NDArray[Any]
"""[H, W, 3] uint8."""

TITLES: Mapping[str, str] = {"vision": "image", "vision_left": "left image", "vision_right": "right image"}
"""How people call the images of a sample, by what they are called at a site."""
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
class SiteView:
    """What happened to one image or text at a site; `layers` are those that prune, in order.

    tokens: those of the image or text before any pruning, of which `prefix`, a class token as a rule, stand before an
    image's patches.
    """

    tokens: int
    layers: tuple[KeptTokens, ...]
    reads: Literal["image", "text"] = "image"
    prefix: int = 1

    @property
    def side(self) -> int:
        """How many patches are beside each other in an image, which is square."""
        return isqrt(self.tokens - self.prefix)

    def patches(self, layer: KeptTokens) -> list[int]:
        """Return the patches, counted from 0, that leave a layer alone."""
        return [position - self.prefix for position in layer.alone if position >= self.prefix]

    def described(self, layer: KeptTokens) -> str:
        """Say what is left of so many tokens: `41 of 144 patches, the others in 1 merged token`; the prefix is none."""
        unit, prefix = ("words", 0) if self.reads == "text" else ("patches", self.prefix)
        alone, entered = sum(position >= prefix for position in layer.alone), self.tokens - prefix
        if alone == entered:
            return f"all {entered} {unit}"
        text = f"{alone} of {entered} {unit}"
        if layer.merged:
            return f"{text}, the others in {layer.merged} merged token{'s' * (layer.merged > 1)}"
        return f"{text}, the others dropped"


@dataclass(frozen=True)
class Sample:
    """One sample and what a model made of it; costs are in 1e9 multiply-adds.

    images are as the model sees them before normalising; words the pieces that the tokenizer cuts the text into;
    `answer` is what the model said and `reference` what was right, None where there is no such thing, as for `right`.
    sites holds a view of each of the images and of the text at every site, by what it is called there.
    """

    id: str
    images: tuple[Pixels, ...] = field(repr=False)
    words: tuple[str, ...]
    answer: str | None
    reference: str | None
    right: bool | None
    gmacs: float
    dense_gmacs: float
    sites: Mapping[str, SiteView]

    @property
    def views(self) -> list[tuple[str, Pixels, SiteView]]:
        """Each image with its name and view at every site that images meet."""
        found = [(name, view) for name, view in self.sites.items() if view.reads == "image"]
        return [(name, image, view) for (name, view), image in zip(found, cycle(self.images), strict=False)]

    @property
    def texts(self) -> list[tuple[str, SiteView]]:
        """The text's name and view at every site that texts meet."""
        return [(name, view) for name, view in self.sites.items() if view.reads == "text"]


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """Pick at most so many items evenly, the first and the last among them; of two at least."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]
