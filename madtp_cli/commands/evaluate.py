"""`madtp evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from madtp_cli.commands import options
from madtp_cli.commands.output import emit, open_console
from madtp_cli.errors import UsageError
from madtp_cli.recipe import load_recipe


def evaluate(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder, or builtin:NAME.")],
    recipe: options.RecipeChoice = None,
    settings: options.Settings = None,
    split: Annotated[Literal["val", "validation", "test"], typer.Option(help="Split to read.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Read only the first N samples.")] = None,
    batch_size: options.BatchSize = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Write one line of JSON per sample.")
    ] = None,
    device: options.Device = "auto",
    precision: options.MeasuredPrecision = None,
    attention: options.Attention = "auto",
    seed: options.Seed = None,
    json_output: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure how good a checkpoint is, and what its samples cost.

    Reads the data of the checkpoint's own recipe unless another one is given; --set changes either.
    """
    level = options.verbosity(verbose, quiet)
    if predictions is not None and not predictions.parent.is_dir():
        raise UsageError(f"--predictions {predictions}: there is no folder {predictions.parent}; make it first")
    changes = options.recipe_changes(settings)
    loaded = None if recipe is None else load_recipe(recipe, changes)
    with open_console(json_output, level) as console:
        from madtp_cli.engine.building.attention import use_attention
        from madtp_cli.engine.evaluate import evaluate_checkpoint

        use_attention(attention, device, precision or "fp32")
        result = evaluate_checkpoint(
            checkpoint,
            recipe=loaded,
            changes=changes,
            split=split,
            limit=limit,
            batch_size=batch_size,
            predictions=predictions,
            device=device,
            precision=precision,
            seed=seed,
            console=console,
            verbosity=level,
        )
    emit(result, json_output, console)
