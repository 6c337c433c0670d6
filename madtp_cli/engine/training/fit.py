"""The one training loop: from scratch, at fixed pruning, or towards a budget."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR

from madtp_cli.budget import BudgetController
from madtp_cli.data.batch import Split
from madtp_cli.engine.evaluation.evaluate import Evaluation, evaluate
from madtp_cli.engine.training.optimizers import make_optimizers
from madtp_cli.engine.training.prefetch import Prefetch
from madtp_cli.engine.training.resume import METRICS, StopRequest, load_state, save_state
from madtp_cli.engine.training.settings import FitSettings
from madtp_cli.engine.training.step import StepOutput, TrainingStep
from madtp_cli.errors import Interrupted, MadtpError
from madtp_cli.report.progress import StepReport, TrainingProgress, metrics_line

BEST = "best.safetensors"
# A validation counts towards the choice of weights while the cost is this near its goal, in reduction.
NEAR_GOAL = 0.03


@dataclass(frozen=True)
class Job:
    """What a run trains on and what it is judged by; `identity` names the recipe, for --resume."""

    step: TrainingStep
    train: Split[Any]
    validation: Split[Any]
    settings: FitSettings
    controller: BudgetController | None
    folder: Path
    identity: str


@dataclass
class Run:
    """How far a run is: what a resumed one needs beside weights and optimiser."""

    step: int = 0
    seconds: float = 0.0
    best_score: float = -1.0
    best_step: int = 0
    best_strength: float = 0.0
    validation: dict[str, float] = field(default_factory=dict)


def learning_rate_share(step: int, steps: int, warmup_steps: int, decay_from: float) -> float:
    """Return the share of the peak learning rate at a step: linear warm-up, constant, cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    start = max(decay_from * steps, warmup_steps)
    if step <= start or start >= steps:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - start) / (steps - start)))


def make_accelerator(settings: FitSettings, device: torch.device) -> Accelerator:
    """Set up the device and mixed precision, and seed everything random."""
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[settings.precision]
    # accelerate holds on to the precision and device of a process's first run; ours may differ from run to run.
    AcceleratorState._reset_state(reset_partial_state=True)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate takes the current one
    accelerator = Accelerator(mixed_precision=mixed, cpu=device.type == "cpu")
    set_seed(settings.seed)
    return accelerator


def fit(job: Job, accelerator: Accelerator, progress: TrainingProgress, *, resume: bool = False) -> Run:
    """Train, and leave the best weights on validation in the student.

    Raises Interrupted, with the state saved, on Ctrl-C or SIGTERM; MadtpError if the loss stops being a number.
    """
    settings = job.settings
    module, optimizers, schedulers = _prepare(job, accelerator)
    run = _resumed(job, accelerator) if resume else Run()
    began = time.monotonic() - run.seconds
    module.train()
    # Line by line, so that the log is never behind a saved state.
    with (
        StopRequest(progress.message) as stop,
        (job.folder / METRICS).open("a", encoding="utf-8", buffering=1) as log,
        _batches(job, run.step) as batches,
    ):
        for batch in batches:
            run.step += 1
            stop.during = "this step"
            if batch.samples:  # none where every image of it was broken, and tolerated
                rate = float(schedulers[-1].get_last_lr()[0])  # of this step: stepping moves on to the next one's
                output: StepOutput = module(batch)
                losses = _update(output, run.step, module, accelerator, optimizers, schedulers, settings.clip_norm)
                run.seconds = time.monotonic() - began
                report = _report(job, run, output, losses, rate)
                if job.controller:
                    job.step.student.strength = job.controller.update(output.reduction, run.step / settings.steps)
                progress.step(report)
                if run.step % settings.log_every == 0 or run.step == settings.steps:
                    log.write(metrics_line(report) + "\n")
            if run.step % settings.validate_every == 0 or run.step == settings.steps:
                stop.says("the validation of this step")
                batches.rest()  # the splits may share a tokenizer or a table
                _validate(job, run, progress)
                strength = job.step.student.strength
                log.write(json.dumps({"step": run.step, "validation": run.validation, "strength": strength}) + "\n")
            if settings.save_every and (
                stop.asked or run.step % settings.save_every == 0 or run.step == settings.steps
            ):
                _save(job, accelerator, run)
            if stop.asked:
                raise Interrupted(
                    f"stopped at step {run.step} of {settings.steps}; the state is saved in {job.folder}, "
                    "go on with --resume"
                )
    if not settings.steps and settings.save_every:
        _save(job, accelerator, run)  # nothing was trained, but what follows may be interrupted too
    _restore_best(job, run)
    return run


def _batches(job: Job, first: int) -> Prefetch[Any]:
    """Read the batches of all steps from one on; each is a function of its step, so a resumed run gets the same."""
    size = job.settings.batch_size
    return Prefetch(lambda step: job.train.batch(step * size, size), range(first, job.settings.steps))


