"""Errors carry the exit codes that scripts rely on."""

from __future__ import annotations

import pytest

from madtp_cli import errors


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.MadtpError, 1),
        (errors.UsageError, 2),
        (errors.RecipeError, 3),
        (errors.SourceError, 4),
        (errors.BudgetError, 5),
        (errors.ThresholdError, 6),
        (errors.ExportError, 7),
        (errors.Interrupted, 130),
    ],
)
def test_exit_codes_are_the_documented_ones(kind: type[errors.MadtpError], code: int) -> None:
    assert kind.exit_code == code
    assert issubclass(kind, errors.MadtpError)


def test_a_recipe_error_has_one_line_per_fault() -> None:
    error = errors.RecipeError(["a.yaml:1: one", "a.yaml:2: two"])
    assert error.faults == ("a.yaml:1: one", "a.yaml:2: two")
    assert str(error) == "a.yaml:1: one\na.yaml:2: two"


def test_a_recipe_error_of_one_fault_is_that_fault() -> None:
    error = errors.RecipeError("a.yaml: no such recipe file")
    assert error.faults == ("a.yaml: no such recipe file",)
    assert str(error) == "a.yaml: no such recipe file"
