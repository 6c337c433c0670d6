"""Latencies on a clock that the test owns: order, quantiles, warm-up, settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from madtp_cli.costs.latency import Setting, compare

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
    """After the warm-up the rounds go a b, b a, a b, ...: neither is always the later one."""
    machine = Machine()
    calls = {name: machine.work(name, lambda: 0.2) for name in "ab"}
    compare(calls, SETTING, seconds=0, rounds=3, warmup=2, clock=machine.clock)
    assert "".join(machine.log) == "aabb" + "abbaab"


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
    durations = iter([9.0, 9.0, *[0.1] * 9, 0.5])
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


def test_a_measurement_says_what_it_was_taken_with() -> None:
    """Batch size, device, dtype and backend travel with the numbers; memory is unknown on a CPU."""
    found = compare({"a": lambda: sum(range(1000))}, SETTING, seconds=0.01, rounds=2)["a"]
    assert found.setting == SETTING
    assert 0 < found.p50_ms <= found.p90_ms
    assert found.peak_mib is None
