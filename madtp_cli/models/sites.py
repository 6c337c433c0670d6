"""Sites: the places of a model where tokens may go, and what each of them is to whoever prices, traces or draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from madtp_cli.pruning import Need

ATTENTION: frozenset[Need] = frozenset({"class_row", "received", "guidance"})
"""What a layer offers whose self-attention has a token that stands for all others."""


@dataclass(frozen=True)
class Site:
    """A tower's layers, or one place between two parts of a model (a site of one layer).

    name: what recipes, traces and reports call it. layers, width C and heads: its size. reads: what one of its samples
    is. prefix: tokens that open a sample and stand for no content. protected: tokens of a sample that no method may
    drop, the prefix included. prunes: whether tokens may go there; a site that does not prune only takes part in the
    alignment. offers: what a pruning method can ask for there.
    """

    name: str
    layers: int
    width: int
    heads: int
    reads: Literal["image", "text"]
    prefix: int = 1
    protected: int = 1
    prunes: bool = True
    offers: frozenset[Need] = ATTENTION

    def rows(self, text: int, images: Sequence[int]) -> dict[str, int]:
        """Name what a sample has at this site, with its row in the site's trace.

        `text` is the row of the sample's text, `images` are those of its images.
        """
        if self.reads == "text":
            return {self.name: text}
        return dict(zip(image_names(self.name, len(images)), images, strict=True))


def image_names(site: str, count: int) -> list[str]:
    """Name the images that a sample has at a site: by the site alone, as left and right, or by number from 1."""
    if count == 1:
        return [site]
    return [f"{site}_{side}" for side in (("left", "right") if count == 2 else range(1, count + 1))]
