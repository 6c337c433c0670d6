"""The batch that every image-pair task hands to a model.

Shapes: I images, S sentences (samples), T packed tokens, N patches of one image.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class PairBatch:
    """Hold sentences about pairs of images, each image once however many sentences ask about it."""

    images: Tensor
    """[I, 3, H, W] uint8."""
    text: Tensor
    """[T] int64: token ids of all sentences, one after the other and without padding."""
    text_lengths: list[int]
    """S lengths whose sum is T; position 0 of each sentence is [ENC]."""
    image_index: Tensor
    """[S, 2] int64: rows of `images` that are the left and the right image of each sentence."""
    labels: Tensor
    """[S] int64: 1 true, 0 false."""
    ids: tuple[str, ...]
    families: tuple[str, ...]
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    """Training-only labels: text_counts [S, 2] (count of the sentence's first noun phrase in the
    left and right image, -1 for none), patches [I, N] (0 no object, else 1 + shape * 6 + colour),
    image_counts [I, 9] (objects per colour, then per shape); all int64."""
