"""The training loop: what it chooses, logs, refuses, and that it goes on exactly where it stopped."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from madtp_cli.budget import BudgetController
from madtp_cli.data.batch import PairBatch
from madtp_cli.data.order import Repeated
from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.data.shapes import ShapesPairs, accuracy
from madtp_cli.engine.tasks.nlvr2 import Metric, Nlvr2
from madtp_cli.engine.training.fit import BEST, Job, Run, fit, learning_rate_share, make_accelerator
from madtp_cli.engine.training.prefetch import Prefetch
from madtp_cli.engine.training.resume import METRICS, STATE
from madtp_cli.engine.training.settings import FitSettings, LossWeights
from madtp_cli.engine.training.step import TrainingStep
from madtp_cli.errors import Interrupted, MadtpError, SourceError
from madtp_cli.models.base import initialise
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.blip.nlvr import BlipForNlvr
from madtp_cli.models.spec import PruningSpec
from madtp_cli.report.progress import TrainingProgress
from tests.tiny_runs import names, same

SETTINGS = FitSettings(
    steps=6,
    batch_size=8,
    optimizer="adamw",
    learning_rate=3e-3,
    alignment_learning_rate=3e-3,
    matrix_learning_rate=3e-3,
    weight_decay=0.05,
    betas=(0.9, 0.98),
    warmup_steps=2,
    decay_from=0.5,
    clip_norm=1.0,
    seed=42,
    precision="fp32",
    validate_every=2,
    save_every=100,
    log_every=1,
)
SPEC = PruningSpec(
    method="madtp", layers={"vision": (0, 1), "text": ()}, alignment_tokens=3, alignment_dim=8, projection="per_layer"
)


class Training(ShapesPairs):
    """The training split, which calls somebody when a batch is read."""

    def __init__(self, read: Callable[[int], None] = lambda start: None) -> None:
        super().__init__("train", 64)
        self.read = read

    def batch(self, start: int, size: int) -> PairBatch:
        self.read(start)
        return super().batch(start, size)


def scripted(*values: float) -> Metric:
    """Make a metric that gives one accuracy after the other."""
    rest = iter(values)
    return lambda predictions, labels, families: {"accuracy": next(rest)}


def make_job(
    folder: Path,
    settings: FitSettings = SETTINGS,
    *,
    metric: Metric = accuracy,
    read: Callable[[int], None] = lambda start: None,
    goal: float | None = None,
    identity: str = "me",
) -> Job:
    """Make a job on a tiny model; with a goal it prunes towards it, taught by a dense model."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(settings.seed)
    config = small_config(
        image_size=96,
        patch_size=16,
        vocab_size=len(VOCABULARY),
        vision_layers=2,
        vision_width=24,
        text_layers=1,
        text_width=24,
        merge_from=1,
    )
    spec = SPEC if goal else PruningSpec()
    student = BlipForNlvr(config, alignment=spec.alignment(BlipForNlvr.sites_of(config)), plan=spec.plan())
    initialise(student)
    teacher = BlipForNlvr(config) if goal else None
    guided = frozenset({0, 1} if goal else ())
    step = TrainingStep(Nlvr2(metric), student, teacher, None, LossWeights(), guided={"vision": guided})
    controller = BudgetController(goal, 0.3) if goal else None
    return Job(step, Repeated(Training(read)), ShapesPairs("validation", 16), settings, controller, folder, identity)


def run(job: Job, *, resume: bool = False) -> tuple[Run, dict[str, Tensor]]:
    """Fit and return the run and the student's final weights."""
    accelerator = make_accelerator(job.settings, torch.device("cpu"))
    console = Console(file=io.StringIO())
    with TrainingProgress(console, job.settings.steps, "test") as progress:
        done = fit(job, accelerator, progress, resume=resume)
    return done, {key: value.clone() for key, value in job.step.student.state_dict().items()}


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]


def interrupt_at(job: Job, step: int) -> Job:
    """Press Ctrl-C while a step, counted from 1, is taken."""
    steps = count(1)
    job.step.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT) if next(steps) == step else None)
    return job


# Schedule and set-up -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (0, 0.25),
        (1, 0.5),
        (3, 1.0),
        (4, 1.0),
        (50, 1.0),
        (75, 0.5),
        (60, 0.5 + 0.5 * math.cos(0.2 * math.pi)),
        (100, 0),
    ],
)
def test_the_learning_rate_warms_up_stays_and_falls_as_a_cosine(step: int, share: float) -> None:
    assert learning_rate_share(step, 100, 4, 0.5) == pytest.approx(share)


