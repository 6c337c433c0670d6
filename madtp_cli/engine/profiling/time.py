"""How fast the models of a profile are: side by side, each beside itself unpruned, and part by part."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn
from torch.utils import benchmark

from madtp_cli.data.batch import Batch
from madtp_cli.engine.profiling.costs import at_strength
from madtp_cli.engine.profiling.latency import calls_of, speeds, time_models
from madtp_cli.models.base import PrunedModel, prunes
from madtp_cli.results import Speed

BASELINE = "baseline"
DENSE = "dense"
SECONDS = 0.4  # per model and batch size, if nobody asks for more
# Two rounds see every model first and last once; more are taken while there is time.
ROUNDS = 2
VISIT_SAMPLES = 16
# Shares of time settle quickly: each call gives one of every part.
SHARE_SECONDS = 0.3

Models = Mapping[str, PrunedModel]
Samples = Mapping[str, Sequence[Batch]]


def measure_speeds(
    models: Models,
    samples: Samples,
    sizes: Sequence[int],
    *,
    precision: str,
    seconds: float,
) -> tuple[dict[str, Speed], dict[str, Speed]]:
    """Time all models in turn, and each kind of them once without pruning.

    Returns by model its speed, compared with that of its kind unpruned, and the latter. A model that prunes nothing
    has the same one twice; the baseline is timed as it is, and compared with the first model unpruned.
    """
    kinds = dense_kinds({name: model for name, model in models.items() if name != BASELINE})
    first = {kind: name for name, kind in reversed(kinds.items())}
    candidates = {kind: (at_strength(models[name], 0), samples[name]) for kind, name in sorted(first.items())}
    candidates |= {name: (model, samples[name]) for name, model in models.items() if prunes(model) or name == BASELINE}
    timed = time_models(
        candidates,
        batch_sizes=sizes,
        precision=precision,
        seconds=seconds,
        rounds=ROUNDS,
        patience=seconds * len(candidates),
        warmup=1,
        visit_samples=VISIT_SAMPLES,
    )
    found = {kind: speeds(timed, kind) for kind in first}
    unpruned = {name: found[kind][kind] for name, kind in kinds.items()}
    compared = {**kinds, **({BASELINE: DENSE} if BASELINE in models else {})}
    return {name: found[kind].get(name, found[kind][kind]) for name, kind in compared.items()}, unpruned


def dense_kinds(models: Models) -> dict[str, str]:
    """Name for every model the kind that it is of: models of one kind do the same work without pruning.

    The first one's is `dense`, whatever comes later `dense 2` and so on.
    """
    seen: list[Any] = []
    kinds = {}
    for name, model in models.items():
        heads = [site.heads for site in model.sites]
        work = (type(model), heads, {path: macs.tolist() for path, macs in model.dense_macs([8]).items()})
        if work not in seen:
            seen.append(work)
        number = seen.index(work)
        kinds[name] = f"{DENSE} {number + 1}" if number else DENSE
    return kinds


def time_shares(
    model: PrunedModel,
    names: Sequence[str],
    samples: Sequence[Batch],
    precision: str,
) -> dict[str, float]:
    """Return the share of a call's time, at batch 1, that each of the named modules takes; those that ran have one."""
    wanted = set(names)
    modules = {name: _runners(module) for name, module in model.named_modules() if name in wanted}
    return shares_of(modules, calls_of(model, samples[:VISIT_SAMPLES], precision), seconds=SHARE_SECONDS)


def _runners(module: nn.Module) -> list[nn.Module]:
    """Return the module, or what it holds if it only holds others and is never called."""
    if type(module).forward is not nn.Module.forward:
        return [module]
    return [runner for child in module.children() for runner in _runners(child)]


def shares_of(
    modules: Mapping[str, Sequence[nn.Module]],
    calls: Sequence[Callable[[], Any]],
    *,
    seconds: float,
    clock: Callable[[], float] = benchmark.timer,
) -> dict[str, float]:
    """Return by name the median share of its modules' own time in that of a call; together with the rest they are 1.

    What a module spends inside another of them is the other's. Calls go round until `seconds` have passed. The
    clock must wait for the device, as torch's benchmark timer does.
    """
    rows: list[dict[str, float]] = []
    with _watched(modules, clock) as watch:
        began = clock()
        while not rows or clock() - began < seconds:
            for call in calls:
                watch.own.clear()
                start = clock()
                call()
                whole = clock() - start
                rows.append({**{name: own / whole for name, own in watch.own.items()}, "": watch.rest(whole) / whole})
    ran = dict.fromkeys(name for row in rows for name in row)
    medians = {name: statistics.median(row.get(name, 0.0) for row in rows) for name in ran}
    together = sum(medians.values())
    return {name: share / together for name, share in medians.items() if name}


@dataclass
class _Watch:
    """Adds up the time inside modules, of each without those inside it that are watched as well."""

    clock: Callable[[], float]
    own: dict[str, float] = field(default_factory=dict)
    inner: list[float] = field(default_factory=list)  # seconds inside watched modules, of every open one
    begun: list[float] = field(default_factory=list)

    def enter(self, *_: Any) -> None:
        self.inner.append(0.0)
        self.begun.append(self.clock())

    def leave(self, name: str, *_: Any) -> None:
        passed = self.clock() - self.begun.pop()
        self.own[name] = self.own.get(name, 0.0) + passed - self.inner.pop()
        if self.inner:
            self.inner[-1] += passed

    def rest(self, whole: float) -> float:
        return max(whole - sum(self.own.values()), 0.0)


@contextmanager
def _watched(modules: Mapping[str, Sequence[nn.Module]], clock: Callable[[], float]) -> Iterator[_Watch]:
    watch = _Watch(clock)
    handles = []
    for name, module in ((name, module) for name, each in modules.items() for module in each):
        handles.append(module.register_forward_pre_hook(watch.enter))
        handles.append(module.register_forward_hook(partial(watch.leave, name)))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()
