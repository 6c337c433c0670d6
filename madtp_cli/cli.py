"""The command line: one line per command, and the one place where errors become exit codes."""

from __future__ import annotations

import functools
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from madtp_cli import __version__
from madtp_cli.commands import recipes
from madtp_cli.commands.evaluate import evaluate
from madtp_cli.commands.export import export
from madtp_cli.commands.finetune import finetune
from madtp_cli.commands.profile import profile
from madtp_cli.commands.prune import prune
from madtp_cli.commands.schema import schema
from madtp_cli.errors import Interrupted, MadtpError

EXIT_CODES = (
    "Exit codes: 0 done, 1 internal error, 2 wrong usage, 3 recipe invalid, 4 checkpoint or data missing or "
    "unreadable, 5 budget not reached, 6 --fail-if threshold hit, 7 export does not agree with PyTorch, "
    "130 interrupted (Ctrl-C or SIGTERM)."
)
_SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that an error is one line per fault on stderr, and the exit code is the error's own."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with _stoppable():
                command(*args, **kwargs)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise  # typer's own ways to end
        except KeyboardInterrupt:
            _report(Interrupted("stopped by the user"), kwargs.get("debug", False))
            raise typer.Exit(Interrupted.exit_code) from None
        except MadtpError as error:
            _report(error, kwargs.get("debug", False))
            raise typer.Exit(error.exit_code) from None
        except Exception as error:
            debug = kwargs.get("debug", False)
            about = " ".join(str(error).split()) or "no message"
            hint = "" if debug else "; add --debug for the traceback"
            _report(MadtpError(f"internal error: {type(error).__name__}: {about}{hint}"), debug)
            raise typer.Exit(MadtpError.exit_code) from None

    return run


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM, which a scheduler or `timeout` sends, stop a command as Ctrl-C does, with a message."""
    try:
        before = signal.signal(signal.SIGTERM, _interrupt)
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _report(error: MadtpError, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    for line in str(error).splitlines():
        print(f"madtp: {error.label}: {line}", file=sys.stderr)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"madtp {__version__}")
        raise typer.Exit


app = typer.Typer(name="madtp", epilog=EXIT_CODES, **_SETTINGS)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Prune the tokens of vision-language transformers to a cost budget, and prove what it did."""


def _add(group: typer.Typer, *commands: Callable[..., None]) -> None:
    """Add commands to a group, whose help lists each by the first line of its docstring.

    As a `short_help` it is broken where a terminal is narrow; typer would cut it off.
    """
    for command in commands:
        group.command(short_help=(command.__doc__ or "").partition("\n")[0])(guarded(command))


_add(app, prune, finetune, evaluate, profile, export, schema)
_RECIPES = "List, show, copy and check recipes."
recipes_app = typer.Typer(help=_RECIPES, short_help=_RECIPES, add_completion=False, **_SETTINGS)
_add(recipes_app, recipes.ls, recipes.show, recipes.cp, recipes.validate, recipes.schema)
app.add_typer(recipes_app, name="recipes")


def main() -> None:
    """Run the command line."""
    app(prog_name="madtp")
