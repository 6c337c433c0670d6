"""`madtp profile`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import typer
from rich.console import Console

from madtp_cli.commands import fail_if as thresholds
from madtp_cli.commands import options
from madtp_cli.commands.output import emit, open_console
from madtp_cli.errors import ThresholdError, UsageError
from madtp_cli.recipe import load_recipe
from madtp_cli.results import ProfileResult

Model = Annotated[str | None, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder, or builtin:NAME.")]
RandomInit = Annotated[
    bool,
    typer.Option("--random-init", help="Profile the recipe's model without its weights; it need not be here."),
]
Baseline = Annotated[
    str | None, typer.Option(metavar="PATH", help="Compare with this checkpoint, measured in the same run.")
]
Counter = Annotated[Literal["analytic", "fvcore", "torch"], typer.Option(help="Who counts the multiply-adds.")]
Convention = Annotated[
    Literal["sample", "published"],
    typer.Option(help="Count one sample, or what papers publish for the task (no time then): docs/costs.md."),
]
TextTokens = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Tokens per text; by default as in the data, or as published where there are none."
    ),
]
BatchSizes = Annotated[
    list[int] | None,
    typer.Option(min=1, metavar="N", help="Time batches of N samples beside batch 1; 32 by default; may be repeated."),
]
Latency = Annotated[
    bool, typer.Option(help="Measure time and memory as well, with and without pruning in turn: docs/costs.md.")
]
FailIf = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEST",
        help="End with exit code 6 if this holds, as in 'gmacs>27' or 'efficiency.32<0.9'; may be repeated.",
    ),
]


def profile(
    checkpoint: Model = None,
    recipe: options.RecipeChoice = None,
    settings: options.Settings = None,
    random_init: RandomInit = False,
    baseline: Baseline = None,
    counter: Counter = "analytic",
    convention: Convention = "sample",
    batch_size: BatchSizes = None,
    text_tokens: TextTokens = None,
    latency: Latency = True,
    fail_if: FailIf = None,
    device: options.Device = "auto",
    precision: options.MeasuredPrecision = None,
    attention: options.Attention = "auto",
    seed: options.Seed = None,
    json_output: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Count what a model costs: multiply-adds, tokens, latency, memory.

    gmacs are 1e9 multiply-adds of one sample. What a counter could not count is listed. With --random-init and
    --no-latency neither weights nor data are needed: costs of a dense model are arithmetic.
    """
    level = options.verbosity(verbose, quiet)
    if (checkpoint is None) == (recipe is None):
        raise UsageError("profile needs exactly one of CHECKPOINT and --recipe FILE")
    if random_init and recipe is None:
        raise UsageError("--random-init needs --recipe FILE: a checkpoint has its weights")
    if settings and recipe is None:
        raise UsageError("--set needs --recipe FILE: a checkpoint is profiled as it is")
    conditions = thresholds.parse_all(fail_if or (), latency=latency)
    if convention == "published" and any(condition.timed for condition in conditions):
        raise UsageError("--convention published measures no time; test the latency in a run without it")
    loaded = None if recipe is None else load_recipe(recipe, options.recipe_changes(settings))
    with open_console(json_output, level) as console:
        from madtp_cli.engine.attention import use_attention
        from madtp_cli.engine.profile import profile_checkpoint

        use_attention(attention, device, precision or "fp32")
        result = profile_checkpoint(
            checkpoint,
            recipe=loaded,
            random_init=random_init,
            baseline=baseline,
            counter=counter,
            convention=convention,
            batch_sizes=batch_size or (),
            text_tokens=text_tokens,
            latency=latency and convention == "sample",
            device=device,
            precision=precision,
            seed=seed,
            console=console,
            verbosity=level,
        )
    _report(result, conditions, json_output, console)


def _report(
    result: ProfileResult, conditions: Sequence[thresholds.Condition], json_output: bool, console: Console
) -> None:
    """Print a profile and every threshold; raises ThresholdError naming those that were hit."""
    try:
        checked = thresholds.check(conditions, result.to_dict())
    except UsageError:
        emit(result, json_output, console)  # a condition nobody can answer must not cost the measurement
        raise
    emit(replace(result, thresholds=checked), json_output, console)
    for threshold in checked:
        console.print(f"fail-if {threshold.expression}: {threshold.value:g}, {'hit' if threshold.hit else 'ok'}")
    if hits := [f"{threshold.expression} ({threshold.value:g})" for threshold in checked if threshold.hit]:
        raise ThresholdError(f"--fail-if hit: {', '.join(hits)}")
