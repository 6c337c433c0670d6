"""Run a model over a data split: metrics, exact cost and kept tokens, per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from madtp_cli.data.batch import Batch, Split
from madtp_cli.engine.evaluation.meter import CostMeter
from madtp_cli.engine.tasks.base import Task
from madtp_cli.errors import SourceError
from madtp_cli.models.base import Output, PrunedModel

BATCH = 256  # most samples per forward pass outside training

Keep = Callable[[Batch, Sequence[int], Sequence[bool] | None], None]
"""Told of a batch what each sample cost, in multiply-adds, and whether its answer is right, if that is known yet."""


@dataclass(frozen=True)
class Evaluation:
    """What a run over a split measured; predictions, costs and, where known, `right` are in the order of samples."""

    metrics: Mapping[str, float]
    cost: CostMeter
    records: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    notes: tuple[str, ...] = ()
    predictions: Sequence[Any] = ()
    right: Sequence[bool] = ()

    @property
    def samples(self) -> int:
        """How many samples were measured."""
        return len(self.cost.macs)


def batch_for(training: int) -> int:
    """Return the samples per forward pass for a model that was trained on batches of so many.

    Without gradients a few times as many fit; without a bound, a large model would run out of memory after training.
    """
    return min(BATCH, 4 * training)


def mixed(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the autocast of a precision: fp32, bf16 or fp16."""
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, types[precision]) if precision in types else nullcontext()


def batches(data: Split[Any], size: int, limit: int | None = None) -> Iterator[Any]:
    """Cut a split, or its first `limit` samples, into batches; those whose images are all broken are left out."""
    count = len(data) if limit is None else min(limit, len(data))
    for start in range(0, count, size):
        batch = data.batch(start, min(size, count - start))
        if batch.samples:
            yield batch


@torch.inference_mode()
def evaluate(
    model: PrunedModel,
    task: Task,
    data: Split[Any],
    *,
    batch_size: int,
    limit: int | None = None,
    records: bool = False,
    precision: str = "fp32",
    final: bool = False,
    keep: Keep | None = None,
) -> Evaluation:
    """Evaluate; with `records`, keep one entry per sample: prediction, logits, cost, tokens per layer.

    `final` adds metrics that are too slow to choose weights by; `keep` sees every batch. Raises SourceError if no
    sample could be read.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    scorer = task.scorer(model, final=final)
    meter = CostMeter()
    lines: list[dict[str, Any]] = []
    with mixed(precision, device):
        for batch in batches(data, batch_size, limit):
            output = task.forward(model, batch, device)
            cost = meter.add(model, output)
            right = scorer.add(batch, output)
            if keep is not None:
                keep(batch, cost, right)
            if records:
                lines += sample_records(model, batch, output, cost)
        _check_any(meter)
        scores = scorer.scores()
    for line, prediction, logits in zip(lines, scores.predictions, scores.logits, strict=True) if records else ():
        line.update(prediction=prediction, logits=logits)
    model.train(was_training)
    return Evaluation(scores.metrics, meter, lines, scores.notes, scores.predictions, scores.right)


@torch.inference_mode()
def measure_reduction(
    model: PrunedModel, task: Task, data: Split[Any], *, batch_size: int, limit: int, strength: float
) -> float:
    """Return the reduction that a strength gives on the first `limit` samples of a split."""
    device = next(model.parameters()).device
    was_training, before = model.training, model.strength
    model.eval()
    model.strength = strength
    meter = CostMeter()
    try:
        for batch in batches(data, batch_size, limit):
            meter.add(model, task.forward(model, batch, device))
    finally:
        model.strength = before
        model.train(was_training)
    _check_any(meter)
    return meter.reduction


def _check_any(meter: CostMeter) -> None:
    if not meter.macs:
        raise SourceError("no sample could be read: every image is missing or broken; see data.max_broken")


def sample_records(model: PrunedModel, batch: Batch, output: Output, cost: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the id of every sample, its gmacs, and the tokens leaving every layer of its sites."""
    for row, images in enumerate(batch.image_index.view(batch.samples, -1).tolist()):
        kept = {
            name: [layer.leaving[place] for layer in output.traces[site.name]]
            for site in model.sites
            for name, place in site.rows(row, images).items()
        }
        yield {"id": batch.ids[row], "gmacs": cost[row] / 1e9, "tokens_kept": kept}
