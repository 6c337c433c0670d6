"""Show how training goes: a live panel on a terminal, one plain line per N steps anywhere else.

The panel is drawn by a thread of its own from one frozen picture of the last step, so a step costs the training
loop a few dictionary updates and no output.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from madtp_cli.report import wording

# Share of the newest step in the exponential means: a memory of 20 steps for losses, of 5 for what moves on purpose.
_LOSS_SHARE, _COST_SHARE = 0.05, 0.2
_RATE_STEPS = 50  # the step rate is that of the last 50 steps
_ETA_STEPS = 1000  # the time left also knows the pauses (validation) of the last 1000
_LONGEST_SILENCE = 60.0  # seconds between plain lines, if a step does not take longer
_WIDEST = 110
# Columns left free at the right, so that the ^C a terminal echoes does not wrap and scroll the panel.
_MARGIN = 3
_LABELS = 12
_BAR = 10


@dataclass(frozen=True)
class StepReport:
    """What one training step did.

    `step` counts from 1. `losses` are the weighted parts with their `total`. `seconds` count from the start of
    training. Costs are means per sample. `tokens_kept` gives, by tower, the mean share (0..1) of tokens left after the
    last layer. `validation` is the last one, if any. None stands for what a run does not have.
    """

    step: int
    steps: int
    losses: Mapping[str, float]
    learning_rate: float
    seconds: float
    gmacs: float | None = None
    target_gmacs: float | None = None
    dense_gmacs: float | None = None
    strength: float | None = None
    temperature: float | None = None
    tokens_kept: Mapping[str, float] | None = None
    validation: Mapping[str, float] | None = None


def metrics_line(report: StepReport) -> str:
    """Return a step as one line of JSON with six significant digits; numbers that are not finite become null."""
    values = {field.name: getattr(report, field.name) for field in fields(report)}
    return json.dumps(_plain_data(values), allow_nan=False)


class ExponentialMean:
    """Smooth named values; the first ones count fully, and what is not finite is passed on but not remembered."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def update(self, values: Mapping[str, float]) -> dict[str, float]:
        """Take in new values and return the means of the names given, in their order."""
        means = {}
        for name, value in values.items():
            if not math.isfinite(value):
                means[name] = value
                continue
            self._sums[name] = (1 - self.share) * self._sums.get(name, 0.0) + self.share * value
            self._weights[name] = (1 - self.share) * self._weights.get(name, 0.0) + self.share
            means[name] = self._sums[name] / self._weights[name]
        return means


@dataclass(frozen=True)
class _Picture:
    """The last step with its numbers smoothed, and how fast steps go."""

    report: StepReport
    per_second: float | None
    seconds_left: float | None
    drawn_at: float  # time.monotonic()


