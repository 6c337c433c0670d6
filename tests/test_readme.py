"""The README and the page of recipes: what they tell a user to type exists, and their recipe is valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from madtp_cli.cli import app
from madtp_cli.recipe import load_recipe, shipped_recipes
from tests.tiny_published import check_accepted

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_the_two_set_up_commands_are_there_to_the_letter() -> None:
    """A user copies them; CI runs the second one."""
    assert "pip install -c constraints.txt . && madtp prune --recipe recipes/quickstart.yaml" in README
    second = "pip install -c constraints.txt '.[dev]' && pytest"
    assert second in README
    assert second in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_command_it_names_exists() -> None:
    """Oracle: the names registered with the command line."""
    names = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    names |= {group.name for group in app.registered_groups}
    named = set(re.findall(r"`madtp ([a-z]+)", README))
    assert named
    assert named <= names


def test_every_command_it_names_is_accepted() -> None:
    """In blocks and in text: options and recipes exist too."""
    commands = re.findall(r"^(?:pip .* && )?(madtp .+)$", README, re.M)
    commands += re.findall(r"`(madtp [^`]+)`", re.sub(r"```.*?```", "", README, flags=re.S))
    assert len(commands) >= 8
    for command in commands:
        if not command.endswith(" --checkpoint"):  # a mention, with nothing to start from
            check_accepted(" ".join(command.split()))


def test_every_shipped_recipe_is_listed() -> None:
    """Oracle: the files in recipes/. The README names the page that lists them."""
    assert "(docs/recipes.md)" in README
    for path in shipped_recipes():
        assert f"`{path.stem}`" in RECIPES, path.stem


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", RECIPES, flags=re.DOTALL))
def test_its_recipe_is_valid(block: str, tmp_path: Path) -> None:
    """A user starts from it."""
    path = tmp_path / "readme.yaml"
    path.write_text(block, encoding="utf-8")
    load_recipe(path)


def test_its_links_lead_somewhere() -> None:
    """Every relative link names a file of the tree."""
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).is_file(), target
