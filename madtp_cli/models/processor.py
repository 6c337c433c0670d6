"""From a user's images and sentences to what the model takes, with HF's image processor and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from madtp_cli.errors import SourceError

if TYPE_CHECKING:
    from PIL.Image import Image

ENCODE = "[ENC]"
FILES = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


class PairProcessor:
    """Prepare pairs of images and sentences: `model(**processor([(left, right)], ["there is a dog"]))`."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    @classmethod
    def from_words(cls, words: Sequence[str], image_size: int) -> PairProcessor:
        """Make the processor of a model whose vocabulary is a list of whole words, special tokens first."""
        from transformers import BertTokenizer

        vocabulary = {word: index for index, word in enumerate(words)}
        tokenizer = BertTokenizer(vocab=vocabulary, extra_special_tokens=["[DEC]", ENCODE])
        return cls(_image_processor()(size={"height": image_size, "width": image_size}), tokenizer)

    @classmethod
    def from_folder(cls, folder: Path) -> PairProcessor:
        """Read the processor that lies beside a checkpoint; raises SourceError if it cannot be read."""
        from transformers import AutoTokenizer

        # transformers makes a tokenizer without words where its file is missing.
        if missing := [name for name in FILES if not (folder / name).is_file()]:
            raise SourceError(f"{folder / missing[0]}: no such file; the checkpoint folder is incomplete")
        try:
            return cls(
                _image_processor().from_pretrained(folder, local_files_only=True),
                AutoTokenizer.from_pretrained(folder, local_files_only=True),
            )
        except Exception as error:  # transformers raises many kinds
            message = " ".join(str(error).split())
            raise SourceError(f"{folder}: its processor cannot be read: {message}") from error

    def save(self, folder: Path) -> None:
        """Write preprocessor_config.json and the tokenizer's files."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def __call__(self, images: Sequence[tuple[Image, Image]], sentences: Sequence[str]) -> dict[str, Any]:
        """Return the model's arguments for one sentence per pair of images; raises ValueError if the counts differ."""
        if len(images) != len(sentences):
            raise ValueError(f"got {len(images)} pairs of images for {len(sentences)} sentences; give one for each")
        flat = [image for pair in images for image in pair]
        pixels = self.image_processor(flat, return_tensors="pt")["pixel_values"]
        ids = self.tokenizer(list(sentences))["input_ids"]
        encode = self.tokenizer.convert_tokens_to_ids(ENCODE)
        return {
            "images": pixels,
            "text": torch.tensor([token for sentence in ids for token in [encode, *sentence[1:]]]),
            "text_lengths": [len(sentence) for sentence in ids],
            "image_index": [(2 * row, 2 * row + 1) for row in range(len(ids))],
        }


def _image_processor() -> Any:
    # The PIL backend whether torchvision is there or not: the two resize slightly differently.
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    return BlipImageProcessorPil
