"""Where commands write: the one place that makes a rich console and prints results."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console

from madtp_cli.results import Result


@contextlib.contextmanager
def open_console(json_output: bool, verbosity: int) -> Iterator[Console]:
    """Yield the console for progress and reports: stdout, or stderr under `--json`.

    Under `--json` whatever a library prints meanwhile goes to stderr too, so that stdout holds one document.
    """
    # Without a colour system rich emits no styles at all; NO_COLOR alone leaves it bold.
    console = Console(
        stderr=json_output,
        quiet=verbosity < 0 or not is_main_process(),
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        # Paths and hints such as madtp[caption] are text, not rich's markup.
        markup=False,
        emoji=False,
    )
    with contextlib.redirect_stdout(sys.stderr) if json_output else contextlib.nullcontext():
        yield console


def emit(result: Result, json_output: bool, console: Console, **view: Any) -> None:
    """Print a result: as its JSON document, or as a report for people, of which some have a `view` to choose."""
    if not is_main_process():
        return
    if json_output:
        typer.echo(result.to_json())
        return
    from madtp_cli.report.terminal import show

    show(result, console, **view)


def is_main_process() -> bool:
    """Tell whether this process may print and write: the first of a distributed run."""
    return os.environ.get("RANK", "0") == "0"
