"""A preparation without a tokenizer: words get numbers as they come, images keep their size."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL.Image import Image

ENC, DEC, SEP = 0, 1, 2


class Plain:
    """Number words in order of appearance; `read` turns ids back into words."""

    def __init__(self, size: int = 8) -> None:
        self.size = size
        self.vocabulary: list[str] = ["[ENC]", "[DEC]", "[SEP]"]

    def image(self, image: Image) -> Any:
        assert image.mode == "RGB"
        return np.asarray(image.resize((self.size, self.size)), dtype=np.uint8)

    def words(self, text: str) -> list[int]:
        return [ENC, *self._ids(text), SEP]

    def answer(self, text: str) -> list[int]:
        return [DEC, *self._ids(text), SEP]

    def prompt_length(self, prompt: str) -> int:
        return 1 + len(prompt.split())

    def read(self, ids: Any) -> str:
        return " ".join(self.vocabulary[int(token)] for token in ids)

    def _ids(self, text: str) -> list[int]:
        for word in text.split():
            if word not in self.vocabulary:
                self.vocabulary.append(word)
        return [self.vocabulary.index(word) for word in text.split()]


def texts(prepare: Plain, batch: Any) -> list[str]:
    """Return the texts of a batch in words."""
    return [prepare.read(part) for part in batch.text.split(batch.text_lengths)]
