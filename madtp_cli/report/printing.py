"""How reports reach a console: sentences, tables, and facts that are copied, plain text in a pipe."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from madtp_cli.report import wording
from madtp_cli.results import EvaluateResult, ProfileResult, PruneResult, Result


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print a sentence, broken between words where the console ends."""
    console.print(Text(wording.encodable(console, text), style=style), highlight=False)


def print_table(console: Console, table: Table | None) -> None:
    """Print a table that has rows."""
    if table is not None and table.row_count:
        console.print()
        console.print(table, highlight=False)


def print_facts(console: Console, facts: Mapping[str, str]) -> None:
    """Print names and values, one a line; a value is never wrapped, so that it can be copied."""
    console.print()
    for name, value in facts.items():
        if value:
            text = Text.assemble(
                (f"{name:<12}", "dim"), (wording.encodable(console, value), "bold" if name == "next" else "")
            )
            console.print(text, highlight=False, soft_wrap=True)


def machine(result: Result) -> str:
    """Name what the numbers were taken with."""
    seed = None if result.seed is None else f"seed {result.seed}"
    where = None if result.device is None else f"on {result.device}"
    measured = (PruneResult, EvaluateResult, ProfileResult)
    threads = wording.threads(result.threads) if isinstance(result, measured) else None
    return ", ".join(part for part in (where, threads, result.dtype, seed) if part is not None)


def attention(result: EvaluateResult | ProfileResult) -> str:
    """Name the attention backend, where something ran."""
    return "" if result.attention_backend is None else f"attention {result.attention_backend} "


def cost_sentence(dense: float, pruned: float, unit: str = "gmacs per sample") -> str:
    """Say what a sample costs, in 1e9 multiply-adds, beside what it costs without pruning."""
    if dense == pruned:
        return f"{wording.gmacs(dense)} {unit}, nothing pruned."
    return (
        f"{wording.gmacs(pruned)} {unit}, {wording.gmacs(dense)} without pruning "
        f"({wording.relative_change(dense, pruned)})."
    )
