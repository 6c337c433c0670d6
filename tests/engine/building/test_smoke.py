"""Smoke runs: every recipe of the paper, before anything was downloaded, ends in a checkpoint folder that works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from madtp_cli.engine.building.smoke import random_checkpoint, smoke_recipe
from madtp_cli.errors import SourceError
from madtp_cli.models.checkpoints import open_checkpoint
from madtp_cli.models.processor import Processor
from madtp_cli.recipe import Recipe, load_recipe
from madtp_cli.recipe_yaml import Override
from tests.tiny_published import PUBLISHED, ROOT, stand_in, typed, write_tokenizer
from tests.tiny_runs import FOLDER, names

METRICS = {
    "nlvr2": {"accuracy", "consistency"},
    "vqa": {"accuracy"},
    "caption": {"cider_javafree", "bleu4_javafree"},
    "retrieval": {"tr@1", "tr@5", "tr@10", "ir@1", "ir@5", "ir@10", "mean"},
}
# What --smoke writes for each data set: its annotations under the names they are published under.
ANNOTATIONS = {
    "nlvr2": {"train.json", "dev.json", "test1.json"},
    "vqav2": {
        f"v2_{kind}_{split}_{which}.json"
        for kind, which in (("OpenEnded_mscoco", "questions"), ("mscoco", "annotations"))
        for split in ("train2014", "val2014", "test2015")
    },
    "coco": {"dataset_coco.json"},
    "flickr30k": {"dataset_flickr30k.json"},
}
by_name = pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path)


def header(path: Path, word: str) -> str:
    """Read one entry of the comment that a recipe opens with."""
    found = re.search(rf"^# {word}: +(.+)$", path.read_text(encoding="utf-8"), re.M)
    assert found is not None
    return found[1]


def told(stream: str) -> str:
    """Undo the terminal's line breaks."""
    return " ".join(stream.split())


def check(result: Any, code: int, message: str) -> None:
    """Expect one line on stderr, and an exit code."""
    assert result.exit_code == code, result.stderr
    assert result.stderr == f"madtp: error: {message}\n"


# Every recipe ------------------------------------------------------------------------------------------------


def test_the_paper_has_seven_settings() -> None:
    assert [path.stem for path in PUBLISHED] == [
        "blip_caption_coco",
        "blip_nlvr2",
        "blip_retrieval_coco",
        "blip_retrieval_flickr30k",
        "blip_vqav2",
        "clip_retrieval_coco",
        "clip_retrieval_flickr30k",
    ]


@by_name
def test_the_command_to_try_a_recipe_leaves_a_checkpoint_that_works(path: Path, tmp_path: Path) -> None:
    """The header's own command ends with 0; its folder is whole, opens, prunes, and `madtp evaluate` reads it."""
    recipe = load_recipe(path)
    real = tmp_path / recipe.output
    real.mkdir(parents=True)
    (real / "config.json").write_text("{}", encoding="utf-8")

    result = typed(header(path, "Try it"))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "smoke run: two samples, one step; the path works, the figures mean nothing" in told(result.stdout)
    assert (names(real), (real / "config.json").read_text(encoding="utf-8")) == ({"config.json"}, "{}")
    out = real.with_name(f"{real.name}-smoke")
    assert names(out) == FOLDER | ({"answers.json"} if recipe.task == "vqa" else set())
    assert names(real.parent) == {real.name, out.name, f"{out.name}.data"}
    assert {file.name for file in (real.parent / f"{out.name}.data").glob("*.json")} == ANNOTATIONS[recipe.data.name]

    opened = open_checkpoint(out)
    assert (opened.family, opened.task) == (recipe.model.family, recipe.task)
    assert opened.config.vision_config.image_size == recipe.data.image_size
    model = opened.build()
    assert model.plan is not None
    assert model.strength > 0
    written = json.loads((out / "profile.json").read_text(encoding="utf-8"))
    assert written["smoke"] is True
    assert written["budget"]["reached_reduction"] > 0
    evaluated = typed(f"madtp evaluate {out} --json")
    assert evaluated.exit_code == 0, evaluated.stderr
    document = json.loads(evaluated.stdout)
    assert document["metrics"].keys() >= METRICS[recipe.task]
    assert document["gmacs"]["reduction"] == pytest.approx(written["budget"]["reached_reduction"])


@by_name
def test_the_command_of_a_recipe_is_accepted(path: Path) -> None:
    """Offline it ends at the checkpoint that the recipe names, with what to fetch by hand: nothing before was wrong."""
    result = typed(header(path, "Command"))
    assert result.exit_code == 4, result.stderr
    assert result.stderr.startswith(f"madtp: error: {load_recipe(path).model.checkpoint}: ")
    assert "where there is a network" in result.stderr


@pytest.mark.parametrize("name", ["clip_retrieval_coco", "clip_retrieval_flickr30k"])
def test_the_other_command_of_a_recipe_trains_a_dense_model(name: str, tmp_path: Path) -> None:
    """CLIP's headers name settings of `madtp finetune` that the pruning can start from."""
    text = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8").replace("\n#", " ")
    found = re.search(r"\(madtp finetune with\s+([^)]+)\)", text)
    assert found is not None
    result = typed(f"madtp finetune --recipe {name} --random-init --smoke --output out {found[1]}")
    assert result.exit_code == 0, result.stderr
    assert open_checkpoint(tmp_path / "out").spec.method == "none"


