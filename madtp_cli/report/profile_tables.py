"""Tables of a profile: where the multiply-adds are, and how much of what they save arrives as time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from madtp_cli.report import wording
from madtp_cli.results import ModuleCost, ProfileResult

_LAYER = re.compile(r"\.\d+(?=\.|$)")
_WITHOUT_COST = "parts without cost of their own"


@dataclass(frozen=True)
class Part:
    """A part of the model, summed over the layers that have one."""

    name: str
    layers: int
    gmacs: float
    params: int


@dataclass(frozen=True)
class Speed:
    """One model at one batch size beside the dense one; ratios are to dense, None for dense itself.

    efficiency is the ratio of multiply-adds over the ratio of times: 1 if every saved multiply-add saved its time.
    """

    batch: str
    model: str
    p50_ms: float
    p90_ms: float | None = None
    time_ratio: float | None = None
    macs_ratio: float | None = None

    @property
    def efficiency(self) -> float | None:
        """Share of the saving in multiply-adds that arrives as time."""
        if self.time_ratio is None or self.macs_ratio is None or self.time_ratio <= 0:
            return None
        return self.macs_ratio / self.time_ratio


def parts(modules: tuple[ModuleCost, ...]) -> list[Part]:
    """Sum modules over layers, `a.3.b` as `a.*.b`, in order; parts that cost nothing come last, as one."""
    groups: dict[str, list[ModuleCost]] = {}
    for module in modules:
        groups.setdefault(_LAYER.sub(".*", module.name), []).append(module)
    summed = [
        Part(name, len(members), sum(m.gmacs for m in members), sum(m.params for m in members))
        for name, members in groups.items()
    ]
    free = [part for part in summed if not part.gmacs]
    costly = [part for part in summed if part.gmacs]
    if free:
        costly.append(Part(_WITHOUT_COST, 1, 0.0, sum(part.params for part in free)))
    return costly


def speeds(result: ProfileResult) -> Iterator[Speed]:
    """Yield, by batch size, the dense model, the pruned one and the baseline, as far as they were timed."""
    cost, baseline = result.gmacs, result.baseline
    pruned = cost.pruned != cost.dense
    for batch in sorted(result.latency_ms, key=lambda size: (len(size), size)):
        p50, p90 = result.latency_ms[batch], result.latency_p90_ms.get(batch)
        dense = result.dense_latency_ms.get(batch) if pruned else p50
        if not pruned or dense is None:
            yield Speed(batch, "pruned" if pruned else "dense", p50, p90)
        else:
            yield Speed(batch, "dense", dense)
            yield Speed(batch, "pruned", p50, p90, _ratio(p50, dense), _ratio(cost.pruned, cost.dense))
        if baseline is not None and batch in baseline.latency_ms:
            other = baseline.latency_ms[batch]
            yield Speed(
                batch,
                "baseline",
                other,
                time_ratio=None if dense is None else _ratio(other, dense),
                macs_ratio=_ratio(baseline.gmacs, cost.dense),
            )


def modules_table(result: ProfileResult, *, every_layer: bool = False) -> Table:
    """Lay out the parts of a model with their cost and parameters; `every_layer` does not sum over layers."""
    table = _table("part", "", "gmacs", "share", "params")
    rows = [Part(m.name, 1, m.gmacs, m.params) for m in result.modules] if every_layer else parts(result.modules)
    for index, part in enumerate(rows):
        table.add_row(
            Text(part.name, overflow="fold"),
            f"x{part.layers}" if part.layers > 1 else "",
            wording.gmacs(part.gmacs) if part.gmacs else "-",
            wording.percent(part.gmacs / result.gmacs.pruned) if part.gmacs and result.gmacs.pruned else "-",
            wording.parameters(part.params) if part.params else "-",
            end_section=index == len(rows) - 1,
        )
    if rows:
        total = sum(part.gmacs for part in rows)
        table.add_row("total", "", wording.gmacs(total), "", wording.parameters(result.params), style="bold")
    return table


def composition_table(result: ProfileResult) -> Table:
    """Lay out the passes that a published cost is put together from, and that cost beside the published constant."""
    pruned = result.gmacs.pruned != result.gmacs.dense
    table = _table("pass", "times", "gmacs", *(["pruned"] if pruned else []), "in all")
    for index, part in enumerate(result.composition):
        cost = part.gmacs
        table.add_row(
            Text(part.name, overflow="fold"),
            f"x{part.times}",
            wording.gmacs(cost.dense),
            *([wording.gmacs(cost.pruned)] if pruned else []),
            wording.gmacs(part.times * cost.pruned),
            end_section=index == len(result.composition) - 1,
        )
    blank = [""] * (3 if pruned else 2)
    table.add_row("total", *blank, wording.gmacs(result.gmacs.pruned), style="bold")
    if pruned:
        table.add_row("without pruning", *blank, wording.gmacs(result.gmacs.dense))
    if result.published_gmacs is not None:
        table.add_row("as published", *blank, f"{result.published_gmacs:.2f}")
        difference = 100 * (result.gmacs.dense / result.published_gmacs - 1)
        table.add_row("difference", *blank, f"{difference:+.2f}%")
    return table


def passes_table(result: ProfileResult) -> Table:
    """Lay out what may come on top of a sample, once per pair or answer."""
    pruned = result.gmacs.pruned != result.gmacs.dense
    table = _table("on top, each", "gmacs", *(["pruned"] if pruned else []))
    for part in result.passes:
        costs = (part.gmacs.dense, part.gmacs.pruned) if pruned else (part.gmacs.dense,)
        table.add_row(Text(part.name, overflow="fold"), *map(wording.gmacs, costs))
    return table


def latency_table(result: ProfileResult) -> Table:
    """Lay out times beside multiply-adds, both as ratios to dense, and their quotient."""
    table = _table("batch", "model", "p50", "p90", "time", "gmacs", "efficiency")
    table.columns[1].justify = "left"
    rows = list(speeds(result))
    for index, speed in enumerate(rows):
        first = index == 0 or rows[index - 1].batch != speed.batch
        table.add_row(
            speed.batch if first else "",
            speed.model,
            wording.milliseconds(speed.p50_ms),
            "" if speed.p90_ms is None else wording.milliseconds(speed.p90_ms),
            _times(speed.time_ratio),
            _times(speed.macs_ratio),
            "" if speed.efficiency is None else f"{100 * speed.efficiency:.0f}%",
            end_section=index + 1 == len(rows) or rows[index + 1].batch != speed.batch,
        )
    return table


def _ratio(value: float, dense: float) -> float | None:
    return value / dense if dense > 0 else None


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"x{ratio:.2f}"


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim", border_style="dim", show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=bool(index))
    return table
