"""What the engine asks of a task: how a batch goes through a model, what is lost on it, and how answers are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from madtp_cli.data.batch import Batch
from madtp_cli.models.base import Inputs, Output

# Of the images that BLIP and CLIP were pretrained on, in units of 0..1.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation that pixels are normalised by, in units of 0..1."""

    mean: tuple[float, ...] = IMAGE_MEAN
    std: tuple[float, ...] = IMAGE_STD

    def __call__(self, images: Tensor, device: torch.device) -> Tensor:
        """Normalise uint8 images [I, 3, H, W]; images that are floating point are normalised already."""
        if images.is_floating_point():
            return images.to(device)
        mean = torch.tensor(self.mean, device=device).view(3, 1, 1)
        std = torch.tensor(self.std, device=device).view(3, 1, 1)
        return (images.to(device).float() / 255 - mean) / std


@dataclass(frozen=True)
class Scores:
    """What a split came to: metrics, and for every sample its answer and the numbers that it was chosen by."""

    metrics: Mapping[str, float]
    predictions: Sequence[Any]
    logits: Sequence[Sequence[float]]
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""
    right: Sequence[bool] = ()
    """Whether each answer is right, where the task has right answers and the scoring is final."""


@dataclass(frozen=True)
class Asked:
    """What a pass is to give beside its answers.

    training: what only losses need. learn and probe: as in `Inputs`. like: the student's output, for a teacher.
    """

    training: bool = False
    learn: bool = False
    probe: bool = False
    like: Any = None


ANSWERS = Asked()


class Scorer(Protocol):
    """Collects the answers of a split."""

    def add(self, batch: Any, output: Any) -> Sequence[bool] | None:
        """Answer a batch from its forward pass, and remember; return which are right, if that is known already."""

    def scores(self) -> Scores:
        """Score everything that was added."""


class Task(Protocol):
    """One task."""

    name: str
    score: str
    """The metric by which validation chooses between weights; larger is better."""
    normalise: Normalisation

    def forward(self, model: Any, batch: Any, device: torch.device, asked: Asked = ANSWERS) -> Any:
        """Run a batch."""

    def losses(self, output: Any, batch: Any) -> dict[str, Tensor]:
        """Return the task's own losses of a training pass, by name."""

    def compared(self, output: Any) -> list[Tensor]:
        """Return the logits [R, n] in which a pruned model imitates the dense one."""

    def rows(self, batch: Any) -> list[int]:
        """Return how many rows of the compared logits each sample has: S numbers whose sum is R.

        Asked only where a sample's rows do not depend on its batch mates.
        """

    def scorer(self, model: Any, *, final: bool = False) -> Scorer:
        """Start scoring a split; `final` adds what is too slow to choose weights by: metrics, and which are right."""

    def answers(self, model: Any, batch: Any, output: Any) -> list[str]:
        """Return what a pass answers to each sample, in words; it needs no labels."""

    def references(self, batch: Any) -> list[str]:
        """Return what is right of each sample, in words."""

    def save(self, folder: Path) -> None:
        """Write what a checkpoint needs beside its weights to be run in the same way, if anything."""


def inputs_of(batch: Batch, normalise: Normalisation, device: torch.device) -> Inputs:
    """Return what every model reads of a batch."""
    return Inputs(
        normalise(batch.images, device), batch.text.to(device), batch.text_lengths, batch.image_index.tolist()
    )


class PlainTask:
    """A task whose training pass is its inference pass; the others extend it."""

    name: str
    score: str

    def __init__(self, normalise: Normalisation | None = None) -> None:
        self.normalise = normalise or Normalisation()

    def forward(self, model: Any, batch: Any, device: torch.device, asked: Asked = ANSWERS) -> Any:
        """Run a batch."""
        read = replace(inputs_of(batch, self.normalise, device), learn=asked.learn, probe=asked.probe)
        return model(self.inputs(model, batch, read, asked))

    def inputs(self, model: Any, batch: Any, read: Inputs, asked: Asked) -> Inputs:
        """Add to what every model reads what this task's reads, if anything."""
        return read

    def compared(self, output: Output) -> list[Tensor]:
        """Return the answers' logits."""
        return [output.logits]

    def rows(self, batch: Any) -> list[int]:
        """Count one answer for each sample."""
        return [1] * len(batch.text_lengths)

    def save(self, folder: Path) -> None:
        """Write nothing."""
