"""`madtp recipes`: what it prints, copies and refuses."""

from __future__ import annotations

import io
import json
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from madtp_cli.cli import app
from madtp_cli.recipe import find_recipe, load_recipe, shipped_recipes


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["recipes", *arguments])


def test_ls_has_one_line_per_recipe_in_a_pipe() -> None:
    """Name first, however long the line: grep and cut find what they look for."""
    result = run("ls")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert sorted(line.split()[0] for line in lines) == [path.stem for path in shipped_recipes()]
    (quickstart,) = (line for line in lines if line.startswith("quickstart "))
    assert re.split(" {2,}", quickstart) == [
        *("quickstart", "quickstart", "5 min, CPU"),
        "Halve the cost of the built-in model: the whole path of madtp in a few minutes.",
    ]
    (full_size,) = (line for line in lines if line.startswith("blip_nlvr2 "))
    assert re.split(" {2,}", full_size)[1:3] == ["full-size", "GPU"]


def on_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the recipes on a terminal of so many columns; its own line breaks are not in what is printed."""
    console = Console(force_terminal=True, width=width, no_color=True, color_system=None, file=io.StringIO())
    monkeypatch.setattr("madtp_cli.commands.recipes.open_console", lambda **_: nullcontext(console))
    assert run("ls").exit_code == 0
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_ls_has_a_table_per_group_on_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headings in order; every name whole, on a line of its own; no line is longer than the terminal or cut off."""
    lines = on_a_terminal(width, monkeypatch)
    assert max(map(len, lines)) <= width
    assert not any("\u2026" in line or line.endswith("...") for line in lines)
    headings = [
        "Quickstart: where to begin",
        "Built-in tasks: small models on generated data",
        "Full-size: published models on real data",
        "Pretraining: how the small dense models were made",
    ]
    assert [line for line in lines if line in headings] == headings
    opened = [line.split()[0] for line in lines if line and not line.startswith(" ") and line not in headings]
    assert sorted(opened) == [path.stem for path in shipped_recipes()]
    words = " ".join(" ".join(lines).split())
    assert "quickstart 5 min, CPU Halve the cost of the built-in model:" in words


@pytest.mark.parametrize("width", [20, 40, 55])
def test_ls_has_lines_that_nothing_is_missing_from_on_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal breaks them; a table would leave the summaries out, then the minutes. Oracle: what a pipe gets."""
    piped = run("ls").stdout.splitlines()
    assert on_a_terminal(width, monkeypatch) == piped


def test_ls_as_json() -> None:
    document = json.loads(run("ls", "--json").stdout)
    assert document["command"] == "recipes ls"
    assert [recipe["name"] for recipe in document["recipes"]] == [path.stem for path in shipped_recipes()]
    assert all(Path(recipe["path"]).is_file() for recipe in document["recipes"])


def test_show_prints_the_file_as_it_is() -> None:
    assert run("show", "quickstart").stdout == find_recipe("quickstart").read_text(encoding="utf-8")


def test_show_as_json_spells_out_every_setting() -> None:
    document = json.loads(run("show", "quickstart", "--json").stdout)
    assert document["command"] == "recipes show"
    assert document["recipe"] == load_recipe("quickstart").model_dump(mode="json")


def test_show_takes_a_file_as_well(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("x: 1\n", encoding="utf-8")
    assert run("show", str(path)).stdout == "x: 1\n"


@pytest.mark.parametrize("command", [["show", "quikstart"], ["cp", "quikstart", "x"], ["validate", "quikstart"]])
def test_an_unknown_name_is_refused_with_a_near_one(command: list[str]) -> None:
    result = run(*command)
    assert result.exit_code == 3
    assert result.stderr == (
        "madtp: error: quikstart: no such file and no shipped recipe of this name; did you mean quickstart?\n"
    )


def test_cp_copies_to_a_file_or_into_a_folder(tmp_path: Path) -> None:
    text = find_recipe("quickstart").read_text(encoding="utf-8")
    for target, written in ((tmp_path / "mine.yaml", tmp_path / "mine.yaml"), (tmp_path, tmp_path / "quickstart.yaml")):
        result = run("cp", "quickstart", str(target))
        assert result.exit_code == 0
        message = f"{written}: copied; after your changes, check it with: madtp recipes validate {written}\n"
        assert result.stdout == message
        assert written.read_text(encoding="utf-8") == text


def test_cp_as_json(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    document = json.loads(run("cp", "quickstart", str(target), "--json").stdout)
    assert (document["command"], document["path"]) == ("recipes cp", str(target))
    assert document["recipe"]["output"] == "runs/mine"


def test_cp_does_not_replace_a_file_unless_told_to(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    target.write_text("mine", encoding="utf-8")
    result = run("cp", "quickstart", str(target))
    assert result.exit_code == 2
    assert result.stderr == f"madtp: error: {target} exists; name another file or add --overwrite\n"
    assert target.read_text(encoding="utf-8") == "mine"
    assert run("cp", "quickstart", str(target), "--overwrite").exit_code == 0
    assert target.read_text(encoding="utf-8") != "mine"


def test_cp_needs_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "no" / "mine.yaml"
    result = run("cp", "quickstart", str(target))
    assert result.exit_code == 2
    assert result.stderr == f"madtp: error: {target}: there is no folder {target.parent}; make it first\n"


def test_cp_to_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    target = tmp_path / "file" / "mine.yaml"
    result = run("cp", "quickstart", str(target))
    assert result.exit_code == 2
    assert result.stderr == f"madtp: error: {target} cannot be written (Not a directory)\n"


def test_validate_says_valid() -> None:
    result = run("validate", "quickstart", "--set", "training.steps=3")
    assert (result.exit_code, result.stdout) == (0, "quickstart: valid\n")


def test_validate_as_json_spells_out_every_setting() -> None:
    document = json.loads(run("validate", "quickstart", "--set", "training.steps=3", "--json").stdout)
    assert (document["valid"], document["faults"]) == (True, [])
    assert document["recipe"]["training"]["steps"] == 3


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_validate_lists_every_fault(flags: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    text = find_recipe("quickstart").read_text(encoding="utf-8")
    path.write_text(text.replace("reduction:", "reducton:").replace("steps: 400", "steps: x"), encoding="utf-8")
    result = run("validate", str(path), "--set", "data.seed=-1", *flags)
    assert result.exit_code == 3
    faults = result.stderr.splitlines()
    assert [fault.replace(f"madtp: error: {path.parent}{os.sep}", "").split(": ", 1)[1] for fault in faults] == [
        "budget.reducton is not a key; did you mean reduction?",
        "training.steps must be a whole number, got 'x' (text)",
        "error: --set data.seed=-1: data.seed must be at least 0, got -1",
    ]
    if flags:
        document = json.loads(result.stdout)
        assert document["valid"] is False
        assert [f"madtp: error: {fault}" for fault in document["faults"]] == faults
    else:
        assert result.stdout == ""


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_schema_is_a_json_schema_that_fits_the_shipped_recipes(flags: list[str]) -> None:
    schema = json.loads(run("schema", *flags).stdout)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for path in shipped_recipes():
        data = json.loads(run("show", path.stem, "--json").stdout)["recipe"]
        jsonschema.Draft202012Validator(schema).validate(data)
    assert yaml.safe_load(find_recipe("quickstart").read_text(encoding="utf-8")).keys() <= schema["properties"].keys()
