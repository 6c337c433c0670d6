"""Reports in the terminal: what `prune`, `finetune`, `evaluate` and `profile` found, for people.

Plain text in a pipe, colours on a terminal, nothing wrapped that somebody copies (paths, commands).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from madtp_cli.report import wording
from madtp_cli.report.comparison import Row, Tone, budget_line, by_tower, compare, headline, metric_rows, pruned_name
from madtp_cli.report.profile_tables import (
    busy,
    composition_table,
    latency_table,
    modules_table,
    passes_table,
    throughput_table,
)
from madtp_cli.report.upload import print_upload
from madtp_cli.results import EvaluateResult, HubResult, LayerTokens, ProfileResult, PruneResult, Result

_STYLES = {Tone.GOOD: "green", Tone.PLAIN: "", Tone.BAD: "yellow"}
_WIDEST_BAR = 40


def show(result: Result, console: Console) -> None:
    """Print the report that belongs to a result."""
    if isinstance(result, PruneResult):
        print_run_report(console, result, next_command=_next_command(result))
    elif isinstance(result, EvaluateResult):
        print_evaluation(console, result)
    elif isinstance(result, ProfileResult):
        print_profile(console, result)
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
        _line(console, "Dry run: nothing was trained, nothing was written.", "bold")
    if result.budget is not None and not result.smoke:
        _line(console, budget_line(result.budget), "bold green" if result.budget.met else "bold red")
    verdict = headline(result)
    if verdict:
        _line(console, verdict, "bold")
    _print_table(console, _comparison_table(compare(result.dense, result.pruned, families), pruned_name(result)))
    _print_layers(console, result.layers)
    facts = {
        "checkpoint": result.checkpoint or "",
        "report": result.report or "",
        "model card": f"{result.checkpoint.rstrip('/')}/README.md" if result.checkpoint else "",
        "run": f"{wording.duration(result.seconds)} {_machine(result)}{_trained_in(result)}",
        "next": next_command,
    }
    _print_facts(console, facts)


def _trained_in(result: PruneResult) -> str:
    """Say what the steps ran in, where it is not what was measured in."""
    precision = result.training_precision
    if result.dtype is None or precision in (None, result.dtype):
        return ""
    return f"; trained in {precision}, measured in {result.dtype}"


def print_evaluation(console: Console, result: EvaluateResult) -> None:
    """Print how good and how costly a checkpoint is on a split."""
    console.print()
    _line(console, f"{result.checkpoint} on {result.samples:,} samples of the {result.split} split", "bold")
    if "accuracy" in result.metrics:
        _line(console, _accuracy_sentence(result.metrics["accuracy"], result.samples))
    _line(console, _cost_sentence(result.gmacs.dense, result.gmacs.pruned))
    _print_table(console, _one_column_table(metric_rows(result.metrics)))
    _print_facts(console, {"predictions": result.predictions or "", "run": f"{_attention(result)}{_machine(result)}"})


def print_profile(console: Console, result: ProfileResult) -> None:
    """Print what a checkpoint costs: in all, part by part, token by token, and in time."""
    cost = result.gmacs
    console.print()
    weights = "random weights" if result.device else "no weights"  # nothing ran, so there was no device
    _line(console, f"{result.checkpoint or weights}: {wording.parameters(result.params)} parameters", "bold")
    unit = "gmacs as papers count" if result.convention == "published" else "gmacs per sample"
    _line(console, _cost_sentence(cost.dense, cost.pruned, unit), "bold")
    _print_table(console, composition_table(result) if result.composition else None)
    _print_table(console, modules_table(result))
    _print_table(console, passes_table(result))
    if result.device or cost.dense != cost.pruned:
        _print_layers(console, result.layers)
    if result.latency_ms:
        _print_table(console, latency_table(result))
        _print_table(console, throughput_table(result))
    if warning := busy(result):
        console.print()
        _line(console, warning, "yellow")
    if result.baseline is not None:
        console.print()
        _line(console, _baseline_sentence(result.baseline.gmacs, cost.pruned))
    if result.uncounted:
        console.print()
        _line(console, f"Not counted: {', '.join(result.uncounted)}", "yellow")
    sizes = {"batch size": result.batch_size, "text tokens": result.text_tokens}
    counted = [f"by {result.counter}", *(f"{name} {value}" for name, value in sizes.items() if value is not None)]
    kept = [f"{wording.percent(share)} of {tower} tokens" for tower, share in result.tokens_kept.items()]
    facts = {
        "kept": f"{', '.join(kept)}, mean over layers" if kept and cost.dense != cost.pruned else "",
        "counted": ", ".join(counted),
        "run": f"{_attention(result)}{_machine(result)}",
    }
    _print_facts(console, facts)


def _next_command(result: PruneResult) -> str:
    return f"madtp evaluate {shlex.quote(result.checkpoint)}" if result.checkpoint else ""


def _machine(result: Result) -> str:
    """Name what the numbers were taken with."""
    seed = None if result.seed is None else f"seed {result.seed}"
    where = None if result.device is None else f"on {result.device}"
    measured = (PruneResult, EvaluateResult, ProfileResult)
    threads = wording.threads(result.threads) if isinstance(result, measured) else None
    return ", ".join(part for part in (where, threads, result.dtype, seed) if part is not None)


def _attention(result: EvaluateResult | ProfileResult) -> str:
    return "" if result.attention_backend is None else f"attention {result.attention_backend} "


def _accuracy_sentence(accuracy: float, samples: int) -> str:
    """Give an accuracy with its standard error in points."""
    error = math.sqrt(max(accuracy * (1 - accuracy), 0.0) / max(samples, 1))
    return f"Accuracy {wording.percent(accuracy)} (standard error {100 * error:.1f} points)."


def _cost_sentence(dense: float, pruned: float, unit: str = "gmacs per sample") -> str:
    if dense == pruned:
        return f"{wording.gmacs(dense)} {unit}, nothing pruned."
    return (
        f"{wording.gmacs(pruned)} {unit}, {wording.gmacs(dense)} without pruning "
        f"({wording.relative_change(dense, pruned)})."
    )


def _baseline_sentence(baseline: float, cost: float) -> str:
    return (
        f"Baseline: {wording.gmacs(baseline)} gmacs per sample; this one costs {wording.gmacs(cost)} "
        f"({wording.relative_change(baseline, cost)})."
    )


def _line(console: Console, text: str, style: str = "") -> None:
    """Print a sentence, broken between words where the console ends."""
    console.print(Text(wording.encodable(console, text), style=style), highlight=False)


def _table(*columns: str) -> Table:
    """Make a table whose first column holds names and whose others hold numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim", border_style="dim", show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _print_table(console: Console, table: Table | None) -> None:
    if table is not None and table.row_count:
        console.print()
        console.print(table, highlight=False)


