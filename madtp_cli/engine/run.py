"""`prune` and `finetune`: from a recipe to a checkpoint folder and its report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from rich.console import Console

from madtp_cli import results
from madtp_cli.budget import BudgetController, calibrate, reachable
from madtp_cli.engine.building.data import Splits, open_splits
from madtp_cli.engine.building.device import choose_device
from madtp_cli.engine.building.model import (
    check_fits,
    fresh_model,
    fresh_processor,
    processor_of,
    pruning_spec,
    starting_checkpoint,
    with_pruning_of,
)
from madtp_cli.engine.building.smoke import random_checkpoint, smoke_recipe
from madtp_cli.engine.building.training import auxiliary_heads, fit_settings, identity_of, loss_weights
from madtp_cli.engine.evaluation.evaluate import batch_for, measure_reduction
from madtp_cli.engine.finishing.finish import SMOKE, Effort, Finished, Subject, finish, round_weights
from madtp_cli.engine.training.fit import Job, Run, fit, make_accelerator
from madtp_cli.engine.training.output import OutputFolder
from madtp_cli.engine.training.settings import FitSettings
from madtp_cli.engine.training.step import TrainingStep
from madtp_cli.engine.training.teacher import CachedTeacher, Teacher
from madtp_cli.errors import Interrupted, MadtpError, RecipeError, SourceError
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.checkpoints import Checkpoint
from madtp_cli.models.processor import Processor
from madtp_cli.models.spec import PruningSpec
from madtp_cli.recipe import Recipe
from madtp_cli.report.progress import TrainingProgress

SMOKE_STRENGTH = 0.5  # so that even the one step of a smoke run prunes
CALIBRATION_TOLERANCE = 0.0005  # in reduction; the test split adds its own sampling error


def prune(recipe: Recipe, **options: object) -> results.PruneResult:
    """Train towards the recipe's budget, calibrate, and write the compressed checkpoint."""
    return _run("prune", recipe, **options)  # type: ignore[arg-type]


def finetune(recipe: Recipe, **options: object) -> results.PruneResult:
    """Train at fixed pruning, or none, and write the checkpoint."""
    return _run("finetune", recipe, **options)  # type: ignore[arg-type]


def _run(
    command: Literal["prune", "finetune"],
    recipe: Recipe,
    *,
    name: str,
    resume: bool,
    dry_run: bool,
    overwrite: bool,
    device: str,
    console: Console,
    verbosity: int,
    random_init: bool = False,
    smoke: bool = False,
) -> results.PruneResult:
    began = time.monotonic()
    where = choose_device(device)
    output = OutputFolder(Path(recipe.output))
    output.check(resume=resume, overwrite=overwrite)
    effort = SMOKE if smoke else Effort()
    if smoke:
        recipe = smoke_recipe(recipe, output.beside("data"))
    source, processor = random_checkpoint(recipe) if random_init else _source(recipe)
    if command == "finetune":
        recipe = _held(recipe, source)
    splits = open_splits(recipe, processor)
    splits.open()
    for note in (*(source.notes if source else ()), *splits.notes):
        console.print(note)
    settings = fit_settings(recipe, where, len(splits.train), resumable=not smoke)
    accelerator = make_accelerator(settings, where)
    subject = _subject(command, recipe, source, processor).to(where)
    step = _step(recipe, subject, splits)
    goal = _goal(recipe, subject.student, splits, effort) if command == "prune" else None
    if dry_run:
        console.print(_plan(command, name, settings, goal, recipe.model.checkpoint))
        return _planned(command, where, settings, time.monotonic() - began)
    output.prepare(resume=resume)
    job = Job(
        step=step.to(where),
        train=splits.train,
        validation=splits.validation,
        settings=settings,
        controller=None if goal is None else BudgetController(goal, recipe.training.ramp),
        folder=output.work,
        identity=identity_of(recipe, command),
    )
    if smoke:
        subject.student.strength = SMOKE_STRENGTH
    every = 1 if verbosity > 0 else settings.log_every
    with TrainingProgress(console, settings.steps, f"{command} {name}", every=every, quiet=verbosity < 0) as progress:
        trained = _train(job, accelerator, progress, resume=resume, cache=recipe.distillation.cache)
    began = min(began, time.monotonic() - trained.seconds)  # a resumed run counts its earlier sittings
    round_weights(subject.student, recipe.training.save_precision)
    try:
        if goal is not None:
            _calibrate(recipe, subject.student, splits, goal, effort, console)
        finished = Finished(command, recipe, subject, goal, where, settings.precision, began, effort)
        return finish(finished, splits, output, console)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped after training; the state is saved in {output.work}, go on with --resume") from None


