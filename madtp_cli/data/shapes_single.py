"""The tasks of `shapes` about single images: questions with answers, captions, and retrieval by caption.

The scenes are those of the pairs (shapes.py), so that a vision tower trained on one task knows the images of all.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from madtp_cli.data.batch import CaptionBatch, QuestionBatch, RetrievalBatch, prepared
from madtp_cli.data.caption_metrics import caption_scores
from madtp_cli.data.descriptions import (
    QUESTIONS_PER_IMAGE,
    Question,
    full_caption,
    identified_images,
    write_captions,
    write_questions,
)
from madtp_cli.data.scenes import COLOURS, SHAPES, SIZES
from madtp_cli.data.sentences import CLS, DEC, ENC, NUMBERS, words_ids
from madtp_cli.data.shapes import IMAGES_PER_BLOCK, ShapesSplit, accuracy, check_range, generator, make_block

Array = NDArray[Any]

_QUESTIONS, _CAPTIONS = 1, 2  # purposes of further random generators of a block, besides none


@dataclass(frozen=True)
class QuestionSample:
    """One question about one image."""

    id: str
    image: Array  # [96, 96, 3] uint8
    question: str
    answers: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class CaptionSample:
    """One image with its captions, the first of which is the one to learn."""

    id: str
    image: Array  # [96, 96, 3] uint8
    captions: tuple[str, ...]


class _SingleImages(ShapesSplit):
    """Samples about one image each; successive samples may share it."""

    def place(self, index: int) -> tuple[int, int]:
        """Return the block of a sample and the image of that block it is about."""
        raise NotImplementedError

    def _image(self, index: int) -> Array:
        block, image = self.place(index)
        pixels: Array = make_block(self.seed, self.split, block).scenes.render([image])[0]
        return pixels

    def _common(self, start: int, size: int, texts: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return what all batches hold of samples start .. start + size - 1; each image is in once."""
        check_range(start, size, self.samples)
        places = [self.place(index) for index in range(start, start + size)]
        distinct = list(dict.fromkeys(places))
        rows = {place: row for row, place in enumerate(distinct)}
        images: list[Array] = []
        labels: dict[str, list[Array]] = {"patches": [], "image_counts": []}
        for number, group in groupby(distinct, key=lambda place: place[0]):
            chosen = [image for _, image in group]
            block = make_block(self.seed, self.split, number)
            images.extend(block.scenes.render(chosen))
            labels["patches"].append(block.patches[chosen])
            labels["image_counts"].append(block.image_counts[chosen])
        return {
            "images": prepared(images),
            "text": torch.tensor([token for ids in texts for token in ids]),
            "text_lengths": [len(ids) for ids in texts],
            "image_index": torch.tensor([rows[place] for place in places]),
            "ids": tuple(self.id_of(index) for index in range(start, start + size)),
            "auxiliary": {name: torch.from_numpy(np.concatenate(parts)) for name, parts in labels.items()},
        }


class ShapesQuestions(_SingleImages):
    """Serve questions with unambiguous answers, 4 successive samples per image."""

    name = "shapes_questions"
    per_block = IMAGES_PER_BLOCK * QUESTIONS_PER_IMAGE

    def place(self, index: int) -> tuple[int, int]:
        """Return the block of a question and its image."""
        block, within = self.find(index)
        return block, within // QUESTIONS_PER_IMAGE

    def sample(self, index: int) -> QuestionSample:
        """Make one sample; for looking at, `batch` is the fast way."""
        asked = self._asked(index)
        return QuestionSample(self.id_of(index), self._image(index), asked.text, asked.answers, asked.kind)

    def batch(self, start: int, size: int) -> QuestionBatch:
        """Make the samples start .. start + size - 1."""
        check_range(start, size, self.samples)
        asked = [self._asked(index) for index in range(start, start + size)]
        answers = [(row, words_ids(DEC, answer)) for row, one in enumerate(asked) for answer in one.answers]
        return QuestionBatch(
            **self._common(start, size, [words_ids(ENC, one.text) for one in asked]),
            groups=tuple(one.kind for one in asked),
            answers=torch.tensor([token for _, ids in answers for token in ids]),
            answer_lengths=[len(ids) for _, ids in answers],
            answer_index=torch.tensor([row for row, _ in answers]),
            answer_weights=torch.tensor([1.0 / len(asked[row].answers) for row, _ in answers]),
            references=tuple(one.answers for one in asked),
        )

    def _asked(self, index: int) -> Question:
        block, within = self.find(index)
        image, place = divmod(within, QUESTIONS_PER_IMAGE)
        return _questions(self.seed, self.split, block)[image][place]


