"""One record per sample and task, and how samples become a batch.

Shapes: I images, S samples, T packed tokens, A answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from madtp_cli.data.batch import (
    Batch,
    CaptionBatch,
    PairBatch,
    Preparation,
    QuestionBatch,
    RetrievalBatch,
    prepared,
)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Hold what samples of every task have; texts are cleaned already."""

    id: str
    images: tuple[str, ...]
    """Names of its images: left and right for pairs, else one."""
    text: str
    group: str = ""
    unit: str = ""
    """What is never divided between training and held-out samples; empty: its first image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSample(Sample):
    """Hold a sentence about two images."""

    label: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSample(Sample):
    """Hold a question about an image; `answers` are to learn, `references` are what annotators said."""

    answers: Mapping[str, float]
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionSample(Sample):
    """Hold a caption of an image; `references` are all of its image's captions as they were given."""

    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Packer:
    """Turn samples and their images into a batch; `prompt` opens captions to learn, `max_tokens` bounds texts."""

    prepare: Preparation
    prompt: str = ""
    max_tokens: int | None = None

    def pack(self, task: str, samples: Sequence[Any], pixels: Mapping[str, Array]) -> Batch:
        """Return the batch of a task; each image is in it once, in order of first use."""
        names = list(dict.fromkeys(name for sample in samples for name in sample.images))
        rows = {name: row for row, name in enumerate(names)}
        index = [[rows[name] for name in sample.images] for sample in samples]
        kind = _PACK[task]
        words = self._captions if task == "caption" else self._words
        texts = [words(sample.text) for sample in samples]
        return kind(
            self,
            samples,
            names,
            {
                "images": prepared([pixels[name] for name in names]) if names else torch.empty(0, 3, 0, 0).byte(),
                "text": flat(texts),
                "text_lengths": [len(text) for text in texts],
                "image_index": torch.tensor(index, dtype=torch.int64).reshape(
                    len(samples), 2 if task == "nlvr2" else 1
                ),
                "ids": tuple(sample.id for sample in samples),
                "groups": tuple(sample.group for sample in samples),
            },
        )

    def _words(self, text: str) -> list[int]:
        return self._cut(self.prepare.words(text))

    def _captions(self, text: str) -> list[int]:
        return self._cut(self.prepare.answer(f"{self.prompt.strip()} {text}".strip()))

    def _cut(self, ids: list[int]) -> list[int]:
        """Shorten a text and keep its last token, which says where it ends."""
        if self.max_tokens is None or len(ids) <= self.max_tokens:
            return ids
        return [*ids[: self.max_tokens - 1], ids[-1]]


def flat(texts: Sequence[Sequence[int]]) -> Tensor:
    """Lay token ids end to end: [T] int64."""
    return torch.tensor([token for text in texts for token in text], dtype=torch.int64)


def _pack_pairs(_: Packer, samples: Sequence[PairSample], names: list[str], shared: dict[str, Any]) -> Batch:
    return PairBatch(**shared, labels=torch.tensor([sample.label for sample in samples], dtype=torch.int64))


def _pack_questions(
    packer: Packer, samples: Sequence[QuestionSample], names: list[str], shared: dict[str, Any]
) -> Batch:
    answers = [packer.prepare.answer(answer) for sample in samples for answer in sample.answers]
    return QuestionBatch(
        **_one_image(shared),
        answers=flat(answers),
        answer_lengths=[len(answer) for answer in answers],
        answer_index=torch.tensor(
            [row for row, sample in enumerate(samples) for _ in sample.answers], dtype=torch.int64
        ),
        answer_weights=torch.tensor(
            [weight for sample in samples for weight in sample.answers.values()], dtype=torch.float32
        ),
        references=tuple(sample.references for sample in samples),
    )


def _pack_captions(packer: Packer, samples: Sequence[CaptionSample], names: list[str], shared: dict[str, Any]) -> Batch:
    return CaptionBatch(
        **_one_image(shared),
        prompt_length=packer.prepare.prompt_length(packer.prompt),
        references=tuple(sample.references for sample in samples),
    )


def _pack_retrieval(_: Packer, samples: Sequence[CaptionSample], names: list[str], shared: dict[str, Any]) -> Batch:
    return RetrievalBatch(**_one_image(shared), image_ids=tuple(names))


def _one_image(shared: dict[str, Any]) -> dict[str, Any]:
    return shared | {"image_index": shared["image_index"].reshape(-1)}  # [S]


_PACK: dict[str, Callable[[Packer, Any, list[str], dict[str, Any]], Batch]] = {
    "nlvr2": _pack_pairs,
    "vqa": _pack_questions,
    "caption": _pack_captions,
    "retrieval": _pack_retrieval,
}
