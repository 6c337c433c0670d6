"""What ships: the recipes, each loadable, and a package description that names them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from madtp_cli.cli import app
from madtp_cli.recipe import load_recipe, shipped_recipes

ROOT = Path(__file__).parents[1]


TWINS = ("caption", "clip", "retrieval", "vqa")
RECIPES = {
    *("blip_nlvr2", "blip_vqav2", "blip_caption_coco", "blip_retrieval_coco", "blip_retrieval_flickr30k"),
    *("clip_retrieval_coco", "clip_retrieval_flickr30k"),
    *("quickstart", "shapes_nlvr_p80", "shapes_pretrain"),
    *(f"shapes_{twin}{suffix}" for twin in TWINS for suffix in ("", "_pretrain")),
}


def test_the_papers_seven_settings_and_their_twins_ship() -> None:
    assert [path.stem for path in shipped_recipes()] == sorted(RECIPES)
    assert sorted(path.name for path in (ROOT / "recipes").iterdir()) == [path.name for path in shipped_recipes()]


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_and_opens_with_what_it_is(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.output == f"runs/{path.stem}"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"# [A-Z].*\.", lines[0])
    comments = "\n".join(line for line in lines[: lines.index("version: 1")])
    for word in ("Needs:", "Does:", "Command:"):
        assert f"# {word}" in comments


def test_built_in_checkpoints_stay_small() -> None:
    """Oracle: 25 MB in all, and one dense model for each recipe that starts from one."""
    folder = ROOT / "madtp_cli" / "builtin"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 25e6
    assert {path.name for path in folder.iterdir()} == {"shapes_nlvr", *(f"shapes_{twin}" for twin in TWINS)}


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_the_command_in_a_recipe_is_one_that_exists(path: Path) -> None:
    found = re.search(r"# Command: madtp (\w+) --recipe recipes/(\S+)", path.read_text(encoding="utf-8"))
    assert found is not None
    command, file = found.groups()
    assert file == path.name
    assert command == ("finetune" if load_recipe(path).budget is None else "prune")
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_the_wheel_carries_the_recipes() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '[tool.hatch.build.targets.wheel.force-include]\nrecipes = "madtp_cli/_shipped/recipes"\n' in text
    assert 'madtp = "madtp_cli.cli:main"' in text


def test_every_dependency_is_pinned_for_development() -> None:
    """Names in pyproject.toml and constraints.txt agree; a constraint that is no exact version is none."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(r"^(?:dependencies|onnx|openvino|dev) = \[\n(.*?)^\]", text, re.M | re.S)
    assert len(lists) == 4
    needed = {name.lower() for block in lists for name in re.findall(r'^  "([\w-]+)', block, re.M)} - {"madtp"}
    assert {"torch", "typer", "onnxruntime", "openvino", "pytest"} <= needed
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+( ; python_version >= "3\.\d+")?', pin) for pin in pins)
    assert needed <= {pin.partition("==")[0].lower() for pin in pins}
    assert "torch==2.13.0" in pins  # without a local version: the same for CPU and GPU builds


@pytest.mark.parametrize("name", ["shapes_nlvr", *(f"shapes_{twin}" for twin in TWINS)])
def test_a_built_in_checkpoint_is_as_good_as_its_card_says(name: str) -> None:
    """A few test samples, read by its own recipe: at least 80% right, where chance is far below."""
    result = CliRunner().invoke(app, ["evaluate", f"builtin:{name}", "--limit", "48", "--json"])
    assert result.exit_code == 0, result.stderr
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics.get("accuracy", metrics.get("mean")) > 0.8
