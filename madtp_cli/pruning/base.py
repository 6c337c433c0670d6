"""What every pruning method is: evidence about one layer's tokens in, a Selection out, one knob in [0, 1).

Shapes as in tokens.py: T packed tokens, K alignment tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from madtp_cli.attention import Statistics
from madtp_cli.tokens import Selection, Spans, Tokens

Need = Literal["class_row", "received", "guidance"]
"""What a method may ask of a site: the two statistics of its self-attention, and alignment logits."""
STATISTICS: frozenset[Need] = frozenset({"class_row", "received"})


@dataclass(frozen=True)
class Evidence:
    """What a method may look at in one layer, between its self-attention and its next sub-layer."""

    tokens: Tokens
    layer: int
    statistics: Statistics | None  # of this layer's self-attention, if the method needs any
    guidance: Tensor | None  # [T, K] raw alignment logits of the block's input, if the method needs them


class Pruner(Protocol):
    """A pruning method. `strength` is its one knob: 0 keeps every token, and cost falls monotonically towards 1."""

    needs: frozenset[Need]  # of the class, not the instance
    couples: bool  # whether what a sample keeps depends on its batch mates

    def select(self, evidence: Evidence, strength: float) -> Selection:
        """Say where each of the tokens goes."""


def keep_share(scores: Tensor, tokens: Tokens, strength: float) -> Tensor:
    """Mark in every sample the same share 1 - strength of its unprotected tokens, the best scores first: [T] bool."""
    scores = scores.masked_fill(tokens.protected, float("-inf"))
    quota = (tokens.spans.sum(tokens.free) * (1 - strength)).round().clamp_min(1)  # [B]
    return tokens.spans.rank(scores) < tokens.spans.spread(quota)


def fuse(keep: Tensor, weight: Tensor, tokens: Tokens) -> Selection:
    """Fold each sample's unkept tokens into the slot of the first of them, by their normalised weight [T].

    In a causal tower it is the slot of the last of them: in an earlier one, tokens would see what comes after them.
    A sample in which at most one token would go, or nothing would be kept, stays as it is: a merged token takes a slot,
    so nothing would be saved.
    """
    spans, free = tokens.spans, tokens.free
    drop = free & ~keep
    dropped = spans.sum(drop)  # [B]
    kept = spans.sum(free) - dropped
    drop &= spans.spread((dropped > 1) & (kept > 0))

    stays = ~drop
    slot = spans.last(drop) if tokens.causal else spans.first(drop)  # [B]
    into = spans.here(keep.device).where(stays, spans.spread(slot))
    share = _share(weight.masked_fill(stays, 0.0), spans).masked_fill(stays, 1.0)
    return Selection(into, share)


def normalise(scores: Tensor, tokens: Tokens) -> Tensor:
    """Scale scores [T, ...] to sum to one over each sample's unprotected tokens; protected ones get zero."""
    protected = tokens.protected.view(-1, *[1] * (scores.dim() - 1))
    return _share(scores.masked_fill(protected, 0.0), tokens.spans)


def _share(scores: Tensor, spans: Spans) -> Tensor:
    """Divide scores [T, ...] by their sum over each sample, where it is not zero."""
    total = spans.sum(scores)
    return scores / spans.spread(total.masked_fill(total == 0, 1.0))


__all__ = ["STATISTICS", "Evidence", "Need", "Pruner", "Selection", "Spans", "fuse", "keep_share", "normalise"]
