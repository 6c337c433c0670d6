"""What a list says of a recipe: read off its header and what it starts from."""

from __future__ import annotations

from pathlib import Path

import pytest

from madtp_cli.recipe import find_recipe, shipped_recipes
from madtp_cli.recipe_listing import GROUPS, Listed, listed

BUILT_IN = ("shapes_nlvr_p80", "shapes_vqa", "shapes_caption", "shapes_retrieval", "shapes_clip")
GROUP_OF = {"quickstart": "quickstart", **dict.fromkeys(BUILT_IN, "built-in tasks")}


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_every_shipped_recipe_says_what_it_takes(path: Path) -> None:
    """Published models a GPU, for hours that nobody here has counted; all others minutes on a CPU."""
    found = listed(path)
    published = path.stem.startswith(("blip_", "clip_"))
    assert found.device == ("GPU" if published else "CPU")
    assert (found.minutes is None) is published
    assert found.group == GROUP_OF.get(path.stem, "full-size" if published else "pretraining")
    assert found.group in GROUPS
    assert found.summary.endswith(".")


def test_a_header_is_read_across_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# What it does.\n#\n# Needs:   nothing to download; 2 CPU cores, about\n#          7 minutes.\n"
        "# Does:    about 9 minutes of nothing.\nmodel: {checkpoint: builtin:x}\n",
        encoding="utf-8",
    )
    assert listed(path) == Listed("mine", "built-in tasks", "CPU", 7, "What it does.")
    assert listed(path).takes == "7 min, CPU"


@pytest.mark.parametrize(
    ("needs", "takes"),
    [
        ("nothing to download; 1 CPU core, 3 GB of memory, about 7 minutes.", "7 min, CPU"),
        ("a GPU; the checkpoint below (fetched once).", "GPU"),
        ("the checkpoint below; a GPU, about 90 minutes.", "90 min, GPU"),
        ("nothing to download; about 7 minutes.", "7 min"),
        ("nothing to download.", "-"),
    ],
)
def test_what_a_header_does_not_say_is_not_made_up(needs: str, takes: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"# What it does.\n#\n# Needs:   {needs}\nmodel: {{checkpoint: builtin:x}}\n", encoding="utf-8")
    assert listed(path).takes == takes


def test_the_first_recipe_to_try_has_its_own_group() -> None:
    assert listed(find_recipe("quickstart")).takes == "5 min, CPU"
