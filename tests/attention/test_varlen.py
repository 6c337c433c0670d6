"""Variable-length attention: what we hand to torch's kernel, checked on the CPU with a kernel of the same contract.

The real kernel needs CUDA (tests/attention/test_cuda.py). Here its place is taken by a loop over its offsets, and the
oracle is the definition in float64; that the real one accepts our call is checked on tensors without values.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from madtp_cli import attention
from madtp_cli.attention import varlen
from madtp_cli.tokens import Spans
from tests.attention import definition
from tests.attention.stand_in import Kernel

HEADS = 3
RAGGED, EQUAL = Spans.of([5, 2, 7, 1]), Spans.of([4, 4, 4, 4])
# Queries, and the keys they read: their own, shared, in another order, overlapping, from the middle on.
PAIRS = {
    "own": (RAGGED, RAGGED),
    "equal": (EQUAL, EQUAL),
    "cross": (RAGGED, EQUAL),
    "shared": (RAGGED, Spans.of([4, 9]).pick([0, 1, 1, 0])),
    "order": (EQUAL, RAGGED.pick([3, 1, 0, 2])),
    "overlapping": (EQUAL, Spans((0, 2, 3, 3), (6, 2, 5, 1))),
    "first of many": (Spans.of([2, 3]), EQUAL.pick([0, 1])),
    "middle": (Spans.of([2, 3]), EQUAL.pick([2, 3])),
}


@pytest.fixture(params=[True, False], ids=["as returned", "as documented"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Put a loop in the place of torch's kernel."""
    loop = Kernel(by_head=request.param)
    monkeypatch.setattr(varlen, "_kernel", lambda: loop)
    return loop


def _tensors(queries: Spans, keys: Spans, width: int) -> tuple[Tensor, Tensor]:
    """Return q and k with v [T, 2, H, D], which are views of one tensor in BLIP, as long as the spans reach."""
    generator = torch.Generator().manual_seed(0)
    long, wide = (max(s + n for s, n in zip(spans.starts, spans.lengths, strict=True)) for spans in (queries, keys))
    q = torch.randn(long, HEADS, width, generator=generator, dtype=torch.float64)
    kv = torch.randn(wide, 2, HEADS, width, generator=generator, dtype=torch.float64)
    return q.requires_grad_(), kv.requires_grad_()


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("width", [8, 5])
def test_any_spans_reach_the_kernel_end_to_end(name: str, width: int, kernel: Kernel) -> None:
    """The definition in float64, forward and backward, in widths that the kernel reads and that it does not."""
    queries, keys = PAIRS[name]
    for causal in {False, queries.lengths == keys.lengths}:
        ours, theirs = (
            _with_gradients(each, queries, keys, width, causal)
            for each in (varlen.attend_with_norms, definition.attention)
        )
        torch.testing.assert_close(ours["norms"].double(), theirs["norms"].double(), atol=1e-6, rtol=1e-6)
        for part in ("out", "q", "kv"):
            torch.testing.assert_close(ours[part], theirs[part])
    assert kernel.width == 8


def _with_gradients(
    attend: Callable[..., tuple[Tensor, Tensor]], queries: Spans, keys: Spans, width: int, causal: bool
) -> dict[str, Tensor]:
    """Return the output, its log-sum-exp, and gradients of a weighted sum of the output."""
    q, kv = _tensors(queries, keys, width)
    out, norms = attend(q, kv[:, 0], kv[:, 1], queries, keys, causal=causal)
    gradients = torch.autograd.grad((out * torch.arange(out.numel()).view(out.shape).sin()).sum(), (q, kv))
    return {"out": out, "norms": norms, "q": gradients[0], "kv": gradients[1]}


