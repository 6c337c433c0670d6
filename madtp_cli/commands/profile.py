"""`madtp profile`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from madtp_cli.commands import fail_if as thresholds
from madtp_cli.commands import options
from madtp_cli.commands.output import emit, is_main_process, open_console
from madtp_cli.errors import MadtpError, ThresholdError, UsageError
from madtp_cli.recipe import Recipe, load_recipe
from madtp_cli.results import Picture, ProfileResult, Threshold

STDOUT = Path("-")
DEFAULT_BATCH = 32  # timed beside batch 1 where no size is asked for, as in madtp_cli.engine.profiling.latency

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CHECKPOINT", help="Checkpoint folder, or builtin:NAME; several are compared.", show_default=False
    ),
]
RandomInit = Annotated[
    bool,
    typer.Option("--random-init", help="Profile the recipe's model without its weights; it need not be here."),
]
Baseline = Annotated[
    str | None, typer.Option(metavar="PATH", help="Compare with this checkpoint, measured in the same run.")
]
By = Annotated[
    Literal["module", "layer", "sample"] | None,
    typer.Option(help="Show the cost of modules (the default), of layers, or of samples, the most expensive first."),
]
Depth = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=4,
        metavar="N",
        help="Of the tree: 1 towers, 2 what they hold, 3 parts of equal layers summed (default), 4 each layer, as -v.",
    ),
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
Seconds = Annotated[
    float | None,
    typer.Option(min=0.01, metavar="S", help="Time each model for about S seconds per batch size; 0.4 by default."),
]
FailIf = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEST",
        help="End with exit code 6 if this holds, as in 'gmacs>27' or 'efficiency.32<0.9'; may be repeated.",
    ),
]
Csv = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="Write the figures as CSV as well; - is stdout.")
]
Visualize = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Write pictures of which patches and words are kept."),
]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="FILE", help="Visualize this image, with --text; give a pair as two."),
]
OwnText = Annotated[str | None, typer.Option("--text", metavar="TEXT", help="Visualize with this text.")]

Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Show every layer and every sample.")
]


def profile(
    checkpoint: Models = None,
    recipe: options.RecipeChoice = None,
    settings: options.Settings = None,
    random_init: RandomInit = False,
    baseline: Baseline = None,
    by: By = None,
    depth: Depth = None,
    counter: Counter = "analytic",
    convention: Convention = "sample",
    batch_size: BatchSizes = None,
    text_tokens: TextTokens = None,
    latency: Latency = True,
    seconds: Seconds = None,
    fail_if: FailIf = None,
    csv: Csv = None,
    visualize: Visualize = None,
    image: Images = None,
    text: OwnText = None,
    device: options.Device = "auto",
    precision: options.MeasuredPrecision = None,
    attention: options.Attention = "auto",
    seed: options.Seed = None,
    json_output: options.Json = False,
    verbose: Verbose = 0,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Count what a model costs: multiply-adds, tokens, time, memory.

    gmacs are 1e9 multiply-adds of one sample. What a counter could not count is listed. With --random-init and
    --no-latency neither weights nor data are needed: costs of a dense model are arithmetic. See docs/profile.md.
    """
    level = options.verbosity(verbose, quiet)
    models = checkpoint or []
    _check_sources(models, recipe is not None, random_init=random_init, settings=bool(settings))
    own = _OwnSample(visualize, image or [], text)
    own.check(models, random_init=random_init)
    _check_view(by, convention, csv, json_output)
    timing: dict[str, Any] = {"latency": latency and convention == "sample", "batch_sizes": batch_size or ()}
    conditions = _conditions(fail_if or (), convention, baseline, **timing)
    counting: dict[str, Any] = {"counter": counter, "convention": convention, "text_tokens": text_tokens}
    where: dict[str, Any] = {"device": device, "precision": precision, "seed": seed}
    loaded = None if recipe is None else load_recipe(recipe, options.recipe_changes(settings))
    with open_console(json_output or csv == STDOUT, level) as console:
        from madtp_cli.engine.building.attention import use_attention
        from madtp_cli.engine.profile import profile_checkpoint

        if batch_size and not timing["latency"]:
            console.print("--batch-size is without effect: nothing is timed")
        use_attention(attention, device, precision or "fp32")
        draw = own.prepare(models, loaded, device, seed)
        how: dict[str, Any] = {**timing, **counting, **where, "seconds": seconds, "others": models[1:]}
        beside: dict[str, Any] = {"recipe": loaded, "random_init": random_init, "baseline": baseline}
        result = profile_checkpoint(next(iter(models), None), **beside, **how, console=console, verbosity=level)
        result = replace(result, pictures=draw()) if draw else result
    view = {"by": by, "depth": depth or (4 if level > 0 else 3), "every": level > 0}
    _report(result, conditions, json_output, console, view, csv)


