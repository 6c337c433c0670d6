"""The processor: what a user's images and sentences become, and that it survives its folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, CLIPTokenizer

from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.data.shapes import PairSample, ShapesPairs
from madtp_cli.data.shapes_single import ShapesCaptions, ShapesQuestions, ShapesRetrieval
from madtp_cli.engine.tasks.base import IMAGE_MEAN, IMAGE_STD, Normalisation
from madtp_cli.errors import SourceError
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.clip.configs import small_clip_config
from madtp_cli.models.family import families
from madtp_cli.models.processor import FILES, Processor, check_tokenizer, image_processor
from tests.tiny_published import go_offline
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


def test_transparency_is_dropped_wherever_images_are_read(processor: Processor) -> None:
    """Under a transparent pixel lies a colour; training reads it as PIL converts it, and so does everything else."""
    colour = Image.fromarray(DATA.sample(3).left)
    clear = colour.copy()
    clear.putalpha(Image.fromarray(np.tile(np.arange(96, dtype=np.uint8), (96, 1))))
    single = Processor.from_words(VOCABULARY, 96, task="vqa")
    assert single([clear], ["red"])["images"].equal(single([colour], ["red"])["images"])
    assert processor([(clear, clear)], ["red"])["images"].equal(processor([(colour, colour)], ["red"])["images"])
    assert np.array_equal(processor.image(clear), processor.image(colour))
    palette = colour.quantize(9)
    expected = processor.image(palette)
    palette.info["transparency"] = 3
    assert np.array_equal(processor.image(palette), expected)
    assert palette.info["transparency"] == 3


def test_left_and_right_stay_in_order(processor: Processor) -> None:
    black, white = (Image.fromarray(np.full((96, 96, 3), value, dtype=np.uint8)) for value in (0, 255))
    means = processor([(black, white), (white, black)], ["there", "there"])["images"].mean((1, 2, 3))
    assert (means > 0).tolist() == [False, True, True, False]


@pytest.mark.parametrize("sentences", [[], ["a", "b"]])
def test_every_pair_needs_one_sentence(sentences: list[str], processor: Processor) -> None:
    with pytest.raises(ValueError, match=f"got 1 pairs of images for {len(sentences)} sentences; give one for each"):
        processor(images_of([DATA.sample(0)]), sentences)


ONE = Image.new("RGB", (96, 96))


@pytest.mark.parametrize(
    ("task", "images", "texts", "message"),
    [
        ("vqa", [ONE], "red", "got one string for the texts; give a list of them: processor([image], [text])"),
        ("vqa", ONE, "red", "got one string for the texts; give a list of them: processor([image], [text])"),
        ("vqa", ONE, ["red"], "got one image (Image); give a list of them: processor([image], [text])"),
        ("vqa", np.asarray(ONE), ["red"], "got one image (ndarray); give a list of them: processor([image], [text])"),
        ("caption", "a.jpg", ["red"], "got one image (str); give a list of them: processor([image], [text])"),
        ("retrieval", [(ONE, ONE)], ["red"], "got a tuple where one image goes with each text: processor([image], "),
        ("vqa", [ONE], [["red"]], "got a list among the texts; give a list of strings: processor([image], [text])"),
        ("nlvr2", [(ONE, ONE)], "red", "got one string for the texts; give a list of them: processor([(left, right)]"),
        ("nlvr2", ONE, ["red"], "got one image (Image); give a list of pairs: processor([(left, right)], [text])"),
        ("nlvr2", (ONE, ONE), ["red"], "nlvr2 takes two images with each text, got one; give a list of pairs: "),
        ("nlvr2", [(ONE,) * 3], ["red"], "nlvr2 takes two images with each text, got 3; give a list of pairs: "),
    ],
)
def test_what_is_no_list_of_images_or_texts_is_told(task: str, images: Any, texts: Any, message: str) -> None:
    """With what to give."""
    with pytest.raises(TypeError) as caught:
        Processor.from_words(VOCABULARY, 96, task=task)(images, texts)
    assert str(caught.value).startswith(message)


def test_lists_of_every_kind_are_taken() -> None:
    """A batch in one array too."""
    single, pairs = (Processor.from_words(VOCABULARY, 96, task=task) for task in ("vqa", "nlvr2"))
    pixels = np.asarray(ONE)
    expected = single([ONE, ONE], ["red", "red"])["images"]
    several: tuple[Any, ...] = ((ONE, ONE), [pixels, pixels], np.stack([pixels, pixels]))
    for images in several:
        assert single(images, ("red", "red"))["images"].equal(expected)
        assert pairs([images], ["red"])["images"].equal(expected)


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


# The other tasks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "task", "data"),
    [
        ("blip", "vqa", ShapesQuestions),
        ("blip", "caption", ShapesCaptions),
        ("blip", "retrieval", ShapesRetrieval),
        ("clip", "retrieval", ShapesRetrieval),
    ],
)
def test_every_task_gets_what_its_training_reads(family: str, task: str, data: Any) -> None:
    """Ids, lengths, images and which image a text is about, for samples that a user hands in one by one."""
    split = data("test", 12)
    batch = split.batch(0, 12)
    samples = [split.sample(row) for row in range(12)]
    texts = [sample.question if task == "vqa" else sample.captions[0] for sample in samples]
    processor = Processor.from_words(VOCABULARY, 96, family=family, task=task)
    arguments = processor([Image.fromarray(sample.image) for sample in samples], texts)
    assert arguments["text"].equal(batch.text)
    assert arguments["text_lengths"] == batch.text_lengths
    assert arguments["image_index"] == list(range(12))
    expected = Normalisation(processor.mean, processor.std)(batch.images, torch.device("cpu"))[batch.image_index]
    torch.testing.assert_close(arguments["images"], expected, atol=1e-5, rtol=0)
    for sample, row in zip(samples, batch.image_index.tolist(), strict=True):
        prepared = processor.image(Image.fromarray(sample.image))
        assert torch.from_numpy(prepared).permute(2, 0, 1).equal(batch.images[row])


def test_every_image_needs_one_text() -> None:
    processor = Processor.from_words(VOCABULARY, 96, task="vqa")
    with pytest.raises(ValueError, match="got 2 images for 1 texts; give one for each"):
        processor([Image.new("RGB", (96, 96))] * 2, ["how many"])


@pytest.mark.parametrize(
    ("task", "first"), [("nlvr2", "[ENC]"), ("vqa", "[ENC]"), ("caption", "[DEC]"), ("retrieval", "[CLS]")]
)
def test_a_text_opens_as_its_task_reads_it(task: str, first: str) -> None:
    """And is cut to what the model takes, its end kept."""
    processor = Processor.from_words(VOCABULARY, 96, task=task, longest=5)
    assert processor.words("two red") == words(first, "two", "red", "[SEP]")
    assert processor.words("two red circles and one") == words(first, "two", "red", "circles", "[SEP]")


def test_a_decoder_writes_answers_and_prompts() -> None:
    processor = Processor.from_words(VOCABULARY, 96, task="caption")
    assert processor.answer("two red") == words("[DEC]", "two", "red", "[SEP]")
    assert processor.prompt("there are") == words("[DEC]", "there", "are")
    assert (processor.prompt_length("there are"), processor.prompt_length("")) == (3, 1)
    assert processor.decode(words("two", "red", "[SEP]", "[PAD]")) == "two red"


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("family", ["blip", "clip"])
def test_one_image_of_any_size_and_mode(family: str, mode: str) -> None:
    """A plain grey, to uint8 [32, 32, 3]."""
    grey = Image.new("RGB", (70, 50), (128, 128, 128))
    grey = grey.quantize() if mode == "P" else grey.convert(mode)
    found = Processor.from_words(VOCABULARY, 32, family=family, task="retrieval").image(grey)
    assert (found.shape, found.dtype) == ((32, 32, 3), np.uint8)
    assert abs(found.astype(int) - 128).max() <= 1


def test_blip_squeezes_an_image_and_clip_cuts_its_middle_out() -> None:
    """Three stripes side by side, each a square: BLIP sees all of them, CLIP the middle one."""
    stripes = np.zeros((30, 90, 3), dtype=np.uint8)
    stripes[:, :30, 0] = stripes[:, 30:60, 1] = stripes[:, 60:, 2] = 255
    blip, clip = (
        Processor.from_words(VOCABULARY, 30, family=family, task="retrieval").image(Image.fromarray(stripes))
        for family in ("blip", "clip")
    )
    assert [blip[15, column].argmax() for column in (3, 15, 27)] == [0, 1, 2]
    assert (clip[:, :, 1] == 255).all()
    assert not clip[:, :, [0, 2]].any()


# Checkpoints of others ---------------------------------------------------------------------------------------


def test_what_lies_beside_the_weights_is_used_at_the_size_asked_for(folder: Path) -> None:
    """Own mean and deviation stay, the size is the model's; without any, those of BLIP's pretraining."""
    image_processor("blip", 96, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]).save_pretrained(folder)
    other = Processor.from_folder(folder, image_size=48)
    assert (other.mean, other.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert other.image(Image.new("RGB", (96, 96))).shape == (48, 48, 3)
    (folder / "preprocessor_config.json").unlink()
    assert Processor.from_folder(folder, image_size=48).mean == pytest.approx(IMAGE_MEAN)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_that_madtp_wrote_must_be_whole(name: str, folder: Path) -> None:
    """Even where a published tokenizer or the usual pixels could stand in."""
    (folder / "config.json").write_text('{"madtp": {}}', encoding="utf-8")
    assert Processor.from_folder(folder, image_size=96).words("red") == words("[ENC]", "red", "[SEP]")
    (folder / name).unlink()
    with pytest.raises(SourceError) as caught:
        Processor.from_folder(folder, image_size=96)
    assert str(caught.value) == f"{folder / name}: no such file; the checkpoint folder is incomplete"


def test_another_tokenizer_may_be_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """BLIP's two tokens are added to one that lacks them, at the end."""
    other = tmp_path_factory.mktemp("words")
    plain = [word for word in VOCABULARY if word not in ("[DEC]", "[ENC]")]
    BertTokenizer(vocab={word: row for row, word in enumerate(plain)}).save_pretrained(other)
    found = Processor.from_folder(folder, task="vqa", image_size=96, tokenizer=str(other))
    assert found.words("red") == [len(plain) + 1, plain.index("red"), plain.index("[SEP]")]
    assert found.answer("red") == [len(plain), plain.index("red"), plain.index("[SEP]")]


