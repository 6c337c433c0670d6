"""Schedules meet the reduction they are made for, and can be given without their scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.speed import schedule as schedule_module
from benchmarks.speed.schedule import compaction_share, schedule_for, thin_config, with_given_selections
from benchmarks.speed.subjects import SUBJECTS
from madtp_cli.costs import analytic
from madtp_cli.engine.profiling.costs import at_strength
from madtp_cli.errors import UsageError
from madtp_cli.models.base import PrunedModel
from madtp_cli.pruning import Madtp
from madtp_cli.tokens import compact
from tests.benchmarks.speed.tiny_subjects import model_and_inputs, tiny


@pytest.mark.parametrize("name", SUBJECTS)
@torch.inference_mode()
def test_a_schedule_costs_what_the_model_itself_counts(name: str) -> None:
    """Oracle: the analytic count of a forward pass of the model, of which the schedule has seen a thin twin only."""
    model, inputs = model_and_inputs(name)
    schedule = schedule_for(SUBJECTS[name], model, inputs, 0.4)
    found = analytic.total(model.macs(at_strength(model, schedule.strength)(**inputs.packed())))
    assert found.tolist() == [round(schedule.macs)] * 2
    assert schedule.reduction == pytest.approx(0.4, abs=0.05)  # a tiny model has few tokens to choose from
    assert thin_config(model.config).vision_config.image_size == model.config.vision_config.image_size


def test_a_reduction_beyond_one_token_a_layer_is_refused() -> None:
    model, inputs = model_and_inputs("blip-nlvr2")
    with pytest.raises(UsageError, match=r"--reduction 0\.99: BLIP-B NLVR2 @384 saves at most 0\.\d+ of its MACs"):
        schedule_for(SUBJECTS["blip-nlvr2"], model, inputs, 0.99)


@pytest.mark.parametrize("name", SUBJECTS)
@torch.inference_mode()
def test_given_selections_prune_alike_and_score_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the model that scores. The other must give its logits, twice, with scoring made impossible."""
    model, inputs = model_and_inputs(name)
    pruned = at_strength(model, 0.5)
    wanted = pruned(**inputs.packed())
    given = with_given_selections(pruned, inputs)
    monkeypatch.setattr(Madtp, "select", None)
    for _ in range(2):
        output = given(**inputs.packed())
        torch.testing.assert_close(output.logits, wanted.logits, atol=1e-6, rtol=0)
        assert [layer.leaving for layer in output.traces["vision"]] == [
            layer.leaving for layer in wanted.traces["vision"]
        ]


def test_compaction_is_its_share_of_the_median_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that moves by 2 for every compaction, and by 5, 500 and 50 for all else in three passes."""
    model, inputs = model_and_inputs("blip-nlvr2")
    now, compactions, others = 0.0, 0, iter([5.0, 500.0, 50.0])

    def timed_compact(*args: Any, **options: Any) -> Any:
        nonlocal now, compactions
        now, compactions = now + 2, compactions + 1
        return compact(*args, **options)

    def pass_begins(*_: object) -> None:
        nonlocal now
        now += next(others)

    monkeypatch.setattr(schedule_module, "compact", timed_compact)
    pruned = at_strength(model, 0.5)
    handle = pruned.register_forward_pre_hook(pass_begins)
    found = compaction_share(pruned, inputs, 3, lambda: now)
    handle.remove()
    assert compactions > 3
    assert compactions % 3 == 0
    spent = 2 * compactions / 3
    assert found == pytest.approx(spent / (spent + 50))


def test_a_dense_pass_compacts_nothing() -> None:
    model, inputs = model_and_inputs("blip-nlvr2")
    assert compaction_share(model, inputs, 1) == 0


def test_the_model_that_is_timed_stays_dense() -> None:
    """Its twins at a strength, or with selections given, share its weights and nothing else."""
    model: PrunedModel = tiny(SUBJECTS["blip-nlvr2"])
    inputs = model_and_inputs("blip-nlvr2")[1]
    with_given_selections(at_strength(model, 0.5), inputs)
    assert model.strength == 0
    assert model.plan is not None
    assert isinstance(model.plan.pruner, Madtp)
