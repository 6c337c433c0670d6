"""Attention inside spans of packed tokens, and the statistics that pruning asks of it.

A backend only decides how spans become rectangles: `segments` makes one rectangle for every group of spans of equal
length (no padding, no mask), `padded` makes a single one as long as the longest span (masked; also the test oracle).
The arithmetic on a rectangle is the same for both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from madtp_cli.tokens import Spans

Backend = Literal["auto", "segments", "padded"]
Summary = Literal["first", "last"]  # the token that stands for its span: a class token, or the last one (CLIP's EOT)

# A group of spans costs about this many multiply-adds of fixed overhead on a CPU, whatever its size; `auto` pads when
# the padding it would compute costs less than the groups it would save.
GROUP_OVERHEAD_MACS = 3_000_000
# Probabilities are materialised for at most this many elements at a time, so that they stay in cache.
MATERIALISED_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Statistics:
    """What a block's self-attention says about its tokens, each [T] float32, without gradient.

    class_row: attention paid by the summary token, summed over heads weighted by each head's share of the token's
    output norm. received: sum over the other queries of the largest probability over heads.
    """

    class_row: Tensor
    received: Tensor


def attend(
    q: Tensor, k: Tensor, v: Tensor, queries: Spans, keys: Spans, *, causal: bool = False, backend: Backend = "auto"
) -> Tensor:
    """Attend from each query span to its key span: q [Tq, H, D], k and v [Tk, H, D] -> [Tq, H, D].

    With `causal` the i-th query of a span sees its first i keys; raises ValueError unless both spans are equally long.
    """
    out, _ = _attend(q, k, v, queries, keys, backend, causal=causal, summary=None)
    return out


def attend_with_statistics(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Spans,
    *,
    causal: bool = False,
    summary: Summary = "first",
    backend: Backend = "auto",
) -> tuple[Tensor, Statistics]:
    """Self-attend within spans and return the output [T, H, D] with the statistics that pruning asks for."""
    out, statistics = _attend(q, k, v, spans, spans, backend, causal=causal, summary=summary)
    assert statistics is not None
    return out, statistics


def attention_of_rows(q: Tensor, k: Tensor, keys: Spans) -> Tensor:
    """Return the probabilities of one query per span: q [B, H, D], k [Tk, H, D] -> [B, H, longest], 0 beyond a span."""
    index, mask = keys.rectangle(k.device)
    scores = torch.einsum("bhd,bnhd->bhn", q, k[index]) * q.shape[-1] ** -0.5
    return scores.masked_fill(~mask[:, None], float("-inf")).float().softmax(-1)


def choose_backend(queries: Spans, keys: Spans, width: int) -> Backend:
    """Pick the cheaper of the two backends for these spans: padding against one call per distinct length."""
    shapes = set(zip(queries.lengths, keys.lengths, strict=True))
    if len(shapes) == 1:
        return "segments"
    useful = sum(a * b for a, b in zip(queries.lengths, keys.lengths, strict=True))
    wasted = len(queries) * queries.longest * keys.longest - useful
    return "padded" if 2 * wasted * width < GROUP_OVERHEAD_MACS * (len(shapes) - 1) else "segments"


@dataclass(frozen=True)
class _Rectangle:
    """Spans laid side by side: index tensors into the packed queries and keys, and masks where padding is in."""

    queries: Tensor  # [b, Nq]
    keys: Tensor  # [b, Nk]
    query_mask: Tensor | None  # [b, Nq]
    key_mask: Tensor | None  # [b, Nk]


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Spans,
    keys: Spans,
    backend: Backend,
    *,
    causal: bool,
    summary: Summary | None,
) -> tuple[Tensor, Statistics | None]:
    """Attend on rectangles; statistics only where a summary token is named."""
    if causal and queries.lengths != keys.lengths:
        raise ValueError("causal attention needs query and key spans of equal lengths")
    if backend == "auto":
        backend = choose_backend(queries, keys, q.shape[1] * q.shape[2])
    if queries.uniform and keys.uniform:
        out, stats = _rectangle_attention(_view(q, queries), _view(k, keys), _view(v, keys), None, causal, summary)
        return out.transpose(1, 2).flatten(0, 1), stats and Statistics(stats[0].flatten(), stats[1].flatten())

    outs, rows, found = [], [], []
    for r in _rectangles(queries, keys, backend, q.device):
        out, stats = _rectangle_attention(
            q[r.queries].transpose(1, 2), k[r.keys].transpose(1, 2), v[r.keys].transpose(1, 2), r, causal, summary
        )
        mask = r.query_mask if r.query_mask is not None else torch.ones_like(r.queries, dtype=torch.bool)
        outs.append(out.transpose(1, 2)[mask])  # [t, H, D]
        rows.append(r.queries[mask])
        if stats is not None:
            found.append(torch.stack([s[mask] for s in stats], 1))
    order = torch.cat(rows).argsort()
    if summary is None:
        return torch.cat(outs)[order], None
    columns = torch.cat(found)[order]
    return torch.cat(outs)[order], Statistics(columns[:, 0], columns[:, 1])


def _view(values: Tensor, spans: Spans) -> Tensor:
    """View values [T, H, D] as [B, H, N, D]; for uniform spans, which need not reach the end of the packed tensor."""
    return values[: spans.total].unflatten(0, (len(spans), -1)).transpose(1, 2)


def _rectangles(queries: Spans, keys: Spans, backend: Backend, device: torch.device) -> Iterator[_Rectangle]:
    if backend == "padded":
        query_index, query_mask = queries.rectangle(device)
        key_index, key_mask = keys.rectangle(device)
        yield _Rectangle(query_index, key_index, query_mask, key_mask)
        return
    groups = defaultdict(list)
    for row, shape in enumerate(zip(queries.lengths, keys.lengths, strict=True)):
        groups[shape].append(row)
    for rows in groups.values():
        query_index, _ = queries.pick(rows).rectangle(device)
        key_index, _ = keys.pick(rows).rectangle(device)
        yield _Rectangle(query_index, key_index, None, None)


def _rectangle_attention(
    q: Tensor, k: Tensor, v: Tensor, rectangle: _Rectangle | None, causal: bool, summary: Summary | None
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Attend on [b, H, N, D] and return the output with (class_row, received), each [b, Nq]."""
    # Padding lies beyond a span's end, where no token of the span looks in causal attention: it needs no other mask.
    key_mask = rectangle.key_mask if rectangle and not causal else None
    query_mask = rectangle.query_mask if rectangle else None
    if summary is None:
        return _fused(q, k, v, key_mask, causal), None
    # Statistics carry no gradient: in training the fused output and a pass without gradient beat one materialised pass
    # that saves its probabilities; in inference the probabilities are there anyway and give the output too.
    fused = _fused(q, k, v, key_mask, causal) if torch.is_grad_enabled() else None
    later = _later(q.shape[2], q.device) if causal else None
    chunk = max(1, MATERIALISED_ELEMENTS // (q.shape[1] * q.shape[2] * k.shape[2]))
    outs, class_rows, received = [], [], []
    with torch.no_grad():
        for start in range(0, len(q), chunk):
            rows = slice(start, start + chunk)
            scores = (q[rows] * q.shape[-1] ** -0.5) @ k[rows].transpose(-1, -2)  # [b, H, Nq, Nk]
            if key_mask is not None:
                scores = scores.masked_fill(~key_mask[rows, None, None], float("-inf"))
            if later is not None:
                scores = scores.masked_fill(later, float("-inf"))
            probability = scores.softmax(-1)
            out = probability @ v[rows] if fused is None else fused[rows]  # [b, H, Nq, D]
            class_row, taken = _statistics(probability, out, None if query_mask is None else query_mask[rows], summary)
            outs.append(out)
            class_rows.append(class_row)
            received.append(taken)
    return _join(outs) if fused is None else fused, (_join(class_rows), _join(received))


def _fused(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, causal: bool) -> Tensor:
    """Attend without keeping probabilities."""
    mask = None if key_mask is None else key_mask[:, None, None]
    if q.device.type == "cpu" and q.element_size() < 4 and torch.is_grad_enabled():
        # The CPU kernel's backward is several times slower in bf16 than in fp32.
        with torch.autocast("cpu", enabled=False):
            q, k, v, dtype = q.float(), k.float(), v.float(), q.dtype
            return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).to(dtype)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def _later(tokens: int, device: torch.device) -> Tensor:
    """Mark the keys that come after each query, [N, N]."""
    place = torch.arange(tokens, device=device)
    return place > place[:, None]


def _statistics(probability: Tensor, out: Tensor, query_mask: Tensor | None, summary: Summary) -> tuple[Tensor, Tensor]:
    """Score tokens from probabilities [b, H, N, N] and per-head outputs [b, H, N, D] (the paper's S_cls and S_self)."""
    norm = out.float().norm(dim=-1)  # [b, H, N]
    head_share = norm / norm.sum(1, keepdim=True).clamp_min(1e-12)
    strongest = probability.amax(1)  # [b, N, N]
    # The summary token's own row does not count in what a token receives.
    if summary == "first":
        row, strongest = probability[:, :, 0], strongest[:, 1:]
    else:
        last = -1 if query_mask is None else query_mask.sum(1) - 1
        every = slice(None) if query_mask is None else torch.arange(len(probability), device=probability.device)
        row, strongest = probability[every, :, last], strongest[:, :-1]
    strongest = strongest.float()  # [b, N - 1, N]
    if query_mask is not None:
        # A span's tokens without its first, and all that have a successor, are marked alike once shifted.
        strongest = strongest * query_mask[:, 1:, None]
    return (row.float() * head_share).sum(1), strongest.sum(1)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
