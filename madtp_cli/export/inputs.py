"""Prepare images and read texts as an exported model's own processor did, with numpy and Pillow alone.

Images are prepared as `preprocessor_config.json` says, like the PIL processors of BLIP and CLIP in transformers; texts
are read as `tokenizer.json` says, like the WordPiece of BERT and the byte pairs of CLIP in tokenizers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any, Union

import numpy as np
from PIL import Image

Array = Any  # numpy.ndarray, whose type numpy spells differently from version to version
ImageSource = Union[str, Path, Image.Image, Array]
"""A path, a PIL image, or uint8 pixels [H, W, 3]."""


# Images --------------------------------------------------------------------------------------------------------


class Images:
    """Prepare images as the model's own processor did: BLIP squeezes them into a square, CLIP cuts the middle out."""

    def __init__(self, how: Mapping[str, Any]) -> None:
        self.how = how
        self.mean, self.std = (np.array(how[name], np.float32) for name in ("image_mean", "image_std"))

    def pixels(self, image: ImageSource) -> Array:
        """Return normalised pixels [3, H, W] float32; such are returned as they are.

        Raises ValueError for an array of another type or shape.
        """
        if isinstance(image, np.ndarray) and image.dtype == np.float32 and image.ndim == 3 and len(image) == 3:
            return image
        how = self.how
        squeezed = Image.fromarray(_rgb(image))
        if how.get("do_resize", True):
            squeezed = squeezed.resize(self._size(*squeezed.size), how["resample"])
        pixels = np.asarray(squeezed)
        if how.get("do_center_crop"):
            pixels = _middle(pixels, how["crop_size"]["height"], how["crop_size"]["width"])
        scaled = (pixels.astype(np.float64) * how["rescale_factor"]).astype(np.float32)
        return np.ascontiguousarray(((scaled - self.mean) / self.std).transpose(2, 0, 1))

    def _size(self, width: int, height: int) -> tuple[int, int]:
        short = self.how["size"].get("shortest_edge")
        if short is None:
            return self.how["size"]["width"], self.how["size"]["height"]
        long = int(short * max(width, height) / min(width, height))
        return (short, long) if width <= height else (long, short)


def _rgb(image: ImageSource) -> Array:
    """Return uint8 [H, W, 3]; transparency is dropped, and the colours under it are seen, as in training.

    Raises ValueError for what is no image.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"got an array of {image.dtype} {list(image.shape)} for an image; give uint8 [H, W, 3], in red, green "
                "and blue, or what is prepared already, float32 [3, H, W]"
            )
        return image
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        return np.asarray(opened.convert("RGB"))
    except OSError as error:  # not there, a folder, another kind of file, or cut off
        raise ValueError(f"{image}: cannot be read as an image ({error}); give a PNG or JPEG file") from error


def _middle(pixels: Array, height: int, width: int) -> Array:
    """Cut the middle [height, width] out, on black where there is less."""
    for axis, size in ((0, height), (1, width)):
        have = pixels.shape[axis]
        if have < size:
            before = ceil((size - have) / 2)
            room = [(before, size - have - before) if each == axis else (0, 0) for each in range(3)]
            pixels = np.pad(pixels, room)
        pixels = pixels.take(range((pixels.shape[axis] - size) // 2, (pixels.shape[axis] + size) // 2), axis)
    return pixels


# Words ---------------------------------------------------------------------------------------------------------

SPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
UNSEEN = ("Cc", "Cf", "Co")  # categories of characters that BERT drops
CHINESE = re.compile(
    "([\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b920-\U0002ceaf"
    "\uf900-\ufaff\U0002f800-\U0002fa1f])"
)


class Words:
    """What both kinds of tokenizer share: special tokens that a text may spell out are found before anything else."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.vocabulary: dict[str, int] = data["model"]["vocab"]
        self.added = {each["content"]: each for each in data.get("added_tokens", ())}
        self.special = {each["id"] for each in self.added.values() if each["special"]}
        ids = {**self.vocabulary, **{content: each["id"] for content, each in self.added.items()}}
        self.ids_of, self.word_of = ids, {number: word for word, number in ids.items()}
        self.unknown = ids[data["model"]["unk_token"]]

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, without those that open and close it."""
        found: list[int] = []
        for piece, known in self._split(text, normalised=False):
            if known:
                found.append(self.added[piece]["id"])
                continue
            for part, added in self._split(self.normalise(piece), normalised=True):
                found += (
                    [self.added[part]["id"]] if added else [i for word in self.cut(part) for i in self.encode(word)]
                )
        return found

    def _split(self, text: str, *, normalised: bool) -> Iterator[tuple[str, bool]]:
        """Cut a text where it spells added tokens out: pieces, and whether each is one."""
        contents = [content for content, each in self.added.items() if each["normalized"] == normalised]
        pattern = "|".join(re.escape(content) for content in sorted(contents, key=len, reverse=True))
        for index, piece in enumerate(re.split(f"({pattern})", text) if pattern else [text]):
            yield piece, index % 2 == 1

    def text(self, ids: Sequence[int]) -> str:
        """Return the words of ids, without special tokens."""
        raise NotImplementedError

    def normalise(self, text: str) -> str:
        """Write a text as the vocabulary does."""
        raise NotImplementedError

    def cut(self, text: str) -> Iterator[str]:
        """Cut a normalised text into words and marks."""
        raise NotImplementedError

    def encode(self, word: str) -> list[int]:
        """Return the ids of one word."""
        raise NotImplementedError


class WordPiece(Words):
    """BERT's tokenizer."""

    def normalise(self, text: str) -> str:
        """Clean, put spaces around Chinese, and drop accents and capitals, as far as the tokenizer does."""
        how = self.data["normalizer"]
        if how["clean_text"]:
            kept = (c for c in text if c in "\t\n\r" or (c != "\ufffd" and unicodedata.category(c) not in UNSEEN))
            text = SPACE.sub(" ", "".join(kept))
        if how["handle_chinese_chars"]:
            text = CHINESE.sub(r" \1 ", text)
        if how["strip_accents"] or (how["strip_accents"] is None and how["lowercase"]):
            text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
        return _lower(text) if how["lowercase"] else text

    def cut(self, text: str) -> Iterator[str]:
        for run in SPACE.split(text):
            word = ""
            for c in run:
                if unicodedata.category(c)[0] == "P" or c in "$+<=>^`|~":
                    yield from filter(None, (word, c))
                    word = ""
                else:
                    word += c
            if word:
                yield word

    def encode(self, word: str) -> list[int]:
        model, ids, start = self.data["model"], [], 0
        if len(word) > model["max_input_chars_per_word"]:
            return [self.unknown]
        while start < len(word):
            prefix = model["continuing_subword_prefix"] if start else ""
            ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in self.vocabulary)
            if not (end := next(ends, 0)):
                return [self.unknown]
            ids.append(self.vocabulary[prefix + word[start:end]])
            start = end
        return ids

    def text(self, ids: Sequence[int]) -> str:
        prefix: str = self.data["model"]["continuing_subword_prefix"]
        parts: list[str] = []
        for word in (self.word_of[number] for number in ids if number in self.word_of and number not in self.special):
            if not parts:
                parts.append(word)
            elif word.startswith(prefix):
                parts.append(word[len(prefix) :])
            else:
                parts.append(word if word in (".", "?", "!", ",") else f" {word}")
        return " ".join("".join(parts).split())


