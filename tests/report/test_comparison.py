"""Comparison: two models side by side, and what is left when one of them was not measured."""

from __future__ import annotations

from dataclasses import replace

from madtp_cli.report.comparison import (
    Row,
    Tone,
    budget_line,
    busy,
    compare,
    headline,
    is_pruned,
    pruned_name,
)
from madtp_cli.results import Budget, PruneResult, Side

DENSE = Side(
    metrics={"accuracy": 0.974, "accuracy/both": 0.98, "accuracy/total": 0.9},
    gmacs=0.32,
    params=1_960_000,
    latency_ms={"32": 180.0, "1": 12.0},
    size_mib=7.6,
)
PRUNED = Side(
    metrics={"accuracy": 0.961, "accuracy/both": 0.95, "accuracy/total": 0.91},
    gmacs=0.16,
    params=2_040_000,
    latency_ms={"32": 90.0, "1": 13.2},
    size_mib=7.9,
)
RESULT = PruneResult(command="prune", checkpoint="runs/a", dense=DENSE, pruned=PRUNED)


def test_every_quantity_has_one_row_in_a_fixed_order() -> None:
    rows = compare(DENSE, PRUNED)
    assert [(row.label, row.dense, row.pruned, row.change) for row in rows] == [
        ("accuracy", "97.4%", "96.1%", "-1.3 points"),
        ("both", "98.0%", "95.0%", "-3.0 points"),
        ("total", "90.0%", "91.0%", "+1.0 points"),
        ("gmacs per sample", "0.3200", "0.1600", "-50.0%"),
        ("latency, batch 1", "12.0 ms", "13.2 ms", "1.10x slower"),
        ("latency, batch 32", "180 ms", "90.0 ms", "2.00x faster"),
        ("parameters", "1.960 M", "2.040 M", "+4.1%"),
        ("checkpoint", "7.60 MiB", "7.90 MiB", "+3.9%"),
    ]
    assert [row.inner for row in rows] == [False, True, True, False, False, False, False, False]


def test_only_what_deserves_it_is_coloured() -> None:
    tones = {row.label: row.tone for row in compare(DENSE, PRUNED)}
    assert tones["accuracy"] is Tone.PLAIN
    assert tones["both"] is Tone.BAD
    assert tones["total"] is Tone.GOOD
    assert tones["gmacs per sample"] is Tone.GOOD
    assert tones["latency, batch 1"] is Tone.BAD
    assert tones["parameters"] is Tone.PLAIN


def test_families_can_be_left_out() -> None:
    assert [row.label for row in compare(DENSE, PRUNED, families=False)][:2] == ["accuracy", "gmacs per sample"]


def test_one_side_alone_has_no_changes() -> None:
    rows = compare(DENSE, None)
    assert rows[0] == Row(group="metrics", label="accuracy", dense="97.4%")
    assert all(not row.pruned and not row.change for row in rows)


def test_a_batch_size_measured_on_one_side_only_is_shown_without_change() -> None:
    rows = compare(replace(DENSE, latency_ms={"1": 12.0}), PRUNED)
    row = next(row for row in rows if row.label == "latency, batch 32")
    assert (row.dense, row.pruned, row.change) == ("", "90.0 ms", "")


def test_a_size_that_nobody_measured_has_no_row() -> None:
    rows = compare(replace(DENSE, size_mib=None), replace(PRUNED, size_mib=None))
    assert "checkpoint" not in [row.label for row in rows]


def test_the_budget_line_says_met_or_missed() -> None:
    met = Budget(target_reduction=0.5, reached_reduction=0.5034, met=True, tolerance=0.01)
    missed = Budget(target_reduction=0.8, reached_reduction=0.744, met=False)
    assert budget_line(met) == "Budget met: cost reduced by 50.3%, target 50.0% (tolerance 1.0 points)."
    assert budget_line(missed) == "Budget missed: cost reduced by 74.4%, target 80.0%."


def test_the_headline_is_the_overall_metric() -> None:
    assert headline(RESULT) == "Accuracy 96.1% against 97.4% dense: -1.3 points."
    assert headline(replace(RESULT, pruned=None)) == "Accuracy 97.4%."
    assert headline(replace(RESULT, dense=replace(DENSE, metrics={}), pruned=replace(PRUNED, metrics={}))) is None
    assert headline(replace(RESULT, dense=None, pruned=None)) is None


def test_a_model_that_costs_as_much_as_the_dense_one_is_not_called_compressed() -> None:
    assert is_pruned(RESULT)
    assert pruned_name(RESULT) == "compressed"
    equal = replace(RESULT, pruned=DENSE)
    assert not is_pruned(equal)
    assert pruned_name(equal) == "trained"
    assert not is_pruned(replace(RESULT, pruned=None))


def test_times_that_scatter_are_said_to() -> None:
    """At batch 1 the slowest tenth of the dense model's calls took twice the median; 1.3 times is the bound."""
    scattered = replace(DENSE, latency_p90_ms={"1": 24.0, "32": 190.0})
    assert busy(scattered) == (
        "The machine was busy: at batch 1 one in ten of the dense model's calls took 2.0 times the median or longer. "
        "Take the ratios as rough."
    )
    assert busy(replace(DENSE, latency_p90_ms={"1": 15.0, "32": 200.0})) is None
    assert busy(DENSE) is None
    assert busy(None) is None
