"""Wall-clock time and peak memory of forward passes, measured side by side.

Runs alternate between the candidates, so that a machine that warms up, slows down or is shared treats all of them
alike. The unit is milliseconds of one call, whatever batch it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch.utils import benchmark

# A visit to one candidate lasts at least this long, so that its caches are its own again.
VISIT_SECONDS = 0.05


@dataclass(frozen=True)
class Setting:
    """What a measurement was taken with."""

    batch_size: int
    device: str
    dtype: str
    attention_backend: str


@dataclass(frozen=True)
class Latency:
    """Quantiles over `runs` single calls; peak_mib is the memory they added, None where nothing cheap can tell."""

    p50_ms: float
    p90_ms: float
    runs: int
    setting: Setting
    peak_mib: float | None = None


@dataclass
class _Candidate:
    call: Callable[[], object]
    per_visit: int = 1
    seconds: list[float] = field(default_factory=list)


def compare(
    candidates: Mapping[str, Callable[[], object]],
    setting: Setting,
    *,
    seconds: float = 2.0,
    rounds: int = 6,
    warmup: int = 2,
    clock: Callable[[], float] = benchmark.timer,
) -> dict[str, Latency]:
    """Time all candidates in turn: every round visits each, in an order that reverses from round to round.

    `warmup` calls per candidate are not timed. There are `rounds` rounds, and more until `seconds` per candidate have
    passed. The clock must wait for the device, as torch's benchmark timer does.
    """
    entries = {name: _Candidate(call) for name, call in candidates.items()}
    for entry in entries.values():
        for _ in range(max(warmup - 1, 0)):
            entry.call()
        taken = max(_time(entry.call, clock), 1e-9) if warmup else VISIT_SECONDS
        entry.per_visit = max(1, min(int(VISIT_SECONDS / taken), 100))
    began, finished = clock(), 0
    while finished < rounds or clock() - began < seconds * len(entries):
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
            peak_mib=_peak_mib(entry.call, setting.device),
        )
        for name, entry in entries.items()
    }


def _time(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def _quantile(values: list[float], share: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))


def _peak_mib(call: Callable[[], object], device: str) -> float | None:
    """Return what one call adds to the memory in use; only CUDA keeps this without a profiler."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20
