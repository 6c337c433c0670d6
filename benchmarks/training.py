"""Time training steps, dense and pruned, with and without a teacher: python -m benchmarks.training.

A step is forward, backward, clipping and the optimiser's update, of one batch that is there already. All candidates of
a subject run in turn, on the same weights: the learning rate is zero. docs/performance.md says what the rows mean.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from accelerate import init_empty_weights
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from benchmarks.speed import subjects
from benchmarks.speed.schedule import thin_config
from benchmarks.speed.subjects import SUBJECTS
from madtp_cli import results
from madtp_cli.budget import calibrate
from madtp_cli.costs.latency import Setting, compare
from madtp_cli.data.batch import Batch, PairBatch
from madtp_cli.data.metrics import nlvr2_scores
from madtp_cli.engine.building.data import open_splits
from madtp_cli.engine.building.model import processor_of, pruning_spec, starting_checkpoint
from madtp_cli.engine.building.training import loss_weights
from madtp_cli.engine.evaluation.evaluate import mixed
from madtp_cli.engine.evaluation.meter import CostMeter
from madtp_cli.engine.profiling.costs import at_strength
from madtp_cli.engine.tasks.base import Task
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.engine.training.optimizers import make_optimizers
from madtp_cli.engine.training.settings import LossWeights
from madtp_cli.engine.training.step import TrainingStep
from madtp_cli.engine.training.teacher import CachedTeacher, Teacher
from madtp_cli.models.base import PrunedModel, initialise
from madtp_cli.models.family import model_class
from madtp_cli.models.spec import PruningSpec
from madtp_cli.recipe import load_recipe

Precision = Literal["fp32", "bf16"]
DENSE, ALONE = "dense, alone", "pruned, alone"
TAUGHT, CACHED = "pruned, teacher", "pruned, cached teacher"
QUICKSTART, LARGE = "quickstart", "BLIP-B NLVR2 @384"
PAIRS = 2  # of the large model: 12 GB of memory are enough
ROUNDS = 3
TOLERANCE, BISECTIONS = 5e-4, 24
CLIP_NORM = 1.0
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Subject:
    """A model to train, prunable and with all its parts, and what it is trained on."""

    title: str
    student: PrunedModel
    spec: PruningSpec
    task: Task
    batch: Batch
    weights: LossWeights


@dataclass(frozen=True)
class Row:
    """One kind of step; macs_ratio is that of the student's forward pass, both ratios are to the dense step."""

    subject: str
    batch: int
    candidate: str
    p50_ms: float
    p90_ms: float
    runs: int
    macs_ratio: float
    time_ratio: float


def quickstart() -> Subject:
    """Build what the recipe `quickstart` trains, and its first batch."""
    recipe = load_recipe("quickstart", ["pruning.tokens=scheduled"])
    checkpoint = starting_checkpoint(recipe)
    assert checkpoint is not None
    splits = open_splits(recipe, processor_of(checkpoint))
    spec = pruning_spec(recipe, checkpoint.config)
    batch = splits.train.batch(0, recipe.training.batch_size)
    return Subject(QUICKSTART, checkpoint.build(spec), spec, splits.task, batch, loss_weights(recipe))


def large() -> Subject:
    """Build BLIP-B as benchmarks.speed does, with random weights, and draw pairs for it."""
    known = SUBJECTS["blip-nlvr2"]
    student = subjects.build(known)
    drawn = subjects.draw(student, PAIRS, known.words)
    batch = PairBatch(
        images=drawn.images,
        text=drawn.ids.flatten(),
        text_lengths=[known.words] * PAIRS,
        image_index=torch.arange(2 * PAIRS).view(PAIRS, 2),
        ids=tuple(map(str, range(PAIRS))),
        groups=("",) * PAIRS,
        labels=torch.arange(PAIRS) % 2,
    )
    spec = subjects.pruning(student.config, known.family, known.task, known.layers)
    return Subject(LARGE, student, spec, Nlvr2(nlvr2_scores), batch, LossWeights())


@torch.inference_mode()
def strength_for(subject: Subject, reduction: float) -> tuple[float, float]:
    """Return the strength that saves a share of the multiply-adds of this batch, and the share that it saves.

    With one share of tokens per layer, counts do not depend on weights: a model of few channels tells them.
    """
    student = subject.student
    config = thin_config(student.config)
    spec = subject.spec
    thin = type(student)(config, alignment=spec.alignment(student.sites_of(config)), plan=student.plan)
    initialise(thin)

    def measure(strength: float) -> float:
        cost = CostMeter()
        cost.add(student, subject.task.forward(at_strength(thin.eval(), strength), subject.batch, CPU))
        return cost.reduction

    found = calibrate(measure, reduction, TOLERANCE, max_calls=BISECTIONS)
    return found.strength, found.reduction


