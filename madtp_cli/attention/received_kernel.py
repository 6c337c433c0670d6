"""The statistics of attention as one Triton kernel: no probability of the N x N x H leaves the chip.

It recomputes scores from queries, keys and the log-sum-exp that attention leaves behind. One program owns the keys of a
block of one span and adds its queries up in order: no atomics, so results repeat to the bit, and those of a sample do
not depend on its batch mates. Shapes as in tokens.py.
"""

# Triton's annotations and types are its own, and it is not always installed.
# mypy: disable-error-code="misc,no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Of a tile. Chosen by what the compiler says of sm_80 and sm_90 at head width 64 (it spills no register, and several
# programs fit on a multiprocessor), not by timing.
QUERIES = 64
KEYS = 64


@triton.jit
def _statistics(
    q, k, out,  # [T, H, D]
    norms,  # [T, H] log-sum-exp of scaled scores
    offsets,  # [B + 1]
    class_row, received,  # [T], what is computed
    scale, q_token, q_head, k_token, k_head, out_token, out_head, norms_token, norms_head,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,  # the power of two that holds WIDTH
    CAUSAL: tl.constexpr,
    LAST: tl.constexpr,  # whether the summary token is the last of its span, else the first
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    span, first_key = tl.program_id(0), tl.program_id(1) * KEYS
    start = tl.load(offsets + span).to(tl.int64)
    length = (tl.load(offsets + span + 1) - start).to(tl.int32)
    if first_key >= length:
        return
    summary = length - 1 if LAST else 0
    lanes = tl.arange(0, LANES)
    keys = first_key + tl.arange(0, KEYS)
    of_key, in_key = start + keys, (keys < length)[:, None] & (lanes < WIDTH)[None, :]

    paid = tl.zeros([KEYS], tl.float32)
    total_norm = tl.zeros([KEYS], tl.float32)
    for head in range(HEADS):
        a = tl.load(q + (start + summary) * q_token + head * q_head + lanes, lanes < WIDTH, 0.0).to(tl.float32)
        b = tl.load(k + of_key[:, None] * k_token + head * k_head + lanes[None, :], in_key, 0.0).to(tl.float32)
        o = tl.load(out + of_key[:, None] * out_token + head * out_head + lanes[None, :], in_key, 0.0).to(tl.float32)
        score = tl.sum(a[None, :] * b, 1) * scale - tl.load(norms + (start + summary) * norms_token + head * norms_head)
        norm = tl.sqrt(tl.sum(o * o, 1))
        paid += tl.exp(score) * norm
        total_norm += norm
    if CAUSAL:
        paid = tl.where(keys <= summary, paid, 0.0)
    tl.store(class_row + of_key, paid / tl.maximum(total_norm, 1e-12), keys < length)

    total = tl.zeros([KEYS], tl.float32)
    # Causal queries before the first key see none of them.
    for first_query in range(first_key // QUERIES * QUERIES if CAUSAL else 0, length, QUERIES):
        queries = first_query + tl.arange(0, QUERIES)
        of_query, in_query = start + queries, (queries < length)[:, None] & (lanes < WIDTH)[None, :]
        # The exponential is monotone: the largest one over heads is that of the largest exponent.
        largest = tl.full([QUERIES, KEYS], float("-inf"), tl.float32)
        for head in range(HEADS):
            a = tl.load(q + of_query[:, None] * q_token + head * q_head + lanes[None, :], in_query, 0.0)
            b = tl.load(k + of_key[:, None] * k_token + head * k_head + lanes[None, :], in_key, 0.0)
            norm = tl.load(norms + of_query * norms_token + head * norms_head, queries < length, 0.0)
            largest = tl.maximum(largest, tl.dot(a, tl.trans(b), input_precision="ieee") * scale - norm[:, None])
        counts = ((queries < length) & (queries != summary))[:, None]
        if CAUSAL:
            counts = counts & (queries[:, None] >= keys[None, :])
        total += tl.sum(tl.where(counts, tl.exp(largest), 0.0), 0)
    tl.store(received + of_key, total, keys < length)


def statistics(
    q: Tensor, k: Tensor, out: Tensor, norms: Tensor, offsets: Tensor, longest: int, *, causal: bool, last: bool
) -> tuple[Tensor, Tensor]:
    """Return class_row and received, each [T] float32, of spans that begin and end at offsets [B + 1].

    q, k and the output [T, H, D]; norms [T, H] float32, the log-sum-exp of every query's scaled scores; longest in
    tokens. The summary token is the first of its span, or the `last`.
    """
    heads, width = q.shape[1:]
    q, k, out = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, out))
    class_row, received = torch.empty(2, len(q), dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _statistics[len(offsets) - 1, triton.cdiv(longest, KEYS)](
            q, k, out, norms, offsets, class_row, received,
            width**-0.5, *q.stride()[:2], *k.stride()[:2], *out.stride()[:2], *norms.stride(),
            HEADS=heads, WIDTH=width, LANES=max(16, triton.next_power_of_2(width)), CAUSAL=causal, LAST=last,
            QUERIES=QUERIES, KEYS=KEYS,
        )  # fmt: skip
    return class_row, received
