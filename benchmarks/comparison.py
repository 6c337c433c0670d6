"""Compare ways of choosing tokens at one cost: python -m benchmarks.comparison --recipe quickstart --steps 300.

Every row starts from the same dense checkpoint, trains for the same steps on the same samples, is calibrated to the
same budget, and is judged on the same splits. Validation decides between rows; test is printed beside it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from madtp_cli.engine.evaluate import evaluate_checkpoint
from madtp_cli.engine.run import prune
from madtp_cli.recipe import load_recipe

VARIANTS: dict[str, tuple[str, ...]] = {
    "madtp adaptive": ("pruning.tokens=adaptive",),
    "madtp scheduled": ("pruning.tokens=scheduled",),
    "madtp adaptive, no guidance distillation": ("pruning.tokens=adaptive", "distillation.guidance=0"),
    "madtp scheduled, no guidance distillation": ("pruning.tokens=scheduled", "distillation.guidance=0"),
    "random": ("pruning.method=random",),
    "madtp adaptive, no fine-tuning": ("pruning.tokens=adaptive", "training.steps=0"),
    "madtp scheduled, no fine-tuning": ("pruning.tokens=scheduled", "training.steps=0"),
    "random, no fine-tuning": ("pruning.method=random", "training.steps=0"),
}

# The metric that a task's weights are chosen by is the first of these that it has.
SCORES = ("accuracy", "cider_javafree", "mean")


@dataclass(frozen=True)
class Row:
    """One way of pruning: shares in 0..1, the cost reached on test, seconds of the whole run."""

    variant: str
    validation: float
    test: float
    dense_test: float
    reduction: float
    seconds: float


def run_variant(name: str, recipe: str, overrides: Sequence[str], console: Console) -> Row:
    """Prune by one variant and judge it on validation and test."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pruned"
        loaded = load_recipe(recipe, [*overrides, *VARIANTS[name], f"output={output}"])
        result = prune(
            loaded,
            name=name,
            resume=False,
            dry_run=False,
            overwrite=False,
            device="auto",
            console=console,
            verbosity=0,
        )
        validation = evaluate_checkpoint(
            str(output),
            recipe=None,
            split="val",
            limit=None,
            batch_size=None,
            predictions=None,
            device="auto",
            precision=None,
            seed=None,
            console=console,
            verbosity=0,
        )
    assert result.dense is not None
    assert result.pruned is not None
    assert result.budget is not None
    score = next(metric for metric in SCORES if metric in validation.metrics)
    return Row(
        variant=name,
        validation=validation.metrics[score],
        test=result.pruned.metrics[score],
        dense_test=result.dense.metrics[score],
        reduction=result.budget.reached_reduction,
        seconds=result.seconds,
    )


def table(rows: Sequence[Row], title: str) -> Table:
    """Lay the rows out for people."""
    shown = Table("variant", "validation", "test", "lost", "reduction", "seconds", title=title)
    for row in rows:
        shown.add_row(
            row.variant,
            f"{100 * row.validation:.1f}%",
            f"{100 * row.test:.1f}%",
            f"{100 * (row.dense_test - row.test):.1f} points",
            f"{row.reduction:.3f}",
            f"{row.seconds:.0f}",
        )
    return shown


def main(
    recipe: Annotated[str, typer.Option(help="Recipe that the variants change.")] = "quickstart",
    steps: Annotated[int, typer.Option(help="Training steps of every trained variant.")] = 300,
    variants: Annotated[list[str] | None, typer.Option("--variant", help="Only these; may be repeated.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Further changes of the recipe.")] = None,
    output: Annotated[Path | None, typer.Option(help="Append the rows to this file, one JSON document a line.")] = None,
) -> None:
    """Run the variants one after the other and print a table."""
    console = Console(stderr=True)
    rows: list[Row] = []
    for name in variants or VARIANTS:
        rows.append(run_variant(name, recipe, [f"training.steps={steps}", *(settings or ())], console))
        console.print(table(rows, f"{recipe}, {steps} steps"))
        if output is not None:
            with output.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"recipe": recipe, "steps": steps, **asdict(rows[-1])}) + "\n")
    Console().print(table(rows, f"{recipe}, {steps} steps"))


if __name__ == "__main__":
    typer.run(main)
