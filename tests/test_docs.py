"""The pages in docs/: every command they tell a user to type is one, those that train run, and so does their Python."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from madtp_cli.data.samples import write_samples
from madtp_cli.models.processor import image_processor
from tests.models import released_states
from tests.tiny_published import ROOT, check_accepted, go_offline, typed

PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
WORDS = {"blip": 30524, "clip": 49408}  # a vocabulary as large as the published one, for its special ids
# Released checkpoints by the names that the pages give them.
FILES = {
    "model_base": "pretrained",
    "model_base_nlvr": "nlvr2",
    "model_base_vqa_capfilt_large": "vqa",
    "model_base_caption_capfilt_large": "caption",
    "model_base_retrieval_coco": "retrieval",
    "clip": "clip",
}
# Two samples in the place of the data, on images as large as those the tiny models were made for, and a budget that
# models of two layers can meet.
SMOKE = ("--smoke", "--set", "data.image_size=32")
BUDGET = ("--set", "budget.reduction=0.02")


def blocks(*languages: str) -> Iterator[tuple[str, str]]:
    """Find the fenced blocks of a language, with their page."""
    for name, text in PAGES.items():
        for language, block in FENCE.findall(text):
            if language in languages:
                yield name, block


COMMANDS = [
    (name, line)
    for name, block in blocks("", "bash", "sh", "console")
    for line in block.splitlines()
    if line.startswith("madtp ")
]
INLINE = [
    (name, code)
    for name, text in PAGES.items()
    for code in re.findall(r"`(madtp [^`]+)`", FENCE.sub("", text).replace("\n", " "))
]
PYTHON = list(blocks("python"))


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write what the pages have a user download, tiny and random, in each format as it is published."""
    folder = tmp_path_factory.mktemp("page")
    into = folder / "downloads"
    into.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for file, kind in FILES.items():
            patch.setattr(released_states, "VOCABULARY", WORDS["clip" if kind == "clip" else "blip"])
            torch.save({"model": released_states.released(kind, madtp=False)}, into / f"{file}.pth")
        patch.setattr(released_states, "VOCABULARY", WORDS["blip"])
        torch.save({"model": released_states.released("vqa")}, into / "released_vqa.pth")
    torch.save(released_states.released("vqa", madtp=False), into / "mine.pth")
    write_hf(into / "blip-vqa-base", "blip")
    write_hf(into / "clip-vit-base-patch16", "clip")
    write_words(into / "bert-base-uncased", "blip")
    cached = folder / "hub" / "models--bert-base-uncased"
    write_words(cached / "snapshots" / "a0", "blip")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a0", encoding="utf-8")
    write_samples("nlvr2", "nlvr2", folder / "data" / "nlvr2")
    return folder


def write_hf(folder: Path, family: str) -> None:
    """Write a folder as the hub has it: configuration, weights, how images are prepared, and a tokenizer."""
    from transformers import BlipConfig, BlipForQuestionAnswering, CLIPConfig, CLIPModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    text = {**sizes, "vocab_size": WORDS[family], "max_position_embeddings": 20, "bos_token_id": WORDS["blip"] - 2}
    torch.manual_seed(0)
    if family == "clip":
        model: Any = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16))
    else:
        text |= {"sep_token_id": 102, "encoder_hidden_size": 32}
        model = BlipForQuestionAnswering(BlipConfig(vision_config=vision, text_config=text))
    model.save_pretrained(folder)
    image_processor(family, 32).save_pretrained(folder)
    write_words(folder, family)


