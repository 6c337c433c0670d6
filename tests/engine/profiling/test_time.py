"""Time by parts, on a clock of the test's own; and which models share one unpruned twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.data.shapes import ShapesPairs
from madtp_cli.engine.evaluation.samples import fit_samples, spread_samples
from madtp_cli.engine.profiling import time as profile_time
from madtp_cli.engine.profiling.time import dense_kinds, shares_of, time_shares
from madtp_cli.engine.tasks.base import Normalisation
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.blip.nlvr import BlipForNlvr


class Clock:
    """A clock that only goes on when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Work(nn.Module):
    """Takes so many seconds, and runs what is in it."""

    def __init__(self, clock: Clock, seconds: float, *inside: nn.Module) -> None:
        super().__init__()
        self.clock, self.seconds, self.inside = clock, seconds, nn.ModuleList(inside)

    def forward(self) -> None:
        self.clock.now += self.seconds
        for module in self.inside:
            module()


def test_a_module_has_its_own_time_and_the_rest_is_nobodys() -> None:
    """Of 10 seconds 5 are an inner module's, 2 its outer's, 1 another's, and 2 lie between."""
    clock = Clock()
    inner = Work(clock, 5.0)
    outer, other = Work(clock, 2.0, inner), Work(clock, 1.0)

    def call() -> None:
        outer()
        clock.now += 2.0
        other()

    shares = shares_of({"outer": [outer], "inner": [inner], "other": [other]}, [call], seconds=1.0, clock=clock)
    assert shares == {"outer": pytest.approx(0.2), "inner": pytest.approx(0.5), "other": pytest.approx(0.1)}
    assert not outer._forward_hooks
    assert not inner._forward_pre_hooks


def test_modules_of_one_name_are_added_and_shares_are_medians() -> None:
    """Three calls, one of which is held up: the median does not see it."""
    clock = Clock()
    first, second, other = Work(clock, 1.0), Work(clock, 2.0), Work(clock, 1.0)
    delays = iter([0.0, 96.0, 0.0])

    def call() -> None:
        first()
        second()
        clock.now += next(delays)
        other()

    shares = shares_of({"a": [first, second], "b": [other]}, [call, call, call], seconds=0.0, clock=clock)
    assert shares == {"a": pytest.approx(0.75), "b": pytest.approx(0.25)}


def test_calls_go_round_until_the_time_is_over() -> None:
    clock = Clock()
    work, calls = Work(clock, 1.0), []

    def call() -> None:
        calls.append(1)
        work()

    shares_of({"a": [work]}, [call, call], seconds=5.0, clock=clock)
    assert len(calls) == 6


def test_hooks_are_gone_after_a_failure() -> None:
    """A model that fails stays as it was."""
    work = Work(Clock(), 1.0)

    def call() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        shares_of({"a": [work]}, [call], seconds=1.0)
    assert not work._forward_hooks


def model(layers: int = 1, heads: int = 3, image_size: int = 96) -> BlipForNlvr:
    torch.manual_seed(0)
    sizes = {"vision_width": 24, "text_layers": 1, "text_width": 24, "vision_heads": heads}
    return BlipForNlvr(
        small_config(image_size=image_size, vocab_size=len(VOCABULARY), vision_layers=layers, **sizes)
    ).eval()


def test_every_part_that_runs_has_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that only holds others is timed by what it holds; one that never runs has none; together not above 1."""
    monkeypatch.setattr(profile_time, "SHARE_SECONDS", 0.0)
    small = model()
    samples = fit_samples(spread_samples(ShapesPairs("validation", 8), 2), small, Normalisation())
    names = ["vision_model.encoder.layers.0.mlp", "vision_model.embeddings", "vision_model.encoder", "no.such"]
    shares = time_shares(small, names, samples, "fp32")
    assert set(shares) == {"vision_model.encoder.layers.0.mlp", "vision_model.embeddings", "vision_model.encoder"}
    assert all(0 < share < 1 for share in shares.values())
    assert sum(shares.values()) <= 1


def test_models_that_do_the_same_unpruned_are_of_one_kind() -> None:
    """Other weights are the same work; other sizes, or heads, are not."""
    models: dict[str, Any] = {"a": model(), "b": model(2), "c": model(), "d": model(heads=2), "e": model(2)}
    assert dense_kinds(models) == {"a": "dense", "b": "dense 2", "c": "dense", "d": "dense 3", "e": "dense 2"}
