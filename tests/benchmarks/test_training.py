"""What is timed is what it is called: the oracle is the model itself, run without the benchmark, and arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner, Result

from benchmarks import training
from benchmarks.speed.subjects import Inputs, pruning
from benchmarks.training import ALONE, CACHED, CPU, DENSE, TAUGHT, Subject, steps, strength_for, taking, time_subject
from madtp_cli.costs.latency import Latency, Setting
from madtp_cli.data.batch import PairBatch
from madtp_cli.data.metrics import nlvr2_scores
from madtp_cli.engine.evaluation.meter import CostMeter
from madtp_cli.engine.profiling.costs import at_strength
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.engine.training.optimizers import make_optimizers
from madtp_cli.engine.training.settings import LossWeights
from madtp_cli.engine.training.teacher import CachedTeacher
from madtp_cli.models.base import PrunedModel
from madtp_cli.recipe_sections import LayersSection
from tests.benchmarks.speed.tiny_subjects import WORDS, model_and_inputs

LABELS = torch.tensor([0, 1, 1])


def tiny() -> tuple[Subject, PrunedModel, Inputs]:
    """Return a subject of three pairs, its model and what the model takes."""
    model, inputs = model_and_inputs("blip-nlvr2", 3)
    batch = PairBatch(
        images=inputs.images,
        text=inputs.ids.flatten(),
        text_lengths=[WORDS] * 3,
        image_index=torch.arange(6).view(3, 2),
        ids=("a", "b", "c"),
        groups=("", "", ""),
        labels=LABELS,
    )
    spec = pruning(model.config, "blip", "nlvr2", LayersSection())
    return Subject("tiny", model, spec, Nlvr2(nlvr2_scores), batch, LossWeights()), model, inputs


def test_the_strength_is_what_the_model_itself_saves() -> None:
    """Counted on the model, not on its thin twin; few tokens make the steps between reachable costs wide."""
    subject, model, _ = tiny()
    strength, reached = strength_for(subject, 0.4)
    cost = CostMeter()
    with torch.inference_mode():
        cost.add(model, subject.task.forward(at_strength(model, strength), subject.batch, CPU))
    assert cost.reduction == pytest.approx(reached, abs=1e-12)
    assert reached == pytest.approx(0.4, abs=0.05)


def test_the_kinds_of_steps_have_the_losses_they_are_named_for(tmp_path: Path) -> None:
    subject, model, inputs = tiny()
    kinds = steps(subject, 0.5, "fp32", tmp_path)
    with torch.no_grad():
        dense = at_strength(model, 0.0)(**inputs.packed()).logits
    found = {name: dict(step(subject.batch).losses) for name, step in kinds.items()}
    assert {name: set(losses) for name, losses in found.items()} == {
        DENSE: {"task"},
        ALONE: {"task", "alignment"},
        TAUGHT: {"task", "alignment", "logits", "guidance"},
        CACHED: {"task", "alignment", "logits", "guidance"},
    }
    torch.testing.assert_close(found[DENSE]["task"], cross_entropy(dense, LABELS))
    torch.testing.assert_close(found[CACHED], found[TAUGHT])
    assert kinds[DENSE](subject.batch).reduction == 0
    assert kinds[ALONE](subject.batch).reduction > 0.2


def test_the_teacher_whose_answers_are_cached_runs_once(tmp_path: Path) -> None:
    subject, _, _ = tiny()
    step = steps(subject, 0.5, "fp32", tmp_path)[CACHED]
    assert isinstance(step.teacher, CachedTeacher)
    calls: list[int] = []
    step.teacher.teacher.model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        step(subject.batch)
    assert len(calls) == 1


def test_a_step_is_taken_and_no_weight_moves(tmp_path: Path) -> None:
    """Gradients reach the optimiser, which has a state of each of their weights; at rate zero weights stay."""
    subject, model, _ = tiny()
    kinds = steps(subject, 0.5, "fp32", tmp_path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rates = dict.fromkeys(("learning_rate", "alignment_learning_rate", "matrix_learning_rate"), 0.0)
    optimizers = make_optimizers("adamw", kinds[ALONE], weight_decay=0.05, betas=(0.9, 0.98), **rates)
    taking(kinds[DENSE], subject.batch, optimizers, "fp32")()
    assert {id(weight) for weight in optimizers[0].state} == {id(weight) for weight in kinds[DENSE].parameters()}
    taking(kinds[TAUGHT], subject.batch, optimizers, "bf16")()
    assert len(optimizers[0].state) > len(list(kinds[DENSE].parameters()))
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_ratios_are_to_the_dense_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that the test makes up, after every kind of step was taken once."""

    def compare(calls: dict[str, Callable[[], None]], setting: Setting, **_: object) -> dict[str, Latency]:
        for call in calls.values():
            call()
        return {name: Latency(ms, ms, 1, setting) for name, ms in zip(calls, (200, 120, 180, 130), strict=True)}

    monkeypatch.setattr(training, "compare", compare)
    subject, _, _ = tiny()
    rows = time_subject(subject, 0.4, "fp32", 0.0)
    assert [row.candidate for row in rows] == [DENSE, ALONE, TAUGHT, CACHED]
    assert [row.time_ratio for row in rows] == [1.0, 0.6, 0.9, 0.65]
    assert rows[0].macs_ratio == 1
    assert rows[1].macs_ratio == rows[2].macs_ratio == pytest.approx(0.6, abs=0.05)


def typed(*words: str) -> Result:
    app = typer.Typer()
    app.command()(training.main)
    return CliRunner().invoke(app, words)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_prints_its_table_and_writes_the_same(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "quickstart", lambda: tiny()[0])
    output = tmp_path / "training.json"
    chosen = ("--quick", "--reduction", "0.4", "--seconds", "0", "--precision", precision, "--json", str(output))
    result = typed(*chosen)
    assert result.exit_code == 0, result.output
    assert f"tiny, batch 3, {precision}" in result.stdout
    found = json.loads(output.read_text(encoding="utf-8"))
    assert [row["candidate"] for row in found["rows"]] == [DENSE, ALONE, TAUGHT, CACHED]
    assert all(name in result.stdout for name in (DENSE, ALONE, TAUGHT, CACHED))


def test_a_file_that_cannot_be_written_is_refused_before_anything_runs() -> None:
    result = typed("--json", "nowhere/at/all.json")
    assert result.exit_code == 2
    assert "there is no folder nowhere/at to write it to" in " ".join(result.output.replace("│", " ").split())
