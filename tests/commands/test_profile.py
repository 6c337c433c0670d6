"""`madtp profile` by its options: conventions, and what they rule out."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from madtp_cli.cli import app
from madtp_cli.results import Gmacs, NamedProfile, PassCost, ProfileResult

FOUND = ProfileResult(
    command="profile",
    checkpoint=None,
    convention="published",
    gmacs=Gmacs(dense=132.54, pruned=132.54, reduction=0.0),
    params=10,
    composition=(PassCost(name="image", gmacs=Gmacs(dense=55.54, pruned=55.54, reduction=0.0), times=2),),
    published_gmacs=132.54,
)
COST = Gmacs(dense=0.5, pruned=0.1, reduction=0.8)
OTHER = NamedProfile(name="b", checkpoint="runs/b", gmacs=COST, params=20)
SEVERAL = ProfileResult(command="profile", checkpoint="runs/a", name="a", gmacs=COST, params=10, others=(OTHER,))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put a result in the place of the engine and record how it is called."""
    made: list[dict[str, Any]] = []

    def work(*arguments: Any, **options: Any) -> ProfileResult:
        made.append({"checkpoint": arguments[0], **options})
        return SEVERAL if options["others"] else FOUND

    engine = ModuleType("madtp_cli.engine.profile")
    engine.__dict__["profile_checkpoint"] = work
    monkeypatch.setitem(sys.modules, "madtp_cli.engine.profile", engine)
    return made


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["profile", *arguments])


def test_the_convention_is_passed_on(calls: list[dict[str, Any]]) -> None:
    """One sample by default; what papers publish is arithmetic, and nothing is timed."""
    assert run("x").exit_code == run("x", "--convention", "published").exit_code == 0
    assert [(call["convention"], call["latency"]) for call in calls] == [("sample", True), ("published", False)]


def test_the_composition_is_reported(calls: list[dict[str, Any]]) -> None:
    """For people as a table that ends with the constant, for scripts in the document."""
    shown = run("x", "--convention", "published").stdout
    assert "132.5 gmacs as papers count, nothing pruned." in shown
    assert ["image", "x2", "55.54", "111.1"] in [line.split() for line in shown.splitlines()]
    assert ProfileResult.from_json(run("x", "--convention", "published", "--json").stdout) == FOUND


def test_a_threshold_counts_in_the_convention(calls: list[dict[str, Any]]) -> None:
    """--fail-if tests the published cost; time is not measured with it, and asking for it is wrong usage."""
    assert run("x", "--convention", "published", "--fail-if", "gmacs>132").exit_code == 6
    for condition in ("latency_ms.1>9", "efficiency.32<1"):
        result = run("x", "--convention", "published", "--fail-if", condition)
        assert result.exit_code == 2
        assert "--convention published measures no time; test the latency in a run without it" in result.stderr
    assert len(calls) == 1


def test_another_convention_is_wrong_usage() -> None:
    """The two conventions are named in the message."""
    result = run("x", "--convention", "paper")
    assert result.exit_code == 2
    assert "'--convention'" in result.stderr


def test_further_checkpoints_are_compared(calls: list[dict[str, Any]]) -> None:
    """The first is profiled beside the others, as short as they can be named."""
    result = run("runs/a", "runs/b", "--seconds", "2", "--batch-size", "8")
    assert result.exit_code == 0
    (call,) = calls
    assert (call["checkpoint"], call["others"], call["seconds"]) == ("runs/a", ["runs/b"], 2.0)
    assert "2 checkpoints, on the same samples" in result.stdout
    assert ["gmacs", "per", "sample", "0.1000", "0.1000"] in [line.split() for line in result.stdout.splitlines()]


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_every_checkpoint_is_held_to_a_threshold(flags: list[str], calls: list[dict[str, Any]]) -> None:
    """All are shown, and those that were hit are named with their checkpoint."""
    result = run("runs/a", "runs/b", "--fail-if", "params>15", "--fail-if", "gmacs>0.2", *flags)
    assert result.exit_code == 6
    shown = (result.stderr if flags else result.stdout).splitlines()
    for line in ("params>15: 10, ok (a)", "params>15: 20, hit (b)", "gmacs>0.2: 0.1, ok (a)", "gmacs>0.2: 0.1, ok (b)"):
        assert f"fail-if {line}" in shown
    assert result.stderr.splitlines()[-1] == "madtp: error: --fail-if hit: params>15 (20, b)"
    if flags:
        found = [(each["name"], each["limit"], each["checkpoint"]) for each in json.loads(result.stdout)["thresholds"]]
        assert found == [("params", 15.0, "a"), ("params", 15.0, "b"), ("gmacs", 0.2, "a"), ("gmacs", 0.2, "b")]


