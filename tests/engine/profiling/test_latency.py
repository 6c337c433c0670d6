"""Timing models on real samples."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from madtp_cli.attention import backend
from madtp_cli.costs import latency as costs_latency
from madtp_cli.costs.analytic import total
from madtp_cli.costs.latency import Latency, Setting
from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.data.shapes import ShapesPairs
from madtp_cli.engine.evaluation.samples import fit_samples, spread_samples
from madtp_cli.engine.profiling import latency
from madtp_cli.engine.profiling.costs import analytic_costs, at_strength
from madtp_cli.engine.profiling.latency import Timed
from madtp_cli.engine.tasks.base import Normalisation
from madtp_cli.models.base import Inputs, Output, initialise
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.blip.nlvr import BlipForNlvr
from madtp_cli.models.spec import PruningSpec
from madtp_cli.results import Speed

PLAIN = Normalisation()


def model_of(vision_layers: int, **pruning: Any) -> BlipForNlvr:
    sizes = {"vision_width": 24, "text_layers": 1, "text_width": 24}
    config = small_config(image_size=96, vocab_size=len(VOCABULARY), vision_layers=vision_layers, **sizes)
    return BlipForNlvr(config, **pruning)


def test_models_are_compared_at_batch_1_and_32() -> None:
    """Every model has its figures at both sizes; ten times the layers take longer, a batch holds more than a sample."""
    models = {"short": model_of(1), "long": model_of(10)}
    found = latency.compare_latency(models, ShapesPairs("validation", 300), PLAIN, samples=32, seconds=0.05)
    assert set(found) == {"short", "long"}
    short, long = found["short"], found["long"]
    for speed in (short, long):
        assert list(speed.latency_ms) == list(speed.latency_p90_ms) == list(speed.latency_runs) == ["1", "32"]
        assert speed.samples_per_second["32"] == pytest.approx(32e3 / speed.latency_ms["32"])
        assert speed.latency_runs["1"] >= 6
        assert speed.peak_mib["32"] > 8 * speed.peak_mib["1"] > 0
    for size in ("1", "32"):
        assert short.latency_ms[size] < long.latency_ms[size]
    # Neither is called dense, so that there is nothing to compare with.
    assert (long.macs_ratio, long.time_ratio, long.efficiency) == ({}, {}, {})


def test_speeds_are_compared_with_the_dense_model() -> None:
    """By hand: 0.5 and 0.6 of the time for 0.2 and 0.3 of the multiply-adds; who saves none has no efficiency."""

    def taken(p50: float, size: int, macs: float) -> Timed:
        setting = Setting(size, "cpu", "fp32", "auto")
        return Timed(Latency(p50_ms=p50, p90_ms=2 * p50, runs=7, setting=setting, peak_mib=3.0), macs)

    timed = {
        1: {"dense": taken(10, 1, 100), "pruned": taken(5, 1, 20), "other": taken(20, 1, 100)},
        8: {"dense": taken(50, 8, 200), "pruned": taken(30, 8, 60), "other": taken(100, 8, 200)},
    }
    found = latency.speeds(timed)
    assert found["dense"] == Speed(
        latency_ms={"1": 10, "8": 50},
        latency_p90_ms={"1": 20, "8": 100},
        latency_runs={"1": 7, "8": 7},
        samples_per_second={"1": 100.0, "8": 160.0},
        peak_mib={"1": 3.0, "8": 3.0},
    )
    assert found["pruned"].macs_ratio == {"1": 0.2, "8": 0.3}
    assert found["pruned"].time_ratio == {"1": 0.5, "8": 0.6}
    assert found["pruned"].efficiency == pytest.approx({"1": 0.5 / 0.8, "8": 0.4 / 0.7})
    assert (found["other"].macs_ratio, found["other"].time_ratio) == ({"1": 1.0, "8": 1.0}, {"1": 2.0, "8": 2.0})
    assert found["other"].efficiency == {}


def test_costs_are_those_of_the_samples_that_were_timed() -> None:
    """A pruned model and its dense self on the same eight samples: what the analytic count finds on them."""
    spec = PruningSpec(method="random", strength=0.5, layers={"vision": (0, 1), "text": ()})
    model = model_of(2, plan=spec.plan(), strength=0.5)
    data, models = ShapesPairs("validation", 300), {"dense": at_strength(model, 0), "pruned": model}
    found = latency.compare_latency(models, data, PLAIN, samples=8, batch_sizes=[4], seconds=0)
    costs = analytic_costs(model, fit_samples(spread_samples(data, 8), model, PLAIN))
    assert found["pruned"].macs_ratio == {"4": pytest.approx(costs.macs / costs.dense)}
    assert 0.3 < costs.macs / costs.dense < 0.9
    assert set(found["pruned"].efficiency) == {"4"}


@pytest.mark.parametrize("visit_macs", [1e12, 1.0])
def test_all_of_what_is_saved_arrives_where_time_is_multiply_adds(
    visit_macs: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine whose clock moves by what a batch costs, efficiency is 1 whatever samples each batch holds.

    Samples differ in what they keep, five of them leave one over at batch 2, and small models make many calls in a
    visit: all of it, with other batches for one than for the other, would move the ratios apart.
    """
    now = [0.0]

    class Clocked(BlipForNlvr):
        def forward(self, *args: Any, **kwargs: Any) -> Output:
            output: Output = super().forward(*args, **kwargs)
            now[0] += 1e-9 * total(self.macs(output)).sum().item()
            return output

    torch.manual_seed(0)
    layers = {"vision": (0, 1), "text": (0,)}
    spec = PruningSpec(method="madtp", strength=0.48, layers=layers, alignment_tokens=5, alignment_dim=16)
    config = model_of(2).config
    model = Clocked(
        config, alignment=spec.alignment(Clocked.sites_of(config)), plan=spec.plan(), strength=spec.strength
    )
    initialise(model)
    monkeypatch.setattr(latency, "VISIT_MACS", visit_macs)
    monkeypatch.setattr(latency, "compare", functools.partial(costs_latency.compare, clock=lambda: now[0]))
    models = {"dense": at_strength(model, 0), "pruned": model}
    data = ShapesPairs("validation", 300)
    found = latency.compare_latency(models, data, PLAIN, samples=5, batch_sizes=[1, 2], seconds=0)["pruned"]
    assert found.time_ratio == pytest.approx(found.macs_ratio)
    assert found.efficiency == {"1": pytest.approx(1), "2": pytest.approx(1)}
    assert found.macs_ratio["1"] != found.macs_ratio["2"]


