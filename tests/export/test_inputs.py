"""Preparing images and reading texts without transformers: pixels and ids equal to those of transformers itself.

The oracles are transformers' own image processors and tokenizers, bit for bit and id for id.
"""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertTokenizer, CLIPTokenizer

from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.export.inputs import Images, Words, read_tokenizer
from madtp_cli.models.processor import Processor, image_processor

TEXTS = (
    "",
    " ",
    "There IS a Red circle.",
    "two\tsmall\r\ncircles \u00a0 and\u3000a square\u2028left",
    "Ünïcödé naïveté ÅNGSTRÖM Straße İstanbul ΣΊΣΥΦΟΣ ὈΔΥΣΣΕΎΣ Пётр їжак",
    "the left image's cat can't, won't & shouldn't've: they'll I'm we'd 'tis 's''s",
    "don't!!! (really?) [no] {maybe} <yes> #1 50% $3.99 a+b=c x^y `z` ~w~ |v| \\ / _under_score_",
    "一个红色的圆 and 二つの赤い円 빨간 원 สวัสดี नमस्ते שלום مرحبا",
    "👍🏽 a 🏳️‍🌈 flag 👨‍👩‍👧 family ☺️ ½ ² Ⅷ ① ٣ 12345 3rd",
    "zero\u200bwidth soft\u00adhyphen \ufeffbom \x00null \x07bell \ufffd replaced combining e\u0301 n\u0303",
    "\u201ccurly\u201d \u2018quotes\u2019 — dash … ellipsis «guillemets» ¿qué? ¡sí! 。、・",
    "[SEP] there [ENC]is[MASK]a [UNK] red [DEC] [enc] [CLS]",
    "<|startoftext|> a <|endoftext|> <|STARTOFTEXT|> <|other|> red",
    "a" * 100 + " " + "b" * 101 + " unaffable",
    "red circle and " * 60,
)


def random_texts(count: int) -> list[str]:
    """Draw texts of letters, marks and spaces from scripts that people write captions in."""
    draw = random.Random(5)
    ranges = [
        *[(0x20, 0x7F)] * 6,
        (0x09, 0x0E),
        (0x80, 0x250),
        (0x370, 0x530),
        (0x5D0, 0x5EB),
        (0x620, 0x660),
        (0x904, 0x970),
        (0x1E00, 0x2070),
        (0x20A0, 0x20BE),
        (0x2100, 0x2BF0),
        (0x3000, 0x3100),
        (0x4E00, 0x9FCD),
        (0xAC00, 0xD7A4),
        (0xF900, 0xFA6E),
        (0xFE00, 0xFE70),
        (0xFF01, 0xFFBF),
        (0x1F300, 0x1F640),
        (0x20000, 0x2A6D7),
    ]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(draw.randrange(1, 30)):
            low, high = draw.choice(ranges)
            parts.append(draw.choice([chr(draw.randrange(low, high)), draw.choice("aeiou rst'"), " the "]))
        texts.append("".join(parts))
    return texts


# Words ---------------------------------------------------------------------------------------------------------


@cache
def published_bert() -> Any:
    """Make a tokenizer like bert-base-uncased: letters, marks and pieces of words, and BLIP's two more tokens."""
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()] + list("éüñпжσ一红円원½²")
    pieces = ["##" + letter for letter in letters] + ["red", "circle", "##able", "un", "##aff", "there", "the", "##re"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *pieces]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(dict.fromkeys(words))})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[DEC]", "[ENC]"]})
    return tokenizer


@cache
def whole_words() -> Any:
    """Make the tokenizer of the models that come with madtp."""
    return Processor.from_words(VOCABULARY, 96).tokenizer


@cache
def clip_like() -> Any:
    """Make a tokenizer like CLIP's: all bytes, with and without the end of a word, and merges learned from text."""
    plain = CLIPTokenizer()
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = plain.backend_tokenizer.normalizer
    learner.pre_tokenizer = plain.backend_tokenizer.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    learner.train_from_iterator([*TEXTS, " ".join(VOCABULARY[7:]) * 5], trainer)
    learned = json.loads(learner.to_str())["model"]
    words = [*sorted(alphabet), *(f"{letter}</w>" for letter in sorted(alphabet)), *learned["vocab"]]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in learned["merges"]])


def ours(tokenizer: Any) -> Words:
    """Read the tokenizer as it is saved."""
    return read_tokenizer(json.loads(tokenizer.backend_tokenizer.to_str()))


@pytest.mark.parametrize("make", [published_bert, whole_words, clip_like])
def test_ids_are_those_of_transformers(make: Any) -> None:
    tokenizer = make()
    words = ours(tokenizer)
    for text in (*TEXTS, *random_texts(600)):
        assert words.ids(text) == tokenizer(text, add_special_tokens=False)["input_ids"], repr(text)


@pytest.mark.parametrize("make", [published_bert, clip_like])
def test_texts_are_cut_into_more_than_letters_or_unknowns(make: Any) -> None:
    """What would make the comparison above an empty one: merges and pieces of words do occur."""
    words = ours(make())
    ids = words.ids("unaffable there red circle")
    assert len(ids) < 12
    assert words.unknown not in ids


