"""Latencies on a clock that the test owns: order, quantiles, warm-up, memory, settings."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch

from madtp_cli.costs import latency
from madtp_cli.costs.latency import Latency, Setting, compare, efficiency

SETTING = Setting(batch_size=4, device="cpu", dtype="float32", attention_backend="auto")


class Machine:
    """A clock that only moves when work is done, and the work."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def call() -> None:
            self.log.append(name)
            self.now += seconds()

        return call


def test_candidates_take_turns_in_an_order_that_reverses() -> None:
    """After two warm-up calls and one for memory the rounds go a b, b a, a b, ...: neither is always the later one."""
    machine = Machine()
    calls = {name: machine.work(name, lambda: 0.2) for name in "ab"}
    compare(calls, SETTING, seconds=0, rounds=3, warmup=2, clock=machine.clock)
    assert "".join(machine.log) == "aaabbb" + "abbaab"
    machine.log.clear()
    compare(calls, SETTING, seconds=0, rounds=1, warmup=2, memory=False, clock=machine.clock)
    assert "".join(machine.log) == "aabb" + "ab"


def test_drift_hits_both_alike() -> None:
    """On a machine that slows down linearly, two equal candidates keep a ratio near one."""
    machine = Machine()
    calls = {name: machine.work(name, lambda: 0.1 * (1 + machine.now)) for name in "ab"}
    found = compare(calls, SETTING, seconds=0, rounds=20, clock=machine.clock)
    # One after the other, b would take 1.1 ** 20 = 6.7 times as long as a.
    assert found["b"].p50_ms / found["a"].p50_ms == pytest.approx(1, abs=0.11)


def test_quantiles_are_of_single_calls_in_milliseconds() -> None:
    """Nine calls of 100 ms and one of 500 ms: p50 100, p90 interpolated as numpy does; the warm-up is not in it."""
    machine = Machine()
    durations = iter([9.0, 9.0, 9.0, *[0.1] * 9, 0.5])
    found = compare(
        {"a": machine.work("a", lambda: next(durations))}, SETTING, seconds=0, rounds=10, clock=machine.clock
    )["a"]
    assert found.p50_ms == pytest.approx(100)
    assert found.p90_ms == pytest.approx(140)
    assert found.runs == 10


def test_fast_calls_are_repeated_and_time_is_filled() -> None:
    """A call of 1 ms is made 50 times per visit, and rounds go on until the time is used."""
    machine = Machine()
    found = compare({"a": machine.work("a", lambda: 0.001)}, SETTING, seconds=1, rounds=2, clock=machine.clock)["a"]
    assert found.runs % 49 == 0 or found.runs % 50 == 0
    assert found.runs * 0.001 >= 1


def test_candidates_of_several_calls_are_compared_on_all_of_them() -> None:
    """b takes half of a's time for every call. Figures are the mean of the calls' medians: (0.96 + 3) / 2 ms, and half.

    By its first call, two of which would take 0.96 ms, a visit of 50 ms holds 52 passes over b; a has as many.
    """
    machine = Machine()
    milliseconds = {"a": (0.96, 3), "b": (0.48, 1.5)}
    calls = {
        name: [machine.work(f"{name}{row}", functools.partial(float, ms / 1e3)) for row, ms in enumerate(each)]
        for name, each in milliseconds.items()
    }
    found = compare(calls, SETTING, seconds=0, rounds=3, memory=False, clock=machine.clock)
    assert [found[name].p50_ms for name in "ab"] == pytest.approx([1.98, 0.99])
    assert [found[name].p90_ms for name in "ab"] == pytest.approx([1.98, 0.99])
    assert found["a"].runs == found["b"].runs == 3 * 2 * 52
    assert {name: machine.log[4:].count(name) for name in ("a0", "a1", "b0", "b1")} == dict.fromkeys(
        ("a0", "a1", "b0", "b1"), 3 * 52
    )


def test_a_measurement_says_what_it_was_taken_with() -> None:
    """Batch size, device, dtype, threads and backend travel with the numbers."""
    found = compare({"a": lambda: sum(range(1000))}, SETTING, seconds=0.01, rounds=2)["a"]
    assert found.setting == SETTING
    assert found.setting.threads == torch.get_num_threads()
    assert 0 < found.p50_ms <= found.p90_ms


def test_memory_is_that_of_a_warm_call_and_of_the_same_one_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call of every candidate, before any is timed, so that all are measured on the same batch."""
    counts = {"a": 0, "b": 0}

    def count(name: str) -> Callable[[], int]:
        def call() -> int:
            counts[name] += 1
            return counts[name]

        return call

    monkeypatch.setattr(latency, "peak_mib", lambda call, device: float(call()))
    found = compare({name: count(name) for name in counts}, SETTING, seconds=0, rounds=1)
    assert [each.peak_mib for each in found.values()] == [2.0, 2.0]
    assert compare({"a": count("a")}, SETTING, seconds=0, rounds=1, memory=False)["a"].peak_mib is None


def test_patience_ends_after_two_rounds() -> None:
    """Calls of 100 s: six rounds if nobody minds; with a minute of patience two, so that both were first once."""
    machine = Machine()
    calls = {name: machine.work(name, lambda: 100.0) for name in "ab"}
    runs = {}
    for patience in (60.0, math.inf):
        runs[patience] = compare(calls, SETTING, seconds=1, patience=patience, clock=machine.clock)["b"].runs
    assert runs == {60.0: 2, math.inf: 6}


def test_patience_does_not_hurry_what_is_quick() -> None:
    """Calls of 1 s are made in all six rounds, within a minute."""
    machine = Machine()
    assert compare({"a": machine.work("a", lambda: 1.0)}, SETTING, patience=60, clock=machine.clock)["a"].runs == 6


def test_throughput_is_samples_over_the_median() -> None:
    """Batches of four in 50 ms: 80 samples a second."""
    assert Latency(p50_ms=50.0, p90_ms=90.0, runs=3, setting=SETTING).samples_per_second == pytest.approx(80)


@pytest.mark.parametrize(
    ("time_ratio", "macs_ratio", "expected"),
    [
        (0.5, 0.5, 1.0),  # all that was saved arrived
        (0.6, 0.2, 0.5),  # 40% of the time for 80% of the multiply-adds
        (0.45, 0.5, 1.1),  # fewer tokens also fit a cache
        (1.2, 0.5, -0.4),  # slower than dense
        (0.9, 1.0, None),  # nothing saved: nothing to compare with
        (0.9, 1.1, None),
    ],
)
def test_efficiency_is_time_saved_over_multiply_adds_saved(
    time_ratio: float, macs_ratio: float, expected: float | None
) -> None:
    """By hand."""
    assert efficiency(time_ratio, macs_ratio) == (None if expected is None else pytest.approx(expected))