@pytest.mark.parametrize("others", [(), ("config.json", "model.safetensors", "tokenizer_config.json")])
def test_a_folder_without_a_tokenizer_is_refused(others: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    """transformers would make an empty one up."""
    named = tmp_path / "weights"
    named.mkdir()
    for name in others:
        (named / name).write_text('{"model_type": "blip"}', encoding="utf-8")
    with pytest.raises(SourceError) as caught:
        Processor.from_folder(folder, task="vqa", image_size=96, tokenizer=str(named))
    assert caught.value.exit_code == 4
    assert str(caught.value).startswith(f"{named}: has no tokenizer files (tokenizer.json, vocab.txt or vocab.json); ")


def test_clips_own_tokenizer(tmp_path: Path) -> None:
    """Texts open with its start token, end with its EOT, also where they are cut; nothing is added to it."""
    letters = ["<|startoftext|>", "<|endoftext|>", "a</w>", "r", "e", "d</w>", "re", "red</w>"]
    vocabulary = {word: row for row, word in enumerate(letters)}
    CLIPTokenizer(vocab=vocabulary, merges=[("r", "e"), ("re", "d</w>")]).save_pretrained(tmp_path)
    found = Processor.from_folder(tmp_path, family="clip", task="retrieval", image_size=32, longest=4)
    assert found.words("A Red") == [0, 2, 7, 1]
    assert found.words("a red a red") == [0, 2, 7, 1]
    assert len(found.tokenizer.get_vocab()) == len(letters)


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("GatedRepoError", "it is gated: ask for access at https://huggingface.co/a/b and log in with hf auth login"),
        ("RepositoryNotFoundError", "the hub has no such repository, or it is private"),
        ("HFValidationError", "that is no id of the hub"),
        ("LocalEntryNotFoundError", "there is no network"),
    ],
)
def test_what_the_hub_says_is_told(kind: str, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a few words."""

    def refuse(name: str, **options: Any) -> str:
        error = getattr(huggingface_hub.errors, kind)
        raise error.__new__(error)  # some want a response of the network

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(SourceError, match=re.escape(f"and cannot be fetched ({cause}); where there is a network")):
        Processor.from_folder(None, image_size=32, tokenizer="a/b")


def test_a_repository_without_a_tokenizer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path))
    with pytest.raises(SourceError, match=r"\(it has none of tokenizer.json, vocab.txt, vocab.json\)"):
        Processor.from_folder(None, image_size=32, tokenizer="a/b")


def test_offline_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the setting that says so, with the hub's own client."""
    go_offline(monkeypatch, tmp_path)
    with pytest.raises(SourceError, match=r"cannot be fetched \(HF_HUB_OFFLINE is set\)"):
        Processor.from_folder(None, image_size=32, tokenizer="a/b")


@pytest.mark.parametrize(("family", "name"), [(family.name, family.processing.tokenizer) for family in families()])
def test_without_a_network_it_says_what_to_fetch(
    family: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of weights brings no tokenizer; the published one is looked for in the cache, then on the hub."""
    asked: list[tuple[str, bool]] = []

    def offline(repository: str, *, local_files_only: bool, **options: Any) -> str:
        asked.append((repository, local_files_only))
        raise OSError("503 Service Unavailable")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(SourceError) as caught:
        Processor.from_folder(tmp_path, family=family, image_size=32)
    assert asked == [(name, True), (name, False)]
    assert caught.value.exit_code == 4
    message = str(caught.value)
    assert message.startswith(
        f"{name}: this tokenizer is neither a folder here nor in the cache, and cannot be fetched (503 Service Unavaila"
    )
    assert f"hf download {name} " in message
    assert "--set model.tokenizer=FOLDER" in message


def test_a_published_tokenizer_is_taken_from_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(folder))
    found = Processor.from_folder(None, task="vqa", image_size=32)
    assert found.words("red") == words("[ENC]", "red", "[SEP]")


# Whether it is the model's ---------------------------------------------------------------------------------------


def _config(**changes: int | None) -> Any:
    """Describe a BLIP that reads the words of the generated data."""
    ids: dict[str, Any] = {f"{name}_token_id": IDS[f"[{name.upper()}]"] for name in ("dec", "enc", "sep", "pad")}
    config = small_config(image_size=32, vocab_size=len(VOCABULARY), **(ids | changes))
    config.text_config.cls_token_id = IDS["[CLS]"]
    return config


TASKS = ("nlvr2", "vqa", "caption", "retrieval")


@pytest.mark.parametrize("task", TASKS)
def test_a_models_own_tokenizer_passes(task: str) -> None:
    """Also where the configuration leaves ids open."""
    processor = Processor.from_words(VOCABULARY, 32, task=task)
    check_tokenizer(processor, _config(), "x")
    open_ids = _config(dec_token_id=None, enc_token_id=None, sep_token_id=None)
    open_ids.text_config.cls_token_id = None
    check_tokenizer(processor, open_ids, "x")


@pytest.mark.parametrize("task", TASKS)
def test_another_tokenizer_is_refused(task: str) -> None:
    """By each special token that the task uses, with both ids and the settings; those it does not use are no fault."""
    processor = Processor.from_words(VOCABULARY, 32, task=task)
    wrong = _config(dec_token_id=40, enc_token_id=41, sep_token_id=42, pad_token_id=43)
    wrong.text_config.cls_token_id = 44
    used = {"nlvr2": "enc sep", "vqa": "enc dec pad sep", "caption": "dec pad sep", "retrieval": "cls enc sep"}
    others = {"dec": 40, "enc": 41, "sep": 42, "pad": 43, "cls": 44}
    faults = (
        f"[{name.upper()}] is {IDS[f'[{name.upper()}]']} and in the model {others[name]} (model.config.{name}_token_id)"
        for name in used[task].split()
    )
    with pytest.raises(SourceError) as caught:
        check_tokenizer(processor, wrong, "x.pth")
    assert str(caught.value) == (
        f"x.pth: the tokenizer given is not the one of the model: {'; '.join(faults)}; name the model's as "
        "model.tokenizer, or mend model.config if that is what is wrong"
    )


def test_a_tokenizer_with_more_words_than_the_model_is_refused(folder: Path) -> None:
    """It would read beyond the embeddings; one with fewer words is no fault of its own."""
    processor, config = Processor.from_folder(folder), _config()
    config.text_config.vocab_size += 5
    check_tokenizer(processor, config, "x.pth")
    config.text_config.vocab_size = 50
    with pytest.raises(SourceError) as caught:
        check_tokenizer(processor, config, "x.pth")
    message = f"x.pth: the tokenizer {folder} is not the one of the model: it has {len(VOCABULARY)} words and the model"
    assert str(caught.value).startswith(f"{message} 50; ")


def test_a_clip_needs_its_own_end_of_text() -> None:
    """Which is the last word where the configuration is one of HF's oldest."""
    processor = Processor.from_words(VOCABULARY, 32, family="clip", task="retrieval")
    sizes: dict[str, Any] = {"image_size": 32, "vocab_size": len(VOCABULARY)}
    check_tokenizer(processor, small_clip_config(**sizes, eos_token_id=IDS["[SEP]"]), "x")
    for other, wanted in ((7, 7), (2, len(VOCABULARY) - 1)):
        with pytest.raises(SourceError) as caught:
            check_tokenizer(processor, small_clip_config(**sizes, eos_token_id=other), "x")
        fault = f"the end of a text is {IDS['[SEP]']} and in the model {wanted} (model.config.eos_token_id); name"
        assert fault in str(caught.value)


def test_settings_in_the_file_of_transformers_5_are_read(tmp_path: Path) -> None:
    """Its processors write everything into processor_config.json."""
    from transformers import BertTokenizer, BlipProcessor

    own = image_processor("blip", 48, mean=[0.1, 0.2, 0.3], std=[0.5, 0.5, 0.5])
    BlipProcessor(own, BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3})).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    read = Processor.from_folder(tmp_path, image_size=64)
    assert (read.mean, read.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert read.image(Image.new("RGB", (10, 20))).shape == (64, 64, 3)
