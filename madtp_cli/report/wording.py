"""Word quantities for people: each kind in one way, wherever it is read."""

from __future__ import annotations

import math
from pathlib import PurePath

from rich.console import Console

# Metrics that are shares in 0..1 and read as percent; `accuracy/<family>` counts as `accuracy`.
_SHARES = {"accuracy", "consistency", "mean", "reduction", *(f"{way}@{k}" for way in ("tr", "ir") for k in (1, 5, 10))}
# Where the slowest tenth of equal calls takes this many times the median, something else was running.
STEADY = 1.3
# How metrics are called where they are not named like any other word.
_METRICS = {
    "cider": "CIDEr",
    "cider_javafree": "CIDEr (Java-free)",
    "bleu4": "BLEU-4",
    "bleu4_javafree": "BLEU-4 (Java-free)",
    "meteor": "METEOR",
    "spice": "SPICE",
    "mean": "Mean recall",
}
# Caption metrics, which papers give a hundredfold and without a unit.
_HUNDREDFOLD = {"cider", "bleu4", "meteor", "spice", "cider_javafree", "bleu4_javafree"}


def is_share(metric: str) -> bool:
    """Tell whether a metric is a share in 0..1, to be read in percent and points."""
    return metric.partition("/")[0] in _SHARES


def percent(share: float) -> str:
    """Write a share in 0..1: `96.1%`."""
    return f"{100 * share:.1f}%"


def metric_name(name: str) -> str:
    """Write the name of a metric at the start of a sentence."""
    return _METRICS.get(name, name.upper() if "@" in name else name.capitalize())


def metric(name: str, value: float) -> str:
    """Write a metric: shares as percent, the others as they are."""
    if name in _HUNDREDFOLD:
        return f"{100 * value:.1f}"
    return percent(value) if is_share(name) else f"{value:.3f}"


def scale(name: str) -> float:
    """Return what a metric is multiplied by to be read."""
    return 100.0 if name in _HUNDREDFOLD or is_share(name) else 1.0


def unit(name: str) -> str:
    """Write the unit of a metric behind its name: `, %` for shares."""
    return ", %" if is_share(name) else ""


def metric_change(name: str, before: float, after: float) -> str:
    """Write what a metric gained or lost: `-1.3 points` for shares."""
    if is_share(name):
        return f"{_signed(100 * (after - before), 1)} points"
    if name in _HUNDREDFOLD:
        return _signed(100 * (after - before), 1)
    return _signed(after - before, 3)


def gmacs(value: float) -> str:
    """Write a cost in 1e9 multiply-adds to about four figures: `0.2130`, `132.5`."""
    if 0 < abs(value) < 0.001:
        return f"{value:.2g}"
    return f"{value:.{_decimals(value)}f}"


def relative_change(before: float, after: float) -> str:
    """Write a change as a share of what was before: `-50.3%`."""
    if not before:
        return "-"
    return f"{_signed(100 * (after / before - 1), 1)}%"


def speed(before_ms: float, after_ms: float) -> str:
    """Write how latencies compare: `1.82x faster`."""
    if before_ms <= 0 or after_ms <= 0:
        return "-"
    if f"{before_ms / after_ms:.2f}" == "1.00":
        return "no faster"
    if before_ms > after_ms:
        return f"{before_ms / after_ms:.2f}x faster"
    return f"{after_ms / before_ms:.2f}x slower"


def parameters(number: float) -> str:
    """Write a number of parameters: `1.963 M`."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.{_decimals(number / unit, most=3)}f} {name}"
    return f"{number:.0f}"


def milliseconds(value: float) -> str:
    """Write a latency to three figures: `8.31 ms`, `88.1 ms`, `180 ms`."""
    return f"{figures(value)} ms"


def threads(number: int | None) -> str | None:
    """Write with how many CPU threads something ran: `2 threads`."""
    return None if number is None else f"{number} thread{'s' * (number > 1)}"


def busy(which: str, p50_ms: float, p90_ms: float) -> str | None:
    """Say so where one in ten of some calls that do the same work took too long to trust their median."""
    spread = p90_ms / p50_ms
    if spread < STEADY:
        return None
    return f"The machine was busy: {which} took {spread:.1f} times the median or longer. Take the ratios as rough."


def figures(value: float) -> str:
    """Write a number to three figures, its unit being said elsewhere: `8.31`, `88.1`, `1802`."""
    return f"{value:.{_decimals(value, most=2, figures=3)}f}"


def mebibytes(value: float) -> str:
    """Write a size to three figures: `7.61 MiB`, `446 MiB`."""
    return f"{figures(value)} MiB"


def size(number: int) -> str:
    """Write bytes in the unit that fits: `213 B`, `7.61 KiB`, `446 MiB`."""
    units: tuple[str, ...] = ("B", "KiB", "MiB", "GiB")
    value = float(number)
    while value >= 1000 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.{_decimals(value, most=2, figures=3) if units[0] != 'B' else 0}f} {units[0]}"


def loss(value: float) -> str:
    """Write a loss with decimals that do not dance: `0.412`."""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.2e}"


def small(value: float) -> str:
    """Write a learning rate: `3.0e-6`."""
    if value == 0:
        return "0"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits}e{int(exponent)}" if exponent else digits


def clock(seconds: float | None) -> str:
    """Write a time that runs: `4:12`, `1:02:03`, or `-:--` if it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """Write how long something took: `42 s`, `5 min 36 s`, `1 h 02 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def rate(steps_per_second: float | None) -> str:
    """Write how fast steps go: `3.1 step/s`, or `4.2 s/step` for slow ones."""
    if not steps_per_second or not math.isfinite(steps_per_second):
        return "- step/s"
    if steps_per_second < 1:
        return f"{1 / steps_per_second:.1f} s/step"
    return f"{steps_per_second:.1f} step/s"


def encodable(console: Console, text: str) -> str:
    """Replace what a console's encoding cannot say: a run must not die of the name of a folder."""
    return text.encode(console.encoding, "backslashreplace").decode(console.encoding)


def _signed(value: float, digits: int) -> str:
    """Write the sign of what is left after rounding: never -0.0."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else f"{0:.{digits}f}"


def _decimals(value: float, most: int = 4, figures: int = 4) -> int:
    """Return the decimals that show so many figures, `most` at the most."""
    whole = len(str(int(abs(value)))) if math.isfinite(value) and abs(value) >= 1 else 0
    return max(min(figures - whole, most), 0)


def unplaced(source: str) -> str:
    """Leave out the folders of this machine, which tell a reader elsewhere nothing."""
    return PurePath(source).name if PurePath(source).is_absolute() else source
