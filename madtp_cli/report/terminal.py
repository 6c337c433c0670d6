"""Reports in the terminal: what `prune`, `finetune`, `evaluate` and `profile` found, for people.

Plain text in a pipe, colours on a terminal, nothing wrapped that somebody copies (paths, commands).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from madtp_cli.report import wording
from madtp_cli.report.comparison import Row, Tone, budget_line, busy, compare, headline, metric_rows, pruned_name
from madtp_cli.report.export_tables import print_export
from madtp_cli.report.printing import attention, cost_sentence, machine, print_facts, print_line, print_table
from madtp_cli.report.profile_report import print_profile
from madtp_cli.report.profile_tables import plain_table, tokens_table
from madtp_cli.report.upload import print_upload
from madtp_cli.results import EvaluateResult, HubResult, ProfileResult, PruneResult, Result
from madtp_cli.results_export import ExportResult

_STYLES = {Tone.GOOD: "green", Tone.PLAIN: "", Tone.BAD: "yellow"}


def show(result: Result, console: Console, **view: Any) -> None:
    """Print the report that belongs to a result; a profile's takes a `view` (`print_profile`)."""
    if isinstance(result, PruneResult):
        print_run_report(console, result, next_command=_next_command(result))
    elif isinstance(result, EvaluateResult):
        print_evaluation(console, result)
    elif isinstance(result, ProfileResult):
        print_profile(console, result, **view)
    elif isinstance(result, ExportResult):
        print_export(console, result)
        if result.hub is not None:
            print_upload(console, result.checkpoint, result.hub, exported=True)
    elif isinstance(result, HubResult):
        print_upload(console, result.checkpoint, result.hub)
    else:
        raise TypeError(f"there is no report for {type(result).__name__}")


def print_run_report(console: Console, result: PruneResult, *, next_command: str, families: bool = True) -> None:
    """Print what `prune` or `finetune` did: verdict, dense against compressed, kept tokens, where it lies, what next.

    `families` adds the accuracy of every family; an empty `next_command` leaves that part out.
    """
    console.print()
    if result.dry_run:
        print_line(console, "Dry run: nothing was trained, nothing was written.", "bold")
    if result.budget is not None and not result.smoke:
        print_line(console, budget_line(result.budget), "bold green" if result.budget.met else "bold red")
    verdict = headline(result)
    if verdict:
        print_line(console, verdict, "bold")
    print_table(console, _comparison_table(compare(result.dense, result.pruned, families), pruned_name(result)))
    if warning := busy(result.dense):
        print_line(console, warning, "yellow")
    print_table(console, tokens_table(result.layers, console.width, ascii_only=console.options.ascii_only))
    facts = {
        "checkpoint": result.checkpoint or "",
        "report": result.report or "",
        "model card": f"{result.checkpoint.rstrip('/')}/README.md" if result.checkpoint else "",
        "run": f"{wording.duration(result.seconds)} {machine(result)}{_trained_in(result)}",
        "next": next_command,
    }
    print_facts(console, facts)


def _trained_in(result: PruneResult) -> str:
    """Say what the steps ran in, where it is not what was measured in."""
    precision = result.training_precision
    if result.dtype is None or precision in (None, result.dtype):
        return ""
    return f"; trained in {precision}, measured in {result.dtype}"


def print_evaluation(console: Console, result: EvaluateResult) -> None:
    """Print how good and how costly a checkpoint is on a split."""
    console.print()
    print_line(console, f"{result.checkpoint} on {result.samples:,} samples of the {result.split} split", "bold")
    if "accuracy" in result.metrics:
        print_line(console, _accuracy_sentence(result.metrics["accuracy"], result.samples))
    print_line(console, cost_sentence(result.gmacs.dense, result.gmacs.pruned))
    print_table(console, _one_column_table(metric_rows(result.metrics)))
    print_facts(console, {"predictions": result.predictions or "", "run": f"{attention(result)}{machine(result)}"})


def _next_command(result: PruneResult) -> str:
    return f"madtp evaluate {shlex.quote(result.checkpoint)}" if result.checkpoint else ""


def _accuracy_sentence(accuracy: float, samples: int) -> str:
    """Give an accuracy with its standard error in points."""
    error = math.sqrt(max(accuracy * (1 - accuracy), 0.0) / max(samples, 1))
    return f"Accuracy {wording.percent(accuracy)} (standard error {100 * error:.1f} points)."


def _comparison_table(rows: Sequence[Row], second: str) -> Table:
    """Lay out dense | second | change, or one column of values if only one model was measured."""
    if not all(any(getattr(row, side) for row in rows) for side in ("dense", "pruned")):
        return _one_column_table(rows)
    table = plain_table("", "dense", second, "change")
    for row, last in _with_group_ends(rows):
        table.add_row(
            _label(row),
            row.dense or "-",
            row.pruned or "-",
            Text(row.change, style=_STYLES[row.tone]),
            end_section=last,
        )
    return table


def _one_column_table(rows: Sequence[Row]) -> Table:
    table = plain_table("", "value")
    for row, last in _with_group_ends(rows):
        if row.dense or row.pruned:
            table.add_row(_label(row), row.pruned or row.dense, end_section=last)
    return table


def _label(row: Row) -> Text:
    return Text(f"  {row.label}" if row.inner else row.label)


def _with_group_ends(rows: Sequence[Row]) -> Iterator[tuple[Row, bool]]:
    for index, row in enumerate(rows):
        yield row, index + 1 < len(rows) and rows[index + 1].group != row.group
