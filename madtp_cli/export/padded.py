"""Tokens as padded batches, as files for other runtimes take them: the arithmetic of packed tokens, as a graph.

A packed batch is Python over every sample's length; a graph has none. So here a batch is x [B, N, C] with a mask where
samples differ in length, and every function is tensors in, tensors out, with no branch on a number of tokens.

Shapes: B samples, N tokens of the longest, C width, H heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

MERGED, NOTHING = -1, -2
"""What stands for the original position of a merged token, and of a place where a shorter sample has no token."""


@dataclass(frozen=True)
class PaddedBatch:
    """B token sequences side by side.

    flat [B * N, C] the tokens' states, one below the other, because runtimes add a bias in the same operator only to
    matrices; position [B, N] original index within the sample, MERGED or NOTHING; mask [B, N] of real tokens, None
    where every sample has N; last [B] original index of a second token that is protected beside the first (CLIP's EOT);
    causal: whether a token sees only those before it.
    """

    flat: Tensor
    position: Tensor
    mask: Tensor | None = None
    last: Tensor | None = None
    causal: bool = False

    @classmethod
    def of(cls, x: Tensor) -> PaddedBatch:
        """Wrap fresh embeddings x [B, N, C] of samples that are equally long."""
        here = torch.arange(x.shape[1], device=x.device)
        return cls(x.flatten(0, 1), here.expand(x.shape[0], -1))

    @classmethod
    def of_lengths(cls, x: Tensor, lengths: Tensor, *, ends: bool = False, causal: bool = False) -> PaddedBatch:
        """Wrap fresh embeddings x [B, N, C] of samples that have lengths [B]; `ends` protects the last token too."""
        here = torch.arange(x.shape[1], device=x.device)
        mask = here < lengths[:, None]
        return cls(x.flatten(0, 1), torch.where(mask, here, NOTHING), mask, lengths - 1 if ends else None, causal)

    def with_flat(self, flat: Tensor) -> PaddedBatch:
        """Return the same tokens with new states [B * N, C]."""
        return replace(self, flat=flat)

    @property
    def x(self) -> Tensor:
        """The tokens' states, [B, N, C]."""
        return self.flat.unflatten(0, self.position.shape)

    def apart(self, parts: int) -> tuple[PaddedBatch, ...]:
        """Part samples that lie in groups of so many: the first of every group, the second, and so on."""
        both = [None if each is None else each.unflatten(0, (-1, parts)) for each in (self.mask, self.last)]
        x, position = self.x.unflatten(0, (-1, parts)), self.position.unflatten(0, (-1, parts))
        return tuple(
            replace(
                self,
                flat=x[:, part].flatten(0, 1),
                position=position[:, part],
                mask=None if both[0] is None else both[0][:, part],
                last=None if both[1] is None else both[1][:, part],
            )
            for part in range(parts)
        )

    @property
    def protected(self) -> Tensor:
        """Tokens that no method may drop or merge, [B, N] or [1, N]: the first, which stays where it is, and a last."""
        first = (torch.arange(self.position.shape[1], device=self.position.device) == 0)[None]
        return first if self.last is None else first | (self.position == self.last[:, None])

    @property
    def free(self) -> Tensor:
        """Tokens that a method may drop or merge, [B, N], or [1, N] where they are the same in all samples."""
        free = ~self.protected
        return free if self.mask is None else free & self.mask

    @property
    def lengths(self) -> Tensor:
        """Tokens of every sample, [B]."""
        if self.mask is None:
            samples, length = self.position.shape
            return self.position.new_full((1,), 1).mul(length).expand(samples)
        return self.mask.sum(1)


@dataclass(frozen=True)
class Statistics:
    """What a block's self-attention says about its tokens, each [B, N] float32: see attention/statistics.py."""

    class_row: Tensor
    received: Tensor


def split_heads(flat: Tensor, heads: int, tokens: PaddedBatch) -> Tensor:
    """Cut what was made of some tokens, [B * N, C], into heads [B, H, N, D]."""
    return flat.view(*tokens.position.shape, heads, flat.shape[-1] // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Lay heads [B, H, N, D] side by side again: [B * N, C]."""
    return x.transpose(1, 2).flatten(2).flatten(0, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool = False) -> Tensor:
    """Attend from q [B, H, Nq, D] to the keys k, v [B, H, Nk, D] that a mask [B, Nk] calls real: [B, H, Nq, D]."""
    return probabilities(q, k, mask, causal=causal) @ v


def probabilities(q: Tensor, k: Tensor, mask: Tensor | None, *, causal: bool = False) -> Tensor:
    """Return what every query pays to every key, [B, H, Nq, Nk] in the type of q; the softmax is in float32."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    hidden = None if mask is None else ~mask[:, None, None]
    if causal:
        here = torch.arange(k.shape[2], device=k.device)
        later = here > here[:, None]
        hidden = later if hidden is None else hidden | later
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.float().softmax(-1).to(q.dtype)


def attend_with_statistics(q: Tensor, k: Tensor, v: Tensor, tokens: PaddedBatch) -> tuple[Tensor, Statistics]:
    """Self-attend and return the output [B, H, N, D] with the statistics that pruning asks for.

    The summary token is the first of a sample, or in a causal tower its last.
    """
    probability = probabilities(q, k, tokens.mask, causal=tokens.causal)
    out = probability @ v
    here = torch.arange(q.shape[2], device=q.device)
    if tokens.causal:
        summary = here == tokens.lengths[:, None] - 1  # [B, N]
        row = (probability * summary[:, None, :, None].to(probability.dtype)).sum(2)  # [B, H, N]
    else:
        summary = (here == 0)[None]
        row = probability[:, :, 0]
    # Neither the summary token's query counts nor padding's: a product with ones and zeros, cheaper than cutting out.
    counts = ~summary if tokens.mask is None else tokens.mask & ~summary
    strongest = probability.amax(1).float()  # [B, N, N]
    received = (counts[:, None].float() @ strongest).squeeze(1)
    norm = torch.linalg.vector_norm(out.float(), dim=-1)  # [B, H, N]
    weighted = (row.float() * norm).sum(1) / norm.sum(1).clamp_min(1e-12)
    return out, Statistics(weighted, received)


def rank(scores: Tensor) -> Tensor:
    """Rank scores [B, N] within each sample, 0 for the largest; ties in order of place."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return order.sort(dim=1, stable=True).indices  # where in that order each one is: fewer operators than a scatter


@dataclass(frozen=True)
class Cut:
    """What is known of a layer's pruning when its file is written.

    quota: how many free tokens a sample keeps, None where the method says. width: tokens of the longest sample that
    leaves, None where it is counted as the graph runs. equal: whether all samples leave equally long.
    """

    quota: int | None = None
    width: int | None = None
    equal: bool = False


def compact(tokens: PaddedBatch, keep: Tensor, weight: Tensor, cut: Cut) -> PaddedBatch:
    """Keep the free tokens that keep [B, N] marks and fold the others into one, by their normalised weight [B, N].

    As pruning.base.fuse and tokens.compact do: the merged token takes the place of the first one that goes, in a causal
    tower of the last, and a sample in which at most one would go, or nothing would be kept, stays as it is.
    """
    free = tokens.free
    here = torch.arange(keep.shape[1], device=keep.device)
    drop = free & ~keep
    if cut.quota is None or not cut.equal:
        some = (drop.sum(1) > 1) & ((free & keep).sum(1) > 0)
        drop = drop & some[:, None]
    if tokens.causal:
        slot = torch.where(drop, here, -1).amax(1, keepdim=True)
    else:
        slot = torch.where(drop, here, keep.shape[1]).amin(1, keepdim=True)
    stay = ~drop | (here == slot)
    if tokens.mask is not None:
        stay = stay & tokens.mask
    merged = _merge(tokens.x, drop, weight)

    count = stay.sum(1)  # [B]
    width = cut.width if cut.width is not None else _longest(count, keep.shape[1])
    # Every place has a key of its own, so that no order of equals can differ: tokens that stay, in order, come first.
    index = torch.where(stay, -here, -here - keep.shape[1]).topk(width, dim=1).indices  # [B, N']
    takes = index == slot
    x = torch.where(takes[..., None], merged, _take(tokens, index)).flatten(0, 1)
    position = torch.where(takes, MERGED, tokens.position.gather(1, index))
    if cut.equal:
        return replace(tokens, flat=x, position=position, mask=None)
    mask = torch.arange(width, device=keep.device) < count[:, None]
    return replace(tokens, flat=x, position=torch.where(mask, position, NOTHING), mask=mask)


def _merge(x: Tensor, drop: Tensor, weight: Tensor) -> Tensor:
    """Sum the dropped tokens of x [B, N, C] by their share of the weight: [B, 1, C]; in float32 at least."""
    share = torch.where(drop, weight, 0.0)
    total = share.sum(1, keepdim=True)
    share = share / torch.where(total == 0, 1.0, total)
    return (share[:, None] @ x.float()).to(x.dtype)


def _longest(count: Tensor, most: int) -> int:
    """Read how many tokens the longest sample keeps, a number that a graph computes."""
    found: Any = count.amax(0).item()  # not int(): a traced number is no int
    torch._check(found >= 1)
    torch._check(found <= most)
    width: int = found
    return width


def _take(tokens: PaddedBatch, index: Tensor) -> Tensor:
    """Take tokens by their places [B, N'] in their samples: [B, N', C]; by rows, which runtimes copy fastest."""
    samples, length = tokens.position.shape
    rows = index + torch.arange(samples, device=index.device)[:, None] * length
    return tokens.flat.index_select(0, rows.flatten()).unflatten(0, index.shape)