def write_words(folder: Path, family: str) -> None:
    """Write a tokenizer whose special tokens stand where the published one has them: few words, many fillers."""
    from transformers import BertTokenizer, CLIPTokenizer

    if family == "clip":
        letters = [letter + end for letter in string.printable if not letter.isspace() for end in ("", "</w>")]
        fillers = [f"[unused{number}]" for number in range(WORDS["clip"] - len(letters) - 2)]
        words = [*letters, *fillers, "<|startoftext|>", "<|endoftext|>"]
        tokenizer: Any = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    else:
        fillers = [f"[unused{number}]" for number in range(WORDS["blip"])]
        words = ["[PAD]", *fillers[:99], "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "colour", "is", "it", "red"]
        words += fillers[99 : 99 + WORDS["blip"] - 2 - len(words)]  # [DEC] and [ENC] come on top
        tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    tokenizer.save_pretrained(folder)


@pytest.fixture
def at_a_desk(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work beside the downloads, offline, BERT's tokenizer in the cache of the hub."""
    go_offline(monkeypatch, downloads)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(downloads / "hub"))
    monkeypatch.chdir(downloads)
    return downloads


def test_there_is_something_to_test() -> None:
    """Oracle: what this page had when the test was written; a pattern that finds nothing would pass all else."""
    assert len([line for name, line in COMMANDS if name == "checkpoints.md"]) >= 8
    assert len([block for name, block in PYTHON if name == "checkpoints.md"]) >= 9
    assert len(INLINE) >= 4


@pytest.mark.parametrize(("name", "command"), sorted({*COMMANDS, *INLINE}))
def test_a_command_is_one(name: str, command: str) -> None:
    """It has a name, options and recipes that exist."""
    check_accepted(command)


@pytest.mark.parametrize(
    "command",
    [line for name, line in COMMANDS if name == "checkpoints.md" and line.split()[1] in ("prune", "finetune")],
)
def test_a_training_starts_from_the_checkpoint_it_names(command: str, at_a_desk: Path, tmp_path: Path) -> None:
    """Each is tried from a file of the real format, with the command's own options."""
    checkpoint = re.search(r"--checkpoint (\S+)", command)
    assert checkpoint is not None
    assert Path(checkpoint[1]).exists()
    budget = BUDGET if command.split()[1] == "prune" else ()
    result = typed(command, *SMOKE, *budget, "--output", str(tmp_path / "out"))
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


EVALUATIONS = [line for name, line in COMMANDS if name == "checkpoints.md" and " evaluate " in line]


def test_a_file_is_evaluated_on_a_recipes_data(at_a_desk: Path) -> None:
    """The page's own command, data lying where the recipe looks for them, the tokenizer in the cache."""
    (command,) = [line for line in EVALUATIONS if "--set" not in line]
    result = typed(command)
    assert result.exit_code == 0, result.stderr
    assert "on 2 samples of the test split" in " ".join(result.stdout.split())


def test_a_released_file_is_evaluated_as_the_page_says(at_a_desk: Path, tmp_path: Path) -> None:
    """The page's own command on two samples elsewhere: with its temperature, the model prunes."""
    (command,) = [line for line in EVALUATIONS if "--set" in line]
    written = write_samples("vqav2", "vqa", tmp_path / "data")
    keys = {"data.images": written["images"], "data.image_size": "32"}
    for part in ("questions", "annotations"):
        keys |= {f"data.{part}.{split}": name for split, name in written[part].items()}
    result = typed(command, *(word for key, value in keys.items() for word in ("--set", f"{key}={value}")), "--json")
    assert result.exit_code == 0, result.stderr
    assert '"reduction": 0.0,' not in result.stdout


@pytest.mark.parametrize("block", [block for _, block in PYTHON])
def test_python_runs(block: str, at_a_desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block says itself what it gives: its assertions are the oracle."""
    (tmp_path / "downloads").symlink_to(at_a_desk / "downloads")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs", "exec"), {})


def test_what_is_exported_is_read_by_transformers(at_a_desk: Path, tmp_path: Path) -> None:
    """The last block's folder: every tensor arrives in HF's own class."""
    from transformers import BlipForQuestionAnswering

    from madtp_cli.models.checkpoints import open_checkpoint

    (block,) = [block for _, block in PYTHON if "for_transformers" in block]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        (tmp_path / "downloads").symlink_to(at_a_desk / "downloads")
        exec(compile(block, "docs", "exec"), {})
    theirs, loading = BlipForQuestionAnswering.from_pretrained(tmp_path / "for_transformers", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = open_checkpoint(at_a_desk / "downloads" / "model_base_vqa_capfilt_large.pth").build().state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, ours[key]), key
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    file = torch.load(at_a_desk / "downloads" / "model_base_vqa_capfilt_large.pth", weights_only=True)["model"]
    assert again.keys() == file.keys()
    assert all(torch.equal(again[key], file[key]) for key in file)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    """Every relative link names a file of the tree, and a heading of it if it names one."""
    for target, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)]+))?\)", FENCE.sub("", PAGES[name])):
        if "://" not in target:
            assert (ROOT / "docs" / (target or name)).is_file(), target
            assert not heading or heading in anchors((ROOT / "docs" / (target or name)).read_text(encoding="utf-8"))


def anchors(page: str) -> set[str]:
    """Name the headings of a page as links do."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_pictures_are_small_and_described() -> None:
    """A clone should not wait for them, and who cannot see them should know what they show; none lies there unused."""
    pictures = set((ROOT / "docs" / "images").iterdir())
    shown = {
        target: text for page in PAGES.values() for text, target in re.findall(r"!\[([^\]]*)\]\((images/[^)]+)\)", page)
    }
    assert {ROOT / "docs" / target for target in shown} == pictures
    assert all(len(text) > 20 for text in shown.values())
    assert sum(picture.stat().st_size for picture in pictures) < 400_000


def test_the_index_lists_every_page() -> None:
    for name in PAGES:
        assert name == "README.md" or f"]({name})" in PAGES["README.md"], name
