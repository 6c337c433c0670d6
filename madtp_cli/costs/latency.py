"""Wall-clock time and peak memory of forward passes, measured side by side.

Runs alternate between the candidates, so that a machine that warms up, slows down or is shared treats all of them
alike. The unit is milliseconds of one call, whatever batch it computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch.utils import benchmark

from madtp_cli.costs.memory import peak_mib

# A visit to one candidate lasts at least this long, so that its caches are its own again.
VISIT_SECONDS = 0.05
# Every candidate is first in one round and last in the other.
FEWEST_ROUNDS = 2


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
    """Quantiles over `runs` single calls; peak_mib is the most that a call held at once, None if it was not asked."""

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
    call: Callable[[], object]
    per_visit: int = 1
    peak_mib: float | None = None
    seconds: list[float] = field(default_factory=list)


def compare(
    candidates: Mapping[str, Callable[[], object]],
    setting: Setting,
    *,
    seconds: float = 2.0,
    rounds: int = 6,
    patience: float = math.inf,
    warmup: int = 2,
    memory: bool = True,
    clock: Callable[[], float] = benchmark.timer,
) -> dict[str, Latency]:
    """Time all candidates in turn: every round visits each, in an order that reverses from round to round.

    `warmup` calls per candidate are not timed, nor is the one that `memory` is read from. There are `rounds` rounds,
    and more until `seconds` per candidate have passed; once `patience` seconds are over, two rounds are enough. The
    clock must wait for the device, as torch's benchmark timer does.
    """
    entries = {name: _Candidate(call) for name, call in candidates.items()}
    for entry in entries.values():
        for _ in range(max(warmup - 1, 0)):
            entry.call()
        if memory:
            entry.peak_mib = peak_mib(entry.call, setting.device)
        taken = max(_time(entry.call, clock), 1e-9) if warmup else VISIT_SECONDS
        entry.per_visit = max(1, min(int(VISIT_SECONDS / taken), 100))
    began, finished = clock(), 0
    while not _enough(finished, clock() - began, rounds, seconds * len(entries), patience):
        order = list(entries.values())
        for entry in order if finished % 2 == 0 else reversed(order):
            for _ in range(entry.per_visit):
                entry.seconds.append(_time(entry.call, clock))
        finished += 1
    return {
        name: Latency(
            p50_ms=1e3 * _quantile(entry.seconds, 0.5),
            p90_ms=1e3 * _quantile(entry.seconds, 0.9),
            runs=len(entry.seconds),
            setting=setting,
            peak_mib=entry.peak_mib,
        )
        for name, entry in entries.items()
    }


def _enough(finished: int, passed: float, rounds: int, seconds: float, patience: float) -> bool:
    if finished < min(rounds, FEWEST_ROUNDS):
        return False
    return passed >= patience or (finished >= rounds and passed >= seconds)


def _time(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def _quantile(values: list[float], share: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))
