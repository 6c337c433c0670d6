"""How fast models are on real samples, side by side in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch

from madtp_cli.costs.analytic import total
from madtp_cli.costs.latency import Latency, Setting, compare, efficiency
from madtp_cli.data.batch import Batch, Split
from madtp_cli.engine.attention import attention_used
from madtp_cli.engine.evaluate import mixed
from madtp_cli.engine.samples import fit_samples, join_samples, spread_samples
from madtp_cli.engine.tally import Tally
from madtp_cli.engine.tasks.base import Normalisation, arguments
from madtp_cli.models.base import PrunedModel
from madtp_cli.results import Speed

BATCH_SIZES = (1, 32)
# Models go through the same samples in the same order, so the quantiles are over samples too.
SAMPLES = 64
SECONDS = 1.0  # per model and batch size
PATIENCE = 60.0  # seconds per batch size, after which large models are timed in fewer rounds
COUNT_BATCH = 16

Candidate = tuple[PrunedModel, Sequence[Batch]]  # a model and the samples, batches of one, that it runs


def time_models(
    candidates: Mapping[str, Candidate],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    precision: str = "fp32",
    seconds: float = SECONDS,
) -> dict[int, dict[str, Latency]]:
    """Time models in turn, each on its samples; every size needs at least as many of them.

    Returns the latency of a whole batch by batch size and model. Pixels are normalised and on the device before the
    clock starts.
    """
    found: dict[int, dict[str, Latency]] = {}
    for size in sorted(set(batch_sizes)):
        device = next(next(iter(candidates.values()))[0].parameters()).device
        setting = Setting(size, str(device), precision, attention_used(device, precision))
        calls = {name: _call(model, samples, size, precision) for name, (model, samples) in candidates.items()}
        found[size] = compare(calls, setting, seconds=seconds, patience=PATIENCE)
    return found


def speeds(
    timed: Mapping[int, Mapping[str, Latency]], macs: Mapping[str, float], dense: str = "dense"
) -> dict[str, Speed]:
    """Turn latencies by batch size and model into one record per model, compared with the one named `dense`.

    macs: what the samples that were timed cost on average, by model.
    """
    return {name: _speed(name, timed, macs, dense) for name in macs}


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
    timed = time_models(candidates, batch_sizes=batch_sizes, seconds=seconds)
    return speeds(timed, {name: _mean_macs(*candidate) for name, candidate in candidates.items()})


def _speed(name: str, timed: Mapping[int, Mapping[str, Latency]], macs: Mapping[str, float], dense: str) -> Speed:
    found = {str(size): by_model[name] for size, by_model in timed.items()}
    speed = Speed(
        latency_ms={size: each.p50_ms for size, each in found.items()},
        latency_p90_ms={size: each.p90_ms for size, each in found.items()},
        latency_runs={size: each.runs for size, each in found.items()},
        samples_per_second={size: each.samples_per_second for size, each in found.items()},
        peak_mib={size: each.peak_mib for size, each in found.items() if each.peak_mib is not None},
    )
    if name == dense or dense not in macs:
        return speed
    macs_ratio = macs[name] / macs[dense]
    times = {str(size): by_model[name].p50_ms / by_model[dense].p50_ms for size, by_model in timed.items()}
    shares = {size: efficiency(ratio, macs_ratio) for size, ratio in times.items()}
    return replace(
        speed,
        macs_ratio=macs_ratio,
        time_ratio=times,
        efficiency={size: share for size, share in shares.items() if share is not None},
    )


@torch.inference_mode()
def _mean_macs(model: PrunedModel, samples: Sequence[Batch]) -> float:
    """Return what samples cost on average; a dense model need not run for that."""
    if model.plan is None or not model.strength:
        lengths = [length for sample in samples for length in sample.text_lengths]
        return total(model.dense_macs(lengths)).double().mean().item()
    tally, device = Tally(), next(model.parameters()).device
    for start in range(0, len(samples), COUNT_BATCH):
        given = arguments(join_samples(samples[start : start + COUNT_BATCH]), Normalisation(), device)
        tally.add(model, model(**given))
    return 1e9 * tally.gmacs


def _call(model: PrunedModel, samples: Sequence[Batch], size: int, precision: str) -> Callable[[], object]:
    """Make a call that runs the next batch at every turn."""
    model.eval()
    device = next(model.parameters()).device
    joined = [join_samples(samples[row : row + size]) for row in range(0, len(samples) - size + 1, size)]
    prepared = cycle([arguments(batch, Normalisation(), device) for batch in joined])

    @torch.inference_mode()
    def call() -> object:
        with mixed(precision, device):
            return model(**next(prepared))

    return call