@by_name
def test_the_pages_that_a_recipe_names_exist(path: Path) -> None:
    pages = set(re.findall(r"docs/\w+\.md", path.read_text(encoding="utf-8")))
    assert pages >= {"docs/data.md", "docs/checkpoints.md"}
    assert all((ROOT / page).is_file() for page in pages)


# What a smoke run is made of ---------------------------------------------------------------------------------


@pytest.fixture
def captions() -> Recipe:
    return load_recipe("blip_caption_coco")


def test_two_samples_take_the_place_of_the_data(captions: Recipe, tmp_path: Path) -> None:
    """One step on two samples that lie where it was told; every setting that shapes the model is the recipe's."""
    tried = smoke_recipe(captions, tmp_path / "data")
    assert (tried.training.steps, tried.training.epochs, tried.training.batch_size) == (1, None, 2)
    assert (tried.data.name, tried.data.annotations) == ("coco", str(tmp_path / "data" / "dataset_coco.json"))
    assert tried.data.image_size == 384
    for section in ("model", "pruning", "alignment", "budget"):
        assert getattr(tried, section) == getattr(captions, section)
    assert not smoke_recipe(load_recipe("blip_caption_coco", ["distillation.cache=true"]), tmp_path).distillation.cache
    again = load_recipe("blip_caption_coco", [Override("--output", ("output",), tried.output)])
    assert again.training.epochs == 5  # the recipe itself is as it was


def test_random_weights_are_the_seeds(captions: Recipe) -> None:
    """The same twice, others for another seed; the words are those of the samples, and the note says so."""
    first, _ = random_checkpoint(captions)
    second, processor = random_checkpoint(captions)
    assert first.notes == (
        "random weights; its tokenizer is not here, so the words are those of the generated samples",
    )
    assert all(torch.equal(first.state[key], second.state[key]) for key in first.state)
    other, _ = random_checkpoint(load_recipe("blip_caption_coco", ["training.seed=7"]))
    key = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(first.state[key], other.state[key])
    start, *_, end = processor.answer("a red circle")
    assert (first.config.text_config.bos_token_id, first.config.text_config.sep_token_id) == (start, end)


def test_a_tokenizer_that_is_there_is_used(tmp_path: Path) -> None:
    """The published special ids stay, and the folder that is written has its words."""
    words = write_tokenizer(tmp_path / "words", "red", "circle")
    given = ("--set", f"model.tokenizer={words}")
    result = typed("madtp prune --recipe blip_nlvr2 --random-init --smoke --output out", *given)
    assert result.exit_code == 0, result.stderr
    assert "its tokenizer is not here" not in told(result.stdout)
    out = tmp_path / "out"
    assert open_checkpoint(out).config.text_config.bos_token_id == 7
    vocabulary = Processor.from_folder(out).tokenizer.get_vocab()
    assert vocabulary.keys() == {
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"),
        *("red", "circle"),
    }


def test_a_tokenizer_that_is_named_and_not_there_is_refused(captions: Recipe) -> None:
    """Another one in its place would be found out only later."""
    named = load_recipe("blip_caption_coco", ["model.tokenizer=nobody/words"])
    with pytest.raises(SourceError, match=r"^nobody/words: this tokenizer is neither a folder here nor in the cache"):
        random_checkpoint(named)


def test_a_checkpoint_that_is_there_can_be_tried(tmp_path: Path) -> None:
    """Without --random-init the weights are the checkpoint's; the data are generated anyway."""
    result = typed("madtp prune --recipe quickstart --smoke --output out")
    assert (result.exit_code, result.stderr) == (0, "")
    assert names(tmp_path / "out") == FOLDER
    assert names(tmp_path) == {"recipes", "out"}


# Options that contradict each other --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "prune --recipe blip_nlvr2 --random-init",
            "--random-init is for trying a recipe with --smoke; a real run starts from trained weights",
        ),
        (
            "finetune --recipe shapes_pretrain --random-init --smoke",
            "shapes_pretrain trains from scratch anyway; leave --random-init out",
        ),
        ("prune --recipe blip_nlvr2 --smoke --dry-run", "--smoke and --dry-run exclude each other; give one"),
        ("prune --recipe blip_nlvr2 --smoke --resume", "--smoke and --resume exclude each other; give one"),
    ],
)
def test_contradictions_are_refused(command: str, message: str, tmp_path: Path) -> None:
    check(typed(f"madtp {command}"), 2, message)
    assert names(tmp_path) == {"recipes"}


def test_a_second_smoke_run_replaces_the_first_where_it_chose_the_folder(tmp_path: Path) -> None:
    """What an earlier one left means nothing; a folder that was asked for by name is not touched."""
    out = tmp_path / "runs" / "blip_nlvr2-smoke"
    out.mkdir(parents=True)
    (out / "config.json").write_text("{}", encoding="utf-8")
    assert typed("madtp prune --recipe blip_nlvr2 --random-init --smoke").exit_code == 0
    assert names(out) == FOLDER
    check(
        typed(f"madtp prune --recipe blip_nlvr2 --random-init --smoke --output {out}"),
        2,
        f"{out}: it exists; choose another --output, or replace it with --overwrite",
    )


def test_random_weights_are_for_checkpoints_that_are_not_here() -> None:
    told = "builtin:shapes_nlvr comes with its weights; leave --random-init out"
    check(typed("madtp prune --recipe quickstart --random-init --smoke"), 2, told)
