"""The built-in data set `shapes`: generated pairs of images with a true or false sentence.

shapes_single.py makes questions with answers, captions, and images to retrieve by caption of the same scenes.

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


@dataclass(frozen=True)
class Block:
    """Hold the scenes and sentences of one block and their labels."""

    scenes: Scenes
    sentences: Sentences
    patches: Array  # [64, N]
    image_counts: Array  # [64, 9]


def generator(seed: int, split: str, block: int, *purpose: int) -> np.random.Generator:
    entropy = np.random.SeedSequence([seed, SPLITS.index(split), block, *purpose])
    return np.random.Generator(np.random.PCG64(entropy))


@functools.lru_cache(maxsize=4)
def make_block(seed: int, split: str, number: int) -> Block:
    """Make a block of a split; blocks are independent of each other."""
    rng = generator(seed, split, number)
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


class ShapesSplit:
    """What the four tasks have in common: which samples there are and where they lie."""

    name: str
    per_block: int

    def __init__(self, split: str, samples: int, seed: int = 0, image_size: int = IMAGE_SIZE) -> None:
        check_source(split, image_size)
        self.split = split
        self.samples = samples
        self.seed = seed

    def __len__(self) -> int:
        return self.samples

    def find(self, index: int) -> tuple[int, int]:
        """Return the block of a sample and its place in it."""
        check_range(index, 1, self.samples)
        return divmod(index, self.per_block)

    def id_of(self, index: int) -> str:
        """Name a sample."""
        return f"{self.name}/{self.split}/{index}"


class ShapesPairs(ShapesSplit):
    """Serve pairs of images with true and false sentences, 8 successive samples per pair."""

    name = "shapes"
    per_block = SAMPLES_PER_BLOCK

    @property
    def families(self) -> tuple[str, ...]:
        """Name the sentence families."""
        return FAMILY_NAMES

    def sample(self, index: int) -> PairSample:
        """Make one sample; for looking at, `batch` is the fast way."""
        number, within = self.find(index)
        block = make_block(self.seed, self.split, number)
        pair = within // SENTENCES_PER_PAIR
        left, right = block.scenes.render([2 * pair, 2 * pair + 1])
        return PairSample(
            id=self.id_of(index),
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
            ids=tuple(self.id_of(index) for index in range(start, stop)),
            groups=tuple(families),
            auxiliary={
                "text_counts": torch.from_numpy(np.concatenate(text_counts)),
                "patches": torch.from_numpy(np.concatenate(patches)),
                "image_counts": torch.from_numpy(np.concatenate(image_counts)),
            },
        )


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
