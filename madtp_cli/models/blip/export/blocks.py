"""BLIP's blocks and embeddings over padded batches: what models/blip/vision.py and text.py do, as a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from madtp_cli.export.encoders import ImageEncoder, TextEncoder, cut_patches, embed_words, place_patches
from madtp_cli.export.padded import Cut, PaddedBatch, attend, join_heads, split_heads
from madtp_cli.export.towers import Attended, BlockForm, Tower, self_attend
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.blip import text
from madtp_cli.models.image_text import TEXT, VISION


def image_encoder(model: Any, cuts: Mapping[int, Cut]) -> ImageEncoder:
    """Lay a model's image encoder out."""
    vision = model.vision_model
    return ImageEncoder(vision, Tower(model, VISION, list(vision.encoder.layers), cuts, IMAGE_BLOCK), _embed_images)


def text_encoder(
    model: PrunedModel,
    tower: text.TextModel | text.TwinTextModel,
    cuts: Mapping[int, Cut],
    *,
    causal: bool = False,
    site: str = TEXT,
) -> TextEncoder:
    """Lay a text encoder or, `causal`, a decoder of a model out."""
    layers: Any = tower.encoder.layer
    blocks = Tower(model, site, list(layers), cuts, TEXT_BLOCK)
    return TextEncoder(tower.embeddings, blocks, partial(_embed_text, causal=causal))


def _embed_images(embeddings: Any, images: Tensor) -> PaddedBatch:
    patches = cut_patches(embeddings.patch_embedding, images)
    return place_patches(patches, embeddings.class_embedding, embeddings.position_embedding)


def _embed_text(embeddings: Any, ids: Tensor, lengths: Tensor, *, causal: bool) -> PaddedBatch:
    x = embeddings.LayerNorm(embed_words(embeddings.word_embeddings, embeddings.position_embeddings, ids))
    return PaddedBatch.of_lengths(x, lengths, causal=causal)


def _attend_vision(block: Any, tokens: PaddedBatch, statistics: bool) -> Attended:
    attention = block.self_attn
    fused = attention.qkv(block.layer_norm1(tokens.flat))  # [B * N, 3 C]
    width = fused.shape[-1] // (3 * attention.heads)
    parts = fused.view(*tokens.position.shape, 3, attention.heads, width).permute(2, 0, 3, 1, 4)
    out, found = self_attend([parts[0], parts[1], parts[2]], tokens, statistics)
    return tokens.with_flat(tokens.flat + attention.projection(out)), found


def _attend_text(block: Any, tokens: PaddedBatch, statistics: bool) -> Attended:
    part = block.attention.self
    maps = (part.query, part.key, part.value)
    out, found = self_attend((split_heads(each(tokens.flat), part.heads, tokens) for each in maps), tokens, statistics)
    return tokens.with_flat(block.attention.output(out, tokens.flat)), found


def _finish_vision(block: Any, tokens: PaddedBatch, sides: Sequence[PaddedBatch]) -> PaddedBatch:
    return tokens.with_flat(tokens.flat + block.mlp(block.layer_norm2(tokens.flat)))


def _finish_text(block: Any, tokens: PaddedBatch, sides: Sequence[PaddedBatch]) -> PaddedBatch:
    cross = block.crossattention
    x = _CROSS[type(cross)](cross, tokens, sides)
    return tokens.with_flat(block.output(block.intermediate(x), x))


def _read_one(cross: Any, tokens: PaddedBatch, sides: Sequence[PaddedBatch]) -> Tensor:
    """Read the one side, or none: [B * N, C]."""
    return cross.output(_read(cross.self, tokens, sides[0]), tokens.flat) if sides else tokens.flat


def _read_two(cross: Any, tokens: PaddedBatch, sides: Sequence[PaddedBatch]) -> Tensor:
    left, right = sides
    return cross.output(_read(cross.self0, tokens, left), _read(cross.self1, tokens, right), tokens.flat)


def _read(part: Any, tokens: PaddedBatch, side: PaddedBatch) -> Tensor:
    """Attend from tokens to a side of as many samples, or of one for all: [B * N, C]."""
    maps = ((part.query, tokens), (part.key, side), (part.value, side))
    q, k, v = (split_heads(linear(each.flat), part.heads, each) for linear, each in maps)
    return join_heads(attend(q, k, v, side.mask))


_CROSS: Mapping[type[nn.Module], Callable[[Any, PaddedBatch, Sequence[PaddedBatch]], Tensor]] = {
    text.CrossAttention: _read_one,
    text.TwinCrossAttention: _read_two,
}
IMAGE_BLOCK = BlockForm(_attend_vision, _finish_vision)
TEXT_BLOCK = BlockForm(_attend_text, _finish_text)
