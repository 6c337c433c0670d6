"""The most memory that a call holds at once, by torch's own count of what it allocates and frees.

What is there before the call (weights, inputs) is not in it. On a CPU neither is what libraries below torch take for
themselves, such as the scratch space of oneDNN and MKL.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch.autograd import profiler
from torch.autograd.profiler_util import MEMORY_EVENT_NAME

_LEVEL = "KINETO_LOG_LEVEL"


def peak_mib(call: Callable[[], object], device: str) -> float | None:
    """Run a call and return the most that it added to the memory in use, 0 if it only frees.

    None, without running it, where nothing can tell: on other devices, and on a CPU that somebody is profiling already.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return _of_cuda(call, device) / 2**20
    # A profiler within another one ends both.
    return _of_cpu(call) / 2**20 if kind == "cpu" and not profiler._is_profiler_enabled else None


def _of_cuda(call: Callable[[], object], device: str) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before


def _of_cpu(call: Callable[[], object]) -> int:
    """Add up the allocations and frees that the profiler saw, in order."""
    with _quiet_kineto(), profiler.profile(profile_memory=True) as profiled:
        call()
    assert profiled.kineto_results is not None
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profiled.kineto_results.events()
        if event.name() == MEMORY_EVENT_NAME and event.device_type().name == "CPU"
    ]
    in_order = (size for _, size in sorted(changes, key=lambda change: change[0]))
    return max(accumulate(in_order, initial=0))


@contextmanager
def _quiet_kineto() -> Iterator[None]:
    """Keep it from telling stderr of every start and stop: it reads its level once, when it is first used."""
    if _LEVEL in os.environ:
        yield
        return
    os.environ[_LEVEL] = "6"
    try:
        yield
    finally:
        del os.environ[_LEVEL]