@pytest.mark.parametrize("make", [published_bert, whole_words])
def test_words_are_those_of_transformers(make: Any) -> None:
    """Random ids as a decoder might write them, special ones and some that are no words, too."""
    tokenizer = make()
    words, draw = ours(tokenizer), random.Random(1)
    for _ in range(300):
        ids = [draw.randrange(len(tokenizer) + 2) for _ in range(draw.randrange(12))]
        assert words.text(ids) == " ".join(tokenizer.decode(ids, skip_special_tokens=True).split()), ids


def test_cased_vocabularies_keep_case_and_accents() -> None:
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "É", "é", "e", "A"]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)}, do_lower_case=False)
    found = ours(tokenizer)
    for text in ("É é e A a", "e\u0301", "一A"):
        assert found.ids(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert found.ids("É é") == [5, 6]


def test_other_tokenizers_are_refused() -> None:
    data = {"model": {"type": "Unigram", "vocab": {}}}
    with pytest.raises(ValueError, match="model is Unigram; this module reads WordPiece, BPE"):
        read_tokenizer(data)


# Images --------------------------------------------------------------------------------------------------------


def noise(*shape: int) -> Any:
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


def pictures() -> dict[str, Image.Image]:
    """Make images of odd sizes and of every mode that files come in."""
    colour = Image.fromarray(noise(61, 47, 3))
    palette = colour.quantize(17)
    transparent = palette.copy()
    transparent.info["transparency"] = 3
    return {
        "tall": Image.fromarray(noise(301, 40, 3)),
        "wide": Image.fromarray(noise(33, 250, 3)),
        "one pixel": Image.fromarray(noise(1, 1, 3)),
        "exact": Image.fromarray(noise(32, 32, 3)),
        "grey": Image.fromarray(noise(50, 31)),
        "grey and alpha": Image.fromarray(noise(40, 31, 2), "LA"),
        "RGBA": Image.fromarray(noise(45, 60, 4)),
        "palette": palette,
        "palette with a transparent colour": transparent,
        "black and white": colour.convert("1"),
        "CMYK": colour.convert("CMYK"),
    }


@pytest.mark.parametrize("family", ["blip", "clip"])
@pytest.mark.parametrize("size", [32, 45])
def test_pixels_are_those_of_the_processor(family: str, size: int, tmp_path: Path) -> None:
    """What transformers makes of images in RGB, whatever mode they come in."""
    processor = Processor(image_processor(family, size), whole_words(), task="vqa")
    processor.image_processor.save_pretrained(tmp_path)
    images = Images(json.loads((tmp_path / "preprocessor_config.json").read_text()))
    for name, picture in pictures().items():
        expected = processor([picture], ["red"])["images"][0].numpy()
        found = images.pixels(picture)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_a_crop_larger_than_the_image_is_filled_with_black(tmp_path: Path) -> None:
    """Published CLIPs crop what they resized to; other settings crop more, on both axes and of odd sizes."""
    processor = image_processor("clip", 32)
    processor.crop_size.height, processor.crop_size.width = 41, 36
    processor.save_pretrained(tmp_path)
    images = Images(json.loads((tmp_path / "preprocessor_config.json").read_text()))
    for height, width in ((32, 32), (33, 64), (70, 31), (90, 90)):
        picture = Image.fromarray(noise(height, width, 3))
        expected = processor(picture, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(images.pixels(picture), expected)


def test_a_path_and_an_array_are_images_too(tmp_path: Path) -> None:
    image_processor("blip", 32).save_pretrained(tmp_path)
    images = Images(json.loads((tmp_path / "preprocessor_config.json").read_text()))
    pixels = noise(40, 50, 3)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    expected = images.pixels(Image.fromarray(pixels))
    for source in (pixels, tmp_path / "image.png", str(tmp_path / "image.png")):
        np.testing.assert_array_equal(images.pixels(source), expected)


@pytest.mark.parametrize(
    ("pixels", "got"),
    [
        (noise(5, 5), "uint8 [5, 5]"),
        (noise(5, 6, 4), "uint8 [5, 6, 4]"),
        (noise(5, 6, 3).astype(np.float64), "float64 [5, 6, 3]"),
        (noise(5, 6, 3).astype(np.float32), "float32 [5, 6, 3]"),
        (noise(0, 6, 3), "uint8 [0, 6, 3]"),
    ],
    ids=["grey", "alpha", "doubles", "places first", "empty"],
)
def test_arrays_of_another_kind_are_refused(pixels: Any, got: str, tmp_path: Path) -> None:
    image_processor("blip", 32).save_pretrained(tmp_path)
    images = Images(json.loads((tmp_path / "preprocessor_config.json").read_text()))
    with pytest.raises(ValueError, match=re.escape(f"got an array of {got} for an image; give uint8 [H, W, 3]")):
        images.pixels(pixels)


def test_files_that_are_no_images_are_refused(tmp_path: Path) -> None:
    """Missing, a folder, words, and an image cut off: each named, in one line."""
    image_processor("blip", 32).save_pretrained(tmp_path)
    images = Images(json.loads((tmp_path / "preprocessor_config.json").read_text()))
    (tmp_path / "words.png").write_text("words", encoding="utf-8")
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    for name in ("missing.png", "", "words.png", "cut.png"):
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name}: cannot be read as an image (")):
            images.pixels(tmp_path / name)
