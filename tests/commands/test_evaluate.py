"""`madtp evaluate` on a tiny model: its report, its document, its predictions and its exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from madtp_cli.cli import app
from madtp_cli.results import EvaluateResult, PruneResult


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *(str(argument) for argument in arguments)])


def test_it_reports_what_the_run_reported(pruned: Path) -> None:
    result = run(pruned)
    assert (result.exit_code, result.stderr) == (0, "")
    before = PruneResult.from_json((pruned / "profile.json").read_text(encoding="utf-8"))
    assert before.pruned is not None
    assert f"{100 * before.pruned.metrics['accuracy']:.1f}%" in result.stdout


def test_json_is_one_document(pruned: Path) -> None:
    result = run(pruned, "--json", "--split", "val", "--limit", 24, "--batch-size", 5)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document.keys() >= {
        *("schema_version", "command", "versions", "device", "dtype", "seed"),
        *("split", "samples", "metrics", "gmacs"),
    }
    assert (document["split"], document["samples"]) == ("val", 24)
    assert document["gmacs"].keys() == {"dense", "pruned", "reduction"}
    assert EvaluateResult.from_json(result.stdout).metrics == document["metrics"]


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_predictions_are_json_lines(flags: list[str], pruned: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    result = run(pruned, "--limit", 10, "--predictions", path, *flags)
    assert result.exit_code == 0
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 10
    assert all(line.keys() == {"id", "prediction", "logits", "gmacs", "tokens_kept"} for line in lines)
    if flags:
        assert json.loads(result.stdout)["predictions"] == str(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("config.json", "no such file; is {folder} a checkpoint folder?"),
        ("model.safetensors", "no such file; the checkpoint folder is incomplete"),
        ("recipe.yaml", "no such file, so the checkpoint's data are unknown; name them with --recipe"),
    ],
)
def test_an_incomplete_checkpoint_ends_with_4(damage: str, message: str, pruned: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pruned, tmp_path / "copy"))
    (folder / damage).unlink()
    result = run(folder)
    assert result.exit_code == 4
    assert result.stderr == f"madtp: error: {folder / damage}: {message.format(folder=folder)}\n"
    assert result.stdout == ""


def test_a_foreign_folder_ends_with_4(tmp_path: Path) -> None:
    result = run(tmp_path, "--json")
    assert result.exit_code == 4
    assert result.stderr == (
        f"madtp: error: {tmp_path / 'config.json'}: no such file; is {tmp_path} a checkpoint folder?\n"
    )
    assert result.stdout == ""


def test_a_folder_is_no_file_for_predictions(pruned: Path, tmp_path: Path) -> None:
    result = run(pruned, "--predictions", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == f"madtp: error: --predictions {tmp_path}: is a folder; name a file in it\n"