def _comparison_table(rows: Sequence[Row], second: str) -> Table:
    """Lay out dense | second | change, or one column of values if only one model was measured."""
    if not all(any(getattr(row, side) for row in rows) for side in ("dense", "pruned")):
        return _one_column_table(rows)
    table = _table("", "dense", second, "change")
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
    table = _table("", "value")
    for row, last in _with_group_ends(rows):
        if row.dense or row.pruned:
            table.add_row(_label(row), row.pruned or row.dense, end_section=last)
    return table


def _label(row: Row) -> Text:
    return Text(f"  {row.label}" if row.inner else row.label)


def _with_group_ends(rows: Sequence[Row]) -> Iterator[tuple[Row, bool]]:
    for index, row in enumerate(rows):
        yield row, index + 1 < len(rows) and rows[index + 1].group != row.group


def _print_layers(console: Console, layers: tuple[LayerTokens, ...]) -> None:
    """Print the tokens that leave every layer; bars are relative to the most seen in the tower."""
    if not layers:
        return
    ascii_only = console.options.ascii_only
    width = max(min(console.width - 46, _WIDEST_BAR), 8)
    table = _table("tokens kept after", "mean", "min", "max")
    table.add_column(no_wrap=True)
    for tower, members in by_tower(layers).items():
        most = max(layer.tokens_max for layer in members)
        for layer in members:
            table.add_row(
                Text(f"{tower} layer {layer.layer}"),
                f"{layer.tokens_mean:.1f}",
                str(layer.tokens_min),
                str(layer.tokens_max),
                _range_bar(layer, most, width, ascii_only),
                end_section=layer is members[-1],
            )
    _print_table(console, table)


def _range_bar(layer: LayerTokens, most: int, width: int, ascii_only: bool) -> Text:
    """Draw a bar up to the mean, and thinner on to the largest."""
    mean, largest = (round(width * value / most) if most else 0 for value in (layer.tokens_mean, layer.tokens_max))
    thick, thin = "#-" if ascii_only else "━─"
    return Text.assemble((thick * mean, "cyan"), (thin * (largest - mean), "dim"))


def _print_facts(console: Console, facts: dict[str, str]) -> None:
    """Print names and values, one a line; a value is never wrapped, so that it can be copied."""
    console.print()
    for name, value in facts.items():
        if value:
            text = Text.assemble(
                (f"{name:<12}", "dim"), (wording.encodable(console, value), "bold" if name == "next" else "")
            )
            console.print(text, highlight=False, soft_wrap=True)
