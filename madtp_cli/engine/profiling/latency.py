"""How fast models are on real samples, side by side in one run.

Every visit to a model runs the same batches, and its multiply-adds are those of exactly these batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from madtp_cli.costs.analytic import total
from madtp_cli.costs.latency import Latency, Setting, compare, efficiency
from madtp_cli.data.batch import Batch, Split
from madtp_cli.engine.building.attention import attention_used
from madtp_cli.engine.evaluation.evaluate import mixed
from madtp_cli.engine.evaluation.samples import fit_samples, join_samples, spread_samples
from madtp_cli.engine.tasks.base import Normalisation, inputs_of
from madtp_cli.models.base import Inputs, PrunedModel
from madtp_cli.results import Speed

BATCH_SIZES = (1, 32)
SAMPLES = 64
SECONDS = 1.0  # per model and batch size
ROUNDS = 6
PATIENCE = 60.0  # seconds per batch size, after which large models are timed in fewer rounds
# A visit to the most expensive model, unpruned, computes at most this much, or one batch: not all samples where those
# would take minutes. A number of multiply-adds, so that the batches do not depend on the machine.
VISIT_MACS = 1e12

Candidate = tuple[PrunedModel, Sequence[Batch]]  # a model and the samples, batches of one, that it runs


@dataclass(frozen=True)
class Timed:
    """Latency of a batch, and the mean cost in MACs of the samples in the batches that were timed."""

    latency: Latency
    macs: float


def time_models(
    candidates: Mapping[str, Candidate],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    precision: str = "fp32",
    seconds: float = SECONDS,
    rounds: int = ROUNDS,
    patience: float | None = None,
    warmup: int = 2,
    visit_samples: int | None = None,
) -> dict[int, dict[str, Timed]]:
    """Time models in turn, each on its own form of the same samples; every size needs at least as many of them.

    `visit_samples` bounds the samples, but for those of one batch, that a visit to a model runs; rounds, seconds,
    patience (in seconds, for one batch size) and warmup are those of `costs.latency.compare`. Returns what was found by
    batch size and model. Pixels are normalised and on the device before the clock starts.
    """
    device = next(next(iter(candidates.values()))[0].parameters()).device
    found: dict[int, dict[str, Timed]] = {}
    limit = PATIENCE if patience is None else patience
    for size in sorted(set(batch_sizes)):
        setting = Setting(size, str(device), precision, attention_used(device, precision))
        rows = _rows(candidates, size, visit_samples)
        batches = {
            name: [join_samples(samples[row : row + size]) for row in rows] for name, (_, samples) in candidates.items()
        }
        calls = {name: calls_of(model, batches[name], precision) for name, (model, _) in candidates.items()}
        timed = compare(calls, setting, seconds=seconds, rounds=rounds, patience=limit, warmup=warmup)
        # Counted afterwards: whoever has to run for it would have been warmed up by it.
        found[size] = {
            name: Timed(timed[name], _macs(model, batches[name], calls[name]))
            for name, (model, _) in candidates.items()
        }
    return found


def speeds(timed: Mapping[int, Mapping[str, Timed]], dense: str = "dense") -> dict[str, Speed]:
    """Turn what was found by batch size and model into one record per model, compared with the one named `dense`."""
    return {name: _speed(name, timed, dense) for name in next(iter(timed.values()))}


def compare_latency(
    models: Mapping[str, PrunedModel],
    data: Split[Any],
    normalise: Normalisation,
    *,
    samples: int = SAMPLES,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = SECONDS,
) -> dict[str, Speed]:
    """Time models on samples of a split, and compare them with the one named `dense`, if there is one."""
    drawn = spread_samples(data, samples)
    candidates = {name: (model, fit_samples(drawn, model, normalise)) for name, model in models.items()}
    return speeds(time_models(candidates, batch_sizes=batch_sizes, seconds=seconds))


def _speed(name: str, timed: Mapping[int, Mapping[str, Timed]], dense: str) -> Speed:
    found = {str(size): by_model[name].latency for size, by_model in timed.items()}
    speed = Speed(
        latency_ms={size: each.p50_ms for size, each in found.items()},
        latency_p90_ms={size: each.p90_ms for size, each in found.items()},
        latency_runs={size: each.runs for size, each in found.items()},
        samples_per_second={size: each.samples_per_second for size, each in found.items()},
        peak_mib={size: each.peak_mib for size, each in found.items() if each.peak_mib is not None},
    )
    if name == dense or any(dense not in by_model for by_model in timed.values()):
        return speed
    macs = {str(size): by_model[name].macs / by_model[dense].macs for size, by_model in timed.items()}
    times = {
        str(size): by_model[name].latency.p50_ms / by_model[dense].latency.p50_ms for size, by_model in timed.items()
    }
    shares = {size: efficiency(times[size], macs[size]) for size in times}
    return replace(
        speed,
        macs_ratio=macs,
        time_ratio=times,
        efficiency={size: share for size, share in shares.items() if share is not None},
    )


def _rows(candidates: Mapping[str, Candidate], size: int, most: int | None = None) -> list[int]:
    """Choose the first samples of the batches to time, evenly spread; samples that fill no batch stay out."""
    fewest = min(len(samples) for _, samples in candidates.values())
    most_macs = max(_dense_macs(model, samples) for model, samples in candidates.values())
    whole = fewest // size
    assert whole, f"{fewest} samples fill no batch of {size}"
    count = max(1, min(whole, int(VISIT_MACS / (most_macs * size)), whole if most is None else most // size))
    return [size * (index * whole // count) for index in range(count)]


def _dense_macs(model: PrunedModel, samples: Sequence[Batch]) -> float:
    """Return what samples cost on average without pruning, by arithmetic."""
    lengths = [length for sample in samples for length in sample.text_lengths]
    return total(model.dense_macs(lengths)).double().mean().item()


@torch.inference_mode()
def _macs(model: PrunedModel, batches: Sequence[Batch], calls: Sequence[Callable[[], Any]]) -> float:
    """Return what samples cost on average; a dense model need not run for that."""
    if model.plan is None or not model.strength:
        return _dense_macs(model, batches)
    return torch.cat([total(model.macs(call())) for call in calls]).double().mean().item()


def calls_of(model: PrunedModel, batches: Sequence[Batch], precision: str) -> list[Callable[[], Any]]:
    """Make one call for every batch, to run as it will be timed."""
    model.eval()
    device = next(model.parameters()).device
    return [_call(model, inputs_of(batch, Normalisation(), device), precision, device) for batch in batches]


def _call(model: PrunedModel, given: Inputs, precision: str, device: torch.device) -> Callable[[], Any]:
    @torch.inference_mode()
    def call() -> Any:
        with mixed(precision, device):
            return model(given)

    return call
