"""The loop over blocks on padded batches: models/tower.py as a graph of the model's own modules; no weight is copied.

Only what a block does with tokens is written anew: its maps, norms and MLPs are called as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from madtp_cli.export.padded import (
    Cut,
    PaddedBatch,
    Statistics,
    attend,
    attend_with_statistics,
    compact,
    join_heads,
    split_heads,
)
from madtp_cli.export.selection import SELECTORS
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.blip import text as blip_text
from madtp_cli.models.blip import vision as blip
from madtp_cli.models.clip import model as clip

Attended = tuple[PaddedBatch, Statistics | None]


@dataclass(frozen=True)
class TowerResult:
    """What came out of a tower: its tokens, and how many left every layer, [B, layers] int64."""

    tokens: PaddedBatch
    kept: Tensor


class Tower(nn.Module):
    """Run a tower's blocks, pruning in the layers that `cuts` names."""

    def __init__(self, model: PrunedModel, tower: str, blocks: Sequence[nn.Module], cuts: Mapping[int, Cut]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.cuts = dict(cuts)
        pruner = model.plan.pruner if model.plan is not None else None
        self.selectors = nn.ModuleDict(
            {str(layer): SELECTORS[type(pruner)](model, tower, layer) for layer in self.cuts}
        )

    def forward(self, tokens: PaddedBatch, sides: Sequence[PaddedBatch] = ()) -> TowerResult:
        """Run tokens through all blocks, which read the sides they are given, one each per sample."""
        left = []
        for layer, block in enumerate(self.blocks):
            selector = self.selectors[str(layer)] if layer in self.cuts else None
            entering = tokens.flat
            tokens, statistics = attend_in(block, tokens, statistics=bool(selector and selector.needs_statistics))
            if selector is not None:
                cut = self.cuts[layer]
                keep, weight = selector(entering, tokens, statistics, cut)
                tokens = compact(tokens, keep, weight, cut)
            left.append(tokens)
            tokens = finish_in(block, tokens, sides)
        return TowerResult(tokens, _lengths(left))


def _lengths(left: Sequence[PaddedBatch]) -> Tensor:
    """Count every sample's tokens in each of L padded batches: [B, L] int64, a constant where it can be one."""
    widths = [tokens.position.shape[1] for tokens in left]
    if all(tokens.mask is None and isinstance(width, int) for tokens, width in zip(left, widths, strict=True)):
        position = left[0].position
        return torch.tensor([widths], device=position.device).expand(position.shape[0], -1)
    return torch.stack([tokens.lengths for tokens in left], 1)


def attend_in(block: nn.Module, tokens: PaddedBatch, *, statistics: bool) -> Attended:
    """Run a block's self-attention with its residual, and say what pruning asks of it."""
    return _ATTEND[type(block)](block, tokens, statistics)


def finish_in(block: nn.Module, tokens: PaddedBatch, sides: Sequence[PaddedBatch]) -> PaddedBatch:
    """Run what follows a block's self-attention."""
    return _FINISH[type(block)](block, tokens, sides)


def _self_attend(heads: Iterable[Tensor], tokens: PaddedBatch, statistics: bool) -> tuple[Tensor, Statistics | None]:
    """Attend inside the samples from queries to keys and values, [B, H, N, D] each: [B * N, C]."""
    q, k, v = heads
    if statistics:
        out, found = attend_with_statistics(q, k, v, tokens)
        return join_heads(out), found
    return join_heads(attend(q, k, v, tokens.mask, causal=tokens.causal)), None


def _attend_vision(block: Any, tokens: PaddedBatch, statistics: bool) -> Attended:
    attention = block.self_attn
    fused = attention.qkv(block.layer_norm1(tokens.flat))  # [B * N, 3 C]
    width = fused.shape[-1] // (3 * attention.heads)
    parts = fused.view(*tokens.position.shape, 3, attention.heads, width).permute(2, 0, 3, 1, 4)
    out, found = _self_attend([parts[0], parts[1], parts[2]], tokens, statistics)
    return tokens.with_flat(tokens.flat + attention.projection(out)), found


def _attend_clip(block: Any, tokens: PaddedBatch, statistics: bool) -> Attended:
    attention, x = block.self_attn, block.layer_norm1(tokens.flat)
    maps = (attention.q_proj, attention.k_proj, attention.v_proj)
    out, found = _self_attend((split_heads(each(x), attention.heads, tokens) for each in maps), tokens, statistics)
    return tokens.with_flat(tokens.flat + attention.out_proj(out)), found


def _attend_text(block: Any, tokens: PaddedBatch, statistics: bool) -> Attended:
    part = block.attention.self
    maps = (part.query, part.key, part.value)
    out, found = _self_attend((split_heads(each(tokens.flat), part.heads, tokens) for each in maps), tokens, statistics)
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


_ATTEND: Mapping[type[nn.Module], Callable[[Any, PaddedBatch, bool], Attended]] = {
    blip.VisionBlock: _attend_vision,
    blip_text.TextBlock: _attend_text,
    clip.Block: _attend_clip,
}
_FINISH: Mapping[type[nn.Module], Callable[[Any, PaddedBatch, Sequence[PaddedBatch]], PaddedBatch]] = {
    blip.VisionBlock: _finish_vision,
    blip_text.TextBlock: _finish_text,
    clip.Block: _finish_vision,
}
_CROSS: Mapping[type[nn.Module], Callable[[Any, PaddedBatch, Sequence[PaddedBatch]], Tensor]] = {
    blip_text.CrossAttention: _read_one,
    blip_text.TwinCrossAttention: _read_two,
}
