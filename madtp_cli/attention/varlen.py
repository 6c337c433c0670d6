"""Attention inside spans by torch's variable-length flash attention: CUDA, fp16 and bf16.

One kernel reads all spans by their offsets, whatever their lengths: nothing is padded, and the host is not waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from inspect import signature
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from madtp_cli.tokens import Spans, upload

DTYPES = (torch.float16, torch.bfloat16)
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
CAPABILITY = (8, 0)  # of the GPUs that flash attention is written for: Ampere and newer
LANES = 8  # it reads head widths that are a multiple of this


@cache
def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Say why the kernel cannot compute in this type on this device; None where it can."""
    if device.type != "cuda":
        return f"it runs on cuda only, not on {device.type}"
    if dtype not in DTYPES:
        return f"it computes in fp16 and bf16 only, not in {NAMES.get(dtype, dtype)}"
    if _kernel() is None:
        return f"torch {torch.__version__} is without torch.nn.attention.varlen, or has it in an early form"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        have, need = (".".join(map(str, each)) for each in (capability, CAPABILITY))
        return f"it needs a GPU of compute capability {need} or newer, and {device} has {have}"
    if not torch.backends.cuda.is_flash_attention_available():
        return f"torch {torch.__version__} was built without flash attention"
    return None


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether the kernel can compute in this type on this device."""
    return unavailable(device, dtype) is None


def attend(q: Tensor, k: Tensor, v: Tensor, queries: Spans, keys: Spans, *, causal: bool = False) -> Tensor:
    """Attend from each query span to its key span: q [Tq, H, D], k and v [Tk, H, D] -> [Tq, H, D]."""
    return attend_with_norms(q, k, v, queries, keys, causal=causal)[0]


def attend_with_norms(
    q: Tensor, k: Tensor, v: Tensor, queries: Spans, keys: Spans, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attend, and return the log-sum-exp of every query's scaled scores too: [Tq, H, D] and [Tq, H] float32.

    The log-sum-exp carries no gradient. Query spans lie end to end.
    """
    from torch.nn.attention.varlen import AuxRequest

    kernel = _kernel()
    assert kernel is not None, "asked for where it is not available"
    heads, width = q.shape[1:]
    packed = [_end_to_end(t, spans) for t, spans in ((q, queries), (k, keys), (v, keys))]
    if width % LANES:
        packed = [pad(t, (0, -width % LANES)) for t in packed]
    out, norms = kernel(
        *packed,
        offsets(queries, q.device),
        offsets(keys, q.device),
        queries.longest,
        keys.longest,
        return_aux=AuxRequest(lse=True),
        scale=width**-0.5,
        window_size=(-1, 0) if causal else (-1, -1),
    )
    # Head by head in memory; what torch documents is the transpose.
    norms = norms.detach().T if norms.shape == (heads, queries.total) else norms.detach()
    return out[..., :width], norms


def offsets(spans: Spans, device: torch.device) -> Tensor:
    """Return where the spans begin and end once they lie end to end, [B + 1] int32."""
    return _numbers((0, *accumulate(spans.lengths)), device)


def _end_to_end(values: Tensor, spans: Spans) -> Tensor:
    """Lay the values [T, ...] of spans end to end: a view where they lie so, a copy where spans repeat or overlap."""
    return values[: spans.total] if spans.packed else values.index_select(0, _places(spans, values.device))


def _places(spans: Spans, device: torch.device) -> Tensor:
    """Return the place of every token of every span, [sum of lengths]."""
    begins = offsets(spans, device)
    moved = _numbers(spans.starts, device) - begins[:-1]
    return torch.arange(spans.total, device=device) + moved.repeat_interleave(begins.diff(), output_size=spans.total)


@lru_cache(maxsize=64)  # blocks that do not prune ask for the same spans again and again
def _numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept for later may be part of a backward pass then
        return upload(values, device).int()


@cache
def _kernel() -> Callable[..., Any] | None:
    """Import the kernel; None in a torch that has none, or none yet that takes a scale."""
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return None
    there = {"return_aux", "scale", "window_size"} <= set(signature(varlen.varlen_attn).parameters)
    return varlen.varlen_attn if there else None
