"""From pixels and ids to what a task's head reads: embeddings, a tower, the last norm; all of them the model's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from madtp_cli.export.padded import PaddedBatch
from madtp_cli.export.towers import Tower, TowerResult


class ImageEncoder(nn.Module):
    """An image encoder: `embed` makes tokens of its embeddings and of images, `norm` is before its tower."""

    def __init__(
        self,
        vision: Any,
        tower: Tower,
        embed: Callable[[Any, Tensor], PaddedBatch],
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.embeddings = vision.embeddings
        self.norm = nn.Identity() if norm is None else norm
        self.tower = tower
        self.last_norm = vision.post_layernorm
        self.embed = embed

    def forward(self, images: Tensor) -> TowerResult:
        """Encode normalised images [I, 3, H, W] float32: their tokens after the last norm."""
        tokens = self.embed(self.embeddings, images)
        found: TowerResult = self.tower(tokens.with_flat(self.norm(tokens.flat)))
        return replace(found, tokens=found.tokens.with_flat(self.last_norm(found.tokens.flat)))


class TextEncoder(nn.Module):
    """A text encoder or decoder: `embed` makes tokens of its embeddings and of texts and their lengths."""

    def __init__(
        self,
        embeddings: nn.Module,
        tower: Tower,
        embed: Callable[[Any, Tensor, Tensor], PaddedBatch],
        last_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.tower = tower
        self.last_norm = nn.Identity() if last_norm is None else last_norm
        self.embed = embed

    def forward(self, text: Tensor, lengths: Tensor, sides: Sequence[PaddedBatch] = ()) -> TowerResult:
        """Read texts [B, L], of which lengths [B] ids count, over the sides, one sample each per text."""
        found: TowerResult = self.tower(self.embed(self.embeddings, text, lengths), sides)
        return replace(found, tokens=found.tokens.with_flat(self.last_norm(found.tokens.flat)))


def cut_patches(convolution: Any, images: Tensor) -> Tensor:
    """Cut normalised images [I, 3, H, W] float32 into embedded patches: [I, N, C]."""
    found: Tensor = convolution(images.to(convolution.weight.dtype)).flatten(2).transpose(1, 2)
    return found


def place_patches(patches: Tensor, first: Tensor, places: Tensor) -> PaddedBatch:
    """Put the class token `first` [1, 1, C] before patches [I, N, C], and add their places."""
    return PaddedBatch.of(torch.cat([first.expand(patches.shape[0], -1, -1), patches], 1) + places)


def embed_words(words: Any, places: Any, text: Tensor) -> Tensor:
    """Add up the embeddings of ids [B, L] and of their places: [B, L, C]."""
    found: Tensor = words(text) + places.weight[: text.shape[1]]
    return found
