"""How far a backend in some precision may be from the oracle: padded, in fp32, on a CPU, on the same rounded inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from madtp_cli import attention
from madtp_cli.tokens import Spans

HEADS, WIDTH = 3, 64
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Of values whose size is near one, forward and backward. Half precision: four units in the last place, for results are
# rounded to it and gradients are sums of rounded terms.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

EQUAL, RAGGED = Spans.of([40] * 4), Spans.of([37, 12, 70, 1, 12])
# Queries, keys, causal; the last ones share keys, as sentences about one image do.
SHAPES = {
    "equal": (EQUAL, EQUAL, False),
    "equal causal": (EQUAL, EQUAL, True),
    "ragged": (RAGGED, RAGGED, False),
    "ragged causal": (RAGGED, RAGGED, True),
    "cross": (Spans.of([3, 9, 5, 1]), RAGGED.pick([2, 0, 0, 3]), False),
}


def compare(shape: str, dtype: torch.dtype, backend: attention.Backend, device: str) -> None:
    """Check a backend's output, also in inference, and its gradients."""
    inputs = _inputs(shape, dtype)
    expected = _with_gradients(shape, inputs, "padded")
    found = _with_gradients(shape, [t.to(device, dtype) for t in inputs], backend)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, dtype)
    queries, keys, causal = SHAPES[shape]
    with attention.backend(backend), torch.inference_mode():
        q, k, v = (t.to(device, dtype) for t in inputs)
        close(attention.attend(q, k, v, queries, keys, causal=causal), expected[0], dtype)


def compare_statistics(
    shape: str, dtype: torch.dtype, backend: attention.Backend, device: str, summary: attention.Summary
) -> None:
    """Check the output and the statistics of self-attention, in inference and in training."""
    spans, _, causal = SHAPES[shape]
    inputs = _inputs(shape, dtype)
    with attention.backend("padded"):
        out, expected = attention.attend_with_statistics(*inputs, spans, causal=causal, summary=summary)
    for training in (False, True):
        q, k, v = (t.to(device, dtype).requires_grad_(training) for t in inputs)
        with attention.backend(backend), torch.set_grad_enabled(training):
            ours, found = attention.attend_with_statistics(q, k, v, spans, causal=causal, summary=summary)
        close(ours, out, dtype)
        for mine, theirs in ((found.class_row, expected.class_row), (found.received, expected.received)):
            assert (mine is None) == (theirs is None) == (summary == "none" and mine is not found.received)
            if mine is None or theirs is None:
                continue
            assert mine.dtype == torch.float32
            close(mine, theirs, dtype)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compare within the tolerance of a precision."""
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found.detach().float().cpu(), expected.detach(), atol=tolerance, rtol=tolerance)


def _inputs(shape: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v in fp32, as a precision rounds them; keys reach as far as their spans."""
    queries, keys, _ = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    wide = max(start + length for start, length in zip(keys.starts, keys.lengths, strict=True))
    q, k, v = (torch.randn(long, HEADS, WIDTH, generator=generator) for long in (queries.total, wide, wide))
    return q.to(dtype).float(), k.to(dtype).float(), v.to(dtype).float()


def _with_gradients(shape: str, inputs: Sequence[Tensor], backend: attention.Backend) -> tuple[Tensor, ...]:
    """Return the output, and gradients of a weighted sum of it to q, k and v."""
    queries, keys, causal = SHAPES[shape]
    q, k, v = (t.clone().requires_grad_() for t in inputs)
    with attention.backend(backend):
        out = attention.attend(q, k, v, queries, keys, causal=causal)
    weight = torch.arange(out.numel(), device=out.device).view(out.shape).sin()
    return out, *torch.autograd.grad((out.float() * weight).sum(), (q, k, v))
