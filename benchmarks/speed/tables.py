"""What was measured, laid out for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.speed.measure import RaggedRow, Row
from madtp_cli.report import wording


def speed_table(rows: Sequence[Row], fastest: float) -> Table:
    """Lay out one model at one batch size; `fastest` is the machine's matmul rate, 1e9 multiply-adds a second."""
    table = _table(
        "", "ms", "GMAC/s", "peak", "MACs", "time", "eff.", "eager", "scores", "compact",
        title=f"{rows[0].model}, batch {rows[0].batch}",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            f"pruned {row.reduction:.2g}" if row.reduction else row.candidate,
            _milliseconds(row.p50_ms),
            f"{row.gmacs_per_second:.0f}",
            f"{100 * row.gmacs_per_second / fastest:.0f}%",
            f"{row.macs_ratio:.3f}",
            f"{row.time_ratio:.3f}",
            "" if row.efficiency is None else f"{row.efficiency:.2f}",
            f"{row.times_eager:.2f}",
            _share(row.scoring_share),
            _share(row.compaction_share),
        )
    return table


def busy(rows: Sequence[Row]) -> Iterator[str]:
    """Say so where calls that do the same work took times too far apart to trust their median."""
    row = max(rows, key=lambda each: each.p90_ms / each.p50_ms)
    if warning := wording.busy(f"of {row.runs} calls of {row.candidate} one in ten", row.p50_ms, row.p90_ms):
        yield warning


def ragged_table(rows: Sequence[RaggedRow]) -> Table:
    """Lay out ragged batches of one model."""
    first = rows[0]
    table = _table(
        "vision tower", "samples", "p50 ms", "vs one by one",
        title=f"{first.model}, {first.samples} samples of {first.tokens} tokens, the longest {first.longest}",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            f"pruned {row.reduction:.2g}" if row.reduction else "dense",
            row.candidate,
            _milliseconds(row.p50_ms),
            f"{row.ratio:.3f}",
        )
    return table


def roofline_table(rates: Mapping[str, float]) -> Table:
    """Lay out the machine's matmul rates."""
    table = _table("matrix product", "GMAC/s", title="Roofline")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.0f}")
    return table


def _table(*columns: str, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"