class BytePairs(Words):
    """CLIP's tokenizer."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__(data)
        merges = (each.split(" ") if isinstance(each, str) else each for each in data["model"]["merges"])
        self.rank = {tuple(pair): index for index, pair in enumerate(merges)}
        # Bytes that print stand for themselves, the others for what follows 255.
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in shown]
        self.letter = {**{byte: chr(byte) for byte in shown}, **{b: chr(256 + i) for i, b in enumerate(others)}}

    def normalise(self, text: str) -> str:
        return _lower(SPACE.sub(" ", unicodedata.normalize("NFC", text)))

    def cut(self, text: str) -> Iterator[str]:
        start = 0
        while start < len(text):
            ending = next((e for e in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(e, start)), "")
            kind, end = _kind(text[start]), start + max(len(ending), 1)
            while not ending and kind in "LO" and end < len(text) and _kind(text[end]) == kind:
                end += 1
            if kind != "Z":
                yield text[start:end]
            start = end

    def encode(self, word: str) -> list[int]:
        parts = [self.letter[byte] for byte in word.encode("utf-8")]
        parts[-1] += self.data["model"]["end_of_word_suffix"]
        worst = len(self.rank)
        while len(parts) > 1:
            ranks = [self.rank.get(pair, worst) for pair in zip(parts, parts[1:])]
            if (best := min(ranks)) == worst:
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [self.vocabulary.get(part, self.unknown) for part in parts]


def read_tokenizer(data: Mapping[str, Any]) -> Words:
    """Read a tokenizer.json; raises ValueError for a kind that this module does not read."""
    kinds = {"WordPiece": WordPiece, "BPE": BytePairs}
    if data["model"]["type"] not in kinds:
        raise ValueError(f"tokenizer.json: model is {data['model']['type']}; this module reads {', '.join(kinds)}")
    return kinds[data["model"]["type"]](data)


def _kind(c: str) -> str:
    """Tell letters (L), numbers (N), spaces (Z) and others (O)."""
    first = unicodedata.category(c)[0]
    return "Z" if SPACE.match(c) else first if first in "LN" else "O"


def _lower(text: str) -> str:
    return "".join(c.lower() for c in text)  # letter by letter: no ending changes a sigma
