"""The published architectures, shrunk so that a smoke run takes seconds, with nothing to be had from a network."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from typer.testing import CliRunner

from madtp_cli.cli import app
from madtp_cli.engine.building import model as building_model
from madtp_cli.engine.building import smoke
from madtp_cli.models.configs import default_config
from madtp_cli.recipe import shipped_recipes

ROOT = Path(__file__).parents[1]
PUBLISHED = sorted([*(ROOT / "recipes").glob("blip_*.yaml"), *(ROOT / "recipes").glob("clip_*.yaml")])
WIDTH = 32
# What a user fills in where a page says it in capitals, as in `madtp profile CHECKPOINT`.
BLANKS = {"R": "blip_nlvr2", "CHECKPOINT": "builtin:shapes_nlvr", "NAME": "quickstart", "FILE": "quickstart"}


def shrunk(family: str, task: str, overrides: Any = None, image_size: int | None = None) -> Any:
    """Describe the published model with its image size, patches, vision depth and words, but hardly any width.

    A tower as deep as the real one can be pruned as far as the real one.
    """
    config = default_config(family, task, overrides, image_size)
    for tower in (config.vision_config, config.text_config):
        tower.hidden_size, tower.intermediate_size, tower.num_attention_heads = WIDTH, 2 * WIDTH, 1
    config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers = 12, 2
    config.text_config.encoder_hidden_size = WIDTH
    config.projection_dim = config.image_text_hidden_size = 16
    if task == "nlvr2":
        config.text_config.merge_from = 1
    return config


def stand_in(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Work in a folder beside the recipes, offline, with empty caches, and take the shrunk models for the real ones."""
    for module in (building_model, smoke):
        patch.setattr(module, "default_config", shrunk)
    go_offline(patch, folder)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    patch.chdir(folder)


def go_offline(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Leave no network and no caches."""
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # read from the environment once
    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "no-hub"))
    patch.setenv("MADTP_CACHE", str(folder / "no-downloads"))


def typed(command: str, *more: str) -> Any:
    """Run a command as a user types it, `madtp ...`, with more options."""
    program, *arguments = shlex.split(command)
    assert program == "madtp", command
    return CliRunner().invoke(app, [*arguments, *more])


def check_accepted(command: str) -> None:
    """Expect a command of a page to be one: its name, its options and the recipes it names exist."""
    filled = " ".join(BLANKS.get(word, word) for word in command.split())
    result = typed(filled, "--help")
    assert result.exit_code == 0, result.stderr
    names = {path.stem for path in shipped_recipes()}
    for recipe in re.findall(r"--recipe (?:recipes/)?([\w.-]+)", filled):
        assert recipe.removesuffix(".yaml") in {*names, "mine"}, recipe


def write_tokenizer(folder: Path, *words: str) -> Path:
    """Write a BERT tokenizer of a few words."""
    from transformers import BertTokenizer

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder
