"""The task nlvr2: its loss, and that every answer is scored under its own name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from madtp_cli.data.metrics import nlvr2_scores
from madtp_cli.data.shapes import ShapesPairs, accuracy
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.models.base import Output
from tests.engine.tasks.tiny_shapes import CPU, make_model

DATA = ShapesPairs("test", 40)


def output_of(logits: list[list[float]]) -> Output:
    """Give logits to the first sentences of the data."""
    with torch.inference_mode():
        found: Output = Nlvr2(accuracy).forward(make_model("blip", "nlvr2"), DATA.batch(0, len(logits)), CPU)
    return replace(found, logits=torch.tensor(logits))


def test_the_loss_is_the_cross_entropy() -> None:
    """log 2 for undecided answers, and -log of the probability of the label."""
    batch = replace(DATA.batch(0, 2), labels=torch.tensor([1, 0]))
    undecided = Nlvr2(accuracy).losses(output_of([[0.0, 0.0], [0.0, 0.0]]), batch)
    assert undecided.keys() == {"task"}
    torch.testing.assert_close(undecided["task"], torch.tensor(math.log(2)))
    decided = Nlvr2(accuracy).losses(output_of([[0.0, 2.0], [1.0, 0.0]]), batch)["task"]
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    torch.testing.assert_close(decided, torch.tensor(expected))


def test_answers_labels_and_groups_are_scored_together_over_batches() -> None:
    """The metric is asked once, about everything, in order."""
    asked: list[tuple[Any, ...]] = []

    def metric(predictions: Sequence[int], labels: Sequence[int], groups: Sequence[str]) -> Mapping[str, float]:
        asked.append((list(predictions), list(labels), list(groups)))
        return {"accuracy": 0.25}

    logits = [[0.0, 1.0], [2.0, 1.0], [0.0, -1.0], [-3.0, -1.0]]
    scorer = Nlvr2(metric).scorer(make_model("blip", "nlvr2"))
    scorer.add(DATA.batch(0, 3), output_of(logits[:3]))
    scorer.add(DATA.batch(3, 1), output_of(logits[3:]))
    scores = scorer.scores()
    batch = DATA.batch(0, 4)
    assert asked == [([1, 0, 0, 1], batch.labels.tolist(), list(batch.groups))]
    assert scores.metrics == {"accuracy": 0.25}
    assert scores.predictions == [True, False, False, True]
    assert list(scores.logits) == logits


def test_consistency_counts_sentences_that_are_right_everywhere() -> None:
    """Two pairs share a sentence; one of its answers is wrong: 3 of 4 right, 1 of 2 sentences."""
    batch = replace(DATA.batch(0, 4), labels=torch.tensor([1, 1, 0, 0]), groups=("a", "b", "a", "b"))
    scorer = Nlvr2(nlvr2_scores).scorer(make_model("blip", "nlvr2"))
    scorer.add(batch, output_of([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    assert scorer.scores().metrics == {"accuracy": 0.75, "consistency": 0.5}