class ShapesCaptions(_SingleImages):
    """Serve images with captions that name all objects."""

    name = "shapes_captions"
    per_block = IMAGES_PER_BLOCK

    def place(self, index: int) -> tuple[int, int]:
        """Return the block of an image and its number in it."""
        return self.find(index)

    def sample(self, index: int) -> CaptionSample:
        """Make one sample; for looking at, `batch` is the fast way."""
        return CaptionSample(self.id_of(index), self._image(index), self._captions(index))

    def batch(self, start: int, size: int) -> CaptionBatch:
        """Make the samples start .. start + size - 1."""
        check_range(start, size, self.samples)
        captions = [self._captions(index) for index in range(start, start + size)]
        return CaptionBatch(
            **self._common(start, size, [words_ids(DEC, each[0]) for each in captions]),
            groups=("",) * size,
            prompt_length=1,
            references=tuple(captions),
        )

    def _captions(self, index: int) -> tuple[str, ...]:
        block, image = self.place(index)
        rng = generator(self.seed, self.split, block, _CAPTIONS, image)
        return write_captions(rng, make_block(self.seed, self.split, block).scenes, image)


class ShapesRetrieval(_SingleImages):
    """Serve images with one caption each that is true of no other image of their block.

    A block of scenes gives 24 successive samples; its remaining images are left out.
    """

    name = "shapes_retrieval"
    per_block = 24  # of 64 images 48 +- 3 can be told apart from all others

    def place(self, index: int) -> tuple[int, int]:
        """Return the block of a sample and its image."""
        block, place = self.find(index)
        return block, _identified(self.seed, self.split, block)[place]

    def sample(self, index: int) -> CaptionSample:
        """Make one sample; for looking at, `batch` is the fast way."""
        return CaptionSample(self.id_of(index), self._image(index), (self._caption(index),))

    def batch(self, start: int, size: int) -> RetrievalBatch:
        """Make the samples start .. start + size - 1."""
        check_range(start, size, self.samples)
        common = self._common(start, size, [words_ids(CLS, self._caption(i)) for i in range(start, start + size)])
        return RetrievalBatch(**common, groups=("",) * size, image_ids=common["ids"])

    def _caption(self, index: int) -> str:
        block, image = self.place(index)
        return full_caption(make_block(self.seed, self.split, block).scenes, image)


@functools.lru_cache(maxsize=4)
def _questions(seed: int, split: str, block: int) -> list[list[Question]]:
    scenes = make_block(seed, split, block).scenes
    return write_questions(generator(seed, split, block, _QUESTIONS), scenes)


@functools.lru_cache(maxsize=64)
def _identified(seed: int, split: str, block: int) -> list[int]:
    chosen: list[int] = identified_images(make_block(seed, split, block).scenes).tolist()
    return chosen


def answer_list() -> tuple[str, ...]:
    """Return every answer there is: what answers are ranked among."""
    return (*NUMBERS, *SHAPES, *COLOURS, *SIZES, "yes", "no")


def answered(predictions: Sequence[str], references: Sequence[Sequence[str]], kinds: Sequence[str]) -> dict[str, float]:
    """Share of right answers (0..1), overall and per kind of question as `accuracy/<kind>`."""
    right = [answer in accepted for answer, accepted in zip(predictions, references, strict=True)]
    return accuracy([int(one) for one in right], [1] * len(right), kinds)


def captioned(predictions: Sequence[str], references: Sequence[Sequence[str]], ids: Sequence[str]) -> dict[str, float]:
    """Share of captions that name exactly the objects of their image, in any order, beside CIDEr and BLEU-4."""
    right = [
        any(sorted(caption.split(" and ")) == sorted(reference.split(" and ")) for reference in accepted)
        for caption, accepted in zip(predictions, references, strict=True)
    ]
    return {"accuracy": sum(right) / len(right), **caption_scores(predictions, references, ids)}
