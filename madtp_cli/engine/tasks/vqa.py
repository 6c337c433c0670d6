"""What is the answer to a question about an image?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from madtp_cli.data.batch import Batch, QuestionBatch
from madtp_cli.engine.tasks.base import Asked, Normalisation, PlainTask, Scores
from madtp_cli.models.base import Inputs
from madtp_cli.models.language import answer_losses

ANSWER_LIST = "answers.json"  # beside the weights of a checkpoint
_RIGHT = 0.5  # of the points of an answer, which annotators may disagree on
Metric = Callable[[Sequence[str], Sequence[tuple[str, ...]], Sequence[str]], Mapping[str, float]]


@dataclass(frozen=True)
class Answering:
    """How answers are found: ranked among `candidates` (words and token ids), or generated with a beam search.

    k is how many candidates, the likeliest by their first token, are compared in full; decode turns ids into words.
    """

    by: Literal["rank", "generate"]
    candidates: tuple[str, ...]
    candidate_ids: tuple[tuple[int, ...], ...]
    decode: Callable[[Sequence[int]], str]
    k: int = 128
    beams: int = 3
    min_length: int = 1
    max_length: int = 10


class Vqa(PlainTask):
    """Answers learned as text, scored by `metric(answers, references, kinds)`."""

    name = "vqa"
    score = "accuracy"

    def __init__(
        self,
        metric: Metric,
        answering: Answering,
        normalise: Normalisation | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(normalise)
        self.metric = metric
        self.answering = answering
        self.label_smoothing = label_smoothing

    def inputs(self, model: Any, batch: QuestionBatch, read: Inputs, asked: Asked) -> Inputs:
        """In training, read the answers too."""
        if not asked.training:
            return read
        answered: Inputs = model.takes(
            **vars(read),
            answers=batch.answers.to(read.text.device),
            answer_lengths=batch.answer_lengths,
            answer_index=batch.answer_index.tolist(),
        )
        return answered

    def losses(self, output: Any, batch: QuestionBatch) -> dict[str, Tensor]:
        """Return the answers' negative log-likelihood, weighted by how many people gave them, per question."""
        device = output.logits.device
        lost = answer_losses(
            output.logits, batch.answers.to(device), batch.answer_lengths, label_smoothing=self.label_smoothing
        )  # [A]
        return {"task": (batch.answer_weights.to(device) * lost).sum() / batch.samples}

    def rows(self, batch: QuestionBatch) -> list[int]:
        """Count the tokens that follow another one in a question's answers."""
        counts = [0] * batch.samples
        for question, length in zip(batch.answer_index.tolist(), batch.answer_lengths, strict=True):
            counts[question] += length - 1
        return counts

    def save(self, folder: Path) -> None:
        """Write the answers that are ranked, which are part of what the checkpoint was measured with."""
        if self.answering.candidates:
            text = json.dumps(self.answering.candidates, ensure_ascii=False, indent=0)
            (folder / ANSWER_LIST).write_text(text + "\n", encoding="utf-8")

    def answers(self, model: Any, batch: Batch, output: Any) -> list[str]:
        """Answer from the questions' states."""
        return self.answered(model, output)[0]

    def answered(self, model: Any, output: Any) -> tuple[list[str], list[list[float]]]:
        """Answer from the questions' states, with the log-probabilities of the candidates compared, if any are."""
        how = self.answering
        if how.by == "generate":
            written = model.generate(output, beams=how.beams, min_length=how.min_length, max_length=how.max_length)
            return [how.decode(ids) for ids in written], [[]] * len(written)
        lengths = [len(ids) for ids in how.candidate_ids]
        flat = torch.tensor([token for ids in how.candidate_ids for token in ids], device=output.encoded.device)
        best, log_probability, _ = model.rank(output, flat, lengths, min(how.k, len(lengths)))
        return [how.candidates[answer] for answer in best.tolist()], log_probability.tolist()

    def references(self, batch: QuestionBatch) -> list[str]:
        """Say the distinct answers of each question's annotators, the most frequent first."""
        return [", ".join(word for word, _ in Counter(given).most_common()) for given in batch.references]

    def scorer(self, model: Any, *, final: bool = False) -> _Scorer:
        """Start scoring a split."""
        return _Scorer(self, model, final)


class _Scorer:
    def __init__(self, task: Vqa, model: Any, final: bool) -> None:
        self.task = task
        self.final = final
        self.model = model
        self.predictions: list[str] = []
        self.logits: list[list[float]] = []
        self.references: list[tuple[str, ...]] = []
        self.groups: list[str] = []
        self.right: list[bool] = []

    def add(self, batch: QuestionBatch, output: Any) -> list[bool] | None:
        """Answer."""
        answers, logits = self.task.answered(self.model, output)
        self.predictions += answers
        self.logits += logits
        self.references += batch.references
        self.groups += batch.groups
        if not self.final or not all(batch.references):
            return None
        each = zip(answers, batch.references, batch.groups, strict=True)
        right = [self.task.metric([said], [given], [kind])["accuracy"] >= _RIGHT for said, given, kind in each]
        self.right += right
        return right

    def scores(self) -> Scores:
        """Score."""
        metrics = dict(self.task.metric(self.predictions, self.references, self.groups))
        known = len(self.right) == len(self.predictions)
        return Scores(metrics, self.predictions, self.logits, right=self.right if known else ())