@pytest.mark.parametrize(("decay_from", "warmup"), [(1.0, 0), (0.0, 100), (0.0, 200)])
def test_a_schedule_without_room_for_decay_does_not_decay(decay_from: float, warmup: int) -> None:
    assert learning_rate_share(99, 100, warmup, decay_from) == pytest.approx(min(100 / max(warmup, 100), 1))
    assert learning_rate_share(0, 0, 0, 0.0) == 1.0


def test_every_run_of_a_process_has_its_own_precision_and_seed() -> None:
    draws = []
    for precision, mixed in (("fp32", "no"), ("bf16", "bf16"), ("fp32", "no")):
        accelerator = make_accelerator(replace(SETTINGS, precision=precision), torch.device("cpu"))
        assert accelerator.mixed_precision == mixed
        assert accelerator.device == torch.device("cpu")
        draws.append(torch.rand(3))
    assert draws[0].equal(draws[1])
    assert draws[0].equal(draws[2])


# Training ----------------------------------------------------------------------------------------------------


def test_one_seed_gives_one_set_of_weights(tmp_path: Path) -> None:
    first, again = (run(make_job(tmp_path / name))[1] for name in ("a", "b"))
    other = run(make_job(tmp_path / "c", replace(SETTINGS, seed=43)))[1]
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("change", [{"optimizer": "muon"}, {"precision": "bf16"}], ids=str)
def test_training_learns(change: Mapping[str, Any], tmp_path: Path) -> None:
    """The loss on one batch, seen again and again, falls; weights stay float32 and finite."""
    settings = replace(SETTINGS, steps=30, validate_every=30, warmup_steps=0, **change)
    job = replace(make_job(tmp_path, settings), train=Repeated(ShapesPairs("train", 8)))
    weights = run(job)[1]
    totals = [entry["losses"]["total"] for entry in log_of(tmp_path) if "losses" in entry]
    assert len(totals) == 30
    assert totals[-1] < 0.8 * totals[0]
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in weights.values())


def test_batches_follow_each_other_and_begin_again_at_the_end(tmp_path: Path) -> None:
    """64 samples are 8 batches of 8; a batch that would be cut off is not read."""
    starts: list[int] = []
    run(make_job(tmp_path, replace(SETTINGS, steps=10), read=starts.append))
    assert starts == [0, 8, 16, 24, 32, 40, 48, 56, 0, 8]
    starts.clear()
    run(make_job(tmp_path, replace(SETTINGS, steps=4, batch_size=24), read=starts.append))
    assert starts == [0, 24, 0, 24]


def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    """Clipped far below AdamW's epsilon of 1e-8 a gradient moves a weight by no more than learning rate * 1e-4."""
    settings = replace(SETTINGS, steps=1, warmup_steps=0, weight_decay=0.0, validate_every=1)
    moved = []
    for name, norm in (("free", 1.0), ("clipped", 1e-12)):
        job = make_job(tmp_path / name, replace(settings, clip_norm=norm))
        before = {key: value.clone() for key, value in job.step.student.state_dict().items()}
        moved.append(max((value - before[key]).abs().max().item() for key, value in run(job)[1].items()))
    assert moved[0] == pytest.approx(settings.learning_rate, rel=0.01)
    assert moved[1] < 2e-4 * settings.learning_rate


def test_no_steps_leave_the_weights_alone(tmp_path: Path) -> None:
    job = make_job(tmp_path, replace(SETTINGS, steps=0))
    before = {key: value.clone() for key, value in job.step.student.state_dict().items()}
    done, after = run(job)
    assert (done.step, done.best_step) == (0, 0)
    assert same(before, after)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(MadtpError) as caught:
        run(make_job(tmp_path, replace(SETTINGS, learning_rate=1e30, clip_norm=1e30, warmup_steps=0)))
    assert caught.value.exit_code == 1
    message = str(caught.value)
    assert message.startswith(("the loss is nan at step ", "the loss is inf at step "))
    assert message.endswith("; try a lower training.learning_rate")
    assert not (tmp_path / STATE).exists()


# What is chosen ----------------------------------------------------------------------------------------------


