"""Is a sentence true of a pair of images?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from madtp_cli.data.batch import Batch, PairBatch
from madtp_cli.engine.tasks.base import Normalisation, PlainTask, Scores
from madtp_cli.models.base import Output

Metric = Callable[[Sequence[int], Sequence[int], Sequence[str]], Mapping[str, float]]
_WORDS = ("false", "true")


class Nlvr2(PlainTask):
    """Two-way classification, scored by `metric(predictions, labels, groups)`."""

    name = "nlvr2"
    score = "accuracy"

    def __init__(self, metric: Metric, normalise: Normalisation | None = None) -> None:
        super().__init__(normalise)
        self.metric = metric

    def losses(self, output: Output, batch: PairBatch) -> dict[str, Tensor]:
        """Return the cross-entropy of the answers."""
        return {"task": cross_entropy(output.logits, batch.labels.to(output.logits.device))}

    def answers(self, model: Any, batch: Batch, output: Output) -> list[str]:
        """Say the likelier of false and true."""
        return [_WORDS[answer] for answer in output.logits.argmax(-1).tolist()]

    def references(self, batch: PairBatch) -> list[str]:
        """Say the labels."""
        return [_WORDS[label] for label in batch.labels.tolist()]

    def scorer(self, model: Any, *, final: bool = False) -> _Scorer:
        """Start scoring a split."""
        return _Scorer(self.metric)


class _Scorer:
    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.logits: list[list[float]] = []
        self.predictions: list[int] = []
        self.labels: list[int] = []
        self.groups: list[str] = []

    def add(self, batch: PairBatch, output: Output) -> list[bool]:
        """Take the likelier of false and true."""
        answers, labels = output.logits.argmax(-1).tolist(), batch.labels.tolist()
        self.logits += output.logits.tolist()
        self.predictions += answers
        self.labels += labels
        self.groups += batch.groups
        return [answer == label for answer, label in zip(answers, labels, strict=True)]

    def scores(self) -> Scores:
        """Score."""
        metrics = dict(self.metric(self.predictions, self.labels, self.groups))
        right = [answer == label for answer, label in zip(self.predictions, self.labels, strict=True)]
        return Scores(metrics, [bool(answer) for answer in self.predictions], self.logits, right=right)
