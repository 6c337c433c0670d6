"""The loop over blocks on padded batches: models/tower.py as a graph of the model's own modules; no weight is copied.

What a block does with tokens is written anew by its family, as a BlockForm: maps, norms and MLPs are called as they
are.
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
)
from madtp_cli.export.selection import SELECTORS
from madtp_cli.models.base import PrunedModel

Attended = tuple[PaddedBatch, Statistics | None]


@dataclass(frozen=True)
class TowerResult:
    """What came out of a tower: its tokens, and how many left every layer, [B, layers] int64."""

    tokens: PaddedBatch
    kept: Tensor


@dataclass(frozen=True)
class BlockForm:
    """A kind of block over padded batches.

    attend: its self-attention with the residual, and what pruning asks of it. finish: what follows, which may read
    other batches, one sample each per sample.
    """

    attend: Callable[[Any, PaddedBatch, bool], Attended]
    finish: Callable[[Any, PaddedBatch, Sequence[PaddedBatch]], PaddedBatch]


class Tower(nn.Module):
    """Run a site's blocks, all of one form, pruning in the layers that `cuts` names."""

    def __init__(
        self,
        model: PrunedModel,
        site: str,
        blocks: Sequence[nn.Module],
        cuts: Mapping[int, Cut],
        form: BlockForm,
    ) -> None:
        super().__init__()
        self.form = form
        self.blocks = nn.ModuleList(blocks)
        self.cuts = dict(cuts)
        pruner = model.plan.pruner if model.plan is not None else None
        self.selectors = nn.ModuleDict({str(layer): SELECTORS[type(pruner)](model, site, layer) for layer in self.cuts})

    def forward(self, tokens: PaddedBatch, sides: Sequence[PaddedBatch] = ()) -> TowerResult:
        """Run tokens through all blocks, which read the sides they are given, one each per sample."""
        left = []
        for layer, block in enumerate(self.blocks):
            selector = self.selectors[str(layer)] if layer in self.cuts else None
            entering = tokens.flat
            tokens, statistics = self.form.attend(block, tokens, bool(selector and selector.needs_statistics))
            if selector is not None:
                cut = self.cuts[layer]
                keep, weight = selector(entering, tokens, statistics, cut)
                tokens = compact(tokens, keep, weight, cut)
            left.append(tokens)
            tokens = self.form.finish(block, tokens, sides)
        return TowerResult(tokens, _lengths(left))


def _lengths(left: Sequence[PaddedBatch]) -> Tensor:
    """Count every sample's tokens in each of L padded batches: [B, L] int64, a constant where it can be one."""
    widths = [tokens.position.shape[1] for tokens in left]
    if all(tokens.mask is None and isinstance(width, int) for tokens, width in zip(left, widths, strict=True)):
        position = left[0].position
        return torch.tensor([widths], device=position.device).expand(position.shape[0], -1)
    return torch.stack([tokens.lengths for tokens in left], 1)


def self_attend(heads: Iterable[Tensor], tokens: PaddedBatch, statistics: bool) -> tuple[Tensor, Statistics | None]:
    """Attend inside the samples from queries to keys and values, [B, H, N, D] each: [B * N, C]."""
    q, k, v = heads
    if statistics:
        out, found = attend_with_statistics(q, k, v, tokens)
        return join_heads(out), found
    return join_heads(attend(q, k, v, tokens.mask, causal=tokens.causal)), None
