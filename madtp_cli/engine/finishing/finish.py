"""The end of a run: read the test split once, time both models, write the checkpoint folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from madtp_cli import results
from madtp_cli.costs.hardware import processor_name
from madtp_cli.engine.building.attention import attention_used
from madtp_cli.engine.building.data import Splits, data_notes, facts
from madtp_cli.engine.evaluation.evaluate import Evaluation, batch_for, evaluate
from madtp_cli.engine.evaluation.meter import tokens_kept
from madtp_cli.engine.finishing.reporting import Keeper, write_report
from madtp_cli.engine.profiling.latency import BATCH_SIZES, SAMPLES, SECONDS, compare_latency
from madtp_cli.engine.training.output import OutputFolder
from madtp_cli.engine.training.resume import METRICS
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.checkpoints import Checkpoint, save_weights
from madtp_cli.models.family import family_of
from madtp_cli.models.processor import Processor
from madtp_cli.models.spec import PruningSpec
from madtp_cli.recipe import Recipe
from madtp_cli.report.model_card import Origin, model_card

REPORT = "report.html"
MEASURED_IN = "fp32"  # whatever precision the training ran in


@dataclass(frozen=True)
class Effort:
    """How thoroughly a run is measured: samples for the reachable range, passes of the calibration, and latency."""

    probe_samples: int = 128
    calibration_calls: int = 12
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    latency_samples: int = SAMPLES
    latency_seconds: float = SECONDS
    judged: bool = True
    """Whether a missed budget fails the run."""


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SMOKE = Effort(2, 3, (1,), 2, 0.0, judged=False)


@dataclass(frozen=True)
class Subject:
    """What a run works on: the model it trains, the dense one it is compared with, and how the first one prunes.

    `source` is the checkpoint both come from, None from scratch; `processor` prepares their inputs.
    """

    student: PrunedModel
    dense: PrunedModel | None
    spec: PruningSpec
    source: Checkpoint | None
    processor: Processor

    def to(self, device: torch.device) -> Subject:
        """Move both models."""
        return replace(
            self, student=self.student.to(device), dense=None if self.dense is None else self.dense.to(device)
        )


@dataclass(frozen=True)
class Finished:
    """A run whose training is over; `goal` is the budget as a reduction, `began` its start on the monotonic clock."""

    command: Literal["prune", "finetune"]
    recipe: Recipe
    subject: Subject
    goal: float | None
    device: torch.device
    precision: str
    began: float
    effort: Effort = Effort()


@torch.no_grad()
def round_weights(model: PrunedModel, precision: str) -> None:
    """Round a model's weights to what will be saved, so that what is measured is what will be loaded."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(DTYPES[precision]))
    if model.alignment is not None:
        model.alignment.fold()


def finish(run: Finished, splits: Splits, output: OutputFolder, console: Console) -> results.PruneResult:
    """Compare both models on the test split and write the checkpoint folder."""
    console.print(f"evaluating {len(splits.test)} test samples, then latency")
    student = run.subject.student.eval()
    # From scratch there is one model, the dense one.
    main = "dense" if run.subject.dense is None else "pruned"
    models = {main: student} if run.subject.dense is None else {"dense": run.subject.dense, main: student}
    batch_size = batch_for(run.recipe.training.batch_size)
    keeper = Keeper(splits.task)
    tested = {
        name: evaluate(
            model,
            splits.task,
            splits.test,
            batch_size=batch_size,
            final=True,
            keep=keeper if name == main else None,
        )
        for name, model in models.items()
    }
    for note in dict.fromkeys([*(note for found in tested.values() for note in found.notes), *data_notes(splits)]):
        console.print(note)
    effort = run.effort
    timed = compare_latency(
        models,
        splits.validation,
        splits.task.normalise,
        samples=effort.latency_samples,
        batch_sizes=effort.batch_sizes,
        seconds=effort.latency_seconds,
    )
    saved_in = DTYPES[run.recipe.training.save_precision]
    sides = {name: _side(model, name, tested, timed, saved_in) for name, model in models.items()}
    result = results.PruneResult(
        command=run.command,
        device=str(run.device),
        dtype=MEASURED_IN,
        training_precision=run.precision,
        samples=tested[main].samples,
        processor=processor_name(run.device),
        threads=torch.get_num_threads(),
        attention_backend=attention_used(run.device, MEASURED_IN),
        seed=run.recipe.training.seed,
        checkpoint=str(output.final),
        budget=_budget(run, tested[main]),
        dense=sides["dense"],
        pruned=sides.get("pruned"),
        layers=tested[main].cost.layers,
        seconds=time.monotonic() - run.began,
        smoke=not effort.judged,
        broken_images=splits.broken(),
    )

    def write(folder: Path) -> None:
        nonlocal result
        result = _fill(folder, run, result, splits, tested, keeper, output, console)

    output.publish(write)
    return result


