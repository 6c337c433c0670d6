"""What does an image show?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from madtp_cli.data.batch import Batch, CaptionBatch
from madtp_cli.engine.tasks.base import Normalisation, PlainTask, Scores
from madtp_cli.models.base import Output
from madtp_cli.models.language import caption_loss

Metric = Callable[[Sequence[str], Sequence[tuple[str, ...]], Sequence[str]], Mapping[str, float]]

# From captions and references to further metrics, and notes on those that could not be computed.
Official = Callable[[Sequence[str], Sequence[tuple[str, ...]]], tuple[Mapping[str, float], tuple[str, ...]]]


@dataclass(frozen=True)
class Writing:
    """How captions are written: from the ids of [DEC] and a prompt, by beam search; decode gives the words after it."""

    prompt: tuple[int, ...]
    decode: Callable[[Sequence[int]], str]
    beams: int = 3
    min_length: int = 5
    max_length: int = 20


class Caption(PlainTask):
    """Captions learned as text, scored by `metric(captions, references, ids)`, in the end by `official` too."""

    name = "caption"

    def __init__(
        self,
        metric: Metric,
        writing: Writing,
        normalise: Normalisation | None = None,
        *,
        score: str,
        official: Official | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(normalise)
        self.official = official
        self.metric = metric
        self.writing = writing
        self.score = score
        self.label_smoothing = label_smoothing

    def losses(self, output: Output, batch: CaptionBatch) -> dict[str, Tensor]:
        """Return the mean negative log-likelihood of the words after the prompt."""
        text = batch.text.to(output.logits.device)
        lost = caption_loss(
            output.logits, text, batch.text_lengths, batch.prompt_length, label_smoothing=self.label_smoothing
        )
        return {"task": lost}

    def rows(self, batch: CaptionBatch) -> list[int]:
        """Count the tokens of every caption."""
        return batch.text_lengths

    def answers(self, model: Any, batch: Batch, output: Output) -> list[str]:
        """Write a caption of every text's image from its encoded tokens."""
        how = self.writing
        written = model.generate(
            output.images, how.prompt, beams=how.beams, min_length=how.min_length, max_length=how.max_length
        )
        return [how.decode(written[image]) for image in batch.image_index.tolist()]

    def references(self, batch: CaptionBatch) -> list[str]:
        """Say the first of each image's captions."""
        return [given[0] if given else "" for given in batch.references]

    def scorer(self, model: Any, *, final: bool = False) -> _Scorer:
        """Start scoring a split."""
        return _Scorer(self, model, final)


class _Scorer:
    def __init__(self, task: Caption, model: Any, final: bool) -> None:
        self.task = task
        self.final = final
        self.model = model
        self.ids: list[str] = []
        self.predictions: list[str] = []
        self.references: list[tuple[str, ...]] = []
        self.right: list[bool] = []

    def add(self, batch: CaptionBatch, output: Output) -> list[bool] | None:
        """Write captions, which are right or wrong only where accuracy is what counts."""
        written = self.task.answers(self.model, batch, output)
        self.ids += batch.ids
        self.predictions += written
        self.references += batch.references
        if not self.final or self.task.score != "accuracy":
            return None
        each = zip(written, batch.references, batch.ids, strict=True)
        right = [self.task.metric([said], [given], [name])["accuracy"] == 1 for said, given, name in each]
        self.right += right
        return right

    def scores(self) -> Scores:
        """Score."""
        metrics = dict(self.task.metric(self.predictions, self.references, self.ids))
        notes: tuple[str, ...] = ()
        if self.final and self.task.official is not None:
            found, notes = self.task.official(self.predictions, self.references)
            metrics |= found
        return Scores(metrics, self.predictions, [[]] * len(self.predictions), notes, self.right)
