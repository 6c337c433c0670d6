"""The command: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from benchmarks.speed import __main__ as command
from benchmarks.speed import roofline, schedule
from benchmarks.speed.subjects import SUBJECTS, Subject
from tests.benchmarks.speed.tiny_subjects import WORDS, tiny


def typed(*words: str) -> Result:
    app = typer.Typer()
    app.command()(command.main)
    return CliRunner().invoke(app, words)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Give other tests back the threads that `--threads` took."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time tiny models with sentences they can read."""
    monkeypatch.setattr(command, "build", tiny)
    monkeypatch.setattr(schedule, "build", tiny)
    monkeypatch.setattr(command, "RAGGED_REDUCTION", 0.3)  # their few tokens do not allow more
    monkeypatch.setattr(Subject, "words", WORDS)
    monkeypatch.setattr(roofline, "SQUARE", 16)


@pytest.mark.usefixtures("small")
def test_a_run_prints_its_tables_and_writes_the_same(tmp_path: Path) -> None:
    """Every candidate has its row; tables fit a terminal of 80 columns unabridged."""
    output = tmp_path / "speed.json"
    result = typed("--batch", "1", "--batch", "2", "--reduction", "0.3", "--seconds", "0", "--json", str(output))
    assert result.exit_code == 0, result.output
    assert "…" not in result.stdout
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["dtype"] == "fp32"
    assert found["device"] == "cpu"
    assert found["attention_backend"] == "auto"
    assert len(found["rows"]) == 2 * (4 + 5)
    assert len(found["ragged"]) == 2 * 5
    assert len(found["gmacs_per_second"]) == 3
    for subject in SUBJECTS.values():
        assert f"{subject.title}, batch 2" in result.stdout
    assert "pruned 0.3" in result.stdout


@pytest.mark.usefixtures("small")
def test_a_part_is_run_in_bf16(tmp_path: Path) -> None:
    """What is left out is not there; agreement was checked in fp32, before the weights were rounded."""
    output = tmp_path / "speed.json"
    chosen = ("--model", "clip-l14", "--batch", "1", "--reduction", "0", "--no-ragged", "--precision", "bf16")
    result = typed(*chosen, "--threads", "1", "--seconds", "0", "--json", str(output))
    assert result.exit_code == 0, result.output
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["dtype"] == "bf16"
    assert [row["candidate"] for row in found["rows"]] == ["HF eager", "HF SDPA", "padded SDPA", "ours dense"]
    assert found["ragged"] == []


@pytest.mark.usefixtures("small")
def test_layers_that_prune_can_be_chosen(tmp_path: Path) -> None:
    """The record names them, the wanted reduction is met all the same, and layers that are not there are refused."""
    output = tmp_path / "speed.json"
    chosen = ("--model", "blip-nlvr2", "--batch", "1", "--reduction", "0.3", "--no-ragged", "--seconds", "0")
    result = typed(*chosen, "--vision-layers", "[0, 1]", "--text-layers", "none", "--json", str(output))
    assert result.exit_code == 0, result.output
    found = json.loads(output.read_text(encoding="utf-8"))
    title = f"{SUBJECTS['blip-nlvr2'].title}, vision layers [0, 1], text layers none"
    assert found["layers"] == {title: {"vision": [0, 1], "text": "none"}}
    assert f"{title}, batch 1" in " ".join(result.stdout.split())
    assert found["rows"][-1]["reduction"] == pytest.approx(0.3, abs=0.05)  # there are 17 tokens an image to choose from


@pytest.mark.usefixtures("small")
def test_a_stopped_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "time_subject", stop)
    result = typed("--model", "blip-nlvr2", "--batch", "1", "--reduction", "0.3", "--no-ragged", "--seconds", "0")
    assert result.exit_code == 130
    assert "Roofline" in result.stdout
    assert "stopped: what was timed is printed above, and no file was written" in " ".join(result.stderr.split())


@pytest.mark.usefixtures("small")
def test_what_one_model_cannot_do_is_refused_before_another_is_timed(tmp_path: Path) -> None:
    """The second model has fewer text layers; and without a layer that prunes nothing can be saved."""
    both = ("--model", "blip-nlvr2", "--model", "clip-l14", "--batch", "1", "--seconds", "0")
    for words, message in (
        (
            ("--text-layers", "[0, 2]", "--reduction", "0.3"),
            "--text-layers names layer 2, but the model has layers 0 to 1",
        ),
        (
            ("--vision-layers", "none", "--text-layers", "none"),
            "--reduction 0.3: BLIP-B NLVR2 @384, vision layers none, text layers none saves at most 0.0",
        ),
        (
            ("--vision-layers", "none", "--text-layers", "none", "--reduction", "0"),
            "the reduction of ragged batches, 0.3: BLIP-B NLVR2 @384, vision layers none, text layers none saves "
            "at most 0.000 of its MACs, with one token left in every layer that prunes; try --no-ragged, or let more "
            "layers prune",
        ),
    ):
        result = typed(*both, *words, "--json", str(tmp_path / "speed.json"))
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())
        assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "blip"), "--model blip: there is no such model; try blip-nlvr2 or clip-l14"),
        (("--json", "nowhere/at/all.json"), "there is no folder nowhere/at to write it to; make it first"),
        (("--device", "abacus"), "--device abacus cannot be used here"),
        (("--vision-layers", "a few"), "--vision-layers a few: give all, none, a range such as 0-3 or a list such"),
        (("--text-layers", "[1"), "--text-layers [1: give all, none, a range such as 0-3 or a list such as [0, 2, 4]"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(words: tuple[str, ...], message: str) -> None:
    result = typed(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
