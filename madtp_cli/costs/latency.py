"""Wall-clock time and peak memory of forward passes, measured side by side.

Runs alternate between the candidates, so that a machine that warms up, slows down or is shared treats all of them
alike. A candidate is a list of calls, such as one per batch, and every visit runs all of it: quantiles are taken call
by call, so that two candidates are compared on the same work. The unit is milliseconds of one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils import benchmark

from madtp_cli.costs.memory import peak_mib

# A visit to one candidate lasts about this long or longer, so that its caches are its own again.
VISIT_SECONDS = 0.05
MOST_PASSES = 100
# Every candidate is first in one round and last in the other.
FEWEST_ROUNDS = 2

Call = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What a measurement was taken with."""

    batch_size: int
    device: str
    dtype: str
    attention_backend: str
    threads: int = field(default_factory=torch.get_num_threads)


@dataclass(frozen=True)
class Latency:
    """Quantiles of each call of a candidate over its runs, and of those the mean over calls; `runs` counts them all.

    peak_mib is the most that the first call held at once, None if it was not asked.
    """

    p50_ms: float
    p90_ms: float
    runs: int
    setting: Setting
    peak_mib: float | None = None

    @property
    def samples_per_second(self) -> float:
        """Throughput at the median."""
        return 1e3 * self.setting.batch_size / self.p50_ms


def efficiency(time_ratio: float, macs_ratio: float) -> float | None:
    """Return the share of time saved over the share of multiply-adds saved, both ratios being to the dense model.

    1 if every saved multiply-add saved its time, negative for what became slower, None where nothing is saved.
    """
    return (1 - time_ratio) / (1 - macs_ratio) if macs_ratio < 1 else None


@dataclass
class _Candidate:
    """seconds: by call, one of each pass over them."""

    calls: Sequence[Call]
    seconds: list[list[float]]
    peak_mib: float | None = None

    def visit(self, passes: int, clock: Callable[[], float]) -> None:
        for _ in range(passes):
            for call, seconds in zip(self.calls, self.seconds, strict=True):
                seconds.append(_time(call, clock))

    def milliseconds(self, share: float) -> float:
        return 1e3 * sum(_quantile(seconds, share) for seconds in self.seconds) / len(self.seconds)


def compare(
    candidates: Mapping[str, Call | Sequence[Call]],
    setting: Setting,
    *,
    seconds: float = 2.0,
    rounds: int = 6,
    patience: float = math.inf,
    warmup: int = 2,
    memory: bool = True,
    clock: Callable[[], float] = benchmark.timer,
) -> dict[str, Latency]:
    """Time all candidates in turn, each one call or several; every round visits each, in an order that then reverses.

    A visit passes over the calls of a candidate, for all candidates equally often. `warmup` first calls of each are not
    timed, nor is the one that `memory` is read from. There are `rounds` rounds, and more until `seconds` per candidate
    have passed; once `patience` seconds are over, two rounds are enough. The clock must wait for the device, as torch's
    benchmark timer does.
    """
    entries = {name: _candidate(calls) for name, calls in candidates.items()}
    quickest = math.inf
    for entry in entries.values():
        first = entry.calls[0]
        for _ in range(max(warmup - 1, 0)):
            first()
        if memory:
            entry.peak_mib = peak_mib(first, setting.device)
        taken = max(_time(first, clock), 1e-9) if warmup else VISIT_SECONDS
        quickest = min(quickest, taken * len(entry.calls))
    passes = max(1, min(int(VISIT_SECONDS / quickest), MOST_PASSES))
    began, finished = clock(), 0
    while not _enough(finished, clock() - began, rounds, seconds * len(entries), patience):
        order = list(entries.values())
        for entry in order if finished % 2 == 0 else reversed(order):
            entry.visit(passes, clock)
        finished += 1
    return {
        name: Latency(
            p50_ms=entry.milliseconds(0.5),
            p90_ms=entry.milliseconds(0.9),
            runs=sum(map(len, entry.seconds)),
            setting=setting,
            peak_mib=entry.peak_mib,
        )
        for name, entry in entries.items()
    }


def _candidate(calls: Call | Sequence[Call]) -> _Candidate:
    listed = [calls] if callable(calls) else list(calls)
    return _Candidate(listed, [[] for _ in listed])


def _enough(finished: int, passed: float, rounds: int, seconds: float, patience: float) -> bool:
    if finished < min(rounds, FEWEST_ROUNDS):
        return False
    return passed >= patience or (finished >= rounds and passed >= seconds)


def _time(call: Call, clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def _quantile(values: list[float], share: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))
