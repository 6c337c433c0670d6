"""The command line: help, usage, errors and their exit codes, and what is not imported."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import madtp_cli
from madtp_cli import errors
from madtp_cli.cli import app, guarded
from madtp_cli.recipe import load_recipe, shipped_recipes

COMMANDS = ("prune", "finetune", "evaluate", "profile", "export", "schema", "recipes")
# What takes long to import, and what only computing needs.
HEAVY = ("torch", "transformers", "numpy", "accelerate", "datasets", "safetensors", "PIL", "fvcore")
NAMES = ", ".join(path.stem for path in shipped_recipes())


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter that finds the package under test."""
    home = str(Path(madtp_cli.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": home, **environment},
        check=False,
    )


# Help and usage ----------------------------------------------------------------------------------------------


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"madtp {madtp_cli.__version__}\n")


def pages() -> list[list[str]]:
    """List the arguments that lead to every command and group, the root first."""
    root: Any = get_command(app)
    inner = [[name, own] for name, command in root.commands.items() for own in getattr(command, "commands", ())]
    return [[], *([name] for name in root.commands), *inner]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("page", pages(), ids=" ".join)
def test_no_help_line_is_cut(page: list[str], width: int) -> None:
    """Only `[ARGS]...`, which says that there may be several, has three dots."""
    result = CliRunner().invoke(app, [*page, "--help"], terminal_width=width)
    assert result.exit_code == 0
    for line in result.stdout.splitlines():
        assert len(line) <= width
        assert "\u2026" not in line
        assert "..." not in re.sub(r"\[[A-Z]+\]\.\.\.", "", line), line


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("group", [[], ["recipes"]], ids=" ".join)
def test_a_group_lists_its_commands_with_whole_sentences(group: list[str], width: int) -> None:
    """Oracle: the first line that each command's own help says; at 80 columns it needs no second line."""
    root: Any = get_command(app)
    commands = (root.commands["recipes"] if group else root).commands
    listed = CliRunner().invoke(app, [*group, "--help"], terminal_width=width).stdout.partition("Commands:\n")[2]
    for name, command in commands.items():
        sentence = command.help.partition("\n")[0]
        shown = " ".join(listed.split()) if width < 80 else listed
        assert re.search(rf"(?:^|\s){name} +{re.escape(sentence)}(?:\s|$)", shown), name


def test_completion_is_offered_once() -> None:
    """By the root alone."""
    shown = run("--help").stdout
    assert "--install-completion" in shown
    assert "--show-completion" in shown
    assert "completion" not in run("recipes", "--help").stdout


