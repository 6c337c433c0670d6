"""The built-in data set `shapes`: generated pairs of images with a true or false sentence.

From the same scenes come questions with answers, captions, and images to retrieve by caption.

Everything is a function of (seed, split, index): samples are made in blocks of 32 pairs with 8
sentences each, and each block has its own random generator, so neither the order of access nor
the number of worker processes matters. Splits draw from different generators and share no scene.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from madtp_cli.data.batch import PairBatch
from madtp_cli.data.descriptions import (
    QUESTIONS_PER_IMAGE,
    Question,
    full_caption,
    identified_images,
    write_captions,
    write_questions,
)
from madtp_cli.data.scenes import IMAGE_SIZE, Scenes, sample_scenes
from madtp_cli.data.sentences import (
    FAMILY_NAMES,
    SENTENCES_PER_PAIR,
    Sentences,
    write_sentences,
)
from madtp_cli.errors import SourceError

Array = NDArray[Any]

SPLITS = ("train", "validation", "test")
PAIRS_PER_BLOCK = 32
IMAGES_PER_BLOCK = 2 * PAIRS_PER_BLOCK
SAMPLES_PER_BLOCK = PAIRS_PER_BLOCK * SENTENCES_PER_PAIR
_QUESTIONS, _CAPTIONS = 1, 2  # purposes of further random generators of a block, besides none


@dataclass(frozen=True)
class Block:
    """Hold the scenes and sentences of one block and their labels."""

    scenes: Scenes
    sentences: Sentences
    patches: Array  # [64, N]
    image_counts: Array  # [64, 9]


def _generator(seed: int, split: str, block: int, *purpose: int) -> np.random.Generator:
    entropy = np.random.SeedSequence([seed, SPLITS.index(split), block, *purpose])
    return np.random.Generator(np.random.PCG64(entropy))


@functools.lru_cache(maxsize=4)
def make_block(seed: int, split: str, number: int) -> Block:
    """Make a block of a split; blocks are independent of each other."""
    rng = _generator(seed, split, number)
    scenes = sample_scenes(rng, IMAGES_PER_BLOCK)
    sentences = write_sentences(rng, scenes)
    return Block(scenes, sentences, scenes.patch_labels(), scenes.attribute_counts())


@dataclass(frozen=True)
class PairSample:
    """Hold one sentence about two images."""

    id: str
    left: Array  # [96, 96, 3] uint8
    right: Array  # [96, 96, 3] uint8
    sentence: str
    label: bool
    family: str


class _Task:
    """Share what the four tasks have in common: which samples there are and where they lie."""

    name: str
    per_block: int

    def __init__(self, split: str, samples: int, seed: int = 0, image_size: int = IMAGE_SIZE) -> None:
        check_source(split, image_size)
        self.split = split
        self.samples = samples
        self.seed = seed

    def __len__(self) -> int:
        return self.samples

    def _find(self, index: int) -> tuple[int, int]:
        """Return the block of a sample and its place in it."""
        check_range(index, 1, self.samples)
        return divmod(index, self.per_block)

    def _image(self, block: int, image: int) -> Array:
        pixels: Array = make_block(self.seed, self.split, block).scenes.render([image])[0]
        return pixels

    def _id(self, index: int) -> str:
        return f"{self.name}/{self.split}/{index}"


class ShapesPairs(_Task):
    """Serve pairs of images with true and false sentences, 8 successive samples per pair."""

    name = "shapes"
    per_block = SAMPLES_PER_BLOCK

    @property
    def families(self) -> tuple[str, ...]:
        """Name the sentence families."""
        return FAMILY_NAMES

    def sample(self, index: int) -> PairSample:
        """Make one sample; for looking at, `batch` is the fast way."""
        number, within = self._find(index)
        block = make_block(self.seed, self.split, number)
        pair = within // SENTENCES_PER_PAIR
        left, right = block.scenes.render([2 * pair, 2 * pair + 1])
        return PairSample(
            id=self._id(index),
            left=left,
            right=right,
            sentence=block.sentences.texts[within],
            label=bool(block.sentences.labels[within]),
            family=block.sentences.families[within],
        )

    def batch(self, start: int, size: int) -> PairBatch:
        """Make the samples start .. start + size - 1; a pair's images appear once in it."""
        check_range(start, size, self.samples)
        images, patches, image_counts, labels, text_counts = [], [], [], [], []
        tokens: list[list[int]] = []
        families: list[str] = []
        stop = start + size
        for number in range(start // SAMPLES_PER_BLOCK, (stop - 1) // SAMPLES_PER_BLOCK + 1):
            block = make_block(self.seed, self.split, number)
            first = max(start - number * SAMPLES_PER_BLOCK, 0)
            last = min(stop - number * SAMPLES_PER_BLOCK, SAMPLES_PER_BLOCK)
            pairs = first // SENTENCES_PER_PAIR, (last - 1) // SENTENCES_PER_PAIR + 1
            wanted = slice(2 * pairs[0], 2 * pairs[1])
            images.append(block.scenes.render(range(wanted.start, wanted.stop)))
            patches.append(block.patches[wanted])
            image_counts.append(block.image_counts[wanted])
            tokens.extend(block.sentences.tokens[first:last])
            labels.append(block.sentences.labels[first:last])
            text_counts.append(block.sentences.text_counts[first:last])
            families.extend(block.sentences.families[first:last])
        # The first pair of the batch holds rows 0 and 1, the next one rows 2 and 3, ...
        pair = np.arange(start, stop) // SENTENCES_PER_PAIR - start // SENTENCES_PER_PAIR
        pixels = np.concatenate(images).transpose(0, 3, 1, 2)  # [I, 3, H, W]
        return PairBatch(
            images=torch.from_numpy(np.ascontiguousarray(pixels)),
            text=torch.tensor([token for ids in tokens for token in ids]),
            text_lengths=[len(ids) for ids in tokens],
            image_index=torch.from_numpy(np.stack([2 * pair, 2 * pair + 1], axis=1)),
            labels=torch.from_numpy(np.concatenate(labels).astype(np.int64)),
            ids=tuple(self._id(index) for index in range(start, stop)),
            families=tuple(families),
            auxiliary={
                "text_counts": torch.from_numpy(np.concatenate(text_counts)),
                "patches": torch.from_numpy(np.concatenate(patches)),
                "image_counts": torch.from_numpy(np.concatenate(image_counts)),
            },
        )


@dataclass(frozen=True)
class QuestionSample:
    """Hold one question about one image."""

    id: str
    image: Array  # [96, 96, 3] uint8
    question: str
    answers: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class CaptionSample:
    """Hold one image with its captions, the first of which is the one to learn."""

    id: str
    image: Array  # [96, 96, 3] uint8
    captions: tuple[str, ...]


class ShapesQuestions(_Task):
    """Serve questions with unambiguous answers, 4 successive samples per image."""

    name = "shapes_questions"
    per_block = IMAGES_PER_BLOCK * QUESTIONS_PER_IMAGE

    def sample(self, index: int) -> QuestionSample:
        """Make one sample."""
        block, within = self._find(index)
        image, place = divmod(within, QUESTIONS_PER_IMAGE)
        asked = _questions(self.seed, self.split, block)[image][place]
        pixels = self._image(block, image)
        return QuestionSample(self._id(index), pixels, asked.text, asked.answers, asked.kind)


class ShapesCaptions(_Task):
    """Serve images with captions that name all objects."""

    name = "shapes_captions"
    per_block = IMAGES_PER_BLOCK

    def sample(self, index: int) -> CaptionSample:
        """Make one sample."""
        block, image = self._find(index)
        rng = _generator(self.seed, self.split, block, _CAPTIONS, image)
        captions = write_captions(rng, make_block(self.seed, self.split, block).scenes, image)
        return CaptionSample(self._id(index), self._image(block, image), captions)


class ShapesRetrieval(_Task):
    """Serve images with one caption each that is true of no other image of their block.

    A block of scenes gives 24 successive samples; its remaining images are left out.
    """

    name = "shapes_retrieval"
    per_block = 24  # of 64 images 48 +- 3 can be told apart from all others

    def sample(self, index: int) -> CaptionSample:
        """Make one sample."""
        block, place = self._find(index)
        scenes = make_block(self.seed, self.split, block).scenes
        image = int(identified_images(scenes)[place])
        caption = full_caption(scenes, image)
        return CaptionSample(self._id(index), self._image(block, image), (caption,))


@functools.lru_cache(maxsize=4)
def _questions(seed: int, split: str, block: int) -> list[list[Question]]:
    scenes = make_block(seed, split, block).scenes
    return write_questions(_generator(seed, split, block, _QUESTIONS), scenes)


def check_source(split: str, image_size: int) -> None:
    """Refuse splits and image sizes that `shapes` does not have."""
    if split not in SPLITS:
        raise SourceError(f"shapes has no split {split!r}; try one of {', '.join(SPLITS)}")
    if image_size != IMAGE_SIZE:
        raise SourceError(
            f"shapes draws images of {IMAGE_SIZE} pixels, got data.image_size {image_size}; "
            f"try image_size: {IMAGE_SIZE}"
        )


def check_range(start: int, size: int, samples: int) -> None:
    """Refuse samples that do not exist."""
    if start < 0 or size < 1 or start + size > samples:
        raise ValueError(f"shapes has samples 0 to {samples - 1}, got start {start} and size {size}")


def accuracy(predictions: Sequence[int], labels: Sequence[int], families: Sequence[str]) -> dict[str, float]:
    """Share of right predictions (0..1), overall and per family as `accuracy/<family>`."""
    right = np.asarray(predictions) == np.asarray(labels)
    names = np.asarray(families)
    shares = {"accuracy": float(right.mean())}
    for family in sorted(set(families)):
        shares[f"accuracy/{family}"] = float(right[names == family].mean())
    return shares
