"""`export --hub`: the checkpoint goes, what was exported along with it, and nothing is exported for nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from typer.testing import CliRunner

from madtp_cli.cli import app
from madtp_cli.engine import export
from madtp_cli.results import Gmacs
from madtp_cli.results_export import ExportCheck, ExportResult
from tests.engine.exporting.test_hub import FakeHub


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """Stand in for the hub, logged in."""
    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: fake)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    return fake


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for the export: a folder with one graph; returns the checkpoints that were asked for."""
    asked: list[str] = []

    def export_checkpoint(checkpoint: str, options: Any, **_: Any) -> ExportResult:
        asked.append(checkpoint)
        (tmp_path / "graphs").mkdir()
        (tmp_path / "graphs" / "model.onnx").write_bytes(b"graph")
        return ExportResult(
            command="export",
            checkpoint=checkpoint,
            output=str(tmp_path / "graphs"),
            format=options.format,
            runtime="onnxruntime",
            mode="dynamic",
            precision="fp32",
            opset=20,
            text_tokens=None,
            batch_size=None,
            files=(),
            check=ExportCheck(samples=1, same_kept=1.0, same_answers=1.0, max_difference=0.0, atol=1e-3),
            gmacs=Gmacs(dense=1.0, pruned=0.5, reduction=0.5),
        )

    monkeypatch.setattr(export, "export_checkpoint", export_checkpoint)
    return asked


def test_a_checkpoint_goes_alone(pruned: Path, hub: FakeHub, exported: list[str]) -> None:
    result = run(pruned, "--hub", "me/tiny", "--private", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["command"], document["checkpoint"]) == ("export", str(pruned))
    assert document["hub"]["uploaded"]
    assert document["hub"]["private"]
    assert [name for name, _ in hub.commits] == ["me/tiny"]
    assert not exported


def test_what_is_exported_goes_along(pruned: Path, hub: FakeHub, exported: list[str]) -> None:
    """One commit, one document: that of the export, with the upload in it."""
    result = run(pruned, "--hub", "me/tiny", "--format", "onnx", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["format"] == "onnx"
    paths = {file["path"] for file in document["hub"]["files"]}
    assert {"onnx/model.onnx", "model.safetensors"} <= paths
    ((_, files),) = hub.commits
    assert set(files) == paths
    assert exported == [str(pruned)]


def test_a_dry_run_shows_and_uploads_nothing(pruned: Path, hub: FakeHub, exported: list[str]) -> None:
    result = run(pruned, "--hub", "me/tiny", "--dry-run", "--private")
    assert result.exit_code == 0, result.stderr
    assert "Dry run: nothing was uploaded." in result.stdout
    assert f"madtp export {pruned} --hub me/tiny --private\n" in result.stdout
    result = run(pruned, "--hub", "me/tiny", "--dry-run", "--format", "torch")
    assert "torch/model.onnx" in result.stdout
    assert "next        the same command with --overwrite in place of --dry-run\n" in result.stdout
    assert not hub.made


def test_nothing_is_exported_for_an_upload_that_cannot_be(
    pruned: Path, hub: FakeHub, exported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad id and a missing token are found before minutes of work."""
    result = run(pruned, "--hub", "tiny", "--format", "onnx")
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr == "madtp: error: --hub tiny: names no owner; give owner/name, as in me/tiny\n"
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "without a token" in run(pruned, "--hub", "me/tiny", "--format", "onnx").stderr
    assert not exported


@pytest.mark.parametrize("flag", ["--dry-run", "--private"])
def test_what_is_for_an_upload_is_refused_without_one(flag: str, pruned: Path, exported: list[str]) -> None:
    result = run(pruned, flag)
    assert result.exit_code == 2
    assert result.stderr == f"madtp: error: {flag} is for --hub OWNER/NAME; give that, or leave it out\n"
    assert not exported


@pytest.mark.parametrize("option", ["--mode static", "--no-latency", "--text-tokens 9", "--overwrite", "--max-loss 3"])
def test_options_of_files_are_refused_where_none_are_written(
    option: str, pruned: Path, hub: FakeHub, exported: list[str]
) -> None:
    """Else an upload would leave out what was asked for, and a dry run suggest a command without it."""
    result = run(pruned, "--hub", "me/tiny", "--dry-run", *option.split())
    assert result.exit_code == 2
    assert result.stderr == (
        f"madtp: error: {option.split()[0]} is for exported files, and --hub alone uploads the checkpoint; add "
        "--format, or leave it out\n"
    )
    assert run(pruned, "--hub", "me/tiny", "--dry-run", "--format", "onnx", *option.split()).exit_code == 0


def test_what_was_exported_is_told_where_the_upload_fails(
    pruned: Path, hub: FakeHub, exported: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document of the export is there, without an upload; the error and its exit code too."""

    def lost(*_: Any, **__: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(FakeHub, "create_commit", lost)
    result = run(pruned, "--hub", "me/tiny", "--format", "onnx", "--json")
    assert result.exit_code == 4
    document = json.loads(result.stdout)
    assert (document["output"], document["hub"]) == (str(tmp_path / "graphs"), None)
    assert "me/tiny: the Hugging Face hub cannot be reached (gone)" in result.stderr


def test_only_the_cpu_writes_files(pruned: Path, exported: list[str]) -> None:
    result = run(pruned, "--device", "cuda")
    assert result.exit_code == 2
    assert result.stderr == (
        "madtp: error: --device cuda: files are written and checked on the CPU; give cpu, or leave it out\n"
    )
    assert not exported
    assert run(pruned, "--device", "cpu", "--json").exit_code == 0
    assert exported == [str(pruned)]
