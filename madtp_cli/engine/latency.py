"""How long models take on real samples, side by side in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch

from madtp_cli.costs.latency import Latency, Setting, compare
from madtp_cli.data.batch import Batch, Split
from madtp_cli.engine.evaluate import mixed
from madtp_cli.engine.samples import fit_samples, join_samples, spread_samples
from madtp_cli.engine.tasks.base import Normalisation, arguments
from madtp_cli.models.base import PrunedModel

BATCH_SIZES = (1, 32)
# Models go through the same samples in the same order, so the quantiles are over samples too.
SAMPLES = 64
SECONDS = 1.0  # per model and batch size
# attention.py chooses between its backends by the lengths it meets.
ATTENTION_BACKEND = "auto"

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
        setting = Setting(size, str(device), precision, ATTENTION_BACKEND)
        calls = {name: _call(model, samples, size, precision) for name, (model, samples) in candidates.items()}
        found[size] = compare(calls, setting, seconds=seconds)
    return found


def compare_latency(
    models: Mapping[str, PrunedModel],
    data: Split[Any],
    normalise: Normalisation,
    *,
    samples: int = SAMPLES,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = SECONDS,
) -> dict[int, dict[str, Latency]]:
    """Time models on samples of a split: latencies by batch size and model."""
    drawn = spread_samples(data, samples)
    candidates = {name: (model, fit_samples(drawn, model, normalise)) for name, model in models.items()}
    return time_models(candidates, batch_sizes=batch_sizes, seconds=seconds)


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
