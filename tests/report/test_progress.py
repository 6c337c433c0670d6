"""Progress: a panel on a terminal, plain lines elsewhere, and a terminal that works afterwards."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from madtp_cli.report.progress import ExponentialMean, StepReport, TrainingProgress, metrics_line

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


class Terminal(io.StringIO):
    """Keep what a terminal would get."""

    def isatty(self) -> bool:
        return True


def terminal(width: int = 80, **options: Any) -> Console:
    settings: dict[str, Any] = {"color_system": None, "_environ": {"TERM": "xterm"}, "height": 40, **options}
    return Console(file=Terminal(), force_terminal=True, width=width, **settings)


def pipe(**environ: str) -> Console:
    return Console(file=io.StringIO(), width=80, _environ=environ)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def last_frame(console: Console) -> list[str]:
    """Return what stands in the panel when all is drawn: what follows the last line that was erased."""
    text = written(console).rpartition("\x1b[2K")[2].replace(SHOW_CURSOR, "")
    return [line.strip("│╭╮╰╯─ ") for line in text.splitlines()]


def report(step: int = 1, **changes: Any) -> StepReport:
    values: dict[str, Any] = {
        "step": step,
        "steps": 100,
        "losses": {"task": 0.5, "logits": 0.25, "total": 0.75},
        "learning_rate": 3e-6,
        "seconds": 0.5 * step,
        "gmacs": 0.2,
        "target_gmacs": 0.16,
        "dense_gmacs": 0.32,
        "strength": 0.4,
        "temperature": 1.0,
        "tokens_kept": {"vision": 0.3, "text": 0.75},
        **changes,
    }
    return StepReport(**values)


DENSE: dict[str, Any] = {
    "gmacs": None,
    "target_gmacs": None,
    "strength": None,
    "temperature": None,
    "tokens_kept": None,
}


def test_a_pipe_gets_one_whole_line_per_n_steps() -> None:
    console = pipe()
    with TrainingProgress(console, steps=100, title="prune", every=40) as progress:
        for step in range(1, 101):
            progress.step(report(step))
    found = written(console).splitlines()
    assert [line.split("  ")[0] for line in found] == [
        "prune: 100 steps; losses, cost and tokens are running means",
        "step 1/100",
        "step 40/100",
        "step 80/100",
        "step 100/100",
    ]
    assert found[2] == (
        "step 40/100  loss 0.750 (task 0.500 logits 0.250)  0.2000 gmacs -37.5% (target -50.0%)  "
        "kept vision 30.0% text 75.0%  strength 0.400  lr 3.0e-6  2.0 step/s  ETA 0:30"
    )
    assert "\x1b" not in written(console)
    assert "\r" not in written(console)


def test_slow_steps_are_told_of_once_a_minute() -> None:
    """Steps of 25 s: the first one, then one whenever a minute has passed, the last one."""
    console = pipe()
    with TrainingProgress(console, steps=8, title="prune", every=40) as progress:
        for step in range(1, 9):
            progress.step(report(step, steps=8, seconds=25.0 * step))
    assert [line.split("  ")[0] for line in written(console).splitlines()[1:]] == [
        f"step {step}/8" for step in (1, 4, 7, 8)
    ]


def test_a_run_without_pruning_has_short_lines() -> None:
    console = pipe()
    with TrainingProgress(console, steps=100, title="finetune", every=1) as progress:
        progress.step(report(1, **DENSE))
        progress.step(report(2, **DENSE, losses={"total": 1.0}))
    assert written(console).splitlines()[1:] == [
        "step 1/100  loss 0.750 (task 0.500 logits 0.250)  lr 3.0e-6  - step/s  ETA -:--",
        # (.95 * .05 * .75 + .05 * 1) / (.95 * .05 + .05)
        "step 2/100  loss 0.878  lr 3.0e-6  2.0 step/s  ETA 0:49",
    ]


def test_a_target_without_a_dense_cost_is_given_as_it_is() -> None:
    console = pipe()
    with TrainingProgress(console, steps=100, title="prune", every=1) as progress:
        progress.step(report(1, dense_gmacs=None))
    assert "  0.2000 gmacs (target 0.1600)  " in written(console)


def test_forced_colours_in_ci_do_not_start_a_panel() -> None:
    console = pipe(FORCE_COLOR="1", TERM="xterm")
    assert console.is_terminal
    with TrainingProgress(console, steps=100, title="prune", every=1) as progress:
        progress.step(report())
        progress.message("saved")
    assert "\x1b" not in written(console)
    assert len(written(console).splitlines()) == 3


def test_a_dumb_terminal_gets_plain_lines() -> None:
    console = terminal(_environ={"TERM": "dumb"})
    with TrainingProgress(console, steps=100, title="prune", every=1) as progress:
        progress.step(report())
    assert "\x1b" not in written(console)
    assert written(console).splitlines()[1].startswith("step 1/100  loss 0.750")


@pytest.mark.parametrize("make", [pipe, terminal])
def test_quiet_means_nothing_at_all(make: Callable[[], Console]) -> None:
    console = make()
    with TrainingProgress(console, steps=100, title="prune", every=1, quiet=True) as progress:
        progress.step(report())
        progress.message("saved")
        progress.validation({"accuracy": 0.9}, 1)
    assert written(console) == ""


@pytest.mark.parametrize(
    ("width", "losses"),
    [
        (80, ["loss         0.750  task 0.500  logits 0.250  guidance_of_towers 0.125", "patches 0.125"]),
        (120, ["loss         0.750  task 0.500  logits 0.250  guidance_of_towers 0.125  patches 0.125"]),
    ],
)
def test_the_panel_shows_everything_at_both_widths(width: int, losses: list[str]) -> None:
    console = terminal(width)
    parts = {"task": 0.5, "logits": 0.25, "guidance_of_towers": 0.125, "patches": 0.125, "total": 0.75}
    with TrainingProgress(console, steps=100, title="madtp prune: quickstart") as progress:
        for step in range(1, 101):
            progress.step(report(step, losses=parts))
        progress.validation({"accuracy": 0.95, "reduction": 0.5, "accuracy/both": 0.9}, 100)
    frame = last_frame(console)
    assert frame[0] == "madtp prune: quickstart"
    assert re.fullmatch(r"━+  100/100  100%  2\.0 step/s  ETA 0:00", frame[1])
    assert frame[3:] == [
        *losses,
        "cost         0.2000 gmacs (-37.5%)  target 0.1600 (-50.0%)  dense 0.3200",
        "tokens kept  vision  30.0% ━━━───────  text  75.0% ━━━━━━━━",
        "controls     strength 0.400  temperature 1.00  learning rate 3.0e-6",
        "validation   accuracy 95.0%  reduction 50.0%  at step 100",
        "elapsed 0:50",
    ]
    raw = written(console).rpartition("\x1b[2K")[2].replace(SHOW_CURSOR, "").splitlines()
    assert {len(line) for line in raw if line} == {min(width - 3, 110)}


def test_a_narrow_terminal_breaks_between_parts_only() -> None:
    console = terminal(44)
    with TrainingProgress(console, steps=100, title="a title that is longer than the terminal is wide") as progress:
        progress.step(report())
    frame = last_frame(console)
    assert "cost         0.2000 gmacs (-37.5%)" in frame
    assert "target 0.1600 (-50.0%)" in frame
    assert "controls     strength 0.400" in frame


def test_a_dense_run_has_no_rows_about_pruning() -> None:
    console = terminal()
    with TrainingProgress(console, steps=100, title="finetune") as progress:
        progress.step(report(**DENSE))
    text = "\n".join(last_frame(console))
    assert "controls     learning rate 3.0e-6" in text
    assert "cost" not in text
    assert "tokens kept" not in text


def test_the_panel_stands_before_the_first_step() -> None:
    console = terminal()
    with TrainingProgress(console, steps=100, title="prune"):
        pass
    assert "waiting for the first step" in last_frame(console)
    assert any(line.endswith("0/100    0%  - step/s  ETA -:--") for line in last_frame(console))


def test_lines_stand_above_the_panel_and_validation_tells_what_it_gained() -> None:
    console = terminal()
    with TrainingProgress(console, steps=100, title="prune") as progress:
        progress.step(report(50))
        progress.validation({"accuracy": 0.9, "accuracy/both": 0.8}, 50)
        progress.message("state saved in runs/[quickstart]")
        progress.validation({"accuracy": 0.95}, 60)
    assert "step 50  validation accuracy 90.0%\n" in written(console)
    assert "state saved in runs/[quickstart]\n" in written(console)
    assert "step 60  validation accuracy 95.0% (+5.0 points)\n" in written(console)
    assert "validation   accuracy 95.0% (+5.0 points)  at step 60" in last_frame(console)


def test_a_resumed_run_shows_the_validation_it_came_with() -> None:
    console = terminal()
    with TrainingProgress(console, steps=100, title="prune") as progress:
        progress.step(report(51, validation={"accuracy": 0.9}))
    assert "validation   accuracy 90.0%" in last_frame(console)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_terminal_as_it_was(error: type[BaseException]) -> None:
    console = terminal()
    streams = sys.stdout, sys.stderr

    def train() -> None:
        with TrainingProgress(console, steps=100, title="prune") as progress:
            progress.step(report())
            raise error

    with pytest.raises(error):
        train()
    text = written(console)
    assert text.count(HIDE_CURSOR) == 1
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
    assert text.rstrip().endswith(SHOW_CURSOR) or text.endswith("\n")
    assert (sys.stdout, sys.stderr) == streams


def test_a_second_interrupt_while_stopping_still_shows_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal()
    progress = TrainingProgress(console, steps=100, title="prune")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    progress.__enter__()
    monkeypatch.setattr("rich.live.Live.stop", interrupt)
    with pytest.raises(KeyboardInterrupt):
        progress.__exit__(None, None, None)
    monkeypatch.undo()
    assert written(console).endswith(SHOW_CURSOR)


def test_no_color_leaves_a_readable_panel() -> None:
    console = terminal(color_system="standard", no_color=True)
    with TrainingProgress(console, steps=100, title="prune") as progress:
        progress.step(report(50))
    codes = set(re.findall(r"\x1b\[([0-9;]*)m", written(console)))
    assert codes <= {"0", "1", "2", "1;2"}  # bold and dim are no colours
    assert "━━━───────" in re.sub(r"\x1b\[[0-9;]*m", "", written(console))


def test_a_terminal_that_knows_ascii_only_gets_ascii_only() -> None:
    class Ascii(Terminal):
        encoding = "ascii"

    console = Console(file=Ascii(), force_terminal=True, width=80, color_system=None, _environ={"TERM": "xterm"})
    with TrainingProgress(console, steps=100, title="größe") as progress:
        progress.step(report())
        progress.message("größe")
    assert written(console).isascii()
    assert "###......." in written(console)


def test_a_loss_that_is_no_number_is_shown_and_forgotten() -> None:
    console = pipe()
    with TrainingProgress(console, steps=100, title="prune", every=1) as progress:
        progress.step(report(1, losses={"total": 1.0}))
        progress.step(report(2, losses={"total": float("nan")}))
        progress.step(report(3, losses={"total": 1.0}))
    assert [line.split("  ")[1] for line in written(console).splitlines()[1:]] == [
        "loss 1.000",
        "loss nan",
        "loss 1.000",
    ]


def test_an_exponential_mean_counts_the_first_value_fully() -> None:
    mean = ExponentialMean(0.5)
    assert mean.update({"a": 4.0}) == {"a": 4.0}
    # Weights .25 and .5 of what was seen: (.25 * 4 + .5 * 1) / .75
    assert mean.update({"a": 1.0, "b": 7.0}) == {"a": 2.0, "b": 7.0}


def test_a_metrics_line_is_json_with_the_fields_of_a_report() -> None:
    line = metrics_line(report(7, learning_rate=1.23456789e-5, losses={"total": 1 / 3}, validation={"accuracy": 0.95}))
    assert "\n" not in line
    assert json.loads(line) == {
        "step": 7,
        "steps": 100,
        "losses": {"total": 0.333333},
        "learning_rate": 1.23457e-05,
        "seconds": 3.5,
        "gmacs": 0.2,
        "target_gmacs": 0.16,
        "dense_gmacs": 0.32,
        "strength": 0.4,
        "temperature": 1.0,
        "tokens_kept": {"vision": 0.3, "text": 0.75},
        "validation": {"accuracy": 0.95},
    }


def test_a_metrics_line_has_null_for_what_is_no_number() -> None:
    data = json.loads(metrics_line(report(1, **DENSE, losses={"total": float("inf")})))
    assert data["losses"] == {"total": None}
    assert data["gmacs"] is None
