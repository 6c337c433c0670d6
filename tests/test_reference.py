"""docs/reference.md says what the commands and the recipe say of themselves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from docs import reference
from madtp_cli.cli import app
from madtp_cli.recipe import recipe_schema
from tests.tiny_published import ROOT

PAGE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def test_the_page_is_what_the_code_says() -> None:
    """If not: python -m docs.reference."""
    assert reference.page() == PAGE


def test_a_drift_is_found_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of an older state is refused with what to do; writing it makes it right."""
    page = tmp_path / "reference.md"
    page.write_text(PAGE.replace("--dry-run", "--dry"), encoding="utf-8")
    monkeypatch.setattr(reference, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 1
    monkeypatch.setattr(sys, "argv", ["reference"])
    assert reference.main() == 0
    assert page.read_text(encoding="utf-8") == PAGE


def test_every_option_of_a_command_is_there() -> None:
    """Oracle: --help itself."""
    for command in ("", "prune", "profile", "export", "evaluate"):
        section = PAGE.partition(f"### {f'madtp {command}'.rstrip()}\n")[2].partition("\n### ")[0]
        shown = CliRunner().invoke(app, [*command.split(), "--help"]).stdout
        options = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", shown, re.M)) - {"--help"}
        assert options
        for option in options:
            assert f"{option} " in section or f"{option}`" in section, (command, option)


def test_every_key_of_a_recipe_is_there() -> None:
    """Oracle: the schema's own names."""
    schema = recipe_schema()
    keys = {key for section in (schema, *schema["$defs"].values()) for key in section["properties"]}
    assert len(keys) > 60
    for key in keys:
        assert f"`{key}`" in PAGE, key


def test_sections_that_are_linked_exist() -> None:
    titles = re.findall(r"^#+ (.+)$", PAGE, re.M)
    headings = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    for anchor in re.findall(r"\]\(#([^)]+)\)", PAGE):
        assert anchor in headings, anchor


def test_it_is_written_by_a_command() -> None:
    command = [sys.executable, "-m", "docs.reference", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