def test_a_threshold_is_refused_before_anything_is_measured(calls: list[dict[str, Any]]) -> None:
    """A batch size that is not timed, by default or as asked for; a baseline that is not there."""
    assert run("x", "--fail-if", "efficiency.16<1").exit_code == 2
    assert run("x", "--fail-if", "efficiency.32<1", "--batch-size", "16").exit_code == 2
    result = run("x", "--fail-if", "baseline.gmacs>1")
    assert result.exit_code == 2
    assert result.stderr == (
        "madtp: error: --fail-if 'baseline.gmacs>1': there is no baseline; name one with --baseline\n"
    )
    assert calls == []


def test_csv_goes_to_a_file_or_alone_to_stdout(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    """Beside the report, or in its place; by checkpoint where there are several and nothing else is asked for."""
    file = tmp_path / "a.csv"
    shown = run("runs/a", "runs/b", "--csv", str(file))
    assert "2 checkpoints" in shown.stdout
    written = file.read_text(encoding="utf-8")
    assert [row["checkpoint"] for row in csv.DictReader(io.StringIO(written))] == ["a", "b"]
    piped = run("runs/a", "runs/b", "--csv", "-")
    assert piped.stdout == written
    assert "2 checkpoints" in piped.stderr
    assert run("runs/a", "runs/b", "--csv", str(file), "--by", "layer").exit_code == 0
    assert file.read_text(encoding="utf-8") == "checkpoint\n"


def test_a_threshold_that_is_hit_does_not_cost_the_file(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    """The figures are what one wants to see then."""
    file = tmp_path / "a.csv"
    assert run("runs/a", "--csv", str(file), "--fail-if", "gmacs>0.05", "--no-latency").exit_code == 6
    assert file.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "x"], "x is named twice; name each checkpoint once"),
        (["tests", "./tests/"], "./tests/ is named twice; name each checkpoint once"),
        (
            ["x", "y", "--recipe", "quickstart"],
            "profile needs a CHECKPOINT, or several, or else --recipe FILE",
        ),
        (["x", "--set", "a=1"], "--set needs --recipe FILE: a checkpoint is profiled as it is"),
        (["x", "--csv", "-", "--json"], "--csv - and --json both want stdout; give --csv a file"),
        (["x", "--csv", "no/a.csv"], f"--csv {Path('no/a.csv')}: there is no folder no; make it first"),
        (["x", "--csv", "."], "--csv .: is a folder; name a file in it"),
        (
            ["x", "--by", "sample", "--convention", "published"],
            "--by sample shows single samples, which --convention published does not count; remove one",
        ),
        (
            ["x", "--image", "a.png", "--text", "a"],
            "--image and --text are for pictures: add --visualize DIR, the folder to put them in",
        ),
        (
            ["x", "--visualize", "out", "--text", "a"],
            "--image and --text go together: a sample is an image, or a pair, and a text",
        ),
        (["x", "y", "--visualize", "out"], "--visualize shows one checkpoint; name one"),
        (
            ["--recipe", "quickstart", "--random-init", "--visualize", "out"],
            "--visualize shows what a model learnt to keep; remove --random-init",
        ),
    ],
)
def test_contradictions_are_refused_before_anything_is_measured(
    arguments: list[str], message: str, calls: list[dict[str, Any]]
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr == f"madtp: error: {message}\n"
    assert calls == []


def test_a_batch_size_without_effect_is_said(calls: list[dict[str, Any]]) -> None:
    """Where nothing is timed."""
    for flags in (["--no-latency"], ["--convention", "published"]):
        assert "--batch-size is without effect: nothing is timed" in run("x", "--batch-size", "8", *flags).stdout
    assert "without effect" not in run("x", "--batch-size", "8").stdout


def test_verbose_shows_every_layer(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """-v is as deep as it goes, unless a depth is asked for."""
    views: list[dict[str, Any]] = []
    monkeypatch.setattr("madtp_cli.report.terminal.print_profile", lambda *_args, **view: views.append(view))
    for flags in ([], ["-v"], ["-v", "--depth", "1"], ["--by", "layer"]):
        assert run("x", *flags).exit_code == 0
    assert [(view["by"], view["depth"], view["every"]) for view in views] == [
        *((None, 3, False), (None, 4, True), (None, 1, True), ("layer", 3, False))
    ]


def test_defaults_in_the_help_are_those_of_the_engine() -> None:
    """They are said here without importing torch, and once each there."""
    from madtp_cli.commands.profile import DEFAULT_BATCH
    from madtp_cli.engine.profiling.latency import BATCH_SIZES
    from madtp_cli.engine.profiling.time import SECONDS

    assert BATCH_SIZES == (1, DEFAULT_BATCH)
    words = " ".join(run("--help").stdout.split())
    assert f"{SECONDS} by default." in words
    assert f"{DEFAULT_BATCH} by default" in words