def _update(
    output: StepOutput,
    step: int,
    module: TrainingStep,
    accelerator: Accelerator,
    optimizers: list[AcceleratedOptimizer],
    schedulers: list[AcceleratedScheduler],
    clip_norm: float,
) -> dict[str, float]:
    """Follow the gradient of a step's loss and return its parts and total; raises MadtpError if it is no number."""
    parts = torch.stack(list(output.losses.values()))
    accelerator.backward(parts.sum())
    accelerator.clip_grad_norm_(module.parameters(), clip_norm)
    for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    # Read last and at once: until then a GPU is given work without being waited for.
    losses = dict(zip(output.losses, parts.tolist(), strict=True))
    total = sum(losses.values())
    if not math.isfinite(total):
        raise MadtpError(f"the loss is {total} at step {step}; try a lower training.learning_rate")
    return {**losses, "total": total}


def _prepare(
    job: Job, accelerator: Accelerator
) -> tuple[TrainingStep, list[AcceleratedOptimizer], list[AcceleratedScheduler]]:
    """Put the model, its optimisers and their schedules on the device, under its precision."""
    settings = job.settings
    optimizers = make_optimizers(
        settings.optimizer,
        job.step,
        learning_rate=settings.learning_rate,
        alignment_learning_rate=settings.alignment_learning_rate,
        matrix_learning_rate=settings.matrix_learning_rate,
        weight_decay=settings.weight_decay,
        betas=settings.betas,
    )
    share = partial(
        learning_rate_share,
        steps=settings.steps,
        warmup_steps=settings.warmup_steps,
        decay_from=settings.decay_from,
    )
    schedulers = [LambdaLR(optimizer, share) for optimizer in optimizers]
    return (
        accelerator.prepare(job.step),
        [accelerator.prepare(optimizer) for optimizer in optimizers],
        [accelerator.prepare(scheduler) for scheduler in schedulers],
    )


def _report(job: Job, run: Run, output: StepOutput, losses: Mapping[str, float], learning_rate: float) -> StepReport:
    """Describe one step for people and for metrics.jsonl."""
    plan = job.step.student.plan
    target = job.controller.target(run.step / job.settings.steps) if job.controller else None
    return StepReport(
        step=run.step,
        steps=job.settings.steps,
        losses=losses,
        learning_rate=learning_rate,
        seconds=run.seconds,
        gmacs=output.macs / 1e9 if plan else None,
        target_gmacs=None if target is None else (1 - target) * output.dense_macs / 1e9,
        dense_gmacs=output.dense_macs / 1e9,
        strength=job.step.student.strength if plan else None,
        temperature=getattr(plan.pruner, "temperature", None) if plan else None,
        tokens_kept=output.tokens_kept if plan else None,
        validation=run.validation or None,
    )


def _validate(job: Job, run: Run, progress: TrainingProgress) -> None:
    """Measure the validation split and keep the weights if they are the best so far at the goal's cost."""
    student = job.step.student
    task = job.step.task
    found: Evaluation = evaluate(
        student, task, job.validation, batch_size=job.settings.batch_size, limit=job.settings.validation_limit
    )
    reduction = found.cost.reduction
    run.validation = {task.score: found.metrics[task.score], "reduction": reduction}
    progress.validation(run.validation, run.step)
    controller = job.controller
    # Until the ramp ends the model costs more than the goal, and its score is no argument.
    at_goal = controller is None or (
        run.step >= controller.ramp * job.settings.steps and reduction > controller.goal - NEAR_GOAL
    )
    if at_goal and run.validation[task.score] >= run.best_score:
        run.best_score, run.best_step = run.validation[task.score], run.step
        run.best_strength = student.strength
        _keep_best(job, run)


def _keep_best(job: Job, run: Run) -> None:
    """Write the weights with the step and strength they belong to, so that file and state cannot disagree."""
    # Cloned, because safetensors refuses tensors that two keys share, as a decoder's head and its word embeddings do.
    state = {key: value.detach().cpu().contiguous().clone() for key, value in job.step.student.state_dict().items()}
    fresh = job.folder / f"{BEST}.new"
    save_file(state, fresh, metadata={"step": str(run.best_step), "strength": repr(run.best_strength)})
    os.replace(fresh, job.folder / BEST)


def _restore_best(job: Job, run: Run) -> None:
    """Put the weights that validation chose back, if any were."""
    if run.best_step and run.best_step != run.step:
        with safe_open(job.folder / BEST, "pt") as file:
            job.step.student.strength = float(file.metadata()["strength"])
        job.step.student.load_state_dict(load_file(job.folder / BEST))


def _save(job: Job, accelerator: Accelerator, run: Run) -> None:
    state = {
        "identity": job.identity,
        "run": asdict(run),
        "strength": job.step.student.strength,
        "controller": job.controller.state_dict() if job.controller else None,
    }
    save_state(accelerator, job.folder, state)


def _resumed(job: Job, accelerator: Accelerator) -> Run:
    state = load_state(accelerator, job.folder, job.identity)
    job.step.student.strength = state["strength"]
    if job.controller:
        job.controller.load_state_dict(state["controller"])
    run = Run(**state["run"])
    _forget_after(job.folder / METRICS, run.step)
    return run


def _forget_after(log: Path, step: int) -> None:
    """Drop what a run logged beyond the step it is taken up from: those steps are taken again."""
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
        with suppress(ValueError):  # the last line of a run that was killed may be cut off
            if json.loads(line)["step"] <= step:
                kept.append(line)
    log.write_text("".join(kept), encoding="utf-8")
