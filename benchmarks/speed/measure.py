"""Time all that computes one thing, in turn, and put its cost beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.speed import ragged
from benchmarks.speed.schedule import Schedule, compaction_share, with_given_selections
from benchmarks.speed.subjects import Call, Inputs, Subject, references
from madtp_cli.costs.latency import Latency, Setting, compare, efficiency
from madtp_cli.engine.profiling.costs import at_strength
from madtp_cli.models.base import PrunedModel

DENSE, PRUNED, EAGER = "ours dense", "ours pruned", "HF eager"
ROUNDS = 3
COMPACTION_CALLS = 3


@dataclass(frozen=True)
class Row:
    """One candidate at one batch size.

    gmacs is the cost of one sample; ratios are to our dense model in the same run; the shares are of the candidate's
    own time. None where a figure has no meaning.
    """

    model: str
    batch: int
    candidate: str
    p50_ms: float
    p90_ms: float
    runs: int
    gmacs: float
    gmacs_per_second: float
    reduction: float
    macs_ratio: float
    time_ratio: float
    efficiency: float | None
    times_eager: float
    scoring_share: float | None = None
    compaction_share: float | None = None


@dataclass(frozen=True)
class RaggedRow:
    """One way to run samples of uneven lengths through the vision tower; ratio is to running them one by one."""

    model: str
    samples: int
    tokens: int
    longest: int
    reduction: float
    candidate: str
    p50_ms: float
    p90_ms: float
    runs: int
    ratio: float


def time_subject(
    subject: Subject,
    model: PrunedModel,
    inputs: Inputs,
    schedules: Sequence[Schedule],
    setting: Setting,
    seconds: float,
) -> list[Row]:
    """Time references, our dense model and our model at every schedule, on the same inputs."""
    calls = {**references(model, inputs), DENSE: _call(model, inputs)}
    compaction = {}
    for schedule in schedules:
        name, pruned = _name(schedule), at_strength(model, schedule.strength)
        calls[name] = _call(pruned, inputs)
        calls[_given(name)] = _call(with_given_selections(pruned, inputs), inputs)
        compaction[name] = compaction_share(pruned, inputs, COMPACTION_CALLS)
    timed = _time(calls, setting, seconds)
    dense_macs = 1e9 * model.dense_gmacs([subject.words])
    macs = {_name(schedule): schedule.macs for schedule in schedules}
    rows = []
    for name, found in timed.items():
        if name in map(_given, macs):
            continue
        cost = macs.get(name, dense_macs)
        ratio = found.p50_ms / timed[DENSE].p50_ms
        rows.append(
            Row(
                model=subject.title,
                batch=setting.batch_size,
                candidate=PRUNED if name in macs else name,
                p50_ms=found.p50_ms,
                p90_ms=found.p90_ms,
                runs=found.runs,
                gmacs=cost / 1e9,
                gmacs_per_second=setting.batch_size * cost / found.p50_ms / 1e6,
                reduction=1 - cost / dense_macs,
                macs_ratio=cost / dense_macs,
                time_ratio=ratio,
                efficiency=efficiency(ratio, cost / dense_macs),
                times_eager=timed[EAGER].p50_ms / found.p50_ms,
                scoring_share=1 - timed[_given(name)].p50_ms / found.p50_ms if name in macs else None,
                compaction_share=compaction.get(name),
            )
        )
    return rows


def time_ragged(
    subject: Subject, model: PrunedModel, schedule: Schedule, setting: Setting, seconds: float
) -> list[RaggedRow]:
    """Time a ragged batch, dense and at a schedule, packed and in the other ways that there are."""
    samples = ragged.Ragged.draw(model, setting.batch_size)
    reductions = {0.0: 0.0, schedule.strength: schedule.reduction}
    calls = {
        (strength, name): call
        for strength in reductions
        for name, call in ragged.candidates(model, samples, strength).items()
    }
    names = {f"{strength} {name}": call for (strength, name), call in calls.items()}
    timed = dict(zip(calls, _time(names, setting, seconds).values(), strict=True))
    return [
        RaggedRow(
            model=subject.title,
            samples=len(samples.lengths),
            tokens=sum(samples.lengths),
            longest=max(samples.lengths),
            reduction=reductions[strength],
            candidate=name,
            p50_ms=found.p50_ms,
            p90_ms=found.p90_ms,
            runs=found.runs,
            ratio=found.p50_ms / timed[strength, ragged.ALONE].p50_ms,
        )
        for (strength, name), found in timed.items()
    ]


def _time(calls: dict[str, Call], setting: Setting, seconds: float) -> dict[str, Latency]:
    # A call that takes seconds needs no warm-up: the median of three forgets a cold first one.
    warmup = 1 if setting.batch_size == 1 or setting.device.startswith("cuda") else 0
    with torch.inference_mode():
        return compare(calls, setting, seconds=seconds, rounds=ROUNDS, warmup=warmup, memory=False)


def _call(model: PrunedModel, inputs: Inputs) -> Call:
    given = inputs.packed()
    return lambda: model(**given).logits


def _name(schedule: Schedule) -> str:
    return f"{PRUNED} {schedule.strength}"


def _given(name: str) -> str:
    return f"{name}, selections given"
