"""`evaluate`: how good a checkpoint is on a split, and what its samples cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from madtp_cli import results
from madtp_cli.engine.building.attention import taken_with
from madtp_cli.engine.building.data import data_notes, open_splits
from madtp_cli.engine.building.device import choose_device, choose_precision
from madtp_cli.engine.building.model import check_fits, open_for, processor_of
from madtp_cli.engine.building.own_recipe import own_recipe
from madtp_cli.engine.evaluation.evaluate import batch_for, evaluate
from madtp_cli.errors import SourceError, UsageError
from madtp_cli.models.checkpoints import open_checkpoint
from madtp_cli.recipe import Recipe
from madtp_cli.recipe_yaml import Override


def evaluate_checkpoint(
    checkpoint: str,
    *,
    recipe: Recipe | None,
    split: str,
    limit: int | None,
    batch_size: int | None,
    predictions: Path | None,
    device: str,
    precision: str | None,
    seed: int | None,
    console: Console,
    verbosity: int,
    changes: Sequence[str | Override] = (),
) -> results.EvaluateResult:
    """Evaluate a checkpoint on the data of its own recipe, with changes to it, or of another one."""
    where = choose_device(device)
    if predictions is not None:
        _check_writable(predictions)
    opened = open_checkpoint(checkpoint) if recipe is None else open_for(checkpoint, recipe)
    recipe = recipe or own_recipe(opened, changes)
    if opened.task != recipe.task:
        raise SourceError(
            f"{checkpoint}: is for {opened.task}, but {recipe.name} is for {recipe.task}; name a recipe for it"
        )
    check_fits(opened, recipe)
    data = open_splits(recipe, processor_of(opened, recipe.model.tokenizer), opened.folder)
    samples = data.named(split)  # before the task, which may read the training split's answers
    model = opened.build().to(where)
    chosen = choose_precision(precision or "fp32", where)
    found = evaluate(
        model,
        data.task,
        samples,
        batch_size=batch_size or batch_for(recipe.training.batch_size),
        limit=limit,
        records=predictions is not None,
        precision=chosen,
        final=True,
    )
    for note in (*opened.notes, *found.notes, *data_notes(data)):
        console.print(note)
    if predictions is not None:
        lines = [results.Prediction(**record).to_json() for record in found.records]
        try:
            predictions.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--predictions {predictions}: cannot be written: {error.strerror}") from None
    return results.EvaluateResult(
        command="evaluate",
        seed=seed if seed is not None else recipe.training.seed,
        checkpoint=checkpoint,
        split=split,
        samples=found.samples,
        metrics=found.metrics,
        gmacs=results.Gmacs(dense=found.cost.dense_gmacs, pruned=found.cost.gmacs, reduction=found.cost.reduction),
        predictions=None if predictions is None else str(predictions),
        **taken_with(where, chosen),
        broken_images=data.broken(),
    )


def _check_writable(path: Path) -> None:
    """Refuse, before the evaluation and without touching it, a file that cannot be written; raises UsageError."""
    if path.is_dir():
        raise UsageError(f"--predictions {path}: is a folder; name a file in it")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"--predictions {path}: cannot be written; name another file")
