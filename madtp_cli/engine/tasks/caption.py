"""What does an image show?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from madtp_cli.data.batch import CaptionBatch
from madtp_cli.engine.tasks.base import Normalisation, PlainTask, Scores
from madtp_cli.models.base import Output
from madtp_cli.models.caption import BlipForCaption, caption_loss

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

    def scorer(self, model: BlipForCaption, *, final: bool = False) -> _Scorer:
        """Start scoring a split."""
        return _Scorer(model, self.metric, self.writing, self.official if final else None)


class _Scorer:
    def __init__(self, model: BlipForCaption, metric: Metric, writing: Writing, official: Official | None) -> None:
        self.official = official
        self.model = model
        self.metric = metric
        self.writing = writing
        self.ids: list[str] = []
        self.predictions: list[str] = []
        self.references: list[tuple[str, ...]] = []

    def add(self, batch: CaptionBatch, output: Output) -> None:
        """Write a caption of every image from its encoded tokens."""
        how = self.writing
        written = self.model.generate(
            output.images, how.prompt, beams=how.beams, min_length=how.min_length, max_length=how.max_length
        )
        self.ids += batch.ids
        self.predictions += [how.decode(written[image]) for image in batch.image_index.tolist()]
        self.references += batch.references

    def scores(self) -> Scores:
        """Score."""
        metrics = dict(self.metric(self.predictions, self.references, self.ids))
        notes: tuple[str, ...] = ()
        if self.official is not None:
            found, notes = self.official(self.predictions, self.references)
            metrics |= found
        return Scores(metrics, self.predictions, [[]] * len(self.predictions), notes)
