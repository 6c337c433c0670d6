"""Which tokens of a padded batch a method keeps: pruning/madtp.py and random.py, word for word, as tensors [B, N].

A selector is built for one layer, so that whatever does not depend on the input is a constant of the graph: the folded
alignment tokens, the strength, the random draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from madtp_cli.alignment import strongest
from madtp_cli.export.padded import Cut, PaddedBatch, Statistics, rank
from madtp_cli.models.base import PrunedModel
from madtp_cli.pruning import Madtp, Random
from madtp_cli.pruning.madtp import PUBLISHED
from madtp_cli.pruning.random import POSITIONS


class MadtpSelector(nn.Module):
    """MADTP's scores and threshold (or share) in one layer of a site."""

    needs_statistics = True
    bias: Tensor | None
    folded: Tensor

    def __init__(self, model: PrunedModel, site: str, layer: int) -> None:
        super().__init__()
        assert model.alignment is not None
        assert model.plan is not None
        assert isinstance(model.plan.pruner, Madtp)
        self.method, self.strength = model.plan.pruner, model.strength
        with torch.no_grad():
            folded, bias = model.alignment.folded(site, layer)
        self.register_buffer("folded", folded.detach(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def forward(
        self, entering: Tensor, tokens: PaddedBatch, statistics: Statistics | None, cut: Cut
    ) -> tuple[Tensor, Tensor]:
        """Return which free tokens to keep and the weight by which the others merge, both [B, N].

        entering [B * N, C] are the states that entered the layer; tokens and statistics are from its self-attention.
        """
        assert statistics is not None
        method = self.method
        logits = linear(entering, self.folded, self.bias).float()
        logits = logits.unflatten(0, tokens.position.shape)  # [B, N, K]
        free = tokens.free
        scores = self._importance(logits, statistics, free)
        ordered = rank(scores.masked_fill(~free, float("-inf"))) if self._ranks(cut) else None
        if ordered is not None and cut.quota is not None:
            return ordered < cut.quota, scores
        if ordered is not None and method.tokens == "scheduled":
            return ordered < share_of(free, self.strength), scores
        keep = scores > self._threshold(scores, logits, free)
        if method.variant == "normalised" or self.strength > PUBLISHED:
            keep = keep | best(scores, free)
        if ordered is not None:  # the released variant: as many as the sample that keeps most
            most = (keep & free).sum(1).amax(0)
            keep = ordered < most
            if self.strength <= PUBLISHED:
                keep = keep | (most < method.least)
        return keep, scores

    def _ranks(self, cut: Cut) -> bool:
        return cut.quota is not None or self.method.tokens == "scheduled" or self.method.variant == "released"

    def _importance(self, logits: Tensor, statistics: Statistics, free: Tensor) -> Tensor:
        """Return TIS [B, N], zero for all but free tokens."""
        guidance = strongest(logits) * self.method.scale
        if self.method.variant == "normalised":
            both = _distribute(statistics.class_row, free) + _distribute(statistics.received, free)
            return (both + guidance.masked_fill(~free, float("-inf")).softmax(1)) / 3
        class_row = statistics.class_row.masked_fill(~free, 0.0)
        return (class_row + _normalise(statistics.received, free) + _normalise(guidance, free)) / 3

    def _threshold(self, scores: Tensor, logits: Tensor, free: Tensor) -> Tensor:
        """Return m * theta [B, 1]."""
        heat = logits / (self.method.temperature / self.method.scale)
        weight = heat.masked_fill(~free[..., None], float("-inf")).softmax(1)  # [B, N, K]
        theta = (scores[:, None] @ weight).amin(-1)  # [B, 1]
        return theta * (self.strength / (1 - self.strength))


class RandomSelector(nn.Module):
    """The same random share of every sample."""

    needs_statistics = False
    draw: Tensor

    def __init__(self, model: PrunedModel, site: str, layer: int) -> None:
        super().__init__()
        assert model.plan is not None
        assert isinstance(model.plan.pruner, Random)
        self.strength = model.strength
        self.register_buffer("draw", model.plan.pruner.draw(layer, torch.device("cpu")), persistent=False)

    def forward(
        self, entering: Tensor, tokens: PaddedBatch, statistics: Statistics | None, cut: Cut
    ) -> tuple[Tensor, Tensor]:
        """Return which free tokens to keep and the weight by which the others merge, both [B, N]."""
        free = tokens.free
        scores = self.draw[tokens.position % POSITIONS].masked_fill(~free, float("-inf"))
        quota = share_of(free, self.strength) if cut.quota is None else cut.quota
        return rank(scores) < quota, torch.ones_like(scores)


def share_of(free: Tensor, strength: float) -> Tensor:
    """Return how many of a sample's free tokens [B, N] a method keeps that keeps a share: [B, 1]."""
    return (free.sum(1, keepdim=True) * (1 - strength)).round().clamp_min(1)


def best(scores: Tensor, free: Tensor) -> Tensor:
    """Mark every sample's best free token, the first of equals: [B, N]."""
    scores = scores.masked_fill(~free, float("-inf"))
    here = torch.arange(scores.shape[1], device=scores.device)
    first = torch.where(scores == scores.amax(1, keepdim=True), here, scores.shape[1]).amin(1, keepdim=True)
    return here == first


def _normalise(scores: Tensor, free: Tensor) -> Tensor:
    """Scale scores [B, N] to sum to one over each sample's free tokens, where that is not zero."""
    scores = scores.masked_fill(~free, 0.0)
    total = scores.sum(1, keepdim=True)
    return scores / torch.where(total == 0, 1.0, total)


def _distribute(scores: Tensor, free: Tensor) -> Tensor:
    """Normalise scores that are not negative, in one operator less: a sum of zero is all zeros whatever divides it."""
    scores = scores.masked_fill(~free, 0.0)
    return scores / scores.sum(1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)


SELECTORS: Mapping[type[Any], type[Any]] = {Madtp: MadtpSelector, Random: RandomSelector}
"""What stands for a pruning method in a graph."""
