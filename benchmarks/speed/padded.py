"""The plain reference: the same weights over padded batches [B, N, C] with fused SDPA, nothing pruned, nothing ragged.

It is written for speed alone. On a CPU a tower runs over a few samples at a time, so that every intermediate stays
small: large tensors are new memory every time, at a page fault per 4 KiB, and are read again from outside the cache.

Shapes: B samples, N tokens of one sample, C width, M width of the MLP, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, normalize, scaled_dot_product_attention

from madtp_cli.models.activations import gelu
from madtp_cli.models.base import PrunedModel

TOKENS_AT_ONCE = 1200
"""Tokens that a tower computes at a time on a CPU: the MLP's 3072 channels of them take 14 MB."""

Affine = tuple[Tensor, Tensor]  # weight and bias
Rows = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def _norm(module: Any) -> _Norm:
    return _Norm(module.weight, module.bias, module.eps)


def _affine(module: Any) -> Affine:
    return module.weight, module.bias


def _fused(modules: Sequence[Any]) -> Affine:
    """Stack linear maps of one input into one."""
    return torch.cat([m.weight for m in modules]), torch.cat([m.bias for m in modules])


def _attention(
    x: Tensor, heads: int, qkv: Affine, out: Affine, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Self-attend: [B, N, C] -> [B, N, C]; a mask [B, N] leaves keys out."""
    fused = linear(x, *qkv).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, H, N, D]
    # Rows a multiple of 4 KiB apart fall on the same lines of the cache; elsewhere a copy costs what it saves.
    q, k, v = fused.contiguous() if x.shape[-1] % 1024 == 0 else fused
    seen = None if mask is None else mask[:, None, None]
    read = scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)
    return linear(read.transpose(1, 2).flatten(2), *out)


def _cross_attention(q: Tensor, images: Tensor, *, heads: int, memory: Affine) -> Tensor:
    """Read images [B, N, C] with queries [B, H, L, D]: [B, L, C]."""
    k, v = linear(images, *memory).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class _PreNormLayer:
    """A ViT or CLIP layer."""

    heads: int
    norm1: _Norm
    qkv: Affine
    out: Affine
    norm2: _Norm
    fc1: Affine
    fc2: Affine
    activation: Rows
    causal: bool = False

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + _attention(self.norm1(x), self.heads, self.qkv, self.out, mask, causal=self.causal)
        return x + linear(self.activation(linear(self.norm2(x), *self.fc1)), *self.fc2)


def _blip_vision(block: Any) -> _PreNormLayer:
    attention = block.self_attn
    return _PreNormLayer(
        heads=attention.heads,
        norm1=_norm(block.layer_norm1),
        qkv=_affine(attention.qkv),
        out=_affine(attention.projection),
        norm2=_norm(block.layer_norm2),
        fc1=_affine(block.mlp.fc1),
        fc2=_affine(block.mlp.fc2),
        activation=gelu,
    )


def _clip_layer(block: Any, *, causal: bool) -> _PreNormLayer:
    attention = block.self_attn
    return _PreNormLayer(
        heads=attention.heads,
        norm1=_norm(block.layer_norm1),
        qkv=_fused([attention.q_proj, attention.k_proj, attention.v_proj]),
        out=_affine(attention.out_proj),
        norm2=_norm(block.layer_norm2),
        fc1=_affine(block.mlp.fc1),
        fc2=_affine(block.mlp.fc2),
        activation=block.mlp.activation,
        causal=causal,
    )


def vision_layers(model: Any) -> list[_PreNormLayer]:
    """Return the layers of a model's vision tower, as functions of padded batches."""
    blocks: Any = model.vision_model.encoder.layers
    if model.family == "clip":
        return [_clip_layer(block, causal=False) for block in blocks]
    return [_blip_vision(block) for block in blocks]


@dataclass(frozen=True)
class _TwinLayer:
    """A BERT layer that reads two images."""

    heads: int
    qkv: Affine
    out: Affine
    norm1: _Norm
    queries: Affine  # of both sides
    memories: tuple[Affine, Affine]  # keys and values of each side
    outs: tuple[Affine, Affine]
    merge: Affine | None
    norm2: _Norm
    fc1: Affine
    fc2: Affine
    norm3: _Norm

    def __call__(self, x: Tensor, sides: Sequence[Tensor]) -> Tensor:
        x = self.norm1(x + _attention(x, self.heads, self.qkv, self.out))
        queries = linear(x, *self.queries).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        read = []
        for q, images, memory, out in zip(queries, sides, self.memories, self.outs, strict=True):
            look = partial(_cross_attention, heads=self.heads, memory=memory)
            read.append(linear(in_parts(look, images.shape[1], q, images), *out))
        joined = (read[0] + read[1]) / 2 if self.merge is None else linear(torch.cat(read, -1), *self.merge)
        x = self.norm2(x + joined)
        return self.norm3(x + linear(gelu(linear(x, *self.fc1)), *self.fc2))


def _twin_layer(block: Any) -> _TwinLayer:
    own, cross = block.attention, block.crossattention
    return _TwinLayer(
        heads=own.self.heads,
        qkv=_fused([own.self.query, own.self.key, own.self.value]),
        out=_affine(own.output.dense),
        norm1=_norm(own.output.LayerNorm),
        queries=_fused([cross.self0.query, cross.self1.query]),
        memories=(
            _fused([cross.self0.key, cross.self0.value]),
            _fused([cross.self1.key, cross.self1.value]),
        ),
        outs=(_affine(cross.output.dense0), _affine(cross.output.dense1)),
        merge=None if cross.output.merge_layer is None else _affine(cross.output.merge_layer),
        norm2=_norm(cross.output.LayerNorm),
        fc1=_affine(block.intermediate.dense),
        fc2=_affine(block.output.dense),
        norm3=_norm(block.output.LayerNorm),
    )


def in_parts(rows: Callable[..., Tensor], tokens: int, *given: Tensor) -> Tensor:
    """Compute samples [B, ...] of so many tokens each in parts that fit a cache; at once where there is a GPU."""
    count = max(1, TOKENS_AT_ONCE // tokens)
    if given[0].is_cuda or len(given[0]) <= count:
        return rows(*given)
    return torch.cat([rows(*part) for part in zip(*(each.split(count) for each in given), strict=True)])


class PaddedNlvr:
    """BLIP for NLVR2 over sentences of one length."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.vision = vision_layers(model)
        self.text = [_twin_layer(block) for block in self.model.text_encoder.encoder.layer]

    def __call__(self, images: Tensor, ids: Tensor) -> Tensor:
        """Judge sentences [P, L] over images [2 P, 3, H, W], left and right in turn: logits [P, 2]."""
        seen = in_parts(self._images, self.model.image_tokens, images)  # [I, N, C]
        sides = [seen[side::2].contiguous() for side in (0, 1)]  # [P, N, C]
        words = self.model.text_encoder.embeddings
        x = words.word_embeddings(ids) + words.position_embeddings.weight[: ids.shape[1]]
        x = _norm(words.LayerNorm)(x)  # [P, L, C]
        for twin in self.text:
            x = twin(x, sides)
        logits: Tensor = self.model.cls_head(x[:, 0])
        return logits

    def _images(self, images: Tensor) -> Tensor:
        embeddings = self.model.vision_model.embeddings
        x = _patches(embeddings.patch_embedding, images)
        x = torch.cat([embeddings.class_embedding.expand(len(x), -1, -1), x], 1) + embeddings.position_embedding
        for layer in self.vision:
            x = layer(x)
        return _norm(self.model.vision_model.post_layernorm)(x)


class PaddedClip:
    """CLIP over texts of one length that end with their EOT."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.vision = vision_layers(model)
        self.text = [_clip_layer(block, causal=True) for block in self.model.text_model.encoder.layers]

    def __call__(self, images: Tensor, ids: Tensor) -> Tensor:
        """Compare texts [S, L] with images [I, 3, H, W]: logits [S, I]."""
        seen = in_parts(self._images, self.model.image_tokens, images)
        read = in_parts(self._texts, ids.shape[1], ids)
        return self.model.logit_scale.exp() * read @ seen.t()

    def _images(self, images: Tensor) -> Tensor:
        tower = self.model.vision_model
        embeddings = tower.embeddings
        x = _patches(embeddings.patch_embedding, images)
        x = torch.cat([embeddings.class_embedding.expand(len(x), 1, -1), x], 1) + embeddings.position_embedding.weight
        x = _norm(tower.pre_layrnorm)(x)
        for layer in self.vision:
            x = layer(x)
        return normalize(self.model.visual_projection(_norm(tower.post_layernorm)(x[:, 0])), dim=-1)

    def _texts(self, ids: Tensor) -> Tensor:
        tower = self.model.text_model
        x = tower.embeddings.token_embedding(ids) + tower.embeddings.position_embedding.weight[: ids.shape[1]]
        for layer in self.text:
            x = layer(x)
        return normalize(self.model.text_projection(_norm(tower.final_layer_norm)(x[:, -1])), dim=-1)


def _patches(convolution: Any, images: Tensor) -> Tensor:
    """Embed the patches of images [I, 3, H, W]: [I, N - 1, C]."""
    patches: Tensor = convolution(images)
    return patches.flatten(2).transpose(1, 2)


def build(model: PrunedModel) -> PaddedNlvr | PaddedClip:
    """Build the reference of a model, with its weights."""
    return PaddedClip(model) if model.family == "clip" else PaddedNlvr(model)