@dataclass(frozen=True)
class _OwnSample:
    """What to draw, and where: --visualize DIR, of the checkpoint's data or of --image and --text."""

    folder: Path | None
    images: Sequence[Path]
    text: str | None

    def check(self, models: Sequence[str], *, random_init: bool) -> None:
        """Refuse options that contradict each other; raises UsageError."""
        if self.folder is None:
            if self.images or self.text is not None:
                raise UsageError("--image and --text are for pictures: add --visualize DIR, the folder to put them in")
            return
        if bool(self.images) != (self.text is not None):
            raise UsageError("--image and --text go together: a sample is an image, or a pair, and a text")
        if len(models) > 1:
            raise UsageError("--visualize shows one checkpoint; name one")
        if random_init:
            raise UsageError("--visualize shows what a model learnt to keep; remove --random-init")
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"--visualize {self.folder}: is a file; name a folder")

    def prepare(
        self, models: Sequence[str], recipe: Recipe | None, device: str, seed: int | None
    ) -> Callable[[], tuple[Picture, ...]] | None:
        """Open what is to be drawn, so that it is refused before anything is measured; return how to draw it."""
        if self.folder is None:
            return None
        from madtp_cli.engine.profiling.pictures import open_gallery

        source = models[0] if models else None
        gallery = open_gallery(source, recipe, images=self.images, text=self.text, device=device, seed=seed)
        return partial(gallery.draw, self.folder)


def _check_sources(models: Sequence[str], recipe: bool, *, random_init: bool, settings: bool) -> None:
    if bool(models) == recipe:
        raise UsageError("profile needs a CHECKPOINT, or several, or else --recipe FILE")
    if random_init and not recipe:
        raise UsageError("--random-init needs --recipe FILE: a checkpoint has its weights")
    if settings and not recipe:
        raise UsageError("--set needs --recipe FILE: a checkpoint is profiled as it is")
    places = [os.path.realpath(model) if os.path.exists(model) else model for model in models]
    if twice := [model for model, place in zip(models, places, strict=True) if places.count(place) > 1]:
        raise UsageError(f"{twice[-1]} is named twice; name each checkpoint once")


def _check_view(by: str | None, convention: str, csv: Path | None, json_output: bool) -> None:
    """Refuse what cannot be shown or written, before anything is measured; raises UsageError."""
    if by == "sample" and convention == "published":
        raise UsageError("--by sample shows single samples, which --convention published does not count; remove one")
    if csv is None:
        return
    if csv == STDOUT:
        if json_output:
            raise UsageError("--csv - and --json both want stdout; give --csv a file")
    elif csv.is_dir():
        raise UsageError(f"--csv {csv}: is a folder; name a file in it")
    elif not csv.parent.is_dir():
        raise UsageError(f"--csv {csv}: there is no folder {csv.parent}; make it first")
    elif not os.access(csv if csv.exists() else csv.parent, os.W_OK):
        raise UsageError(f"--csv {csv}: cannot be written; name another file")


def _conditions(
    tests: Sequence[str], convention: str, baseline: str | None, *, latency: bool, batch_sizes: Sequence[int]
) -> list[thresholds.Condition]:
    """Read --fail-if as far as that is possible before anything is measured; raises UsageError."""
    if convention == "published" and any(thresholds.parse(test).timed for test in tests):
        raise UsageError("--convention published measures no time; test the latency in a run without it")
    sizes = sorted({1, *(batch_sizes or (DEFAULT_BATCH,))})
    return thresholds.parse_all(tests, latency=latency, sizes=sizes, baseline=baseline is not None)


def _report(
    result: ProfileResult,
    conditions: Sequence[thresholds.Condition],
    json_output: bool,
    console: Console,
    view: dict[str, Any],
    csv: Path | None,
) -> None:
    """Print a profile and every threshold, write the CSV file; raises ThresholdError naming what was hit."""
    faults: list[MadtpError] = []  # a condition nobody can answer must not cost the measurement
    checked: tuple[Threshold, ...] = ()
    try:
        checked = _checked(conditions, result)
    except UsageError as error:
        faults.append(error)
    emit(replace(result, thresholds=checked), json_output, console, **view)
    for threshold in checked:
        of = f" ({threshold.checkpoint})" if threshold.checkpoint else ""
        console.print(f"fail-if {threshold.expression}: {threshold.value:g}, {'hit' if threshold.hit else 'ok'}{of}")
    if csv is not None and is_main_process():
        _write_csv(result, csv, view)
    if faults:
        raise faults[0]
    hits = [
        f"{each.expression} ({', '.join([f'{each.value:g}', *([each.checkpoint] if each.checkpoint else [])])})"
        for each in checked
        if each.hit
    ]
    if hits:
        raise ThresholdError(f"--fail-if hit: {', '.join(hits)}")


def _checked(conditions: Sequence[thresholds.Condition], result: ProfileResult) -> tuple[Threshold, ...]:
    if not result.others:
        return thresholds.check(conditions, result.to_dict())
    documents = {result.name or "": result.to_dict()} | {other.name: asdict(other) for other in result.others}
    return thresholds.check_each(conditions, documents)


def _write_csv(result: ProfileResult, csv: Path, view: dict[str, Any]) -> None:
    from madtp_cli.report.profile_csv import to_csv

    text = to_csv(result, view["by"] or ("checkpoint" if result.others else "module"), view["depth"])
    if csv == STDOUT:
        typer.echo(text, nl=False)
        return
    try:
        csv.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--csv {csv}: cannot be written: {error.strerror}") from None
