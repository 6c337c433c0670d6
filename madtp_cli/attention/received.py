"""The statistics of attention whose log-sum-exp is known: by a Triton kernel on CUDA, by torch elsewhere."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

from madtp_cli.attention.statistics import Statistics, Summary
from madtp_cli.attention.varlen import offsets
from madtp_cli.tokens import Spans

# Without the kernel, scores exist for this many elements at a time (256 MiB).
BLOCK_ELEMENTS = 1 << 26


@torch.no_grad()
def statistics(
    q: Tensor, k: Tensor, out: Tensor, norms: Tensor, spans: Spans, *, causal: bool, summary: Summary
) -> Statistics:
    """Recompute what pruning asks of self-attention: q, k and the output [T, H, D], norms [T, H] float32.

    norms are the log-sum-exp of every query's scaled scores; spans lie end to end, from the first token on.
    """
    if summary != "none" and kernel_works(q.device):  # the kernel knows the other two
        from madtp_cli.attention import received_kernel

        found = received_kernel.statistics(
            q, k, out, norms, offsets(spans, q.device), spans.longest, causal=causal, last=summary == "last"
        )
    else:
        with torch.autocast(q.device.type, enabled=False):
            found = by_blocks(q, k, out, norms, spans, causal=causal, summary=summary)
    class_row, received = found
    return Statistics(None if summary == "none" else class_row, received)


@cache
def kernel_works(device: torch.device) -> bool:
    """Tell whether Triton is here and compiles for a device; a compiler that fails is warned of, once."""
    if device.type != "cuda":
        return False
    try:
        from madtp_cli.attention import received_kernel
    except ImportError:
        return False
    try:
        q = torch.zeros(1, 1, 16, dtype=torch.float16, device=device)
        ends = torch.arange(2, dtype=torch.int32, device=device)
        received_kernel.statistics(q, q, q, q[..., 0].float(), ends, 1, causal=False, last=False)
    except Exception as error:  # no C compiler, an architecture it does not know, a broken installation
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"Triton is here but compiles nothing, so pruning is slower: {reason}", stacklevel=2)
        return False
    return True


def by_blocks(
    q: Tensor, k: Tensor, out: Tensor, norms: Tensor, spans: Spans, *, causal: bool, summary: Summary
) -> tuple[Tensor, Tensor]:
    """Compute class_row and received, each [T] float32, in float32, a block of queries of all spans at a time."""
    scale = q.shape[-1] ** -0.5
    q, k = (spans.pad(t).transpose(1, 2).float() for t in (q, k))  # [B, H, N, D]
    norms = spans.pad(norms).transpose(1, 2)[..., None]  # [B, H, N, 1]
    batch, heads, length = q.shape[:3]
    place = torch.arange(length, device=q.device)
    sample = torch.arange(batch, device=q.device)
    ends = spans.end_index(q.device) - spans.start_index(q.device)  # [B]
    chosen = ends if summary == "last" else torch.zeros_like(ends)
    asking = torch.full_like(ends, -1) if summary == "none" else chosen  # whose own query does not count

    row = torch.einsum("bhd,bhnd->bhn", q[sample, :, chosen], k) * scale - norms[sample, :, chosen]  # [B, H, N]
    if causal:
        row = row.masked_fill(place > chosen[:, None, None], float("-inf"))
    size = torch.linalg.vector_norm(spans.pad(out).float(), dim=-1).transpose(1, 2)  # [B, H, N]
    class_row = (row.exp() * size).sum(1) / size.sum(1).clamp_min(1e-12)

    counts = (place <= ends[:, None]) & (place != asking[:, None])  # [B, N]
    received = torch.zeros_like(class_row)
    rows = max(1, BLOCK_ELEMENTS // (batch * heads * length))
    for first in range(0, length, rows):
        block = slice(first, first + rows)
        # The exponential is monotone: the largest one over heads is that of the largest exponent.
        largest = (q[:, :, block] @ k.transpose(-1, -2) * scale - norms[:, :, block]).amax(1)  # [B, n, N]
        if causal:
            largest = largest.masked_fill(place > place[block, None], float("-inf"))
        received += (largest.exp() * counts[:, block, None]).sum(1)
    # What stands in the padding may be infinite, and is left there.
    return spans.unpad(class_row), spans.unpad(received)
