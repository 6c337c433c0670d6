"""Run a model over a data split: metrics, exact cost and kept tokens, per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from madtp_cli.costs.analytic import total
from madtp_cli.data.batch import PairBatch
from madtp_cli.models.nlvr import BlipForNlvr, NlvrOutput
from madtp_cli.models.tower import LayerTrace
from madtp_cli.results import LayerTokens

# Mean and standard deviation of the images that BLIP and CLIP were pretrained on, in units of 0..1.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
BATCH = 256  # sentences per forward pass outside training


class PairData(Protocol):
    """A split of an image-pair task."""

    def __len__(self) -> int: ...

    def batch(self, start: int, size: int) -> PairBatch:
        """Return samples start to start + size."""


@dataclass(frozen=True)
class Evaluation:
    """What a run over a split measured; macs and dense_macs hold one integer per sample."""

    samples: int
    metrics: Mapping[str, float]
    macs: Sequence[int]
    dense_macs: Sequence[int]
    layers: Sequence[LayerTokens]
    records: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    @property
    def gmacs(self) -> float:
        """Mean cost of a sample in 1e9 multiply-adds."""
        return sum(self.macs) / len(self.macs) / 1e9

    @property
    def dense_gmacs(self) -> float:
        """Mean cost of a sample without pruning, in 1e9 multiply-adds."""
        return sum(self.dense_macs) / len(self.dense_macs) / 1e9

    @property
    def reduction(self) -> float:
        """Share of the dense cost that is saved, 0..1."""
        return 1 - sum(self.macs) / sum(self.dense_macs)


def pixels(images: Tensor, device: torch.device) -> Tensor:
    """Normalise uint8 images [I, 3, H, W] as BLIP's image processor does."""
    mean = torch.tensor(IMAGE_MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(IMAGE_STD, device=device).view(3, 1, 1)
    return (images.to(device).float() / 255 - mean) / std


def mixed(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the autocast of a precision: fp32, bf16 or fp16."""
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, types[precision]) if precision in types else nullcontext()


def image_pairs(batch: PairBatch) -> list[tuple[int, int]]:
    """Return each sentence's left and right image as plain numbers."""
    return [(left, right) for left, right in batch.image_index.tolist()]


def run_batch(
    model: BlipForNlvr, batch: PairBatch, device: torch.device, *, learn: bool = False, probe: bool = False
) -> NlvrOutput:
    """Run one batch through a model."""
    output: NlvrOutput = model(
        pixels(batch.images, device),
        batch.text.to(device),
        batch.text_lengths,
        image_pairs(batch),
        learn=learn,
        probe=probe,
    )
    return output


def batches(data: PairData, size: int, limit: int | None = None) -> Iterator[PairBatch]:
    """Cut a split, or its first `limit` samples, into batches."""
    count = len(data) if limit is None else min(limit, len(data))
    for start in range(0, count, size):
        yield data.batch(start, min(size, count - start))


@torch.inference_mode()
def evaluate(
    model: BlipForNlvr,
    data: PairData,
    metric: Callable[[Sequence[int], Sequence[int], Sequence[str]], Mapping[str, float]],
    *,
    batch_size: int,
    limit: int | None = None,
    records: bool = False,
    precision: str = "fp32",
) -> Evaluation:
    """Evaluate; with `records`, keep one entry per sample: prediction, logits, cost, tokens per layer."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    predictions: list[int] = []
    labels: list[int] = []
    families: list[str] = []
    macs: list[int] = []
    dense: list[int] = []
    counts: dict[tuple[str, int], list[int]] = {}
    lines: list[dict[str, Any]] = []
    for batch in batches(data, batch_size, limit):
        with mixed(precision, device):
            output = run_batch(model, batch, device)
        predicted = output.logits.argmax(-1).tolist()
        cost = total(model.macs(output, image_pairs(batch))).tolist()
        predictions += predicted
        labels += batch.labels.tolist()
        families += batch.families
        macs += cost
        dense += total(model.dense_macs(batch.text_lengths)).tolist()
        for layer in (*output.vision, *output.text):
            counts.setdefault((layer.tower, layer.layer), []).extend(layer.leaving)
        if records:
            lines += _records(batch, output, predicted, cost)
    model.train(was_training)
    return Evaluation(len(macs), dict(metric(predictions, labels, families)), macs, dense, layer_tokens(counts), lines)


def layer_tokens(leaving: Mapping[tuple[str, int], Sequence[int]]) -> tuple[LayerTokens, ...]:
    """Summarise the tokens of all samples leaving each (tower, layer); images count one by one."""
    return tuple(
        LayerTokens(
            tower=tower,
            layer=layer,
            tokens_mean=sum(kept) / len(kept),
            tokens_min=min(kept),
            tokens_max=max(kept),
        )
        for (tower, layer), kept in leaving.items()
    )


@torch.inference_mode()
def measure_reduction(model: BlipForNlvr, data: PairData, *, batch_size: int, limit: int, strength: float) -> float:
    """Return the reduction that a strength gives on the first `limit` samples of a split."""
    device = next(model.parameters()).device
    was_training, before = model.training, model.strength
    model.eval()
    model.strength = strength
    spent = dense = 0
    try:
        for batch in batches(data, batch_size, limit):
            output = run_batch(model, batch, device)
            spent += int(total(model.macs(output, image_pairs(batch))).sum())
            dense += int(total(model.dense_macs(batch.text_lengths)).sum())
    finally:
        model.strength = before
        model.train(was_training)
    return 1 - spent / dense


def _records(
    batch: PairBatch, output: NlvrOutput, predicted: Sequence[int], cost: Sequence[int]
) -> Iterator[dict[str, Any]]:
    logits = output.logits.tolist()
    for row, (left, right) in enumerate(image_pairs(batch)):
        yield {
            "id": batch.ids[row],
            "prediction": bool(predicted[row]),
            "logits": logits[row],
            "gmacs": cost[row] / 1e9,
            "tokens_kept": {
                "vision_left": _leaving(output.vision, left),
                "vision_right": _leaving(output.vision, right),
                "text": _leaving(output.text, row),
            },
        }


def _leaving(trace: Sequence[LayerTrace], sample: int) -> list[int]:
    return [layer.leaving[sample] for layer in trace]