def test_large_models_are_timed_in_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience reaches the rounds: with none left there are two."""
    monkeypatch.setattr(latency, "PATIENCE", 0.0)
    monkeypatch.setattr(costs_latency, "VISIT_SECONDS", 0.0)
    model = model_of(1)
    samples = fit_samples(spread_samples(ShapesPairs("validation", 300), 2), model, PLAIN)
    timed = latency.time_models({"m": (model, samples)}, batch_sizes=[1], seconds=9)
    assert timed[1]["m"].latency.runs == 2 * len(samples)
    assert timed[1]["m"].latency.setting == Setting(1, "cpu", "fp32", "auto")


def test_figures_say_which_backend_was_in_force() -> None:
    """One choice for the whole process: what was forced while the models ran."""
    model = model_of(1)
    samples = fit_samples(spread_samples(ShapesPairs("validation", 300), 1), model, PLAIN)
    with backend("padded"):
        timed = latency.time_models({"m": (model, samples)}, batch_sizes=[1], seconds=0)
    assert timed[1]["m"].latency.setting.attention_backend == "padded"


def test_calls_go_through_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five samples in batches of two: two batches in turn, the odd one left out, in the precision asked for."""
    seen: list[tuple[int, torch.dtype]] = []

    class Spy(BlipForNlvr):
        def run(self, inputs: Inputs) -> Any:
            linear = torch.nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1))
            seen.append((int(inputs.text.sum()), linear.dtype))
            assert torch.is_inference_mode_enabled()
            return None

    model = Spy(model_of(1).config)
    drawn = spread_samples(ShapesPairs("validation", 300), 5)
    samples = fit_samples(drawn, model, PLAIN)
    latency.time_models({"spy": (model, samples)}, batch_sizes=[2], precision="bf16", seconds=0)
    sums = [int(sample.text.sum()) for sample in samples]
    pairs = [sums[0] + sums[1], sums[2] + sums[3]]
    assert len(set(pairs)) == 2
    # Two calls to warm up and one for memory are of the first batch.
    assert [tokens for tokens, _ in seen[:3]] == pairs[:1] * 3
    assert [tokens for tokens, _ in seen[3:]] == pairs * ((len(seen) - 3) // 2)
    assert {dtype for _, dtype in seen} == {torch.bfloat16}


def test_what_would_take_minutes_is_timed_on_fewer_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 2.5 samples without pruning: two of ten at batch 1, spread over them, and one batch of four."""
    model = model_of(1)
    samples = fit_samples(spread_samples(ShapesPairs("validation", 300), 10), model, PLAIN)
    lengths = [length for sample in samples for length in sample.text_lengths]
    monkeypatch.setattr(latency, "VISIT_MACS", 2.5e9 * model.dense_gmacs(lengths))
    timed = latency.time_models({"m": (model, samples)}, batch_sizes=[1, 4], seconds=0)
    assert timed[1]["m"].macs == pytest.approx(1e9 * model.dense_gmacs([lengths[0], lengths[5]]))
    assert timed[4]["m"].macs == pytest.approx(1e9 * model.dense_gmacs(lengths[:4]))
