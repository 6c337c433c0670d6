"""Options that several commands share, each defined once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from madtp_cli.errors import UsageError
from madtp_cli.recipe import shipped_recipes
from madtp_cli.recipe_yaml import Override


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise typer.BadParameter(f"{value!r} is not auto, cpu, mps, cuda or cuda:N.")
    return value


def recipe_names(incomplete: str) -> list[str]:
    """Complete the name of a shipped recipe, for the shell, which adds files by itself."""
    return [path.stem for path in shipped_recipes() if path.stem.startswith(incomplete)]


_recipe = typer.Option(
    "--recipe",
    metavar="FILE",
    help="Recipe: a YAML file, or the name of a shipped one.",
    autocompletion=recipe_names,
)
RecipeFile = Annotated[str, _recipe]
RecipeChoice = Annotated[str | None, _recipe]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, as in training.steps=100; may be repeated."),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Start from this checkpoint instead of the recipe's model.checkpoint."),
]
Output = Annotated[str | None, typer.Option(metavar="DIR", help="Write here instead of the recipe's output folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run in the output folder.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check everything, report what would run, train and write nothing."),
]
Smoke = Annotated[
    bool,
    typer.Option("--smoke", help="Try the recipe: one step on two generated samples, at full size, in minutes."),
]
RandomInit = Annotated[
    bool, typer.Option("--random-init", help="With --smoke: random weights, so that nothing is downloaded.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")]
BatchSize = Annotated[int | None, typer.Option(min=1, metavar="N", help="Samples per batch.")]
Device = Annotated[
    str,
    typer.Option(callback=_device, metavar="NAME", help="auto, cpu, cuda, cuda:N or mps."),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"] | None,
    typer.Option(help="Precision of the computation; the recipe's by default."),
]
MeasuredPrecision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"] | None,
    typer.Option("--precision", help="Precision of the computation; fp32 by default."),
]
# The names of madtp_cli.attention, which needs torch.
Backend = Literal["auto", "segments", "varlen", "padded"]
Attention = Annotated[
    Backend,
    typer.Option(help="How attention reads samples of unequal length: docs/performance.md."),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="Random seed; the recipe's by default."),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on stdout; all else goes to stderr."),
]
Verbose = Annotated[
    int,
    typer.Option("--verbose", "-v", count=True, show_default=False, help="Report every step, layer and sample."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")]


def verbosity(verbose: int, quiet: bool) -> int:
    """Return -1 for quiet, 0 by default, 1 and more for verbose; raises UsageError for both."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other; give one")
    return -1 if quiet else verbose


def recipe_changes(
    settings: Sequence[str] | None,
    *,
    checkpoint: str | None = None,
    output: str | None = None,
    precision: str | None = None,
    seed: int | None = None,
) -> list[str | Override]:
    """Return the changes to a recipe that options ask for; a named option wins over `--set`."""
    flags = (
        ("--checkpoint", ("model", "checkpoint"), checkpoint),
        ("--output", ("output",), output),
        ("--precision", ("training", "precision"), precision),
        ("--seed", ("training", "seed"), seed),
    )
    named = [Override(f"{flag} {value}", path, value) for flag, path, value in flags if value is not None]
    return [*(settings or ()), *named]
