"""Tables of a profile: where the multiply-adds are, and how much of what they save arrives as time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from madtp_cli.report import wording
from madtp_cli.results import ModuleCost, ProfileResult, Speed

_LAYER = re.compile(r"\.\d+(?=\.|$)")
_WITHOUT_COST = "parts without cost of their own"


@dataclass(frozen=True)
class Part:
    """A part of the model, summed over the layers that have one."""

    name: str
    layers: int
    gmacs: float
    params: int


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


def timed(result: ProfileResult) -> Iterator[tuple[str, str, Speed]]:
    """Yield batch size, model and its speed: by batch size the dense model, the pruned one and the baseline."""
    pruned = result.gmacs.pruned != result.gmacs.dense
    models = {"dense": result.dense, "pruned": result} if pruned else {"dense": result}
    for batch in sorted(result.latency_ms, key=lambda size: (len(size), size)):
        for name, speed in {**models, "baseline": result.baseline}.items():
            if speed is not None and batch in speed.latency_ms:
                yield batch, name, speed


def busy(result: ProfileResult) -> str | None:
    """Say where times of the dense model, whose calls all do the same work, were too far apart to trust the ratios."""
    calls = {
        batch: (speed.latency_ms[batch], speed.latency_p90_ms[batch])
        for batch, name, speed in timed(result)
        if name == "dense" and batch in speed.latency_p90_ms
    }
    if not calls:
        return None
    batch, (p50_ms, p90_ms) = max(calls.items(), key=lambda entry: entry[1][1] / entry[1][0])
    return wording.busy(f"at batch {batch} one in ten of the dense model's calls", p50_ms, p90_ms)


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
    """Lay out times beside multiply-adds, both as ratios to dense, and how much of what was saved became time."""
    rows = list(timed(result))
    compared = any(speed.time_ratio for _, _, speed in rows)
    table = _table("batch", "model", "p50", "p90", "runs", *(["time", "gmacs", "efficiency"] if compared else []))
    table.columns[1].justify = "left"
    for (batch, name, speed), first, last in _with_group_ends(rows):
        ratios = (
            _times(speed.time_ratio.get(batch)),
            _times(speed.macs_ratio.get(batch)),
            f"{speed.efficiency[batch]:.2f}" if batch in speed.efficiency else "",
        )
        table.add_row(
            batch if first else "",
            name,
            wording.milliseconds(speed.latency_ms[batch]),
            wording.milliseconds(speed.latency_p90_ms[batch]) if batch in speed.latency_p90_ms else "",
            str(speed.latency_runs.get(batch, "")),
            *(ratios if compared else ()),
            end_section=last,
        )
    return table


def throughput_table(result: ProfileResult) -> Table:
    """Lay out samples per second, and the memory that a call needs beside weights and inputs."""
    table = _table("batch", "model", "samples/s", "memory")
    table.columns[1].justify = "left"
    for (batch, name, speed), first, last in _with_group_ends(list(timed(result))):
        table.add_row(
            batch if first else "",
            name,
            wording.throughput(speed.samples_per_second[batch]) if batch in speed.samples_per_second else "",
            wording.mebibytes(speed.peak_mib[batch]) if batch in speed.peak_mib else "",
            end_section=last,
        )
    return table


def _with_group_ends(
    rows: Sequence[tuple[str, str, Speed]],
) -> Iterator[tuple[tuple[str, str, Speed], bool, bool]]:
    """Yield every row, and whether it is the first and the last of its batch size."""
    for index, row in enumerate(rows):
        first = index == 0 or rows[index - 1][0] != row[0]
        last = index + 1 == len(rows) or rows[index + 1][0] != row[0]
        yield row, first, last


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"x{ratio:.2f}"


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim", border_style="dim", show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=bool(index))
    return table