def test_the_norms_carry_no_gradient(kernel: Kernel) -> None:
    """The real kernel's backward ignores theirs, which would be wrong silently."""
    q, kv = _tensors(RAGGED, RAGGED, 8)
    out, norms = varlen.attend_with_norms(q, kv[:, 0], kv[:, 1], RAGGED, RAGGED)
    assert out.requires_grad
    assert not norms.requires_grad


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", varlen.DTYPES, ids=str)
@pytest.mark.parametrize("width", [64, 20])
def test_torch_accepts_the_call(name: str, dtype: torch.dtype, width: int) -> None:
    """The installed torch's own operator, which knows shapes and gradients of tensors that have no values."""
    if varlen._kernel() is None:
        pytest.skip("this torch has no variable-length attention that takes a scale")
    queries, keys = PAIRS[name]
    q, kv = (t.detach().to("meta", dtype).requires_grad_() for t in _tensors(queries, keys, width))
    causal = queries.lengths == keys.lengths
    out, norms = varlen.attend_with_norms(q, kv[:, 0], kv[:, 1], queries, keys, causal=causal)
    assert (out.shape, out.dtype) == (q.shape, dtype)
    assert (norms.shape, norms.dtype) == (q.shape[:2], torch.float32)
    out.sum().backward()
    assert q.grad is not None
    assert kv.grad is not None


def test_statistics_come_from_the_norms(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """`attend_with_statistics` by varlen is the definition, where a kernel is there for the device."""
    monkeypatch.setattr(varlen, "available", lambda device, dtype: True)
    q, kv = _tensors(RAGGED, RAGGED, 8)
    k, v = kv.unbind(1)
    with attention.backend("varlen"):
        out, found = attention.attend_with_statistics(q, k, v, RAGGED, causal=True, summary="last")
        plain = attention.attend(q, k, v, RAGGED, RAGGED, causal=True)
    expected, _ = definition.attention(q, k, v, RAGGED, RAGGED, causal=True)
    class_row, received = definition.statistics(q, k, expected, RAGGED, causal=True, summary="last")
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(plain, expected)
    assert found.class_row is not None
    torch.testing.assert_close(found.class_row.double(), class_row, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.received.double(), received, atol=1e-5, rtol=1e-5)
    assert kernel.width == 8


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        ("cpu", torch.bfloat16, "it runs on cuda only, not on cpu"),
        ("cuda", torch.float32, "it computes in fp16 and bf16 only, not in fp32"),
    ],
)
def test_where_it_cannot_run_it_says_why(device: str, dtype: torch.dtype, reason: str) -> None:
    """The words of the message; no device is asked for what can be told without."""
    assert varlen.unavailable(torch.device(device), dtype) == reason
    assert not varlen.available(torch.device(device), dtype)


@pytest.mark.parametrize(
    ("capability", "kernel_there", "flash", "reason"),
    [
        ((9, 0), True, True, None),
        ((7, 5), True, True, "it needs a GPU of compute capability 8.0 or newer, and cuda:7 has 7.5"),
        ((9, 0), False, True, "without torch.nn.attention.varlen"),
        ((9, 0), True, False, "was built without flash attention"),
    ],
)
def test_a_gpu_must_be_new_enough_and_torch_too(
    capability: tuple[int, int], kernel_there: bool, flash: bool, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU, and a torch, of cardboard."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: flash)
    monkeypatch.setattr(varlen, "_kernel", lambda: Kernel(True) if kernel_there else None)
    found = varlen.unavailable.__wrapped__(torch.device("cuda:7"), torch.bfloat16)
    assert found == reason if reason is None else found is not None and reason in found


def test_who_computes() -> None:
    """`auto` is varlen where that can; what is forced is meant for half precision, and fp32 beside it pads."""
    cpu, gpu, fp32 = torch.device("cpu"), torch.device("cuda"), torch.float32
    expected = {"auto": ("auto", "padded"), "segments": ("segments", "segments")}
    expected |= {"padded": ("padded", "padded"), "varlen": ("padded", "padded")}
    for name in attention.BACKENDS:
        with attention.backend(name):
            assert (attention.resolve(cpu, fp32), attention.resolve(gpu, fp32)) == expected[name]


def test_a_gpu_in_half_precision_needs_no_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where varlen is available, `auto` is varlen, and what is forced is forced."""
    monkeypatch.setattr(varlen, "available", lambda device, dtype: True)
    expected = {"auto": "varlen", "segments": "segments", "padded": "padded", "varlen": "varlen"}
    for name in attention.BACKENDS:
        with attention.backend(name):
            assert attention.resolve(torch.device("cuda"), torch.bfloat16) == expected[name]
