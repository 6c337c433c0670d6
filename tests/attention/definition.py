"""Attention inside spans by its definition, in float64: one span at a time, every probability materialised."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from madtp_cli.tokens import Spans


def logarithms(q: Tensor, k: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities [H, Nq, Nk] of one span's q, k [N, H, D] and the log-sum-exp [Nq, H]."""
    scores = torch.einsum("qhd,khd->hqk", q.double(), k.double()) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), float("-inf"))
    return scores.log_softmax(-1), scores.logsumexp(-1).T


def attention(
    q: Tensor, k: Tensor, v: Tensor, queries: Spans, keys: Spans, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the output [T, H, D] in float64 and the log-sum-exp [T, H]; zero where no span is."""
    out, norms = torch.zeros_like(q, dtype=torch.float64), torch.zeros(q.shape[:2], dtype=torch.float64)
    for row in range(len(queries)):
        mine, theirs = _slice(queries, row), _slice(keys, row)
        log, norms[mine] = logarithms(q[mine], k[theirs], causal)
        out[mine] = torch.einsum("hqk,khd->qhd", log.exp(), v[theirs].double())
    return out, norms


def statistics(
    q: Tensor, k: Tensor, out: Tensor, spans: Spans, causal: bool, summary: Literal["first", "last"]
) -> tuple[Tensor, Tensor]:
    """Return class_row and received [T] in float64 (method.md section 3), given the output [T, H, D]."""
    class_row, received = [], []
    for row, length in enumerate(spans.lengths):
        own = _slice(spans, row)
        probability = logarithms(q[own], k[own], causal)[0].exp()  # [H, N, N]
        chosen = 0 if summary == "first" else length - 1
        norm = out[own].double().norm(dim=-1)  # [N, H]
        class_row.append((probability[:, chosen].T * norm).sum(1) / norm.sum(1))
        others = [query for query in range(length) if query != chosen]
        received.append(probability.amax(0)[others].sum(0))
    return torch.cat(class_row), torch.cat(received)


def _slice(spans: Spans, row: int) -> slice:
    return slice(spans.starts[row], spans.starts[row] + spans.lengths[row])