def completing(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run madtp as a bash does that completes a line, and fail if anything heavy was imported for it."""
    code = (
        f"import sys, shellingham\nshellingham.detect_shell = lambda: ('bash', '/bin/bash')\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "from madtp_cli.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\nassert not heavy, heavy"
    )
    return python(code, **environment)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("madtp pro", ["profile"]),
        ("madtp prune --recipe blip_ret", ["blip_retrieval_coco", "blip_retrieval_flickr30k"]),
        ("madtp recipes show quick", ["quickstart"]),
        ("madtp recipes va", ["validate"]),
    ],
)
def test_a_shell_completes_without_torch(typed: str, offered: list[str]) -> None:
    """Commands and shipped recipes, as bash asks for them: nobody waits seconds for a key."""
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_MADTP_COMPLETE": "complete_bash"}
    done = completing(**words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_made_without_torch(shell: str) -> None:
    done = completing(_MADTP_COMPLETE=f"source_{shell}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "_MADTP_COMPLETE" in done.stdout


def test_completion_is_shown_as_a_script_that_bash_reads() -> None:
    """Oracle: bash's own parser."""
    shown = completing("--show-completion")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "_MADTP_COMPLETE=complete_bash" in shown.stdout
    bash = shutil.which("bash")
    if bash is not None:
        assert subprocess.run([bash, "-n"], input=shown.stdout, text=True, check=False).returncode == 0


def test_completion_is_installed_where_bash_starts(tmp_path: Path) -> None:
    installed = completing("--install-completion", HOME=str(tmp_path))
    assert (installed.returncode, installed.stderr) == (0, "")
    (script,) = (path for path in tmp_path.rglob("madtp*") if path.is_file())
    assert "_MADTP_COMPLETE=complete_bash" in script.read_text(encoding="utf-8")
    assert str(script) in (tmp_path / ".bashrc").read_text(encoding="utf-8")


def test_help_names_every_command_and_exit_code() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.stdout
    words = " ".join(result.stdout.split())
    assert (
        "Exit codes: 0 done, 1 internal error, 2 wrong usage, 3 recipe invalid, 4 checkpoint or data missing or "
        "unreadable, 5 budget not reached, 6 --fail-if threshold hit, 7 export does not agree with PyTorch, "
        "130 interrupted (Ctrl-C or SIGTERM)." in words
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: root {name} ") or f" {name} " in result.stdout.splitlines()[0]
    assert run(name, "-h").stdout == result.stdout


@pytest.mark.parametrize("name", ["prune", "finetune", "evaluate", "profile"])
def test_the_flags_of_every_command_are_documented(name: str) -> None:
    shared = {"--json", "--device", "--precision", "--attention", "--seed", "--debug", "--recipe"}
    shared |= {"-v, --verbose", "-q, --quiet"}
    training = {"--checkpoint", "--output", "--set", "--resume", "--dry-run", "--overwrite"}
    own = {
        "prune": training,
        "finetune": training,
        "evaluate": {"--split", "--limit", "--batch-size", "--predictions"},
        "profile": {
            "--random-init",
            "--baseline",
            "--by",
            "--depth",
            "--seconds",
            "--csv",
            "--visualize",
            "--image",
            "--text",
            "--counter",
            "--convention",
            "--batch-size",
            "--text-tokens",
            "--latency / --no-latency",
            "--fail-if",
        },
    }
    text = run(name, "--help").stdout
    for flag in shared | own[name]:
        assert f"  {flag} " in text, flag


def test_the_flags_of_export_are_documented() -> None:
    """It has no recipe, and runs where exported files do: on the CPU."""
    text = run("export", "--help").stdout
    for flag in (
        "--format",
        "--mode",
        "--precision",
        "--opset",
        "--atol",
        "--output",
        "--overwrite",
        "--batch-size",
        "--text-tokens",
        "--samples",
        "--latency / --no-latency",
        "--seed",
        "--json",
        "-v, --verbose",
        "-q, --quiet",
        "--debug",
    ):
        assert f"  {flag} " in text, flag


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pruen"], "No such command 'pruen'."),
        (["prune"], "Missing option '--recipe'."),
        (["prune", "--nope"], "No such option: --nope"),
        (["prune", "--recipe", "quickstart", "--device", "gpu"], "'gpu' is not auto, cpu, mps, cuda or cuda:N."),
        (["prune", "--recipe", "quickstart", "--seed", "-1"], "'--seed'"),
        (["prune", "--recipe", "quickstart", "--precision", "int8"], "'--precision'"),
        (["evaluate", "x", "--attention", "flash"], "'--attention'"),
        (["evaluate"], "Missing argument 'CHECKPOINT'."),
        (["evaluate", "x", "--split", "train"], "'--split'"),
        (["evaluate", "x", "--limit", "0"], "'--limit'"),
        (["profile", "x", "--counter", "guess"], "'--counter'"),
        (["profile", "x", "--batch-size", "0"], "'--batch-size'"),
        (["profile", "x", "--text-tokens", "0"], "'--text-tokens'"),
        (["recipes", "show"], "Missing argument 'NAME'."),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["prune", "--recipe", "zzz"], 3, f"zzz: no such file and no shipped recipe of this name; there are: {NAMES}"),
        (["finetune", "--recipe", "no/x.yaml"], 3, f"no{os.sep}x.yaml: no such recipe file; see: madtp recipes ls"),
        (
            ["prune", "--recipe", "quickstart", "--set", "seed"],
            2,
            "--set seed: expected key=value, such as --set training.seed=7",
        ),
        (
            ["prune", "--recipe", "quickstart", "--set", "training.seed=x"],
            3,
            "--set training.seed=x: training.seed must be a whole number, got 'x' (text)",
        ),
        (["prune", "--recipe", "quickstart", "--output", ""], 3, "--output : output must not be empty"),
        (["prune", "--recipe", "quickstart", "-q", "-v"], 2, "--quiet and --verbose exclude each other; give one"),
        (["profile"], 2, "profile needs a CHECKPOINT, or several, or else --recipe FILE"),
        (
            ["profile", "x", "--recipe", "quickstart"],
            2,
            "profile needs a CHECKPOINT, or several, or else --recipe FILE",
        ),
        (["profile", "x", "--random-init"], 2, "--random-init needs --recipe FILE: a checkpoint has its weights"),
        (
            ["profile", "x", "--fail-if", "gmacs"],
            2,
            "--fail-if 'gmacs': expected a name, one of >= <= == != > < and a number, such as 'gmacs>27'",
        ),
        (
            ["evaluate", "x", "--predictions", "no/such/file.jsonl"],
            2,
            f"--predictions {Path('no/such/file.jsonl')}: there is no folder {Path('no/such')}; make it first",
        ),
    ],
)
def test_what_typer_cannot_see_is_one_line_as_well(arguments: list[str], code: int, message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert result.stderr == f"madtp: error: {message}\n"
    assert result.stdout == ""


def test_prune_needs_a_budget() -> None:
    result = run("prune", "--recipe", "shapes_pretrain")
    assert result.exit_code == 3
    place = load_recipe("shapes_pretrain").where("budget")
    assert result.stderr == (
        f"madtp: error: {place}: budget is missing, and prune needs one; try --set budget.reduction=0.5, or madtp "
        "finetune to train without one\n"
    )


def test_prune_finds_the_strength_itself() -> None:
    result = run("prune", "--recipe", "quickstart", "--set", "pruning.strength=0.3")
    assert result.exit_code == 3
    assert result.stderr == (
        "madtp: error: --set pruning.strength=0.3: pruning.strength is found by the budget in prune; remove it, or use "
        "madtp finetune to hold it\n"
    )


# Errors ------------------------------------------------------------------------------------------------------


def guard(error: BaseException) -> Any:
    """Run a program of one command that raises."""
    single = typer.Typer()

    def command(debug: bool = False) -> None:
        raise error

    single.command()(guarded(command))
    return lambda *arguments: CliRunner().invoke(single, list(arguments))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.MadtpError("x"), 1, "madtp: error: x\n"),
        (errors.UsageError("x"), 2, "madtp: error: x\n"),
        (errors.RecipeError(["a:1: x", "b:2: y"]), 3, "madtp: error: a:1: x\nmadtp: error: b:2: y\n"),
        (errors.SourceError("x"), 4, "madtp: error: x\n"),
        (errors.BudgetError("x"), 5, "madtp: error: x\n"),
        (errors.ThresholdError("x"), 6, "madtp: error: x\n"),
        (errors.Interrupted("state saved in x"), 130, "madtp: interrupted: state saved in x\n"),
        (KeyboardInterrupt(), 130, "madtp: interrupted: stopped by the user\n"),
        (
            ValueError("two\n lines"),
            1,
            "madtp: error: internal error: ValueError: two lines; add --debug for the traceback\n",
        ),
        (
            ZeroDivisionError(),
            1,
            "madtp: error: internal error: ZeroDivisionError: no message; add --debug for the traceback\n",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_line_and_its_exit_code(error: BaseException, code: int, line: str) -> None:
    result = guard(error)()
    assert (result.exit_code, result.stderr, result.stdout) == (code, line, "")


@pytest.mark.parametrize("error", [errors.SourceError("gone"), ValueError("gone"), KeyboardInterrupt()])
def test_debug_prints_the_traceback_first(error: BaseException) -> None:
    result = guard(error)("--debug")
    lines = result.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("madtp: ")
    assert "--debug" not in lines[-1]


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (None, "madtp: interrupted: stopped by the user\n"),
        (errors.Interrupted("the state is saved in x"), "madtp: interrupted: the state is saved in x\n"),
    ],
    ids=["anywhere", "where a state is kept"],
)
def test_sigterm_ends_a_command_as_ctrl_c_does(raised: errors.Interrupted | None, line: str) -> None:
    """A scheduler sends it; the command says how it ended, and the handler from before comes back."""

    def terminated() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            if raised is None:
                raise
            raise raised from None

    single = typer.Typer()
    single.command()(guarded(terminated))
    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(single, [])
    assert (result.exit_code, result.stderr, result.stdout) == (130, line, "")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_closed_pipe_is_no_internal_error() -> None:
    result = guard(BrokenPipeError(errno.EPIPE, "Broken pipe"))()
    assert "internal error" not in result.stderr


# Imports -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [None, ["--help"], ["prune", "--help"], ["recipes", "validate", "quickstart"], ["recipes", "ls", "--json"]],
    ids=str,
)
def test_what_does_not_compute_imports_nothing_heavy(arguments: list[str] | None) -> None:
    code = f"""
import sys
from madtp_cli.cli import app
arguments = {arguments!r}
if arguments is not None:
    try:
        app(arguments)
    except SystemExit as end:
        assert end.code == 0, end.code
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", ["", ".recipe", ".results", ".budget", ".errors"])
def test_modules_without_torch_stay_so(module: str) -> None:
    result = python(f"import sys, madtp_cli{module}; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert result.stdout == "[]\n", result.stderr


def test_python_m_is_the_same_program() -> None:
    code = "import runpy, sys; sys.argv = ['x', '--version']; runpy.run_module('madtp_cli', run_name='__main__')"
    assert python(code).stdout == f"madtp {madtp_cli.__version__}\n"
