"""Attention on a GPU: agreement with the CPU, whole models, and what the host waits for.

Tests that need a GPU are skipped where there is none; the waits are counted on a CPU too.
"""

from __future__ import annotations

import warnings
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from madtp_cli import attention, tokens
from madtp_cli.attention import Backend, Summary, received, varlen
from madtp_cli.models.base import Output, initialise
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.blip.nlvr import BlipForNlvr
from madtp_cli.models.spec import PruningSpec
from madtp_cli.tokens import Spans
from tests.attention import agreement
from tests.attention.stand_in import Kernel, Waits

GPU = "cuda"
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHAPES = pytest.mark.parametrize("shape", agreement.SHAPES)
SELF_ATTENTION = pytest.mark.parametrize("shape", [name for name in agreement.SHAPES if name != "cross"])
DTYPES = pytest.mark.parametrize("dtype", agreement.DTYPES)
BACKENDS = pytest.mark.parametrize("backend", attention.BACKENDS)
LAYERS = 3
# What reads a batch's lists (which sentence reads which image) waits once each, whatever the depth.
READS_OF_LISTS = 2


def _model(strength: float, device: str) -> BlipForNlvr:
    """Build a small BLIP with heads 64 wide that keeps the same share of every sample's tokens in every layer."""
    config = small_config(
        image_size=64,
        vocab_size=30,
        vision_layers=LAYERS,
        vision_width=128,
        vision_heads=2,
        text_layers=LAYERS,
        text_width=128,
        text_heads=2,
    )
    layers = dict.fromkeys(("vision", "text"), tuple(range(LAYERS)))
    spec = PruningSpec("madtp", tokens="scheduled", layers=layers, alignment_tokens=6, alignment_dim=16)
    torch.manual_seed(0)
    model = BlipForNlvr(
        config, alignment=spec.alignment(BlipForNlvr.sites_of(config)), plan=spec.plan(), strength=strength
    )
    initialise(model)
    return model.to(device).eval()


def _inputs(device: str) -> dict[str, Any]:
    """Draw three sentences of unequal length about five images."""
    generator = torch.Generator().manual_seed(1)
    lengths = [7, 4, 12]
    return {
        "images": torch.randn(5, 3, 64, 64, generator=generator).to(device),
        "text": torch.randint(0, 30, (sum(lengths),), generator=generator).to(device),
        "text_lengths": lengths,
        "image_index": [(0, 1), (2, 3), (3, 4)],
    }


def _leaving(output: Output) -> list[tuple[int, ...]]:
    return [layer.leaving for trace in output.traces.values() for layer in trace]


@NEEDS_GPU
@SHAPES
@DTYPES
@BACKENDS
def test_output_and_gradients_agree(shape: str, dtype: str, backend: Backend) -> None:
    """Padded fp32 on the CPU, within the tolerances of agreement.py."""
    agreement.compare(shape, agreement.DTYPES[dtype], backend, GPU)


@NEEDS_GPU
@SELF_ATTENTION
@DTYPES
@BACKENDS
@pytest.mark.parametrize("summary", ["first", "last"])
def test_statistics_agree(shape: str, dtype: str, backend: Backend, summary: Summary) -> None:
    """The same, of the output that comes with them and of both statistics."""
    agreement.compare_statistics(shape, agreement.DTYPES[dtype], backend, GPU, summary)


@NEEDS_GPU
@SELF_ATTENTION
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_statistics_agree_without_triton(shape: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch takes the Triton kernel's place."""
    monkeypatch.setattr(received, "kernel_works", lambda device: False)
    agreement.compare_statistics(shape, agreement.DTYPES[dtype], "varlen", GPU, "first")


@NEEDS_GPU
def test_triton_works_here() -> None:
    """The kernel compiles and runs: nothing else would notice that torch does its work."""
    pytest.importorskip("triton")
    assert received.kernel_works(torch.device(GPU, 0))


@NEEDS_GPU
def test_scores_repeat_to_the_bit_and_know_no_batch_mates() -> None:
    """No atomics: the same sums in the same order, alone or in a batch."""
    spans = agreement.RAGGED
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(spans.total, 2, 64, generator=generator).to(GPU, torch.bfloat16) for _ in range(3))
    _, one = attention.attend_with_statistics(q, k, v, spans)
    _, two = attention.attend_with_statistics(q, k, v, spans)
    assert torch.equal(one.received, two.received)
    assert one.class_row is not None
    assert two.class_row is not None
    assert torch.equal(one.class_row, two.class_row)
    for start, length in zip(spans.starts, spans.lengths, strict=True):
        own = slice(start, start + length)
        _, alone = attention.attend_with_statistics(q[own], k[own], v[own], Spans.of([length]))
        assert torch.equal(alone.received, one.received[own])


