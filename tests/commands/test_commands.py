"""The commands with an engine of cardboard: what they pass on, what they print where, how they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from madtp_cli import errors
from madtp_cli.cli import app
from madtp_cli.recipe import Recipe
from madtp_cli.results import Budget, EvaluateResult, Gmacs, ProfileResult, PruneResult, Result

Call = dict[str, Any]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Result | BaseException], list[Call]]:
    """Return a function that puts a result (or an error) in the place of the engine and records its calls."""

    def install(outcome: Result | BaseException) -> list[Call]:
        calls: list[Call] = []
        attention: list[Any] = []

        def work(*arguments: Any, **options: Any) -> Result:
            print("a library prints")
            options["console"].print("progress")
            calls.append({"arguments": arguments, "attention": attention[-1], **options})
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        def use_attention(*choice: str) -> None:
            attention.append(choice)

        def show(result: Result, console: Any, **_view: Any) -> None:
            console.print(f"report of {result.command}")

        packages: dict[str, ModuleType] = {}
        names: dict[str, dict[str, Any]] = {
            "engine.building.attention": {"use_attention": use_attention},
            "engine.run": {"prune": work, "finetune": work},
            "engine.evaluate": {"evaluate_checkpoint": work},
            "engine.profile": {"profile_checkpoint": work},
            "report.terminal": {"show": show},
        }
        for name, content in names.items():
            fake = ModuleType(f"madtp_cli.{name}")
            fake.__dict__.update(content)
            package, _, module = name.rpartition(".")
            parent = packages.setdefault(package, ModuleType(f"madtp_cli.{package}"))
            parent.__dict__[module] = fake
            monkeypatch.setitem(sys.modules, f"madtp_cli.{package}", parent)
            monkeypatch.setitem(sys.modules, f"madtp_cli.{name}", fake)
        return calls

    return install


def pruned(met: bool = True) -> PruneResult:
    budget = Budget(target_reduction=0.5, reached_reduction=0.503 if met else 0.4, met=met)
    return PruneResult(command="prune", checkpoint="runs/quickstart", budget=budget)


PROFILED = ProfileResult(
    command="profile",
    checkpoint="x",
    gmacs=Gmacs(dense=1.0, pruned=0.4, reduction=0.6),
    params=10,
    latency_ms={"1": 9.0},
)
EVALUATED = EvaluateResult(
    command="evaluate", checkpoint="x", split="test", samples=9, metrics={"accuracy": 0.9}, gmacs=PROFILED.gmacs
)


@pytest.mark.parametrize("name", ["prune", "finetune"])
def test_options_change_the_recipe(name: str, engine: Any) -> None:
    calls = engine(pruned())
    result = run(
        *(name, "--recipe", "quickstart", "--checkpoint", "a: b", "--output", "NO", "--seed", "7"),
        *("--precision", "bf16", "--set", "training.steps=3", "--set", "training.seed=8", "--device", "cuda:1"),
        *("--resume", "--dry-run", "--overwrite", "-vv", "--attention", "varlen"),
    )
    assert result.exit_code == 0, result.stderr
    (call,) = calls
    recipe: Recipe = call["arguments"][0]
    assert recipe.model.checkpoint == "a: b"
    assert recipe.output == "NO"
    assert (recipe.training.seed, recipe.training.steps, recipe.training.precision) == (7, 3, "bf16")
    assert (call["name"], call["device"], call["verbosity"]) == ("quickstart", "cuda:1", 2)
    assert (call["resume"], call["dry_run"], call["overwrite"]) == (True, True, True)
    assert call["attention"] == ("varlen", "cuda:1", "bf16")


def test_json_is_alone_on_stdout(engine: Any) -> None:
    for outcome, arguments in (
        (pruned(), ["prune", "--recipe", "quickstart"]),
        (EVALUATED, ["evaluate", "x"]),
        (PROFILED, ["profile", "x"]),
    ):
        engine(outcome)
        result = run(*arguments, "--json")
        assert result.exit_code == 0
        assert type(outcome).from_json(result.stdout) == outcome
        assert result.stderr == "a library prints\nprogress\n"


def test_without_json_the_report_is_on_stdout(engine: Any) -> None:
    engine(pruned())
    result = run("prune", "--recipe", "quickstart")
    assert result.stdout == "a library prints\nprogress\nreport of prune\n"
    assert result.stderr == ""


def test_quiet_prints_errors_only(engine: Any) -> None:
    calls = engine(pruned(met=False))
    result = run("prune", "--recipe", "quickstart", "-q")
    assert result.exit_code == 5
    assert result.stdout == "a library prints\n"
    assert result.stderr.startswith("madtp: error: budget not reached")
    assert calls[0]["verbosity"] == -1


def test_other_ranks_print_nothing(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    engine(pruned())
    assert run("prune", "--recipe", "quickstart").stdout == "a library prints\n"
    assert run("prune", "--recipe", "quickstart", "--json").stdout == ""


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_missed_budget_is_reported_and_ends_with_5(flags: list[str], engine: Any) -> None:
    engine(pruned(met=False))
    result = run("prune", "--recipe", "quickstart", *flags)
    assert result.exit_code == 5
    assert result.stderr.splitlines()[-1] == (
        "madtp: error: budget not reached: reduction 0.400, target 0.500; the checkpoint is kept and marked so: "
        "runs/quickstart"
    )
    if flags:
        assert json.loads(result.stdout)["budget"]["met"] is False
    else:
        assert result.stdout.endswith("report of prune\n")


def test_finetune_does_not_judge_a_budget(engine: Any) -> None:
    engine(pruned(met=False))
    assert run("finetune", "--recipe", "quickstart").exit_code == 0


def test_an_error_of_the_engine_leaves_stdout_empty_under_json(engine: Any) -> None:
    engine(errors.SourceError("x: no such checkpoint"))
    for arguments in (["prune", "--recipe", "quickstart"], ["evaluate", "x"], ["profile", "x"]):
        result = run(*arguments, "--json")
        assert result.exit_code == 4
        assert result.stdout == ""
        assert result.stderr.endswith("madtp: error: x: no such checkpoint\n")


def test_evaluate_passes_its_options_on(engine: Any, tmp_path: Path) -> None:
    calls = engine(EVALUATED)
    file = tmp_path / "p.jsonl"
    flags = ["--split", "val", "--limit", "9", "--batch-size", "3", "--predictions", str(file), "--seed", "1"]
    assert run("evaluate", "x", "--recipe", "quickstart", *flags).exit_code == 0
    (call,) = calls
    assert call["arguments"] == ("x",)
    assert call["recipe"].name == "quickstart"
    assert (call["split"], call["limit"], call["batch_size"], call["predictions"]) == ("val", 9, 3, file)
    assert (call["device"], call["precision"], call["seed"]) == ("auto", None, 1)
    assert call["attention"] == ("auto", "auto", "fp32")


def test_profile_passes_its_options_on(engine: Any) -> None:
    calls = engine(PROFILED)
    flags = ["--random-init", "--baseline", "y", "--counter", "torch", "--batch-size", "4", "--batch-size", "16"]
    assert run("profile", "--recipe", "quickstart", *flags, "--text-tokens", "8", "--no-latency").exit_code == 0
    assert run("profile", "--recipe", "quickstart").exit_code == 0
    call, plain = calls
    assert call["arguments"] == (None,)
    assert call["attention"] == ("auto", "auto", "fp32")
    assert (call["random_init"], call["baseline"], call["counter"]) == (True, "y", "torch")
    assert (call["batch_sizes"], call["text_tokens"], call["latency"]) == ([4, 16], 8, False)
    assert (list(plain["batch_sizes"]), plain["text_tokens"], plain["latency"]) == ([], None, True)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_every_threshold_is_shown_and_a_hit_ends_with_6(flags: list[str], engine: Any) -> None:
    engine(PROFILED)
    conditions = ["--fail-if", "gmacs>0.3", "--fail-if", "reduction<0.5", "--fail-if", "latency_ms.1 >= 9"]
    result = run("profile", "x", *conditions, *flags)
    assert result.exit_code == 6
    shown = result.stderr if flags else result.stdout
    for line in ("fail-if gmacs>0.3: 0.4, hit", "fail-if reduction<0.5: 0.6, ok", "fail-if latency_ms.1 >= 9: 9, hit"):
        assert line in shown.splitlines()
    last = "madtp: error: --fail-if hit: gmacs>0.3 (0.4), latency_ms.1 >= 9 (9)"
    assert result.stderr.splitlines()[-1] == last
    if flags:
        thresholds = json.loads(result.stdout)["thresholds"]
        assert [threshold["hit"] for threshold in thresholds] == [True, False, True]


def test_no_threshold_hit_ends_with_0(engine: Any) -> None:
    engine(PROFILED)
    result = run("profile", "x", "--fail-if", "gmacs>27")
    assert result.exit_code == 0
    assert result.stdout.endswith("report of profile\nfail-if gmacs>27: 0.4, ok\n")


def test_no_color_means_no_escape_codes(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    outcome = PruneResult(command="[bold]prune[/bold]", checkpoint="x")
    engine(outcome)
    assert "\x1b" not in run("finetune", "--recipe", "quickstart").stdout
