"""Figures follow from times: the oracle is arithmetic on times that the test makes up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.speed import measure
from benchmarks.speed.measure import Row, time_ragged, time_subject
from benchmarks.speed.schedule import schedule_for
from benchmarks.speed.subjects import SUBJECTS, Call
from benchmarks.speed.tables import busy
from madtp_cli.costs.latency import Latency, Setting
from tests.benchmarks.speed.tiny_subjects import model_and_inputs

SETTING = Setting(2, "cpu", "fp32", "auto")


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Give candidates these milliseconds, in their order, after calling each once."""
    given: list[float] = []

    def compare(calls: dict[str, Call], setting: Setting, **_: object) -> dict[str, Latency]:
        for call in calls.values():
            call()
        return {name: Latency(ms, ms, 1, setting) for name, ms in zip(calls, given, strict=True)}

    monkeypatch.setattr(measure, "compare", compare)
    return given


def test_ratios_are_to_our_dense_model(times: list[float]) -> None:
    """Candidates: eager, padded, dense, pruned with scores, pruned with selections given."""
    model, inputs = model_and_inputs("blip-nlvr2")
    subject = SUBJECTS["blip-nlvr2"]
    schedule = schedule_for(subject, model, inputs, 0.4)
    times += [130, 98, 100, 60, 54]
    rows = time_subject(subject, model, inputs, [schedule], SETTING, 0)
    assert [row.candidate for row in rows] == ["HF eager", "padded SDPA", "ours dense", "ours pruned"]
    assert [row.time_ratio for row in rows] == [1.3, 0.98, 1.0, 0.6]
    assert [row.macs_ratio for row in rows[:3]] == [1, 1, 1]
    assert [row.efficiency for row in rows[:3]] == [None, None, None]
    pruned = rows[3]
    assert pruned.times_eager == pytest.approx(130 / 60)
    assert pruned.efficiency == pytest.approx(0.4 / pruned.reduction)
    assert pruned.scoring_share == pytest.approx(0.1)
    assert pruned.compaction_share is not None
    assert pruned.gmacs_per_second == pytest.approx(2 * pruned.gmacs / 0.06)


def test_ragged_ratios_are_to_samples_one_by_one(times: list[float]) -> None:
    """Candidates: dense packed, one by one and padded; pruned packed and one by one."""
    model, inputs = model_and_inputs("blip-nlvr2")
    subject = SUBJECTS["blip-nlvr2"]
    times += [90, 100, 180, 44, 40]
    rows = time_ragged(subject, model, schedule_for(subject, model, inputs, 0.4), SETTING, 0)
    assert [row.ratio for row in rows] == [0.9, 1.0, 1.8, 1.1, 1.0]
    assert [row.reduction > 0 for row in rows] == [False] * 3 + [True] * 2
    assert (rows[0].samples, rows[0].tokens, rows[0].longest) == (2, 21, 17)


def test_a_busy_machine_is_named() -> None:
    """Calls of one kind that take the same time say nothing; one that takes twice its median at times does."""
    row = Row("BLIP", 1, "ours dense", 100, 110, 9, 1, 10, 0, 1, 1, None, 1)
    assert list(busy([row])) == []
    (said,) = busy([row, replace(row, candidate="HF eager", p90_ms=200)])
    assert said.startswith("The machine was busy: of 9 calls of HF eager one in ten took 2.0 times the median")