@NEEDS_GPU
@pytest.mark.parametrize("strength", [0.0, 0.4], ids=["dense", "pruned"])
def test_a_model_in_fp32_is_the_one_on_the_cpu(strength: float) -> None:
    """The CPU's logits to 1e-4, and the very tokens it keeps."""
    with torch.no_grad():
        expected = _model(strength, "cpu")(**_inputs("cpu"))
        found = _model(strength, GPU)(**_inputs(GPU))
    assert _leaving(found) == _leaving(expected)
    for ours, theirs in zip(chain(*found.traces.values()), chain(*expected.traces.values()), strict=True):
        assert torch.equal(ours.kept.cpu(), theirs.kept)
    torch.testing.assert_close(found.logits.cpu(), expected.logits, atol=1e-4, rtol=1e-4)


@NEEDS_GPU
@pytest.mark.parametrize("strength", [0.0, 0.4], ids=["dense", "pruned"])
@pytest.mark.parametrize("dtype", varlen.DTYPES, ids=str)
def test_a_model_in_half_precision_trains_and_keeps_as_many_tokens(strength: float, dtype: torch.dtype) -> None:
    """Counts are those of fp32; a dense model's logits are within 5e-2, and gradients point its way."""
    expected = _trained(strength, torch.float32)
    found = _trained(strength, dtype)
    assert _leaving(found[0]) == _leaving(expected[0])
    assert found[0].logits.isfinite().all()
    assert found[1].isfinite().all()
    if strength == 0:
        torch.testing.assert_close(found[0].logits, expected[0].logits, atol=5e-2, rtol=5e-2)
        assert torch.cosine_similarity(found[1], expected[1], 0) > 0.98


def _trained(strength: float, dtype: torch.dtype) -> tuple[Output, Tensor]:
    """Return the output and the gradient of the first vision block's qkv, flat."""
    model = _model(strength, GPU).train()
    with torch.autocast(torch.device(GPU).type, dtype, enabled=dtype != torch.float32):
        output = model(**_inputs(GPU))
    output.logits.sum().backward()
    gradient = model.vision_model.encoder.layers[0].self_attn.qkv.weight.grad
    assert gradient is not None
    return output, gradient.flatten()


@NEEDS_GPU
@pytest.mark.parametrize("strength", [0.0, 0.4], ids=["dense", "pruned"])
def test_the_host_waits_once_per_pruned_block(strength: float) -> None:
    """Torch warns of every wait; a dense model has none but for the lists it reads."""
    model, inputs = _model(strength, GPU), _inputs(GPU)
    with torch.inference_mode(), torch.autocast(torch.device(GPU).type, torch.bfloat16):
        model(**inputs)  # kernels are compiled and libraries loaded
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                model(**inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(each.message) for each in told if "called a synchronizing" in str(each.message)]
    assert len(waits) <= READS_OF_LISTS + (2 * LAYERS if strength else 0), waits


def test_what_is_counted_as_asking() -> None:
    """By hand: four calls that need a value or a size from the device, among some that do not."""
    x = torch.arange(3)
    with Waits() as waits:
        x[x > 0].sum().item()
        x[x + 0].repeat_interleave(x + 1, output_size=6).tolist()
        x.repeat_interleave(x + 1)
        torch.where(x > 0, x, 1)
    assert waits.calls == ["__getitem__", "item", "tolist", "repeat_interleave"]


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("strength", [0.0, 0.4], ids=["dense", "pruned"])
@pytest.mark.parametrize("backend", ["varlen", "padded"])
def test_little_is_asked_of_the_device(
    backend: Backend, strength: float, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, by the way of a GPU: of all calls, those that need a value on the host are one per pruned block.

    The kernels are the only part that is not the GPU's own, and are left out of the count.
    """
    waits = Waits()
    kernel, statistics = Kernel(by_head=True), received.by_blocks
    monkeypatch.setattr(varlen, "available", lambda device, dtype: backend == "varlen")
    monkeypatch.setattr(varlen, "_kernel", lambda: waits.leaving_out(kernel))
    monkeypatch.setattr(received, "by_blocks", waits.leaving_out(statistics))
    monkeypatch.setattr(tokens, "_places", tokens.scattered_places)
    model, inputs = _model(strength, "cpu"), _inputs("cpu")
    with attention.backend(backend), waits, torch.set_grad_enabled(training):
        model(**inputs, learn=training)
    assert waits.calls == ["tolist"] * (2 * LAYERS if strength else 0)
    assert kernel.width == (64 if backend == "varlen" else 0)
