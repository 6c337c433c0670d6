"""What pruning asks of self-attention: the paper's S_cls and S_self, a block of probabilities at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm

Summary = Literal["first", "last", "none"]
"""The token that stands for its span: a class token, the last one (as an end of text that is read out), or no token."""

# Probabilities exist for this many elements at a time (16 MiB in fp32), in memory that the next block uses again: those
# of one image of BLIP-B at 384 pixels, never of a batch. Blocks of 3 to 4 MiB, which a core's own cache would hold,
# took 12% longer where this was measured: their products have few rows, and there are more calls.
BLOCK_ELEMENTS = 1 << 22
# On a CPU, spans whose probabilities are no more than this together share a call; longer ones are read where they lie,
# one by one, which saves copies of their queries and keys. Elsewhere calls are what costs.
BATCH_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Statistics:
    """What a block's self-attention says about its tokens, each [T] float32, without gradient.

    class_row: attention paid by the summary token, summed over heads weighted by each head's share of the token's
    output norm; None where no token stands for its span. received: sum over the other queries of the largest
    probability over heads.
    """

    class_row: Tensor | None
    received: Tensor


@dataclass(frozen=True)
class Visible:
    """Who sees whom in a padded batch of b spans: mask [b, N] of real tokens, None if all are; and whether causal."""

    mask: Tensor | None
    causal: bool
    summary: Summary

    def some(self, spans: slice) -> Visible:
        """Return the same of some of the spans."""
        return Visible(None if self.mask is None else self.mask[spans], self.causal, self.summary)

    def place(self, length: int) -> int | Tensor:
        """Return the place of the summary token in its span: one for all, -1 where there is none, or [b]."""
        if self.summary != "last":
            return 0 if self.summary == "first" else -1
        return length - 1 if self.mask is None else self.mask.sum(1) - 1

    def hide(self, scores: Tensor, first: int) -> None:
        """Set what queries from the `first` on do not see to -inf, in place: scores [b, H, n, N]."""
        if self.mask is not None:
            scores.masked_fill_(~self.mask[:, None, None], float("-inf"))
        if self.causal:
            key = torch.arange(scores.shape[-1], device=scores.device)
            query = torch.arange(first, first + scores.shape[-2], device=scores.device)
            scores.masked_fill_(key > query[:, None], float("-inf"))


def score_tokens(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible, out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend in a padded batch block by block: q, k, v [b, H, N, D] -> out [b, H, N, D], class_row, received [b, N].

    The probabilities of a block give the block's output too; where `out` is given, it is not computed again.
    """
    spans, heads, length, _ = q.shape
    result = q.new_empty(spans, length, heads, v.shape[-1]).transpose(1, 2) if out is None else out
    row = q.new_zeros(spans, heads, length)
    received = torch.zeros(spans, length, device=q.device)
    most = min(BATCH_ELEMENTS, BLOCK_ELEMENTS) if q.device.type == "cpu" else BLOCK_ELEMENTS
    batch = max(1, min(spans, most // (heads * length**2)))
    blocks = -(-heads * length**2 // BLOCK_ELEMENTS)  # of one span; one where `batch` is more than 1
    queries = max(1, -(-length // blocks))
    memory = q.new_empty(batch * heads * queries * length)
    for start in range(0, spans, batch):
        some = slice(start, start + batch)
        # Flattening copies several spans, a head after the other, and leaves one where it lies. Values are copied all
        # the same: the product with them has few columns and is slower over a stride.
        q_some, k_some, v_some = (t[some].flatten(0, 1) for t in (q, k, v))  # [bH, N, D]
        v_some = v_some.contiguous()
        seen = visible.some(some)
        for first in range(0, length, queries):
            block = slice(first, first + queries)
            probability = _probability(q_some[:, block], k_some, seen, first, heads, memory)
            if out is None:
                result[some, :, block] = torch.bmm(probability.flatten(0, 1), v_some).unflatten(0, (-1, heads))
            _count(probability, seen, first, row[some], received[some])
    norm = vector_norm(result.transpose(1, 2).float(), dim=-1)  # [b, N, H], as the result lies in memory
    weighted = (row.transpose(1, 2).float() * norm).sum(-1)
    return result, weighted / norm.sum(-1).clamp_min(1e-12), received


def _probability(q: Tensor, k: Tensor, visible: Visible, first: int, heads: int, memory: Tensor) -> Tensor:
    """Return the probabilities of queries q [bH, n, D] over keys k [bH, N, D], in borrowed memory: [b, H, n, N]."""
    spans_heads, queries, width = q.shape
    scores = memory[: spans_heads * queries * k.shape[1]].view(spans_heads, queries, -1)
    torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=width**-0.5, out=scores)
    visible.hide(scores.unflatten(0, (-1, heads)), first)
    return torch.softmax(scores, -1, out=scores).unflatten(0, (-1, heads))


def _count(probability: Tensor, visible: Visible, first: int, row: Tensor, received: Tensor) -> None:
    """Add what a block of queries says: the summary token's row [b, H, N], and what tokens receive [b, N]."""
    spans, _, queries, length = probability.shape
    strongest = probability.amax(1).float()  # [b, n, N]
    if visible.mask is not None:
        strongest *= visible.mask[:, first : first + queries, None]  # queries that are padding do not count
    place = visible.place(int(length))  # a number also where fvcore traces it
    # Nor does the summary token's own query.
    if isinstance(place, int):
        if first <= place < first + queries:
            row.copy_(probability[:, :, place - first])
            strongest[:, place - first] = 0
    else:
        here = (place >= first) & (place < first + queries)
        each, query = torch.arange(spans, device=place.device), (place - first).clamp(0, queries - 1)
        row.copy_(torch.where(here[:, None, None], probability[each, :, query], row))
        strongest[each, query] *= ~here[:, None]
    received += strongest.sum(1)
