"""Attention inside spans of packed tokens, and the statistics that pruning asks of it.

Shapes: T packed tokens, b spans of a padded batch, N tokens of one span, H heads, D head width. `segments` and `padded`
lay spans out as padded batches (padded.py) and differ in nothing else; `padded` is the tests' oracle. `varlen` reads
spans as they lie (varlen.py, received.py).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from madtp_cli.attention import received, varlen
from madtp_cli.attention.backends import BACKENDS, Backend, backend, backend_in_force, resolve, use_backend
from madtp_cli.attention.padded import PaddedBatch, lay_out, packed
from madtp_cli.attention.statistics import Statistics, Summary, Visible, score_tokens
from madtp_cli.tokens import Spans, gather


def attend(q: Tensor, k: Tensor, v: Tensor, queries: Spans, keys: Spans, *, causal: bool = False) -> Tensor:
    """Attend from each query span to its key span: q [Tq, H, D], k and v [Tk, H, D] -> [Tq, H, D].

    Query spans hold all queries, end to end; key spans may lie anywhere, repeat and overlap. With `causal` the i-th
    query of a span sees its first i keys. Raises ValueError for other query spans, or causal ones unequally long.
    """
    _check_packed(queries, q)
    if causal and queries.lengths != keys.lengths:
        raise ValueError("causal attention needs query and key spans of equal lengths")
    way = resolve(q.device, q.dtype)
    if way == "varlen":
        return varlen.attend(q, k, v, queries, keys, causal=causal)
    found = list(lay_out(queries, keys, way, q.shape[1] * q.shape[2], q.device))
    outs = [r.queries.packed(_attend(q, k, v, r, causal).transpose(1, 2)) for r in found]
    return packed(outs, [r.queries for r in found], queries.total)


def attend_with_statistics(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, *, causal: bool = False, summary: Summary = "first"
) -> tuple[Tensor, Statistics]:
    """Self-attend within spans and return the output [T, H, D] with the statistics that pruning asks for.

    The spans hold all tokens, end to end; raises ValueError for others.
    """
    _check_packed(spans, q)
    way = resolve(q.device, q.dtype)
    if way == "varlen":
        read, norms = varlen.attend_with_norms(q, k, v, spans, spans, causal=causal)
        return read, received.statistics(q, k, read, norms, spans, causal=causal, summary=summary)
    outs, rows, scores = [], [], []
    for r in lay_out(spans, spans, way, q.shape[1] * q.shape[2], q.device):
        # Statistics carry no gradient: in training the fused output and a pass for them alone beat one pass that saves
        # its probabilities; in inference one pass gives both.
        out = _attend(q, k, v, r, causal) if torch.is_grad_enabled() else None
        with torch.no_grad():
            visible = Visible(r.keys.mask, causal, summary)
            taken = r.queries.take(q), r.queries.take(k), r.queries.take(v)
            result, *scored = score_tokens(*taken, visible, out)
        outs.append(r.queries.packed((result if out is None else out).transpose(1, 2)))
        scores.append(r.queries.packed(torch.stack(scored, -1)))  # [t, 2]
        rows.append(r.queries)
    columns = packed(scores, rows, spans.total)
    class_row = None if summary == "none" else columns[:, 0]
    return packed(outs, rows, spans.total), Statistics(class_row, columns[:, 1])


def probabilities(q: Tensor, k: Tensor, queries: Spans, keys: Spans) -> Tensor:
    """Return what each query pays to the tokens of its key span: q [Q, H, D], k [Tk, H, D] -> [Q, H, longest].

    Spans as in `attend`; beyond a key span's end it is 0.
    """
    index, mask = keys.padded_batch(k.device)
    scores = queries.pad(q).transpose(1, 2) @ gather(k, index).permute(0, 2, 3, 1) * q.shape[-1] ** -0.5  # [b, H, n, N]
    if not keys.equal:
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
    return queries.unpad(scores.float().softmax(-1).transpose(1, 2))


def _check_packed(spans: Spans, values: Tensor) -> None:
    if not spans.packed or spans.total != len(values):
        raise ValueError(f"spans of {len(values)} packed tokens must lie end to end and hold all of them, got {spans}")


def _attend(q: Tensor, k: Tensor, v: Tensor, padded_batch: PaddedBatch, causal: bool) -> Tensor:
    """Attend on a padded batch without keeping probabilities: [b, H, N, D]."""
    q, k, v = padded_batch.queries.take(q), padded_batch.keys.take(k), padded_batch.keys.take(v)
    # Padding lies beyond a span's end, where no token of the span looks in causal attention: it needs no other mask.
    mask = None if causal or padded_batch.keys.mask is None else padded_batch.keys.mask[:, None, None]
    if q.device.type == "cpu" and q.element_size() < 4 and torch.is_grad_enabled():
        # The CPU kernel's backward is several times slower in bf16 than in fp32.
        with torch.autocast("cpu", enabled=False):
            q, k, v, dtype = q.float(), k.float(), v.float(), q.dtype
            return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).to(dtype)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


__all__ = [
    "BACKENDS",
    "Backend",
    "Statistics",
    "Summary",
    "attend",
    "attend_with_statistics",
    "backend",
    "backend_in_force",
    "probabilities",
    "resolve",
    "use_backend",
]