def _fill(
    folder: Path,
    run: Finished,
    result: results.PruneResult,
    splits: Splits,
    tested: Mapping[str, Evaluation],
    keeper: Keeper,
    output: OutputFolder,
    console: Console,
) -> results.PruneResult:
    """Write the checkpoint folder; return the result with what only its files can tell."""
    student = run.subject.student
    spec = replace(run.subject.spec, strength=student.strength)
    budget = asdict(result.budget) if result.budget else {}
    save_weights(folder, student, spec, run.recipe.task, budget, DTYPES[run.recipe.training.save_precision])
    run.subject.processor.save(folder)
    splits.task.save(folder)
    page = _report(run, result, splits, tested, keeper, output.work / METRICS, console)
    if page is not None:
        result = replace(result, report=str(output.final / REPORT))
        (folder / REPORT).write_text(page, encoding="utf-8")
    made_with = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    (folder / "recipe.yaml").write_text(f"# Made with {made_with}.\n{run.recipe.to_yaml()}", encoding="utf-8")
    (folder / "profile.json").write_text(result.to_json() + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(run, result, spec), encoding="utf-8")
    shutil.copyfile(output.work / METRICS, folder / METRICS)
    return result


def _report(
    run: Finished,
    result: results.PruneResult,
    splits: Splits,
    tested: Mapping[str, Evaluation],
    keeper: Keeper,
    log: Path,
    console: Console,
) -> str | None:
    """Write report.html as text; whatever goes wrong with it is said, and costs the run nothing else."""
    try:
        return write_report(
            result,
            run.recipe,
            run.subject.student,
            run.subject.processor,
            splits,
            tested.get("pruned", tested["dense"]),
            tested["dense"],
            keeper,
            log,
        )
    except Exception as error:
        cause = " ".join(str(error).split())
        console.print(f"{REPORT} is missing, all else is there: {type(error).__name__}: {cause}")
        return None


def _budget(run: Finished, tested: Evaluation) -> results.Budget | None:
    """Judge the budget by the test split."""
    if run.goal is None or run.recipe.budget is None:
        return None
    tolerance = run.recipe.budget.tolerance
    return results.Budget(
        target_reduction=run.goal,
        reached_reduction=tested.cost.reduction,
        met=abs(tested.cost.reduction - run.goal) <= tolerance,
        tolerance=tolerance,
    )


def _side(
    model: PrunedModel,
    name: str,
    tested: Mapping[str, Evaluation],
    timed: Mapping[str, results.Speed],
    dtype: torch.dtype,
) -> results.Side:
    """Describe one model; both are as large as they are if saved in `dtype`, whatever the source was saved in."""
    cost = tested[name].cost
    params = sum(parameter.numel() for parameter in model.parameters())
    return results.Side(
        metrics=tested[name].metrics,
        gmacs=cost.gmacs,
        params=params,
        tokens_kept=tokens_kept(cost.layers, tested["dense"].cost.layers),
        size_mib=params * dtype.itemsize / 2**20,
        **vars(timed.get(name, results.Speed())),
    )


def _card(run: Finished, result: results.PruneResult, spec: PruningSpec) -> str:
    """Write the model card."""
    recipe = run.recipe
    kind, pipeline = family_of(recipe.model.family).cards[recipe.task]
    origin = Origin(
        base=recipe.model.checkpoint or "",
        recipe_name=recipe.name,
        family=recipe.model.family,
        task=recipe.task,
        data=recipe.data.name,
        spec=spec,
        kind=kind,
        pipeline=pipeline,
        source=recipe.data.source,
        limits=facts(recipe.data.name).limits,
        report=result.report is not None,
    )
    return model_card(result, origin)
