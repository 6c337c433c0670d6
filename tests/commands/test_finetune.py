"""`madtp finetune` on a tiny model: exit codes, streams, and that Ctrl-C loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import madtp_cli
from madtp_cli.cli import app
from madtp_cli.results import PruneResult
from tests.tiny_runs import DENSE, FOLDER, names, same, weights, write_recipe

pytestmark = pytest.mark.usefixtures("brief_latency")
LONG = "training.steps=60"


def run(folder: Path, *options: str) -> Any:
    recipe = write_recipe(folder, DENSE)
    return CliRunner().invoke(app, ["finetune", "--recipe", str(recipe), "--output", str(folder / "out"), *options])


def left(folder: Path) -> set[str]:
    return names(folder) - {"tiny.yaml"}


def test_it_trains_and_reports(dense: Path, tmp_path: Path) -> None:
    result = run(tmp_path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "step 6/6" in result.stdout
    assert f"checkpoint  {tmp_path / 'out'}" in result.stdout
    assert left(tmp_path) == {"out"}
    assert names(tmp_path / "out") == FOLDER
    assert same(weights(tmp_path / "out"), weights(dense))


def test_json_is_one_document_and_the_one_in_the_folder(tmp_path: Path) -> None:
    result = run(tmp_path, "--json", "--seed", "3", "--set", "training.steps=2")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "out" / "profile.json").read_text(encoding="utf-8"))
    assert "step 2/2" in result.stderr
    assert PruneResult.from_json(result.stdout).to_dict() == {**document, "layers": tuple(document["layers"])}
    assert (document["command"], document["seed"], document["dtype"]) == ("finetune", 3, "fp32")
    assert document["pruned"] is None  # there is one model, a dense one
    assert document["dense"]["latency_ms"].keys() == {"1", "32"}


def test_bf16_trains(tmp_path: Path) -> None:
    document = json.loads(run(tmp_path, "--json", "--precision", "bf16", "--set", "training.steps=2").stdout)
    assert (document["dtype"], document["training_precision"]) == ("fp32", "bf16")


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    result = run(tmp_path, "--precision", "fp16", "--device", "cpu")
    assert result.exit_code == 3
    assert result.stderr == (
        "madtp: error: --precision fp16: training.precision fp16 needs a GPU, got cpu; try bf16 or fp32\n"
    )
    assert left(tmp_path) == set()


def test_a_loss_that_is_no_number_is_one_line(tmp_path: Path) -> None:
    result = run(tmp_path, "--set", "training.learning_rate=1e30", "--set", "training.clip_norm=1e30")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("madtp: error: the loss is ")
    assert "internal error" not in line
    assert "out" not in left(tmp_path)


def test_ctrl_c_keeps_the_state_and_resume_ends_the_same(tmp_path: Path) -> None:
    """A real process, a real signal: exit code 130, one line, and the weights of a run that was never stopped."""
    for name in ("stopped", "whole"):
        (tmp_path / name).mkdir()
    folder = tmp_path / "stopped"
    recipe = write_recipe(folder, DENSE)
    home = str(Path(madtp_cli.__file__).parents[1])
    options = ["--output", str(folder / "out"), "--set", LONG, "--set", "training.log_every=1", "--device", "cpu"]
    with subprocess.Popen(
        [sys.executable, "-m", "madtp_cli", "finetune", "--recipe", str(recipe), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": home, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("step 2/60 "):
                process.send_signal(signal.SIGINT)
                break
        output, errors = process.stdout.read(), process.stderr.read()
    work = folder / "out.partial"
    assert process.returncode == 130
    assert errors.startswith("madtp: interrupted: stopped at step ")
    assert errors.endswith(f" of 60; the state is saved in {work}, go on with --resume\n")
    assert len(errors.splitlines()) == 1
    assert "step 60/60" not in output
    assert left(folder) == {"out.partial"}

    refused = run(folder, "--set", LONG, "--set", "training.log_every=1")
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"madtp: error: {work}: holds an unfinished run; go on with --resume, or start anew with --overwrite\n"
    )
    assert run(folder, "--set", LONG, "--set", "training.log_every=1", "--resume").exit_code == 0
    assert run(tmp_path / "whole", "--set", LONG).exit_code == 0
    assert same(weights(folder / "out"), weights(tmp_path / "whole" / "out"))
    assert left(folder) == {"out"}
