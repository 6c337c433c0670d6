"""`madtp profile` by its options: conventions, and what they rule out."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from madtp_cli.cli import app
from madtp_cli.results import Gmacs, PassCost, ProfileResult

FOUND = ProfileResult(
    command="profile",
    checkpoint=None,
    convention="published",
    gmacs=Gmacs(dense=132.54, pruned=132.54, reduction=0.0),
    params=10,
    composition=(PassCost(name="image", gmacs=Gmacs(dense=55.54, pruned=55.54, reduction=0.0), times=2),),
    published_gmacs=132.54,
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put a result in the place of the engine and record how it is called."""
    made: list[dict[str, Any]] = []

    def work(*_arguments: Any, **options: Any) -> ProfileResult:
        made.append(options)
        return FOUND

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