def _planned(
    command: Literal["prune", "finetune"], where: torch.device, settings: FitSettings, seconds: float
) -> results.PruneResult:
    """Report a dry run."""
    return results.PruneResult(
        command=command,
        device=str(where),
        training_precision=settings.precision,
        seed=settings.seed,
        checkpoint=None,
        seconds=seconds,
        dry_run=True,
    )


def _train(job: Job, accelerator: Accelerator, progress: TrainingProgress, *, resume: bool, cache: bool) -> Run:
    """Fit, and `cache` what the teacher says; raises MadtpError if the disk refuses, the last good state is kept."""
    try:
        if cache and isinstance(job.step.teacher, Teacher):
            samples = min(len(job.train), job.settings.steps * job.settings.batch_size)
            job.step.teacher = CachedTeacher(job.step.teacher, job.folder, job.settings.precision, samples=samples)
        return fit(job, accelerator, progress, resume=resume)
    except OSError as error:
        raise MadtpError(
            f"{job.folder}: cannot be written: {error}; make room and go on from the last state with --resume"
        ) from error


def _plan(command: str, name: str, settings: FitSettings, goal: float | None, checkpoint: str | None) -> str:
    """Say what a run would do, for --dry-run."""
    parts = [f"{command} {name}: {settings.steps:,} steps of {settings.batch_size} samples in {settings.precision}"]
    if goal is not None:
        parts.append(f"towards reduction {goal:.3f}")
    parts.append(f"from {checkpoint or 'random weights'}")
    return ", ".join(parts)


def _held(recipe: Recipe, source: Checkpoint | None) -> Recipe:
    """Settle the pruning that `finetune` holds: the recipe's strength, or all of a pruned checkpoint's own.

    Raises RecipeError where neither says how much is pruned.
    """
    if recipe.pruning.method == "none" or recipe.pruning.strength is not None:
        return recipe
    if source is None or source.spec.method == "none":
        raise RecipeError(
            f"{recipe.where('pruning.strength')}: pruning.strength is null, and finetune needs one to hold; set it, or "
            "set pruning.method: none to train a dense model, or let madtp prune find it"
        )
    return with_pruning_of(recipe, source.spec)


def _source(recipe: Recipe) -> tuple[Checkpoint | None, Processor]:
    """Open what the recipe starts from, and what prepares its inputs: a fault in it must not wait for the end."""
    source = starting_checkpoint(recipe)
    if source is None:
        return None, fresh_processor(recipe)
    return source, processor_of(source, recipe.model.tokenizer)


def _subject(command: str, recipe: Recipe, source: Checkpoint | None, processor: Processor) -> Subject:
    """Build the model to train and the dense one."""
    if source is None:
        if command == "prune" or recipe.pruning.strength is not None:
            key = "budget" if command == "prune" else "pruning.strength"
            raise RecipeError(
                f"{recipe.where(key)}: {key} needs a trained model to prune, and model.checkpoint names none; train a "
                "dense one first, then give it with --checkpoint"
            )
        return Subject(fresh_model(recipe), None, PruningSpec(), None, processor)
    check_fits(source, recipe)
    if command == "prune" and source.started_from is not None:
        raise SourceError(
            f"{recipe.model.checkpoint}: its tensors are for {source.started_from} and were never trained for "
            f"{recipe.task}, so there is nothing to distil; train it first: madtp finetune --set budget=null --set "
            "pruning.method=none --set training.teacher=false, then prune the result"
        )
    if command == "prune" and source.spec.method != "none":
        if source.spec.temperature == 0:
            raise SourceError(
                f"{recipe.model.checkpoint}: was pruned by the released code, which did not store its temperature, so "
                "its weights are no dense baseline; start from the dense checkpoint it was made of, or train it "
                "further with madtp finetune --set model.config.pruning_temperature=T"
            )
        raise SourceError(
            f"{recipe.model.checkpoint}: is pruned already, and prune compares with a dense model and learns from it; "
            "start from the dense checkpoint it was made of, or train it further with madtp finetune"
        )
    spec = pruning_spec(recipe, source.config)
    guided = bool(recipe.training.teacher and recipe.distillation.guidance)
    torch.manual_seed(recipe.training.seed)
    student = source.build(spec, merge_gradient=not guided)
    return Subject(student, source.build(PruningSpec()), spec, source, processor)


