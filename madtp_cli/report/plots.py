"""The report's plots: drawings in SVG that take their colours from the page around them, so that they suit any theme.

matplotlib draws in stand-in colours, each of which becomes a variable of the page's style sheet.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from madtp_cli.report import wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Entry = Mapping[str, Any]
"""One line of metrics.jsonl."""

MOST_POINTS = 300
_MARKED = 15  # a curve of fewer points shows them
# Stand-in colours and the variables that they become.
INK, GRID, SOFT = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0401{number:02}" for number in range(1, 8))
_VARIABLES = {
    INK: "var(--ink)",
    GRID: "var(--grid)",
    SOFT: "var(--soft)",
    **{colour: f"var(--s{number})" for number, colour in enumerate(SERIES, start=1)},
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and is read aloud
    "svg.hashsalt": "madtp",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "figure.facecolor": "none",
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Plot:
    """A drawing and what it shows, in a sentence."""

    name: str
    title: str
    caption: str
    svg: str


def losses(log: Sequence[Entry]) -> Plot | None:
    """Draw the parts of the training loss by step; None if nothing was trained."""
    steps = [entry for entry in log if "losses" in entry]
    if not steps:
        return None
    names = list(dict.fromkeys(name for entry in steps for name in entry["losses"] if name != "total"))
    lines = {name: _points(steps, partial(_loss, name)) for name in names}

    def draw(axes: Axes) -> None:
        for colour, (name, (x, y)) in zip(SERIES * 2, lines.items(), strict=False):
            _curve(axes, x, y, colour, name)
        if all(min(y, default=1.0) > 0 for _, y in lines.values()):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        axes.set(xlabel="step", ylabel="loss")
        _legend(axes, 4)

    first, last = steps[0]["losses"]["total"], steps[-1]["losses"]["total"]
    return Plot(
        "losses",
        "Loss, by part",
        f"In all {wording.loss(first)} at step {steps[0]['step']} and {wording.loss(last)} at step {steps[-1]['step']}."
        + _means(len(steps)),
        _svg("losses", draw),
    )


def cost(log: Sequence[Entry]) -> Plot | None:
    """Draw what training batches cost against what they were to cost; None if nothing was pruned."""
    steps = [entry for entry in log if entry.get("gmacs") is not None]
    if not steps:
        return None

    def draw(axes: Axes) -> None:
        _curve(axes, *_points(steps, lambda entry: entry["dense_gmacs"]), SOFT, "without pruning")
        _curve(axes, *_points(steps, lambda entry: entry["gmacs"]), SERIES[0], "measured")
        if any(entry.get("target_gmacs") is not None for entry in steps):
            _curve(axes, *_points(steps, lambda entry: entry["target_gmacs"]), SERIES[1], "target", linestyle="--")
        axes.set(xlabel="step", ylabel="gmacs per sample")
        axes.set_ylim(bottom=0)
        _legend(axes, 3)

    last = steps[-1]
    target = last.get("target_gmacs")
    wanted = "" if target is None else f", target {wording.gmacs(target)}"
    return Plot(
        "cost",
        "Measured cost against target",
        f"The last batch cost {wording.gmacs(last['gmacs'])} gmacs per sample{wanted}, "
        f"{wording.gmacs(last['dense_gmacs'])} without pruning.{_means(len(steps))}",
        _svg("cost", draw),
    )


def strength(log: Sequence[Entry]) -> Plot | None:
    """Draw the one knob of pruning by step, and the temperature where it changes; None if nothing was pruned."""
    steps = [entry for entry in log if "losses" in entry and entry.get("strength") is not None]
    if not steps:
        return None
    warmth = list(dict.fromkeys(entry.get("temperature") for entry in steps))
    changes = len(warmth) > 1 and None not in warmth

    def draw(axes: Axes) -> None:
        _curve(axes, *_points(steps, lambda entry: entry["strength"]), SERIES[0], "strength")
        if changes:
            _curve(axes, *_points(steps, lambda entry: entry["temperature"]), SERIES[1], "temperature")
            _legend(axes, 2)
        axes.set(xlabel="step", ylabel="strength" if not changes else "")
        axes.set_ylim(bottom=0)

    held = f" The temperature was {warmth[0]:g} throughout." if len(warmth) == 1 and warmth[0] is not None else ""
    return Plot(
        "strength",
        "Pruning strength",
        f"0 prunes nothing; it ended at {steps[-1]['strength']:.4f}.{held}{_means(len(steps))}",
        _svg("strength", draw),
    )


def score_against_cost(
    log: Sequence[Entry], score: str, dense_gmacs: float, tests: Mapping[str, tuple[float, float]]
) -> Plot | None:
    """Draw the validations of a run as a path from dense to pruned, score against cost; None if there were none.

    `tests` are further points (gmacs, score) by name.
    """
    found = [entry for entry in log if "losses" not in entry and score in (entry.get("validation") or {})]
    if not found:
        return None
    times = wording.scale(score)
    x = [(1 - entry["validation"]["reduction"]) * dense_gmacs for entry in found]
    y = [times * entry["validation"][score] for entry in found]

    def draw(axes: Axes) -> None:
        axes.plot(x, y, color=SERIES[0], marker="o", markersize=4, label="validation, in order of training")
        for place, end in {(x[0], y[0]): "first", (x[-1], y[-1]): "last"}.items():
            axes.annotate(end, place, xytext=(5, 5), textcoords="offset points", fontsize=8)
        for colour, marker, (name, (gmacs, value)) in zip(SERIES[1:], "sD^", tests.items(), strict=False):
            axes.plot([gmacs], [times * value], marker, color=colour, markersize=7, label=f"{name}, test")
        axes.set(xlabel="gmacs per sample", ylabel=wording.metric_name(score) + wording.unit(score))
        axes.margins(0.12)
        _legend(axes, 2)

    steps = f"step {found[0]['step']}" if len(found) == 1 else f"steps {found[0]['step']} to {found[-1]['step']}"
    return Plot(
        "score",
        f"{wording.metric_name(score)} against cost, over training",
        f"Validations at {steps}: the last one {wording.metric(score, found[-1]['validation'][score])}. Validation and "
        "test are different samples.",
        _svg("score", draw),
    )


QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def kept(site: str, shares: Mapping[int, Sequence[float]], unit: str) -> Plot:
    """Draw how the share of tokens that leave each layer of a site varies over the test samples, images or texts."""
    layers = list(shares)
    at = {layer: np.quantile(shares[layer], QUANTILES) * 100 for layer in layers}
    same = all(levels[-1] - levels[0] < 0.5 for levels in at.values())

    def draw(axes: Axes) -> None:
        for number, (layer, (least, tenth, quarter, median, three, nine, most)) in enumerate(at.items()):
            labels = ("min to max", "middle 80%", "middle half", "median") if not number else (None,) * 4
            if not same:
                axes.plot([layer] * 2, [least, most], color=SERIES[0], linewidth=1.0, label=labels[0])
                axes.bar(layer, nine - tenth, 0.5, tenth, color=SERIES[0], alpha=0.3, label=labels[1])
                axes.bar(layer, three - quarter, 0.5, quarter, color=SERIES[0], alpha=0.6, label=labels[2])
            axes.plot([layer - 0.35, layer + 0.35], [median] * 2, color=SERIES[1], linewidth=2.4, label=labels[3])
        axes.set(xlabel=f"after {site} layer", ylabel="tokens kept, %", ylim=(0, 105))
        axes.set_xticks(layers)
        axes.set_xlim(min(layers) - 0.7, max(layers) + 0.7)
        if not same:
            _legend(axes, 4)

    count = f"{len(shares[layers[-1]]):,} test {unit}"
    least, _, low, _, high, _, most = at[layers[-1]]
    if same:
        said = f"all of the {count} keep {low:.0f}% of their {site} tokens."
    else:
        said = f"half of the {count} keep {low:.0f}% to {high:.0f}% of their {site} tokens, all of them "
        said += f"{least:.0f}% to {most:.0f}%."
    return Plot(
        f"kept-{site}",
        f"Tokens kept, {site}",
        f"After the last layer, {said}",
        _svg(f"kept-{site}", draw),
    )


def histogram(gmacs: Sequence[float], dense: Sequence[float]) -> Plot:
    """Draw what test samples cost, one by one."""
    values = np.asarray(gmacs)
    middle = float(values.mean())

    def draw(axes: Axes) -> None:
        axes.hist(values, bins=min(40, max(8, len(values) // 10)), color=SERIES[0], alpha=0.75)
        axes.axvline(middle, color=SERIES[1], linestyle="--", label=f"mean {wording.gmacs(middle)}")
        axes.set(xlabel="gmacs per sample", ylabel="test samples")
        axes.locator_params(axis="y", integer=True)
        _legend(axes, 1)

    return Plot(
        "samples",
        "Test samples by their cost",
        f"From {wording.gmacs(values.min())} to {wording.gmacs(values.max())} gmacs, mean {wording.gmacs(middle)}; "
        f"without pruning {wording.gmacs(min(dense))} to {wording.gmacs(max(dense))}.",
        _svg("samples", draw),
    )


def _curve(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, label: str, linestyle: str = "-") -> None:
    marker = "o" if len(x) < _MARKED else ""
    axes.plot(x, y, color=colour, label=label, linestyle=linestyle, marker=marker, markersize=3)


def _legend(axes: Axes, columns: int) -> None:
    """Name the curves above the drawing, where they hide nothing."""
    axes.legend(
        ncols=columns, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2, columnspacing=1.2, fontsize=8.5
    )


def _loss(name: str, entry: Entry) -> float | None:
    value: float | None = entry["losses"].get(name)
    return value


def _points(entries: Sequence[Entry], read: Callable[[Entry], float | None]) -> tuple[list[float], list[float]]:
    """Return steps and values, neighbours averaged where there are more than a drawing can show."""
    pairs = [(float(entry["step"]), float(value)) for entry in entries if (value := read(entry)) is not None]
    size = _block(len(pairs))
    blocks = [np.mean(pairs[start : start + size], axis=0).tolist() for start in range(0, len(pairs), size)]
    return [step for step, _ in blocks], [value for _, value in blocks]


def _block(points: int) -> int:
    return -(-points // MOST_POINTS) or 1


def _means(points: int) -> str:
    """Say so where points of a curve are means."""
    return f" Every point is the mean of {_block(points)} logged steps." if _block(points) > 1 else ""


def _svg(name: str, draw: Callable[[Axes], None], width: float = 5.2, height: float = 3.1) -> str:
    """Draw one pair of axes, and return an <svg> to be put into a page; its ids begin with `name`."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.locator_params(axis="x", nbins=6)
        draw(axes)
        written = io.StringIO()
        # Nothing of when and by what: equal data give equal files.
        figure.savefig(written, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _for_page(written.getvalue(), name)


def _for_page(document: str, name: str) -> str:
    """Turn an SVG file into an element of a page: its colours, its own ids, no sizes, no namespaces."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\sid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", svg).replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    return re.sub(r"<svg[^>]*>", f'<svg {view.group()} aria-hidden="true">', svg, count=1).strip()