def test_validation_chooses_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracies .5, .8, .7 after steps 2, 4 and 6: what was there after step 4 comes back."""
    seen: list[dict[str, Tensor]] = []
    job = make_job(tmp_path)
    values = iter((0.5, 0.8, 0.7))

    def metric(predictions: Sequence[int], labels: Sequence[int], families: Sequence[str]) -> Mapping[str, float]:
        seen.append({key: value.clone() for key, value in job.step.student.state_dict().items()})
        return {"accuracy": next(values)}

    job.step.task = Nlvr2(metric)
    done, weights = run(job)
    assert (done.best_step, done.best_score) == (4, 0.8)
    assert same(weights, seen[1])
    assert not same(weights, seen[2])
    assert names(tmp_path) == {BEST, METRICS, STATE}


def test_of_equals_the_later_is_chosen(tmp_path: Path) -> None:
    assert run(make_job(tmp_path, metric=scripted(0.8, 0.8, 0.7)))[0].best_step == 4


def test_weights_are_chosen_only_near_the_goal(tmp_path: Path) -> None:
    """The accuracy falls from step to step: the first validation near the goal is chosen, with its strength."""
    falling = scripted(*(1 - 0.01 * row for row in range(20)))
    job = make_job(tmp_path, replace(SETTINGS, steps=40, validate_every=2), goal=0.3, metric=falling)
    done, _ = run(job)
    log = log_of(tmp_path)
    ramped = {
        entry["step"]: entry["validation"]["reduction"]
        for entry in log
        if "validation" in entry and "losses" not in entry and entry["step"] >= 12
    }
    assert done.best_step == next(step for step, reduction in ramped.items() if reduction > 0.27)
    assert job.step.student.strength == done.best_strength > 0
    assert job.controller is not None
    assert job.controller.strength != done.best_strength
    # The log names the strength that was validated.
    chosen = next(entry for entry in log if "losses" not in entry and entry["step"] == done.best_step)
    assert chosen["strength"] == done.best_strength
    # A step is logged with the strength that it ran at, the first one dense.
    assert next(entry for entry in log if "losses" in entry and entry["step"] == 1)["strength"] == 0


def test_without_a_validation_at_the_goal_the_last_weights_stay(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=3, validate_every=1)
    job = make_job(tmp_path, settings, goal=0.75, metric=scripted(1.0, 0.9, 0.8))
    done, _ = run(job)
    assert done.best_step == 0
    assert not (tmp_path / BEST).exists()


# The log -----------------------------------------------------------------------------------------------------


def test_the_log_has_steps_and_validations(tmp_path: Path) -> None:
    run(make_job(tmp_path, replace(SETTINGS, log_every=4, validate_every=3), goal=0.3))
    log = log_of(tmp_path)
    assert [(entry["step"], "losses" in entry) for entry in log] == [
        *((3, False), (4, True)),
        *((6, True), (6, False)),
    ]
    step = log[1]
    assert step["losses"].keys() == {"task", "alignment", "logits", "guidance", "total"}
    assert sum(loss for name, loss in step["losses"].items() if name != "total") == pytest.approx(
        step["losses"]["total"], rel=1e-4
    )
    # The whole goal after 30% of the steps.
    assert step["target_gmacs"] == pytest.approx(0.7 * step["dense_gmacs"], rel=1e-4)
    assert log[0]["validation"].keys() == {"accuracy", "reduction"}


def test_the_strength_follows_the_controller(tmp_path: Path) -> None:
    job = make_job(tmp_path, replace(SETTINGS, steps=40, validate_every=40), goal=0.4, metric=scripted(0.5))
    run(job)
    reductions = [1 - entry["gmacs"] / entry["dense_gmacs"] for entry in log_of(tmp_path) if "losses" in entry]
    assert reductions[0] == pytest.approx(0, abs=1e-4)
    assert sum(reductions[-8:]) / 8 == pytest.approx(0.4, abs=0.08)
    assert job.controller is not None
    assert job.controller.strength == job.step.student.strength > 0.3


# Interrupted and resumed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", [None, 0.3], ids=["dense", "pruned"])
def test_an_interrupted_run_goes_on_to_the_same_weights(goal: float | None, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=9)
    whole = make_job(tmp_path / "whole", settings, goal=goal)
    done, expected = run(whole)

    halves = tmp_path / "halves"
    with pytest.raises(Interrupted) as caught:
        run(interrupt_at(make_job(halves, settings, goal=goal), 5))
    assert caught.value.exit_code == 130
    assert str(caught.value) == f"stopped at step 5 of 9; the state is saved in {halves}, go on with --resume"
    assert (halves / STATE).is_dir()

    resumed = make_job(halves, settings, goal=goal)
    again, weights = run(resumed, resume=True)
    assert same(weights, expected)
    assert resumed.step.student.strength == whole.step.student.strength
    assert (again.best_step, again.best_score) == (done.best_step, done.best_score)
    logs = [
        [{key: value for key, value in entry.items() if key != "seconds"} for entry in log_of(folder)]
        for folder in (tmp_path / "whole", halves)
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("leave", ["end", "stop", "error"])
def test_no_thread_outlives_a_run(leave: str, tmp_path: Path) -> None:
    """However it ends: by itself, by Ctrl-C, or by an error of the data while a step is taken."""
    before = set(threading.enumerate())

    def fail(start: int) -> None:
        if leave == "error" and start == 2 * 8:
            raise SourceError("gone")

    job = make_job(tmp_path, read=fail)
    with suppress(Interrupted, SourceError):
        run(interrupt_at(job, 2) if leave == "stop" else job)
    assert set(threading.enumerate()) <= before


def test_a_batch_that_cannot_be_read_ends_the_run_at_its_own_step(tmp_path: Path) -> None:
    """The third batch is asked for while the second step is taken, which still counts."""

    def fail(start: int) -> None:
        if start == 2 * 8:
            raise SourceError("gone")

    with pytest.raises(SourceError, match="gone"):
        run(make_job(tmp_path, read=fail))
    assert [entry["step"] for entry in log_of(tmp_path)] == [1, 2, 2]


def test_nothing_is_read_while_a_validation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that takes until the loop rests, and a little longer, is read before the validation is."""
    resting = threading.Event()
    order: list[str] = []
    rest = Prefetch.rest

    def resting_seen(batches: Prefetch[Any]) -> None:
        resting.set()
        rest(batches)

    class Validation(ShapesPairs):
        def batch(self, start: int, size: int) -> PairBatch:
            order.append("validation")
            return super().batch(start, size)

    def read(start: int) -> None:
        if start == 8:
            assert resting.wait(60)
            time.sleep(0.05)
        order.append("training")

    monkeypatch.setattr(Prefetch, "rest", resting_seen)
    job = make_job(tmp_path, replace(SETTINGS, steps=2, validate_every=1), read=read)
    run(replace(job, validation=Validation("validation", 8)))
    assert order == ["training", "training", "validation", "validation"]