def sharing(model: PrunedModel, *, frozen: bool = False) -> PrunedModel:
    """Return the dense model with the parameters of a pruned one, or with frozen ones in the same memory."""
    with init_empty_weights():  # the given ones take their place
        dense: PrunedModel = model_class(model.family, model.task)(model.config)
    state = {key: value for key, value in model.state_dict(keep_vars=True).items() if ".alignment" not in f".{key}"}
    if frozen:
        state = {key: value.detach() for key, value in state.items()}
    dense.load_state_dict(state, strict=True, assign=True)
    return dense.requires_grad_(not frozen)


def steps(subject: Subject, strength: float, precision: str, folder: Path) -> dict[str, TrainingStep]:
    """Put together the kinds of steps, over one set of weights; the teacher's answers are kept in a folder."""
    student, task, weights = subject.student, subject.task, subject.weights
    student.strength = strength
    teacher = sharing(student, frozen=True)
    plan = student.plan
    assert plan is not None
    taught: dict[str, Any] = {
        "guided": {"vision": plan.layers["vision"]},
        "guidance_scale": getattr(plan.pruner, "scale", 1.0),
    }
    untaught = LossWeights(alignment=0.0)
    cached = TrainingStep(task, student, teacher, None, weights, **taught)
    assert isinstance(cached.teacher, Teacher)
    cached.teacher = CachedTeacher(cached.teacher, folder, precision)
    return {
        DENSE: TrainingStep(task, sharing(student), None, None, untaught).train(),
        ALONE: TrainingStep(task, student, None, None, weights).train(),
        TAUGHT: TrainingStep(task, student, teacher, None, weights, **taught).train(),
        CACHED: cached.train(),
    }


def taking(step: TrainingStep, batch: Batch, optimizers: Sequence[Optimizer], precision: str) -> Callable[[], None]:
    """Return a call that takes a step, as madtp_cli/engine/training/fit.py does, and moves no weight."""

    def take() -> None:
        with mixed(precision, CPU):
            losses = step(batch).losses
        torch.stack(list(losses.values())).sum().backward()
        clip_grad_norm_(step.parameters(), CLIP_NORM)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return take


def time_subject(subject: Subject, reduction: float, precision: str, seconds: float) -> list[Row]:
    """Time all kinds of steps of a subject in turn."""
    strength, reached = strength_for(subject, reduction)
    rates = dict.fromkeys(("learning_rate", "alignment_learning_rate", "matrix_learning_rate"), 0.0)
    setting = Setting(subject.batch.samples, "cpu", precision, "auto")
    with tempfile.TemporaryDirectory() as folder:
        kinds = steps(subject, strength, precision, Path(folder))
        optimizers = make_optimizers("adamw", kinds[ALONE], weight_decay=0.05, betas=(0.9, 0.98), **rates)
        calls = {name: taking(step, subject.batch, optimizers, precision) for name, step in kinds.items()}
        timed = compare(calls, setting, seconds=seconds, rounds=ROUNDS, warmup=1, memory=False)
    return [
        Row(
            subject=subject.title,
            batch=subject.batch.samples,
            candidate=name,
            p50_ms=found.p50_ms,
            p90_ms=found.p90_ms,
            runs=found.runs,
            macs_ratio=1.0 if name == DENSE else 1 - reached,
            time_ratio=found.p50_ms / timed[DENSE].p50_ms,
        )
        for name, found in timed.items()
    ]


def table(rows: Sequence[Row], precision: str) -> Table:
    """Lay a subject out for people."""
    title = f"{rows[0].subject}, batch {rows[0].batch}, {precision}"
    shown = Table("step", title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("ms", "p90 ms", "runs", "MACs", "time"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        figures = (f"{row.p50_ms:.0f}", f"{row.p90_ms:.0f}", f"{row.runs}")
        shown.add_row(row.candidate, *figures, f"{row.macs_ratio:.3f}", f"{row.time_ratio:.3f}")
    return shown


def run(which: Mapping[str, Callable[[], Subject]], reduction: float, precision: str, seconds: float) -> list[Row]:
    """Time subjects one after the other, printing each when it is done."""
    console, log = Console(highlight=False), Console(stderr=True, highlight=False)
    rows: list[Row] = []
    for title, make in which.items():
        log.print(f"{title}: building it, choosing its schedule, timing")
        torch.manual_seed(0)
        found = time_subject(make(), reduction, precision, seconds)
        console.print(table(found, precision))
        rows += found
    return rows


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Only the model of the quickstart.")] = False,
    reduction: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of the MACs to save.")] = 0.5,
    precision: Annotated[Precision, typer.Option(help="bf16 computes the forward pass under autocast.")] = "fp32",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all of them by default.")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Least time per kind of step; at least three steps.")] = 10.0,
    output: Annotated[Path | None, typer.Option("--json", help="Write everything to this file as well.")] = None,
) -> None:
    """Time training steps and print a table for each model."""
    if output is not None and not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent} to write it to; make it first")
    if threads is not None:
        torch.set_num_threads(threads)
    which = {QUICKSTART: quickstart} if quick else {QUICKSTART: quickstart, LARGE: large}
    rows = run(which, reduction, precision, seconds)
    if output is not None:
        found = {"versions": results.versions(), "threads": torch.get_num_threads(), "precision": precision}
        document = {**found, "rows": [asdict(row) for row in rows]}
        output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
