"""The batches that data sets hand to the engine, one kind per task, and what a data set needs to make them.

Shapes: I images, S samples, T packed tokens, N patches of one image, A answers. Images are resized to what the model
takes and still uint8; texts lie end to end, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What every task's batch holds: images, and texts about them."""

    images: Tensor
    """[I, 3, H, W] uint8."""
    text: Tensor
    """[T] int64: token ids of all texts, one after the other."""
    text_lengths: list[int]
    """S lengths whose sum is T."""
    image_index: Tensor
    """int64 rows of `images` that each text is about: [S], for pairs [S, 2] (left, right)."""
    ids: tuple[str, ...]
    """S names, unique in a split."""
    groups: tuple[str, ...]
    """S names of what a metric groups by: family of a sentence, type of a question, or empty."""
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    """Training-only labels: text_counts [S, 2] (count of the sentence's first noun phrase in the
    left and right image, -1 for none), patches [I, N] (0 no object, else 1 + shape * 6 + colour),
    image_counts [I, 9] (objects per colour, then per shape); all int64."""

    @property
    def samples(self) -> int:
        """S."""
        return len(self.text_lengths)


@dataclass(frozen=True, kw_only=True)
class PairBatch(Batch):
    """Sentences about pairs of images, each image once however many sentences ask about it (task nlvr2)."""

    labels: Tensor
    """[S] int64: 1 true, 0 false."""


@dataclass(frozen=True, kw_only=True)
class QuestionBatch(Batch):
    """Questions about images (task vqa); the answers are those to learn, in order of their questions."""

    answers: Tensor
    """[sum of answer_lengths] int64: token ids of A answers, each opening with [DEC] and ending with [SEP]."""
    answer_lengths: list[int]
    answer_index: Tensor
    """[A] int64: the question that each answer answers."""
    answer_weights: Tensor
    """[A] float32: share of the question's annotators who gave the answer."""
    references: tuple[tuple[str, ...], ...]
    """S tuples of all the answers that annotators gave, as they were given."""


@dataclass(frozen=True, kw_only=True)
class CaptionBatch(Batch):
    """Images with a caption each to learn, opening with [DEC] and the prompt (task caption)."""

    prompt_length: int
    """Tokens of [DEC] and the prompt, which are given and not learned."""
    references: tuple[tuple[str, ...], ...]
    """S tuples of all the captions that an image has."""


@dataclass(frozen=True, kw_only=True)
class RetrievalBatch(Batch):
    """Captions with their images, each image once (task retrieval)."""

    image_ids: tuple[str, ...]
    """I names of the images, unique in a split."""


AnyBatch = TypeVar("AnyBatch", bound=Batch, covariant=True)


class Split(Protocol[AnyBatch]):
    """One split of a data set."""

    def __len__(self) -> int: ...

    def batch(self, start: int, size: int) -> AnyBatch:
        """Return samples start to start + size; fewer where a broken image is tolerated."""


class Preparation(Protocol):
    """How a model wants its images and words; models/processor.py has it from the checkpoint."""

    def image(self, image: Image) -> Any:
        """Resize and crop an image to [H, W, 3] uint8 (numpy)."""

    def words(self, text: str) -> list[int]:
        """Return the token ids of a text as the encoder reads it, special tokens included."""

    def answer(self, text: str) -> list[int]:
        """Return the token ids of a text as the decoder writes it: [DEC], words, [SEP]."""

    def prompt_length(self, prompt: str) -> int:
        """Return how many tokens [DEC] and a caption's prompt are."""


def prepared(images: Sequence[Any]) -> Tensor:
    """Stack images [H, W, 3] uint8 (numpy) to [I, 3, H, W]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))