def test_a_run_that_was_killed_repeats_what_was_not_saved(tmp_path: Path) -> None:
    """Saved at step 3, killed in step 6, with half a line in the log: steps 4 and 5 are logged once, not twice."""
    settings = replace(SETTINGS, steps=8, save_every=3, validate_every=4)
    expected = run(make_job(tmp_path / "whole", settings))[1]

    def kill(start: int) -> None:
        if start == 5 * 8:
            raise RuntimeError("killed")

    killed = tmp_path / "killed"
    with pytest.raises(RuntimeError, match="killed"):
        run(make_job(killed, settings, read=kill))
    assert [entry["step"] for entry in log_of(killed)] == [1, 2, 3, 4, 4, 5]
    with (killed / METRICS).open("a", encoding="utf-8") as log:
        log.write('{"step": 6, "lo')
    assert same(run(make_job(killed, settings), resume=True)[1], expected)
    assert [entry["step"] for entry in log_of(killed)] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]


def test_the_end_is_saved_so_that_what_follows_may_fail(tmp_path: Path) -> None:
    expected = run(make_job(tmp_path, metric=scripted(0.5, 0.8, 0.7)))[1]
    reads: list[int] = []
    done, weights = run(make_job(tmp_path, metric=scripted(), read=reads.append), resume=True)
    assert reads == []
    assert (done.step, done.best_step) == (6, 4)
    assert same(weights, expected)


def test_another_recipe_does_not_resume_a_run(tmp_path: Path) -> None:
    run(make_job(tmp_path))
    with pytest.raises(SourceError, match="its state belongs to another recipe"):
        run(make_job(tmp_path, identity="you"), resume=True)
