"""Timing models on real samples."""

from __future__ import annotations

import pytest
import torch

from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.data.shapes import ShapesPairs
from madtp_cli.engine import latency
from madtp_cli.engine.samples import fit_samples, spread_samples
from madtp_cli.engine.tasks.base import Normalisation
from madtp_cli.models.blip import small_config
from madtp_cli.models.nlvr import BlipForNlvr

PLAIN = Normalisation()


def model_of(vision_layers: int) -> BlipForNlvr:
    sizes = {"vision_width": 24, "text_layers": 1, "text_width": 24}
    return BlipForNlvr(small_config(image_size=96, vocab_size=len(VOCABULARY), vision_layers=vision_layers, **sizes))


def test_models_are_compared_at_batch_1_and_32() -> None:
    """Every model has a latency at both sizes, with what it was taken with; ten times the layers take longer."""
    models = {"short": model_of(1), "long": model_of(10)}
    found = latency.compare_latency(models, ShapesPairs("validation", 300), PLAIN, samples=32, seconds=0.05)
    assert list(found) == [1, 32]
    for size, by_model in found.items():
        assert set(by_model) == {"short", "long"}
        assert by_model["short"].p50_ms < by_model["long"].p50_ms
        setting = by_model["long"].setting
        assert (setting.batch_size, setting.device, setting.dtype) == (size, "cpu", "fp32")


def test_calls_go_through_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five samples in batches of two: two batches in turn, the odd one left out, in the precision asked for."""
    seen: list[tuple[int, torch.dtype]] = []

    class Spy(BlipForNlvr):
        def forward(self, images: torch.Tensor, text: torch.Tensor, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            linear = torch.nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1))
            seen.append((int(text.sum()), linear.dtype))
            assert torch.is_inference_mode_enabled()
            return None

    model = Spy(model_of(1).config)
    drawn = spread_samples(ShapesPairs("validation", 300), 5)
    samples = fit_samples(drawn, model, PLAIN)
    latency.time_models({"spy": (model, samples)}, batch_sizes=[2], precision="bf16", seconds=0)
    sums = [int(sample.text.sum()) for sample in samples]
    assert [total for total, _ in seen[:4]] == [sums[0] + sums[1], sums[2] + sums[3]] * 2
    assert {dtype for _, dtype in seen} == {torch.bfloat16}
