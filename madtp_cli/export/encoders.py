"""From pixels and ids to what a task's head reads: embeddings, a tower, the last norm; all of them the model's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from madtp_cli.export.padded import Cut, PaddedBatch
from madtp_cli.export.towers import Tower, TowerResult
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.blip import text as blip_text
from madtp_cli.models.blip import vision as blip
from madtp_cli.models.clip import model as clip


class ImageEncoder(nn.Module):
    """A model's image encoder."""

    def __init__(self, model: PrunedModel, cuts: Mapping[int, Cut]) -> None:
        super().__init__()
        vision = model.vision_model
        self.embeddings = vision.embeddings
        self.norm = vision.pre_layrnorm if isinstance(vision, clip.VisionModel) else nn.Identity()
        self.tower = Tower(model, "vision", list(vision.encoder.layers), cuts)
        self.last_norm = vision.post_layernorm

    def forward(self, images: Tensor) -> TowerResult:
        """Encode normalised images [I, 3, H, W] float32: their tokens after the last norm."""
        tokens = embed_images(self.embeddings, images)
        found: TowerResult = self.tower(tokens.with_flat(self.norm(tokens.flat)))
        return replace(found, tokens=found.tokens.with_flat(self.last_norm(found.tokens.flat)))


class TextEncoder(nn.Module):
    """A text encoder or decoder of a model: `text` holds its embeddings and its encoder's blocks."""

    def __init__(
        self, model: PrunedModel, text: Any, cuts: Mapping[int, Cut], *, causal: bool = False, tower: str = "text"
    ) -> None:
        """Build; `causal` for a decoder (CLIP's texts are so by themselves)."""
        super().__init__()
        clips = isinstance(text, clip.TextModel)
        self.embeddings = text.embeddings
        self.tower = Tower(model, tower, list(text.encoder.layers if clips else text.encoder.layer), cuts)
        self.last_norm = text.final_layer_norm if clips else nn.Identity()
        self.causal = causal

    def forward(self, text: Tensor, lengths: Tensor, sides: Sequence[PaddedBatch] = ()) -> TowerResult:
        """Read texts [B, L], of which lengths [B] ids count, over the sides, one sample each per text."""
        found: TowerResult = self.tower(embed_text(self.embeddings, text, lengths, causal=self.causal), sides)
        return replace(found, tokens=found.tokens.with_flat(self.last_norm(found.tokens.flat)))


def embed_images(embeddings: nn.Module, images: Tensor) -> PaddedBatch:
    """Embed normalised images [I, 3, H, W] float32: class token first, then the patches."""
    convolution: Any = embeddings.patch_embedding
    patches = convolution(images.to(convolution.weight.dtype)).flatten(2).transpose(1, 2)  # [I, N, C]
    first, places = _IMAGE_PARTS[type(embeddings)](embeddings)
    return PaddedBatch.of(torch.cat([first.expand(patches.shape[0], -1, -1), patches], 1) + places)


def embed_text(embeddings: nn.Module, text: Tensor, lengths: Tensor, *, causal: bool = False) -> PaddedBatch:
    """Embed texts [B, L], of which lengths [B] ids count."""
    words, places, norm = _TEXT_PARTS[type(embeddings)](embeddings)
    x = norm(words(text) + places.weight[: text.shape[1]])
    clips = isinstance(embeddings, clip.TextEmbeddings)
    return PaddedBatch.of_lengths(x, lengths, ends=clips, causal=causal or clips)


_IMAGE_PARTS: Mapping[type[nn.Module], Callable[[Any], tuple[Tensor, Tensor]]] = {
    blip.VisionEmbeddings: lambda e: (e.class_embedding, e.position_embedding),
    clip.VisionEmbeddings: lambda e: (e.class_embedding.view(1, 1, -1), e.position_embedding.weight),
}
_TEXT_PARTS: Mapping[type[nn.Module], Callable[[Any], tuple[Any, Any, Callable[[Tensor], Tensor]]]] = {
    blip_text.TextEmbeddings: lambda e: (e.word_embeddings, e.position_embeddings, e.LayerNorm),
    clip.TextEmbeddings: lambda e: (e.token_embedding, e.position_embedding, nn.Identity()),
}
