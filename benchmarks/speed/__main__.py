"""Time full-size models, dense and pruned, beside transformers' own: python -m benchmarks.speed.

Random weights, random images: with a keep schedule that is the same for every sample, time depends on neither. All
candidates of a model and batch size run in turn. docs/performance.md says what the columns mean.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
import yaml
from pydantic import TypeAdapter
from rich.console import Console

from benchmarks.speed import ragged, roofline
from benchmarks.speed.measure import RaggedRow, Row, time_ragged, time_subject
from benchmarks.speed.schedule import Schedule, schedule_for
from benchmarks.speed.subjects import ALL_LAYERS, SUBJECTS, Subject, build, check, draw
from benchmarks.speed.tables import busy, ragged_table, roofline_table, speed_table
from madtp_cli import results
from madtp_cli.costs.latency import Setting
from madtp_cli.engine.building.attention import attention_used
from madtp_cli.engine.building.device import choose_device
from madtp_cli.errors import Interrupted, MadtpError, UsageError
from madtp_cli.models.base import PrunedModel
from madtp_cli.recipe_sections import LayersSection
from madtp_cli.recipe_types import Layers

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REDUCTIONS = (0.3, 0.5, 0.8)
RAGGED_SAMPLES = 8
ROOFLINE_SECONDS = 1.0
RAGGED_REDUCTION = 0.5


def main(
    models: Annotated[
        list[str] | None, typer.Option("--model", help=f"Only these; may be repeated. Of {', '.join(SUBJECTS)}.")
    ] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Samples a call; may be repeated. 1 and 8, 32 on a GPU.")
    ] = None,
    reductions: Annotated[
        list[float] | None,
        typer.Option("--reduction", min=0.0, max=1.0, help="Shares of the MACs to save; may be repeated."),
    ] = None,
    vision_layers: Annotated[
        str, typer.Option(help="Vision layers that prune: all, none, a range such as 0-3 or a list such as [0, 2, 4].")
    ] = "all",
    text_layers: Annotated[str, typer.Option(help="Text layers that prune, in the same words.")] = "all",
    uneven: Annotated[bool, typer.Option("--ragged/--no-ragged", help="Time batches of uneven lengths.")] = True,
    precision: Annotated[Precision, typer.Option(help="Type of weights and activations.")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all of them by default.")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Least time per candidate; at least three calls.")] = 4.0,
    output: Annotated[Path | None, typer.Option("--json", help="Write everything to this file as well.")] = None,
) -> None:
    """Time models and print a table for each batch size."""
    try:
        if unknown := [name for name in models or () if name not in SUBJECTS]:
            raise UsageError(f"--model {unknown[0]}: there is no such model; try {' or '.join(SUBJECTS)}")
        if output is not None and not output.absolute().parent.is_dir():
            raise UsageError(f"--json {output}: there is no folder {output.parent} to write it to; make it first")
        layers = _layers(vision=vision_layers, text=text_layers)
        if threads is not None:
            torch.set_num_threads(threads)
        where = choose_device(device)
        sizes = sorted(set(batches or (1, 32 if where.type == "cuda" else 8)))
        wanted = sorted({share for share in reductions or REDUCTIONS if share})
        subjects = [replace(SUBJECTS[name], layers=layers) for name in models or SUBJECTS]
        if layers != ALL_LAYERS:
            chosen = f"vision layers {vision_layers}, text layers {text_layers}"
            subjects = [replace(subject, title=f"{subject.title}, {chosen}") for subject in subjects]
        found = run(subjects, sizes, wanted, precision, where, seconds, uneven=uneven)
    except MadtpError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped: what was timed is printed above, and no file was written", highlight=False)
        raise typer.Exit(Interrupted.exit_code) from None
    if output is not None:
        output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def run(
    subjects: Sequence[Subject],
    sizes: Sequence[int],
    wanted: Sequence[float],
    precision: str,
    device: torch.device,
    seconds: float,
    *,
    uneven: bool,
) -> dict[str, Any]:
    """Time what was asked for, printing each table as it is done, and return all as plain data."""
    console, log = Console(highlight=False), Console(stderr=True, highlight=False)
    setting = partial(Setting, device=str(device), dtype=precision, attention_backend=attention_used(device, precision))
    rows: list[Row] = []
    ragged_rows: list[RaggedRow] = []
    rates: dict[str, float] = {}
    log.print("Building models and choosing their schedules")
    # All of them, so that what one cannot do is refused before another is timed.
    prepared = [(subject, *_prepared(subject, wanted, uneven=uneven)) for subject in subjects]
    for subject, model, schedules, half in prepared:
        log.print(f"{subject.title}: checking that all candidates agree")
        model = model.to(device)
        check(model, draw(model, 1, subject.words))
        if half:
            ragged.check(model, ragged.Ragged.draw(model, RAGGED_SAMPLES))
        model = model.to(DTYPES[precision])
        shapes = roofline.shapes(subject.title, model)
        rates |= roofline.rates(shapes, device, DTYPES[precision], min(seconds, ROOFLINE_SECONDS))
        console.print(roofline_table({shape: rates[shape] for shape in shapes}))
        for size in sizes:
            log.print(f"{subject.title}: timing batch {size}")
            found = time_subject(subject, model, draw(model, size, subject.words), schedules, setting(size), seconds)
            console.print(speed_table(found, max(rates.values())))
            for warning in busy(found):
                console.print(warning)
            rows += found
        if half:
            log.print(f"{subject.title}: timing ragged batches")
            ways = time_ragged(subject, model, half, setting(RAGGED_SAMPLES), seconds)
            console.print(ragged_table(ways))
            ragged_rows += ways
    return {
        "versions": results.versions(),
        **{key: value for key, value in asdict(setting(1)).items() if key != "batch_size"},
        "layers": {subject.title: subject.layers.model_dump(mode="json") for subject in subjects},
        "gmacs_per_second": rates,
        "rows": [asdict(row) for row in rows],
        "ragged": [asdict(row) for row in ragged_rows],
    }


def _prepared(
    subject: Subject, wanted: Sequence[float], *, uneven: bool
) -> tuple[PrunedModel, list[Schedule], Schedule | None]:
    """Build a subject and choose its schedules, the last one for ragged batches; raises UsageError if there is none."""
    model = build(subject)
    sample = draw(model, 1, subject.words)
    schedules = [schedule_for(subject, model, sample, reduction) for reduction in wanted]
    return model, schedules, schedule_for(subject, model, sample, RAGGED_REDUCTION, uneven=True) if uneven else None


def _layers(**written: str) -> LayersSection:
    """Read which layers prune as a recipe would; raises UsageError for anything else."""
    found = {}
    for tower, choice in written.items():
        try:
            found[tower] = TypeAdapter(Layers).validate_python(yaml.safe_load(choice))
        except (ValueError, yaml.YAMLError):
            raise UsageError(
                f"--{tower}-layers {choice}: give all, none, a range such as 0-3 or a list such as [0, 2, 4]"
            ) from None
    return LayersSection(**found)


if __name__ == "__main__":
    typer.run(main)
