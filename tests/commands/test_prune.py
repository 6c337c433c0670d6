"""`madtp prune` on a tiny model: exit codes, streams and what is left on disk, whatever goes wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from madtp_cli.cli import app
from madtp_cli.results import PruneResult
from tests.tiny_runs import FOLDER, PRUNE, interrupt_at, names, same, weights, write_recipe

Run = Callable[..., Any]


@pytest.fixture
def run(dense: Path, tmp_path: Path, untimed: None) -> Run:
    """Return a function that prunes the tiny dense model into `<tmp_path>/out`."""
    recipe = write_recipe(tmp_path, PRUNE, dense)

    def invoke(*options: str, output: Path = tmp_path / "out") -> Any:
        return CliRunner().invoke(app, ["prune", "--recipe", str(recipe), "--output", str(output), *options])

    return invoke


def left(folder: Path) -> set[str]:
    return names(folder) - {"tiny.yaml"}


def check(result: Any, code: int, message: str) -> None:
    """Expect one line on stderr, and an exit code."""
    assert result.exit_code == code, result.stderr
    assert result.stderr == f"madtp: error: {message}\n"


# A run that ends ---------------------------------------------------------------------------------------------


def test_it_prunes_and_reports(run: Run, pruned: Path, tmp_path: Path) -> None:
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    assert "step 10/10" in result.stdout
    assert "calibrated on 64 validation samples" in result.stdout
    assert f"madtp evaluate {tmp_path / 'out'}" in result.stdout
    assert left(tmp_path) == {"out"}
    assert names(tmp_path / "out") == FOLDER
    assert same(weights(tmp_path / "out"), weights(pruned))


def test_json_is_one_document(run: Run, brief_latency: None) -> None:
    result = run("--json", "--set", "training.steps=1", "--set", "budget.tolerance=0.2")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["budget"]["met"] is True
    assert document["budget"]["target_reduction"] == 0.3
    assert PruneResult.from_json(result.stdout).checkpoint == document["checkpoint"]
    for side in ("dense", "pruned"):
        assert document[side].keys() >= {"metrics", "gmacs", "params", "latency_ms", "size_mib"}
    assert "step 1/1" in result.stderr


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_missed_budget_ends_with_5_and_keeps_the_checkpoint(flags: list[str], run: Run, tmp_path: Path) -> None:
    result = run("--set", "budget.tolerance=1e-9", "--set", "training.steps=1", *flags)
    assert result.exit_code == 5
    last = result.stderr.splitlines()[-1]
    assert last.startswith("madtp: error: budget not reached: reduction 0.")
    assert last.endswith(f"the checkpoint is kept and marked so: {tmp_path / 'out'}")
    assert left(tmp_path) == {"out"}
    assert names(tmp_path / "out") == FOLDER
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["madtp"]["budget"]["met"] is False
    assert "**Budget missed: " in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    if flags:
        assert json.loads(result.stdout)["budget"]["met"] is False


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_dry_run_writes_nothing(flags: list[str], run: Run, tmp_path: Path) -> None:
    result = run("--dry-run", *flags)
    assert result.exit_code == 0
    assert left(tmp_path) == set()
    shown = result.stderr if flags else result.stdout
    assert "10 steps of 16 samples in fp32, towards reduction 0.300" in " ".join(shown.split())
    if flags:
        document = json.loads(result.stdout)
        assert (document["dry_run"], document["checkpoint"]) == (True, None)


# Budgets that cannot be --------------------------------------------------------------------------------------


def test_an_impossible_budget_names_the_reachable_range(run: Run, tmp_path: Path) -> None:
    result = run("--set", "budget.reduction=0.99")
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        "madtp: error: --set budget.reduction=0.99: reduction 0.990 cannot be reached: this model and method reach "
        "reductions 0.000 to 0."
    )
    assert "step" not in result.stdout
    assert left(tmp_path) == set()


# Outputs that cannot be --------------------------------------------------------------------------------------


def test_an_output_that_exists(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}", encoding="utf-8")
    check(
        run(),
        2,
        f"{tmp_path / 'out'}: it exists; choose another --output, or replace it with --overwrite",
    )
    assert names(tmp_path / "out") == {"config.json"}
    assert run("--overwrite", "--set", "training.steps=0").exit_code == 0
    assert names(tmp_path / "out") == FOLDER
    assert left(tmp_path) == {"out"}


def test_an_output_that_is_somebodys_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("", encoding="utf-8")
    check(
        run("--overwrite"),
        2,
        f"{tmp_path / 'out'}: exists and is no checkpoint folder, which is all that --overwrite replaces; choose "
        "another --output",
    )
    assert names(tmp_path / "out") == {"thesis.tex"}


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_an_output_below_a_file(flags: list[str], run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    output = tmp_path / "file" / "out"
    message = f"{output}: cannot be written: {tmp_path / 'file'} is no folder; choose another --output"
    check(run(*flags, output=output), 2, message)
    assert left(tmp_path) == {"file"}


def test_a_file_in_place_of_the_work_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_text("", encoding="utf-8")
    message = f"{tmp_path / 'out.partial'}: is in the way and not ours; move it, or choose another --output"
    check(run(), 2, message)
    assert left(tmp_path) == {"out.partial"}


# Checkpoints that cannot be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        ("config.json", None, "no such file; is {folder} a checkpoint folder?"),
        ("config.json", 100, "cannot be read as JSON: "),
        ("model.safetensors", None, "no such file; the checkpoint folder is incomplete"),
        ("model.safetensors", 1000, "cannot be read as safetensors: "),
        ("tokenizer.json", None, "no such file; the checkpoint folder is incomplete"),
    ],
)
def test_a_checkpoint_that_is_not_whole(
    name: str, keep: int | None, message: str, run: Run, dense: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(dense, tmp_path / "copy"))
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if keep is not None:
        (folder / name).write_bytes(content[:keep])
    result = run("--checkpoint", str(folder))
    assert result.exit_code == 4
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"madtp: error: {folder / name}: {message.format(folder=folder)}")
    assert left(tmp_path) == {"copy"}


def test_a_checkpoint_that_is_not_there(run: Run, tmp_path: Path) -> None:
    message = (
        f"{tmp_path / 'no'}: no such checkpoint folder; give a folder that holds config.json and model.safetensors"
    )
    check(run("--checkpoint", str(tmp_path / "no")), 4, message)
    assert left(tmp_path) == set()


def test_a_device_that_is_not_there(run: Run, tmp_path: Path) -> None:
    result = run("--device", "cuda:99")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("madtp: error: --device cuda:99 cannot be used here: ")
    assert left(tmp_path) == set()


# Stopped and resumed -----------------------------------------------------------------------------------------


def test_ctrl_c_ends_with_130_and_resume_goes_on(
    run: Run, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "out.partial"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        result = run("--json")
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == (
        f"madtp: interrupted: stopped at step 4 of 10; the state is saved in {work}, go on with --resume"
    )
    assert left(tmp_path) == {"out.partial"}
    check(run(), 2, f"{work}: holds an unfinished run; go on with --resume, or start anew with --overwrite")
    check(
        run("--resume", "--seed", "1"),
        4,
        f"{work}: its state belongs to another recipe; choose another --output, or start anew with --overwrite",
    )
    assert run("--resume").exit_code == 0
    assert left(tmp_path) == {"out"}
    assert same(weights(tmp_path / "out"), weights(pruned))
    check(
        run("--resume"),
        2,
        f"{tmp_path / 'out'}: this run is already finished; choose another --output, or replace it with --overwrite",
    )


def test_nothing_to_resume(run: Run, tmp_path: Path) -> None:
    check(run("--resume"), 4, f"{tmp_path / 'out.partial'}: nothing to resume there; run without --resume")
    assert left(tmp_path) == set()


def test_an_internal_error_leaves_nothing_half_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from madtp_cli.engine.finishing import finish

    monkeypatch.setattr(finish, "model_card", lambda *arguments, **options: 1 / 0)
    result = run("--set", "training.steps=0")
    assert result.exit_code == 1
    assert result.stderr == (
        "madtp: error: internal error: ZeroDivisionError: division by zero; add --debug for the traceback\n"
    )
    assert left(tmp_path) == {"out.partial"}


def test_one_of_several_processes_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would read the same batches and write over each other."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = "WORLD_SIZE is 2: madtp trains in one process on one device so far; run it without accelerate launch"
    check(run(), 2, f"{told} or torchrun")
    assert left(tmp_path) == set()
