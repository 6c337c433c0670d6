"""The processor: what a user's images and sentences become, and that it survives its folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.data.shapes import PairSample, ShapesPairs
from madtp_cli.engine.tasks.base import IMAGE_MEAN, IMAGE_STD, Normalisation
from madtp_cli.errors import SourceError
from madtp_cli.models.processor import FILES, Processor
from tests.tiny_runs import names

DATA = ShapesPairs("test", 64)
IDS = {word: index for index, word in enumerate(VOCABULARY)}


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_words(VOCABULARY, 96)


@pytest.fixture
def folder(processor: Processor, tmp_path: Path) -> Path:
    processor.save(tmp_path)
    return tmp_path


def images_of(samples: Sequence[PairSample]) -> list[tuple[Image.Image, Image.Image]]:
    return [(Image.fromarray(sample.left), Image.fromarray(sample.right)) for sample in samples]


def words(*names: str) -> list[int]:
    return [IDS[name] for name in names]


# What comes out ----------------------------------------------------------------------------------------------


def test_it_prepares_what_training_reads(processor: Processor) -> None:
    """Ids, lengths and pixels of 64 samples; every sentence comes with its own two images."""
    samples = [DATA.sample(row) for row in range(64)]
    batch = DATA.batch(0, 64)
    arguments = processor(images_of(samples), [sample.sentence for sample in samples])
    assert arguments.keys() == {"images", "text", "text_lengths", "image_index"}
    assert arguments["text"].equal(batch.text)
    assert arguments["text_lengths"] == batch.text_lengths
    assert arguments["image_index"] == [(2 * row, 2 * row + 1) for row in range(64)]
    expected = Normalisation()(batch.images, torch.device("cpu"))[batch.image_index.flatten()]
    torch.testing.assert_close(arguments["images"], expected, atol=1e-5, rtol=0)


def test_sentences_open_with_enc_whatever_their_case_and_marks(processor: Processor) -> None:
    pair = images_of([DATA.sample(0)])
    plain = processor(pair, ["there is a red circle"])["text"].tolist()
    assert plain == words("[ENC]", "there", "is", "a", "red", "circle", "[SEP]")
    assert processor(pair, ["There IS a Red circle"])["text"].tolist() == plain
    strange = processor(pair, ["there is a zebra !"])["text"].tolist()
    assert strange[:4] == plain[:4]
    assert set(strange[4:-1]) == {IDS["[UNK]"]}
    assert processor(pair, [""])["text"].tolist() == words("[ENC]", "[SEP]")


def test_images_of_any_size_and_mode_fit(processor: Processor) -> None:
    """A plain grey is the same grey after resizing, in every mode."""
    grey = Image.new("RGB", (200, 50), (128, 128, 128))
    expected = ((128 / 255 - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)).view(3, 1, 1).expand(3, 96, 96)
    for mode in ("RGB", "L", "RGBA"):
        found = processor([(grey.convert(mode), grey)], ["there"])["images"]
        assert found.shape == (2, 3, 96, 96)
        for image in found:
            torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


def test_left_and_right_stay_in_order(processor: Processor) -> None:
    black, white = (Image.fromarray(np.full((96, 96, 3), value, dtype=np.uint8)) for value in (0, 255))
    means = processor([(black, white), (white, black)], ["there", "there"])["images"].mean((1, 2, 3))
    assert (means > 0).tolist() == [False, True, True, False]


@pytest.mark.parametrize("sentences", [[], ["a", "b"]])
def test_every_pair_needs_one_sentence(sentences: list[str], processor: Processor) -> None:
    with pytest.raises(ValueError, match=f"got 1 pairs of images for {len(sentences)} sentences; give one for each"):
        processor(images_of([DATA.sample(0)]), sentences)


# On disk -----------------------------------------------------------------------------------------------------


def test_it_reads_back_as_it_was(processor: Processor, folder: Path) -> None:
    assert names(folder) == set(FILES)
    samples = [DATA.sample(row) for row in (0, 9, 21)]
    inputs = (images_of(samples), [sample.sentence for sample in samples])
    before, after = processor(*inputs), Processor.from_folder(folder)(*inputs)
    assert before["text"].equal(after["text"])
    assert before["images"].equal(after["images"])
    assert {**before, "images": None, "text": None} == {**after, "images": None, "text": None}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(SourceError) as caught:
        Processor.from_folder(folder)
    assert str(caught.value) == f"{folder / name}: no such file; the checkpoint folder is incomplete"


@pytest.mark.parametrize("content", [b'{"a": ', b"\xff\xfe\x00", b"5", b'{"version": "1.0"}'], ids=repr)
def test_a_broken_tokenizer_is_one_line(content: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(SourceError) as caught:
        Processor.from_folder(folder)
    assert str(caught.value).startswith(f"{folder}: its processor cannot be read: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b'{"a": ', b"5"], ids=repr)
def test_a_broken_image_processor_is_one_line(content: bytes, folder: Path) -> None:
    (folder / "preprocessor_config.json").write_bytes(content)
    with pytest.raises(SourceError) as caught:
        Processor.from_folder(folder)
    assert str(caught.value).startswith(f"{folder}: its processor cannot be read: ")
    assert "\n" not in str(caught.value)


def test_it_needs_nothing_but_its_files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No configuration of a model beside it, no network."""
    moved = tmp_path_factory.mktemp("moved")
    for name in FILES:
        shutil.copy(folder / name, moved / name)
    text = Processor.from_folder(moved)(images_of([DATA.sample(0)]), ["there is a red circle"])["text"]
    assert text.tolist() == words("[ENC]", "there", "is", "a", "red", "circle", "[SEP]")