class TrainingProgress:
    """Report a training run on a console while the block runs.

    `every` is the number of steps per plain line; a terminal gets a live panel instead. With `quiet`, nothing is
    printed at all.
    """

    def __init__(self, console: Console, steps: int, title: str, every: int = 20, quiet: bool = False) -> None:
        self._console = console
        self._steps = steps
        self._title = title
        self._every = max(every, 1)
        self._quiet = quiet or console.quiet
        self._losses = ExponentialMean(_LOSS_SHARE)
        self._costs = ExponentialMean(_COST_SHARE)
        self._kept = ExponentialMean(_COST_SHARE)
        self._times: deque[tuple[int, float]] = deque(maxlen=_ETA_STEPS)
        self._picture: _Picture | None = None
        self._validations: tuple[tuple[int | None, Mapping[str, float]], ...] = ()
        self._live: Live | None = None
        self._began = time.monotonic()
        self._lined = 0.0

    def __enter__(self) -> TrainingProgress:
        self._began = time.monotonic()
        if not self._quiet and _is_live(self._console):
            self._live = Live(
                get_renderable=self._panel,
                console=self._console,
                refresh_per_second=4,
                # Output that somebody reads from a pipe is not ours to move.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            try:
                self._live.start(refresh=True)
            except BaseException:
                self._stop()
                raise
        elif not self._quiet:
            self.message(f"{self._title}: {self._steps:,} steps; losses, cost and tokens are running means")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def step(self, report: StepReport) -> None:
        """Take in one step."""
        if self._quiet:
            return
        self._times.append((report.step, report.seconds))
        if report.validation and not self._validations:  # of the run that this one goes on with
            self._validations = ((None, report.validation),)
        smoothed = self._smoothed(report)
        self._picture = _Picture(smoothed, self._per_second(_RATE_STEPS), self._seconds_left(report), time.monotonic())
        due = report.step % self._every == 0 or report.step in (1, report.steps)
        # However slow steps are, a log tells that they are being taken.
        if self._live is None and (due or report.seconds - self._lined >= _LONGEST_SILENCE):
            self._lined = report.seconds
            self._line("  ".join(_plain_parts(self._picture)))

    def message(self, text: str) -> None:
        """Print a line of its own, above the panel if there is one."""
        if not self._quiet:
            self._line(text)

    def validation(self, metrics: Mapping[str, float], step: int) -> None:
        """Take in what validation measured after a step, and print it as a line of its own."""
        if self._quiet:
            return
        before = self._validations[-1][1] if self._validations else {}
        self._validations = (*self._validations[-1:], (step, metrics))
        self._line(f"step {step:,}  validation {'  '.join(_validation_parts(metrics, before))}")

    def _line(self, text: str) -> None:
        # soft_wrap: one line stays one line, however long, so that grep and tail work.
        self._console.print(Text(wording.encodable(self._console, text)), soft_wrap=True, highlight=False)

    def _stop(self) -> None:
        if self._live is None:
            return
        live, self._live = self._live, None
        try:
            live.stop()
        finally:  # a second Ctrl-C lands here
            self._console.show_cursor(True)

    def _smoothed(self, report: StepReport) -> StepReport:
        kept = None if report.tokens_kept is None else self._kept.update(report.tokens_kept)
        cost = None if report.gmacs is None else self._costs.update({"gmacs": report.gmacs})["gmacs"]
        return replace(report, losses=self._losses.update(report.losses), gmacs=cost, tokens_kept=kept)

    def _per_second(self, window: int) -> float | None:
        """Return the rate over the last `window` reports, None before there are two."""
        first = self._times[max(len(self._times) - window, 0)]
        last = self._times[-1]
        seconds = last[1] - first[1]
        return (last[0] - first[0]) / seconds if seconds > 0 else None

    def _seconds_left(self, report: StepReport) -> float | None:
        per_second = self._per_second(_ETA_STEPS)
        return (report.steps - report.step) / per_second if per_second else None

    def _panel(self) -> RenderableType:
        picture = self._picture
        ascii_only = self._console.options.ascii_only
        rows: list[RenderableType] = [_bar(picture, self._steps), Text()]
        if picture is None:
            rows[1:] = [Text("waiting for the first step", style="dim")]
        else:
            rows.append(_facts(picture.report, self._validations, ascii_only))
        elapsed = time.monotonic() - self._began if picture is None else _elapsed(picture)
        return Panel(
            Group(*rows),
            title=Text(wording.encodable(self._console, self._title), style="bold"),
            title_align="left",
            subtitle=Text(f"elapsed {wording.clock(elapsed)}", style="dim"),
            subtitle_align="right",
            border_style="dim",
            padding=(0, 1),
            width=max(min(self._console.width - _MARGIN, _WIDEST), 20),
        )


class _Flow:
    """Lay parts side by side, two spaces apart, never broken inside: a new line starts where one would not fit."""

    def __init__(self, parts: Iterable[Text]) -> None:
        self._parts = tuple(parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Text(no_wrap=True, overflow="ellipsis")
        for part in self._parts:
            if line and line.cell_len + 2 + part.cell_len > options.max_width:
                yield line
                line = Text(no_wrap=True, overflow="ellipsis")
            line.append("  " if line else "").append_text(part)
        yield line


def _is_live(console: Console) -> bool:
    """Tell whether a panel may move: on a terminal that can, not where only colours were forced (FORCE_COLOR in CI)."""
    isatty = getattr(console.file, "isatty", None)
    return console.is_interactive and isatty is not None and isatty()


def _elapsed(picture: _Picture) -> float:
    """Let the clock run on between steps, but not after the last one."""
    report = picture.report
    running = report.step < report.steps
    return report.seconds + (time.monotonic() - picture.drawn_at if running else 0.0)


def _bar(picture: _Picture | None, steps: int) -> RenderableType:
    done = picture.report.step if picture else 0
    row = Table.grid(padding=(0, 2, 0, 0), expand=True)
    row.add_column(ratio=1)
    row.add_row(
        ProgressBar(total=max(steps, 1), completed=done),
        Text(f"{done:,}/{steps:,}", no_wrap=True),
        Text(f"{100 * done / max(steps, 1):3.0f}%", no_wrap=True),
        Text(wording.rate(picture.per_second if picture else None), style="dim", no_wrap=True),
        Text(f"ETA {wording.clock(picture.seconds_left if picture else None)}", no_wrap=True),
    )
    return row


def _facts(
    report: StepReport,
    validations: tuple[tuple[int | None, Mapping[str, float]], ...],
    ascii_only: bool,
) -> RenderableType:
    """Lay out what is known, one kind a row; a row that a run has nothing for is left out."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=_LABELS, style="dim", no_wrap=True)
    table.add_column()
    table.add_row("loss", _Flow(_loss_texts(report.losses)))
    if report.gmacs is not None:
        table.add_row("cost", _Flow(_cost_texts(report)))
    if report.tokens_kept:
        table.add_row("tokens kept", _Flow(_kept_texts(report.tokens_kept, ascii_only)))
    table.add_row("controls", _Flow(Text(text) for text in _control_parts(report)))
    if validations:
        step, metrics = validations[-1]
        before = validations[-2][1] if len(validations) > 1 else {}
        parts = [*_validation_parts(metrics, before), *([] if step is None else [f"at step {step:,}"])]
        table.add_row("validation", _Flow(Text(part) for part in parts))
    return table


def _loss_texts(losses: Mapping[str, float]) -> Iterator[Text]:
    """Write the total first, then its parts; a part that is not a number stands out."""
    for name in sorted(losses, key=lambda name: name != "total"):
        value = losses[name]
        style = "bold red" if not math.isfinite(value) else "bold" if name == "total" else ""
        yield Text.assemble(("" if name == "total" else f"{name} ", "dim"), (wording.loss(value), style))


def _cost_texts(report: StepReport) -> Iterator[Text]:
    dense = report.dense_gmacs
    for name, value, style in (("", report.gmacs, "bold"), ("target ", report.target_gmacs, "")):
        if value is not None:
            change = f" ({wording.relative_change(dense, value)})" if dense else ""
            unit = "" if name else " gmacs"
            yield Text.assemble((name, "dim"), (f"{wording.gmacs(value)}{unit}{change}", style))
    if dense is not None:
        yield Text.assemble(("dense ", "dim"), wording.gmacs(dense))


def _kept_texts(kept: Mapping[str, float], ascii_only: bool) -> Iterator[Text]:
    full, rest = "#." if ascii_only else "━─"
    for tower, share in kept.items():
        filled = min(max(round(share * _BAR), 0), _BAR) if math.isfinite(share) else 0
        yield Text.assemble(
            (f"{tower} ", "dim"),
            f"{wording.percent(share):>6} ",
            (full * filled, "cyan"),
            (rest * (_BAR - filled), "dim"),
        )


def _control_parts(report: StepReport) -> Iterator[str]:
    if report.strength is not None:
        yield f"strength {report.strength:.3f}"
    if report.temperature is not None:
        yield f"temperature {report.temperature:.2f}"
    yield f"learning rate {wording.small(report.learning_rate)}"


def _validation_parts(metrics: Mapping[str, float], before: Mapping[str, float]) -> Iterator[str]:
    """Write the overall metrics (families stay out), with what they gained since the last time."""
    for name, value in metrics.items():
        if "/" in name:
            continue
        gained = (
            f" ({wording.metric_change(name, before[name], value)})" if name != "reduction" and name in before else ""
        )
        yield f"{name} {wording.metric(name, value)}{gained}"


def _plain_parts(picture: _Picture) -> Iterator[str]:
    report = picture.report
    yield f"step {report.step}/{report.steps}"
    losses = {name: wording.loss(value) for name, value in report.losses.items()}
    total = losses.pop("total", None)
    parts = " ".join(f"{name} {value}" for name, value in losses.items())
    if total is None:
        yield f"loss {parts}"
    else:
        yield f"loss {total} ({parts})" if parts else f"loss {total}"
    if report.gmacs is not None:
        yield _plain_cost(report)
    if report.tokens_kept:
        kept = (f"{tower} {wording.percent(share)}" for tower, share in report.tokens_kept.items())
        yield f"kept {' '.join(kept)}"
    if report.strength is not None:
        yield f"strength {report.strength:.3f}"
    yield f"lr {wording.small(report.learning_rate)}"
    yield wording.rate(picture.per_second)
    yield f"ETA {wording.clock(picture.seconds_left)}"


def _plain_cost(report: StepReport) -> str:
    """Write the cost, and beside it the target: as changes of the dense cost where that is known."""
    cost, target, dense = report.gmacs or 0.0, report.target_gmacs, report.dense_gmacs
    text = f"{wording.gmacs(cost)} gmacs"
    if dense:
        text += f" {wording.relative_change(dense, cost)}"
    if target is not None:
        text += f" (target {wording.relative_change(dense, target) if dense else wording.gmacs(target)})"
    return text


def _plain_data(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_data(item) for key, item in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
