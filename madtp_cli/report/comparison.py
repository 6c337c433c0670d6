"""Set two models side by side, row by row, in words: what the terminal and the model card both show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from madtp_cli.report import wording
from madtp_cli.results import Budget, LayerTokens, PruneResult, Side

# What a run is judged by, the first one there is.
_MAIN = ("accuracy", "cider", "cider_javafree", "mean")
# Accuracy changes (shares) that are worth a colour.
_GAIN, _LOSS = 0.005, -0.02


class Tone(Enum):
    """Whether a change is worth a colour."""

    GOOD = "good"
    PLAIN = "plain"
    BAD = "bad"


@dataclass(frozen=True)
class Row:
    """One line of a comparison; `inner` rows are parts of their `parent` above, `group` rows belong together."""

    group: str
    label: str
    dense: str = ""
    pruned: str = ""
    change: str = ""
    tone: Tone = Tone.PLAIN
    inner: bool = False
    parent: str = ""


def compare(dense: Side | None, pruned: Side | None, families: bool = True) -> list[Row]:
    """Return the rows of two models, either of which may be missing; without `families`, overall metrics only."""
    return [
        *_metric_rows(dense.metrics if dense else {}, pruned.metrics if pruned else {}, families),
        _cost_row(dense, pruned),
        *_latency_rows(dense.latency_ms if dense else {}, pruned.latency_ms if pruned else {}),
        *_size_rows(dense, pruned),
    ]


def metric_rows(metrics: Mapping[str, float]) -> list[Row]:
    """Return the rows of one model's metrics, as `dense`."""
    return list(_metric_rows(metrics, {}, families=True))


def budget_line(budget: Budget) -> str:
    """Say in one sentence what was asked of the cost and what was reached."""
    tolerance = "" if budget.tolerance is None else f" (tolerance {100 * budget.tolerance:.1f} points)"
    return (
        f"Budget {'met' if budget.met else 'missed'}: cost reduced by {wording.percent(budget.reached_reduction)}, "
        f"target {wording.percent(budget.target_reduction)}{tolerance}."
    )


def headline(result: PruneResult) -> str | None:
    """Say in one sentence what it cost in accuracy, or how good the one model is; None if nothing was measured."""
    name = main_metric(result)
    if name is None:
        return None
    sides = [side.metrics[name] for side in (result.dense, result.pruned) if side and name in side.metrics]
    if len(sides) == 1:
        return f"{wording.metric_name(name)} {wording.metric(name, sides[0])}."
    return (
        f"{wording.metric_name(name)} {wording.metric(name, sides[1])} against {wording.metric(name, sides[0])} dense: "
        f"{wording.metric_change(name, *sides)}."
    )


def busy(dense: Side | None) -> str | None:
    """Say where times of the dense model, whose calls all do the same work, were too far apart to trust the ratios."""
    if dense is None or not dense.latency_p90_ms:
        return None
    spread = {batch: p90_ms / dense.latency_ms[batch] for batch, p90_ms in dense.latency_p90_ms.items()}
    batch = max(spread, key=lambda size: spread[size])
    which = f"at batch {batch} one in ten of the dense model's calls"
    return wording.busy(which, dense.latency_ms[batch], dense.latency_p90_ms[batch])


def is_pruned(result: PruneResult) -> bool:
    """Tell whether the model that came out spends less than the dense one."""
    if result.pruned is None:
        return False
    return result.dense is None or result.pruned.gmacs < result.dense.gmacs


def pruned_name(result: PruneResult) -> str:
    """Name the second column of a comparison."""
    return "compressed" if is_pruned(result) else "trained"


def by_tower(layers: tuple[LayerTokens, ...]) -> dict[str, list[LayerTokens]]:
    """Group layers by tower, in order."""
    towers: dict[str, list[LayerTokens]] = {}
    for layer in layers:
        towers.setdefault(layer.tower, []).append(layer)
    return towers


def main_metric(result: PruneResult) -> str | None:
    """Name the metric that a run is judged by; None if nothing was measured."""
    side = result.pruned or result.dense
    names = [name for name in side.metrics if "/" not in name] if side else []
    return next((name for name in _MAIN if name in names), next(iter(names), None))


def _metric_rows(dense: Mapping[str, float], pruned: Mapping[str, float], families: bool) -> Iterator[Row]:
    names = list(dict.fromkeys([*dense, *pruned]))
    overall = list(dict.fromkeys(name.partition("/")[0] for name in names))
    for parent in overall:
        inner = [name for name in names if families and name.startswith(f"{parent}/")]
        for name in [parent, *inner] if parent in names else inner:
            yield _metric_row(name, dense.get(name), pruned.get(name))


def _metric_row(name: str, dense: float | None, pruned: float | None) -> Row:
    parent, _, family = name.partition("/")
    change, tone = "", Tone.PLAIN
    if dense is not None and pruned is not None:
        change = wording.metric_change(name, dense, pruned)
        if wording.is_share(name):
            gained = pruned - dense
            tone = Tone.GOOD if gained > _GAIN else Tone.BAD if gained < _LOSS else Tone.PLAIN
    return Row(
        group="metrics",
        label=family or parent,
        parent=parent if family else "",
        dense="" if dense is None else wording.metric(name, dense),
        pruned="" if pruned is None else wording.metric(name, pruned),
        change=change,
        tone=tone,
        inner=bool(family),
    )


def _cost_row(dense: Side | None, pruned: Side | None) -> Row:
    row = Row(
        group="cost",
        label="gmacs per sample",
        dense=wording.gmacs(dense.gmacs) if dense else "",
        pruned=wording.gmacs(pruned.gmacs) if pruned else "",
    )
    if not dense or not pruned:
        return row
    tone = Tone.GOOD if pruned.gmacs < dense.gmacs else Tone.PLAIN
    return replace(row, change=wording.relative_change(dense.gmacs, pruned.gmacs), tone=tone)


def _latency_rows(dense: Mapping[str, float], pruned: Mapping[str, float]) -> Iterator[Row]:
    for batch in sorted({*dense, *pruned}, key=lambda size: (len(size), size)):
        before, after = dense.get(batch), pruned.get(batch)
        row = Row(
            group="latency",
            label=f"latency, batch {batch}",
            dense="" if before is None else wording.milliseconds(before),
            pruned="" if after is None else wording.milliseconds(after),
        )
        if before is not None and after is not None:
            tone = Tone.GOOD if after < before else Tone.BAD
            row = replace(row, change=wording.speed(before, after), tone=tone)
        yield row


def _size_rows(dense: Side | None, pruned: Side | None) -> Iterator[Row]:
    sides = (dense, pruned)
    for label, write, values in (
        ("parameters", wording.parameters, [None if side is None else side.params for side in sides]),
        ("checkpoint", wording.mebibytes, [None if side is None else side.size_mib for side in sides]),
    ):
        before, after = values
        if before is not None or after is not None:
            yield Row(
                group="size",
                label=label,
                dense="" if before is None else write(before),
                pruned="" if after is None else write(after),
                change="" if before is None or after is None else wording.relative_change(before, after),
            )
