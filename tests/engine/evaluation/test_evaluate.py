"""Evaluation: metrics, costs and tokens per sample, the same whatever the batches are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from madtp_cli.data.batch import PairBatch
from madtp_cli.data.shapes import ShapesPairs, accuracy
from madtp_cli.engine.evaluation.evaluate import Evaluation, batch_for, batches, evaluate, measure_reduction, mixed
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.errors import SourceError
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.checkpoints import Checkpoint, open_checkpoint
from madtp_cli.models.spec import PruningSpec

CPU = torch.device("cpu")
DATA = ShapesPairs("test", 40)
TASK = Nlvr2(accuracy)
PRUNING = PruningSpec(
    method="madtp",
    strength=0.5,
    layers={"vision": (0, 1, 2), "text": (0, 1)},
    alignment_tokens=4,
    alignment_dim=16,
    projection="per_layer",
)


@pytest.fixture(scope="module")
def checkpoint(dense: Path) -> Checkpoint:
    return open_checkpoint(str(dense))


@pytest.fixture(scope="module")
def model(pruned: Path) -> PrunedModel:
    return open_checkpoint(str(pruned)).build()


def logits(model: PrunedModel) -> Tensor:
    with torch.inference_mode():
        return TASK.forward(model, DATA.batch(0, len(DATA)), CPU).logits


def found(model: PrunedModel, **options: Any) -> Evaluation:
    return evaluate(model, TASK, DATA, **{"batch_size": 16, **options})


# Inputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "sizes"), [(None, [16, 16, 8]), (20, [16, 4]), (16, [16]), (1000, [16, 16, 8])])
def test_a_split_is_cut_into_batches(limit: int | None, sizes: Sequence[int]) -> None:
    cut = list(batches(DATA, 16, limit))
    assert [len(batch.labels) for batch in cut] == sizes
    assert [name for batch in cut for name in batch.ids] == [f"shapes/test/{row}" for row in range(sum(sizes))]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_precision_is_what_products_are_computed_in(precision: str, dtype: torch.dtype) -> None:
    with mixed(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


# Nothing pruned is dense -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0},
        {"strength": 0.0},
        {"method": "none"},
        {"method": "random", "temperature": 0.0},
        {"layers": {"vision": (), "text": ()}},
    ],
    ids=str,
)
@pytest.mark.parametrize("variant", ["normalised", "paper", "released"])
@pytest.mark.parametrize("tokens", ["adaptive", "scheduled"])
def test_what_prunes_nothing_gives_the_logits_of_the_dense_model(
    change: Mapping[str, Any], variant: Any, tokens: Any, checkpoint: Checkpoint
) -> None:
    model = checkpoint.build(replace(PRUNING, variant=variant, tokens=tokens, **change))
    torch.testing.assert_close(logits(model), logits(checkpoint.build()), atol=1e-5, rtol=0)
    measured = found(model)
    assert measured.cost.reduction == 0
    assert measured.cost.gmacs == measured.cost.dense_gmacs


def test_the_same_pruning_at_a_strength_does_not(checkpoint: Checkpoint) -> None:
    model = checkpoint.build(PRUNING)
    assert (logits(model) - logits(checkpoint.build())).abs().max() > 1e-3
    assert found(model).cost.reduction > 0.1


# What is measured --------------------------------------------------------------------------------------------


def test_metrics_and_costs_are_those_of_every_sample(model: PrunedModel) -> None:
    """Against a loop over single samples."""
    measured = found(model)
    right, macs, dense, kept = [], [], [], []
    with torch.inference_mode():
        for row in range(len(DATA)):
            batch = DATA.batch(row, 1)
            output = TASK.forward(model, batch, CPU)
            right.append(output.logits.argmax().item() == batch.labels.item())
            macs.append(sum(int(cost) for cost in model.macs(output).values()))
            dense.append(sum(int(cost) for cost in model.dense_macs(batch.text_lengths).values()))
            kept.append(output.traces["text"][-1].leaving[0])
    assert measured.samples == len(DATA)
    assert measured.metrics["accuracy"] == pytest.approx(sum(right) / len(right))
    assert measured.cost.macs == macs
    assert measured.cost.dense_macs == dense
    assert measured.cost.reduction == pytest.approx(1 - sum(macs) / sum(dense))
    assert measured.cost.gmacs == pytest.approx(sum(macs) / len(DATA) / 1e9)
    assert measured.cost.dense_gmacs == pytest.approx(sum(dense) / len(DATA) / 1e9)
    last = measured.cost.layers[-1]
    assert (last.tower, last.layer, last.tokens_min, last.tokens_max) == ("text", 1, min(kept), max(kept))
    assert last.tokens_mean == pytest.approx(sum(kept) / len(kept))


def test_the_batch_size_changes_nothing(model: PrunedModel) -> None:
    one, other = found(model, batch_size=40, records=True), found(model, batch_size=3, records=True)
    assert one.metrics == other.metrics
    assert one.cost.macs == other.cost.macs
    for first, second in zip(one.records, other.records, strict=True):
        torch.testing.assert_close(first["logits"], second["logits"], atol=1e-4, rtol=0)
        assert {**first, "logits": None} == {**second, "logits": None}


def test_a_limit_reads_the_first_samples(model: PrunedModel) -> None:
    assert found(model, limit=10).cost.macs == found(model).cost.macs[:10]


def test_records_are_kept_on_demand(model: PrunedModel) -> None:
    assert not found(model).records
    measured = found(model, records=True, limit=9)
    record = measured.records[8]
    assert record.keys() == {"id", "prediction", "logits", "gmacs", "tokens_kept"}
    assert record["id"] == "shapes/test/8"
    assert record["prediction"] is (record["logits"][1] > record["logits"][0])
    assert record["gmacs"] == measured.cost.macs[8] / 1e9
    assert {tower: len(kept) for tower, kept in record["tokens_kept"].items()} == {
        "vision_left": 3,
        "vision_right": 3,
        "text": 2,
    }
    # The ninth sentence is the first about the second pair of images.
    trace = TASK.forward(model, DATA.batch(0, 16), CPU).traces["vision"]
    assert record["tokens_kept"]["vision_left"] == [layer.leaving[2] for layer in trace]
    assert record["tokens_kept"]["vision_right"] == [layer.leaving[3] for layer in trace]


@pytest.mark.parametrize("training", [True, False])
def test_a_model_comes_back_in_the_mode_it_came_in(training: bool, model: PrunedModel) -> None:
    model.train(training)
    try:
        found(model, limit=4)
        measure_reduction(model, TASK, DATA, batch_size=4, limit=4, strength=0.3)
        assert model.training is training
    finally:
        model.eval()


def test_bf16_is_near_fp32(model: PrunedModel) -> None:
    one, other = (found(model, precision=precision, records=True) for precision in ("fp32", "bf16"))
    differences = [
        abs(first - second)
        for one_record, other_record in zip(one.records, other.records, strict=True)
        for first, second in zip(one_record["logits"], other_record["logits"], strict=True)
    ]
    assert 0 < max(differences) < 0.2
    assert other.cost.reduction == pytest.approx(one.cost.reduction, abs=0.05)


# Samples that cannot be read ---------------------------------------------------------------------------------


class Gaps(ShapesPairs):
    """A split whose images are broken in some samples, which are left out of every batch."""

    def __init__(self, broken: range) -> None:
        super().__init__("test", 40)
        self.gaps = broken

    def batch(self, start: int, size: int) -> PairBatch:
        """Return what is left; nothing of a batch that is broken as a whole."""
        batch = super().batch(start, size)
        if start in self.gaps and start + size - 1 in self.gaps:
            return replace(batch, text=batch.text[:0], text_lengths=[], labels=batch.labels[:0], ids=(), groups=())
        return batch


def test_a_batch_of_nothing_is_passed_over(model: PrunedModel) -> None:
    """The second of five batches is broken: 32 samples are measured, as without it."""
    data = Gaps(range(8, 16))
    measured = evaluate(model, TASK, data, batch_size=8)
    assert measured.samples == 32
    macs = found(model).cost.macs
    assert measured.cost.macs == macs[:8] + macs[16:]
    assert 0 < measure_reduction(model, TASK, data, batch_size=8, limit=16, strength=0.5) < 1


def test_a_split_of_nothing_is_refused(model: PrunedModel) -> None:
    with pytest.raises(
        SourceError, match=r"no sample could be read: every image is missing or broken; see data\.max_b"
    ):
        evaluate(model, TASK, Gaps(range(40)), batch_size=8)


# The reduction of a strength ---------------------------------------------------------------------------------


def test_a_strength_is_measured_and_not_kept(model: PrunedModel) -> None:
    before = model.strength
    for strength in (0.0, 0.4, 0.7):
        measured = measure_reduction(model, TASK, DATA, batch_size=16, limit=24, strength=strength)
        assert model.strength == before
        model.strength = strength
        assert measured == pytest.approx(found(model, limit=24).cost.reduction)
        model.strength = before


def test_a_failure_does_not_keep_the_strength_either(model: PrunedModel) -> None:
    before = model.strength
    with pytest.raises(ValueError, match="shapes has samples"):
        measure_reduction(model, TASK, Longer("test", 40), batch_size=16, limit=60, strength=0.9)
    assert model.strength == before


class Longer(ShapesPairs):
    """A split that promises more than it has."""

    def __len__(self) -> int:
        return self.samples + 20


@pytest.mark.parametrize(("training", "expected"), [(1, 4), (16, 64), (64, 256), (1000, 256)])
def test_batches_outside_training_follow_those_of_training(training: int, expected: int) -> None:
    """A model that trains on 16 at a time must not meet 256 once its training is over."""
    assert batch_for(training) == expected
