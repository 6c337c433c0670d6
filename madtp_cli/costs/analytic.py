"""Exact multiply-adds per sample from the tokens that entered and left every layer.

Convention: one multiply-add (MAC) of a convolution, linear map, attention product or token merge counts 1, at
inference, for one sample alone. Norms, activations, softmaxes and element-wise arithmetic are not counted
(`UNCOUNTED`). Costs are integers until they are printed; keys are module paths, so that parameters can be listed
beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LAYER_NORM = "layer norm"
UNCOUNTED = (LAYER_NORM, "softmax", "gelu", "residual additions", "embedding look-ups", "pruning scores and ranking")

Macs = dict[str, Tensor]  # module path -> int64 [B], one entry per sample


@dataclass(frozen=True)
class TowerShape:
    """The sizes of a tower that its cost depends on: width C and MLP width M; `path` leads to the layer index."""

    path: str
    width: int
    mlp: int


@dataclass(frozen=True)
class LayerCounts:
    """Tokens of each sample entering and leaving one layer (class token included), int64 [B].

    prunes: whether a method was asked, even if nothing went; guided: whether it was given alignment logits.
    """

    entering: Tensor
    leaving: Tensor
    prunes: bool
    guided: bool


def layer_counts(
    entering: Sequence[int], leaving: Sequence[int], *, prunes: bool = False, guided: bool = False
) -> LayerCounts:
    """Make a layer's counts from plain lists."""
    return LayerCounts(torch.tensor(entering), torch.tensor(leaving), prunes, guided)


def patch_embedding(patches: int, patch_size: int, width: int, batch: int) -> Tensor:
    """Count the convolution that turns `patches` patches into tokens, [B]."""
    return torch.full((batch,), patches * 3 * patch_size**2 * width)


def vision_layers(shape: TowerShape, layers: Sequence[LayerCounts], alignment_tokens: int) -> Macs:
    """Count pre-norm ViT layers: 4aC^2 + 2a^2C before pruning from a to b tokens, 2bCM after (method.md section 7)."""
    macs: Macs = {}
    c = shape.width
    for index, layer in enumerate(layers):
        a, b = layer.entering, layer.leaving
        macs[f"{shape.path}.{index}.self_attn"] = 4 * a * c**2 + 2 * a**2 * c
        macs |= pruning(f"{shape.path}.{index}.pruning", layer, c, alignment_tokens)
        macs[f"{shape.path}.{index}.mlp"] = 2 * b * c * shape.mlp
    return macs


def text_layers(
    shape: TowerShape,
    layers: Sequence[LayerCounts],
    images: Sequence[Tensor],
    *,
    image_width: int,
    alignment_tokens: int,
) -> Macs:
    """Count post-norm text layers that read any number of images; `images` holds each one's tokens per text, [S].

    A causal layer counts as any other: kernels may skip what its mask hides, published counts do not.
    """
    macs: Macs = {}
    c = shape.width
    for index, layer in enumerate(layers):
        a, b = layer.entering, layer.leaving
        path = f"{shape.path}.{index}"
        macs[f"{path}.attention"] = 4 * a * c**2 + 2 * a**2 * c
        macs |= pruning(f"{path}.pruning", layer, c, alignment_tokens)
        if images:
            cross = [2 * b * c**2 + 2 * n * image_width * c + 2 * b * n * c for n in images]
            macs[f"{path}.crossattention"] = torch.stack(cross).sum(0)
        macs[f"{path}.intermediate"] = b * c * shape.mlp
        macs[f"{path}.output"] = b * c * shape.mlp
    return macs


def twin_text_layers(
    shape: TowerShape,
    layers: Sequence[LayerCounts],
    images: Sequence[Tensor],
    *,
    image_width: int,
    merge_from: int,
    alignment_tokens: int,
) -> Macs:
    """Count text layers that read two images and, from layer `merge_from` on, join them by a map of twice the width."""
    macs = text_layers(shape, layers, images, image_width=image_width, alignment_tokens=alignment_tokens)
    for index, layer in enumerate(layers[merge_from:], merge_from):
        path = f"{shape.path}.{index}.crossattention"
        macs[path] = macs[path] + 2 * layer.leaving * shape.width**2
    return macs


def language_head(path: str, tokens: Tensor, width: int, vocabulary: int) -> Macs:
    """Count BERT's head over `tokens` [S] positions: a map, then one to the vocabulary."""
    return {path: tokens * (width**2 + width * vocabulary)}


def total(macs: Mapping[str, Tensor]) -> Tensor:
    """Add up all modules: int64 [B]."""
    return torch.stack(list(macs.values())).sum(0)


def pruning(path: str, layer: LayerCounts, width: int, alignment_tokens: int) -> Macs:
    """Count a pruned layer's alignment logits (with folded maps: C per token and alignment token) and its merge.

    A layer that may prune has its row even if nothing went, so that batches of one model have the same rows.
    """
    if not layer.prunes:
        return {}
    gone = layer.entering - layer.leaving
    merge = torch.where(gone > 0, (gone + 1) * width, 0)
    guidance = layer.entering * width * alignment_tokens if layer.guided else torch.zeros_like(gone)
    return {path: merge + guidance}
