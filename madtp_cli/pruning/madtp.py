"""MADTP: token importance from attention and alignment guidance, and a threshold per sample.

Symbols as in the paper (arXiv 2403.02991): Z alignment logits, T temperature, TIS token importance score, theta
threshold. Three variants, because the released code differs from what it should do:

- normalised (default): all three scores are distributions over the sample's tokens, logits are divided by sqrt(d);
- paper: the released scores, where S_token is made of raw logits and may be negative, decided per sample;
- released: the same, and every sample keeps as many tokens as the batch's most demanding one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from madtp_cli.alignment import strongest
from madtp_cli.pruning.base import Evidence, Need, fuse, keep_share, normalise
from madtp_cli.tokens import Selection, Tokens

Variant = Literal["normalised", "paper", "released"]
PUBLISHED = 0.5  # the strength whose threshold is the published one


class Madtp:
    """Alignment-guided dynamic token pruning.

    `tokens`: adaptive keeps TIS > m * theta with m = strength / (1 - strength), so that strength 0.5 is the published
    threshold; scheduled keeps the same share 1 - strength of every sample. With `merge_gradient` the merge weights
    carry gradient to the alignment tokens, as published. `least` is what the released variant prunes to at least: where
    the published threshold would leave the batch fewer tokens per sample, it keeps all (2 in the released CLIP).
    """

    needs: frozenset[Need] = frozenset({"class_row", "received", "guidance"})

    def __init__(
        self,
        dim: int,
        *,
        variant: Variant = "normalised",
        tokens: Literal["adaptive", "scheduled"] = "adaptive",
        temperature: float = 1.0,
        merge_gradient: bool = False,
        least: int = 1,
    ) -> None:
        self.scale = dim**-0.5 if variant == "normalised" else 1.0
        self.variant = variant
        self.tokens = tokens
        self.temperature = temperature
        self.merge_gradient = merge_gradient
        self.least = least
        self.couples = variant == "released"

    def select(self, evidence: Evidence, strength: float) -> Selection:
        """Keep what the scores and the threshold (or the share) say and fuse the rest into one token."""
        assert evidence.guidance is not None
        tokens = evidence.tokens
        with torch.set_grad_enabled(self.merge_gradient and torch.is_grad_enabled()):
            logits = evidence.guidance.float()
            importance = self.importance(evidence, logits)
        scores = importance.detach()
        if self.tokens == "scheduled":
            return fuse(keep_share(scores, tokens, strength), importance, tokens)
        keep = scores > tokens.spans.spread(self.threshold(scores, logits.detach(), tokens, strength))
        ranked = scores.masked_fill(tokens.protected, float("-inf"))
        if self.variant == "normalised" or strength > PUBLISHED:
            # A threshold above every score keeps the best token; as published it keeps all, and cost is not monotone.
            keep |= tokens.spans.best(ranked)
        if self.variant == "released":
            most = tokens.spans.sum(keep & tokens.free).max()
            keep = tokens.spans.rank(ranked) < most
            if strength <= PUBLISHED:
                keep |= most < self.least
        return fuse(keep, importance, tokens)

    def importance(self, evidence: Evidence, logits: Tensor) -> Tensor:
        """Return TIS [T], the mean of class attention, attention received and alignment; zero for protected tokens."""
        tokens, statistics = evidence.tokens, evidence.statistics
        assert statistics is not None
        assert statistics.class_row is not None
        guidance = strongest(logits) * self.scale
        if self.variant == "normalised":
            both = normalise(torch.stack([statistics.class_row, statistics.received], 1), tokens).sum(1)
            guidance = tokens.spans.softmax(guidance.masked_fill(tokens.protected, float("-inf")))
        else:
            class_row = statistics.class_row.masked_fill(tokens.protected, 0.0)
            both = class_row + normalise(statistics.received, tokens)
            guidance = normalise(guidance, tokens)
        return (both + guidance) / 3

    def threshold(self, scores: Tensor, logits: Tensor, tokens: Tokens, strength: float) -> Tensor:
        """Return m * theta [B] with theta the least, over alignment tokens, of the scores' softmax-weighted mean."""
        weight = tokens.spans.softmax(
            (logits / (self.temperature / self.scale)).masked_fill(tokens.protected[:, None], float("-inf"))
        )  # [T, K]
        theta = tokens.spans.sum(weight * scores[:, None]).amin(-1)  # [B]
        return theta * (strength / (1 - strength))