def _step(recipe: Recipe, subject: Subject, splits: Splits) -> TrainingStep:
    """Put together what one training step computes."""
    return TrainingStep(
        splits.task,
        subject.student,
        subject.dense if recipe.training.teacher else None,
        auxiliary_heads(recipe, subject.student),
        loss_weights(recipe),
        guided=_guided(subject.student),
        guidance_scale=_guidance_scale(subject.student),
    )


def _goal(recipe: Recipe, student: PrunedModel, splits: Splits, effort: Effort) -> float:
    """Return the budget as a reduction; raises RecipeError, with the reachable range, for one that cannot be met."""
    budget = recipe.budget
    assert budget is not None

    limit = min(effort.probe_samples, len(splits.validation))
    batch_size = batch_for(recipe.training.batch_size)

    def measure(strength: float) -> float:
        return measure_reduction(
            student, splits.task, splits.validation, batch_size=batch_size, limit=limit, strength=strength
        )

    low, high = reachable(measure)
    dense = student.dense_gmacs(splits.validation.batch(0, limit).text_lengths)
    goal = 1 - budget.gmacs / dense if budget.gmacs is not None else budget.reduction
    assert goal is not None
    if not max(low, 0) < goal <= high:
        key = "budget.reduction" if budget.gmacs is None else "budget.gmacs"
        asked = f"reduction {goal:.3f}" if budget.gmacs is None else f"{budget.gmacs} gmacs (reduction {goal:.3f})"
        raise RecipeError(
            f"{recipe.where(key)}: {asked} cannot be reached: this model and method reach reductions "
            f"{max(low, 0):.3f} to {high:.3f} ({(1 - high) * dense:.4g} to {dense:.4g} gmacs); change the budget or "
            "pruning.layers"
        )
    return goal


def _guided(student: PrunedModel) -> dict[str, frozenset[int]]:
    """Return the layers of image sites whose guidance decides, and is taught."""
    plan = student.plan
    if plan is None or "guidance" not in plan.pruner.needs:
        return {}
    return {site.name: plan.layers[site.name] for site in student.sites if site.reads == "image" and site.prunes}


def _guidance_scale(student: PrunedModel) -> float:
    """Return what the method multiplies alignment logits by, so that what is taught is what decides."""
    return getattr(student.plan.pruner, "scale", 1.0) if student.plan else 1.0


def _calibrate(
    recipe: Recipe, student: PrunedModel, splits: Splits, goal: float, effort: Effort, console: Console
) -> None:
    """Set the strength that meets the goal on the whole validation split."""

    assert recipe.budget is not None
    batch_size = batch_for(recipe.training.batch_size)
    samples = min(recipe.budget.calibration_samples or len(splits.validation), len(splits.validation))

    def measure(strength: float) -> float:
        return measure_reduction(
            student, splits.task, splits.validation, batch_size=batch_size, limit=samples, strength=strength
        )

    # One step of a smoke run hardly moves the controller, and a checkpoint that prunes nothing would try too little.
    start = student.strength if effort.judged else SMOKE_STRENGTH
    found = calibrate(measure, goal, CALIBRATION_TOLERANCE, max_calls=effort.calibration_calls, start=start)
    student.strength = found.strength
    console.print(
        f"calibrated on {samples} validation samples: strength {found.strength:.4f}, "
        f"reduction {found.reduction:.4f}, target {goal:.4f}"
    )
