"""A family and a site that madtp has never heard of: added by registration alone, and every command knows them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Ran = dict[str, tuple[int, str, str]]
"""From what a command is about to its exit code, output and errors."""

HERE = Path(__file__).parent
DENSE = """
version: 1
task: caption
model:
  family: toy
  checkpoint: null
  architecture: {vision_layers: 2, vision_width: 24, text_layers: 1, text_width: 24, patch_size: 16}
data: {name: shapes, train_samples: 32, validation_samples: 8, test_samples: 8}
pruning: {method: none}
training: {steps: 1, batch_size: 8, teacher: false, precision: fp32}
inference: {beams: 1, min_length: 1, max_length: 6}
"""
PRUNED = """
version: 1
task: caption
model: {family: toy, checkpoint: dense}
data: {name: shapes, train_samples: 32, validation_samples: 8, test_samples: 8}
budget: {reduction: 0.3, tolerance: 0.05}
pruning: {method: random, layers: {vision: [0], bridge: all, text: none}}
training: {steps: 1, batch_size: 8, precision: fp32}
inference: {beams: 1, min_length: 1, max_length: 6}
"""
MADTP = ["prune", "--recipe", "pruned.yaml", "--output", "other", "--set", "pruning.method=madtp"]
COMMANDS = {
    "finetune": ["finetune", "--recipe", "dense.yaml", "--output", "dense", "--json"],
    "prune": ["prune", "--recipe", "pruned.yaml", "--output", "pruned", "--json"],
    "evaluate": ["evaluate", "pruned", "--predictions", "predictions.jsonl", "--json"],
    "profile": ["profile", "pruned", "--no-latency", "--json", "--fail-if", "tokens_kept.bridge>0.5"],
    "rows": ["profile", "pruned", "--no-latency", "-v"],
    "pictures": ["profile", "pruned", "--no-latency", "--visualize", "pictures"],
    "class row": MADTP,
    "no such site": [*MADTP[:-1], "pruning.layers.brigde=all"],
    "unpruned site": [*MADTP[:-1], "pruning.layers.text=[0]"],
    "export": ["export", "pruned", "--no-latency", "--samples", "8"],
}
PATCHES = 36  # of 96 pixels in patches of 16, and no class token


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy")


@pytest.fixture(scope="module")
def ran(folder: Path) -> Ran:
    """Run all commands in one process that has the toy family in its table."""
    (folder / "dense.yaml").write_text(DENSE, encoding="utf-8")
    (folder / "pruned.yaml").write_text(PRUNED, encoding="utf-8")
    command = [sys.executable, str(HERE / "toy_family" / "run.py"), json.dumps(list(COMMANDS.values()))]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=True)
    return dict(zip(COMMANDS, map(tuple, json.loads(done.stdout)), strict=True))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE.parent), "COLUMNS": "120", "NO_COLOR": "1"}


def document(ran: Ran, command: str) -> Any:
    """Read the JSON document of a command that succeeded."""
    code, output, errors = ran[command]
    assert code == 0, errors
    return json.loads(output)


def test_it_is_added_in_under_sixty_lines() -> None:
    """The whole family, its site included."""
    assert len((HERE / "toy_family" / "family.py").read_text(encoding="utf-8").splitlines()) < 60


def test_it_is_pruned_to_its_budget(ran: Ran, folder: Path) -> None:
    """At both sites, the new one included; the folder says so, and what is left says what it cost."""
    assert document(ran, "finetune")["dense"]["gmacs"] > 0
    found = document(ran, "prune")
    assert found["budget"]["met"]
    kept = {layer["tower"]: layer["tokens_mean"] for layer in found["layers"]}
    assert list(kept) == ["vision", "bridge", "text"]
    assert PATCHES > kept["vision"] > kept["bridge"] >= 1
    assert json.loads((folder / "pruned" / "config.json").read_text(encoding="utf-8"))["madtp"]["layers"] == {
        "vision": [0],
        "bridge": [0],
    }
    assert (folder / "pruned" / "recipe.yaml").read_text(encoding="utf-8").count("bridge: all") == 1
    logged = [json.loads(line) for line in (folder / "pruned" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert set(logged[0]["tokens_kept"]) == {"vision", "bridge", "text"}


def test_its_report_draws_the_site(ran: Ran, folder: Path) -> None:
    """By its name: the share of tokens kept, layers in the table, and patches of samples counted without a prefix."""
    assert document(ran, "prune")["report"]
    page = (folder / "pruned" / "report.html").read_text(encoding="utf-8")
    for text in ("Tokens kept, bridge", "bridge layer 0", f"of {PATCHES} patches"):
        assert text in page
    assert "- bridge: " in (folder / "pruned" / "README.md").read_text(encoding="utf-8")


def test_every_sample_says_what_it_kept_there(ran: Ran, folder: Path) -> None:
    document(ran, "evaluate")
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 8
    for line in map(json.loads, lines):
        kept = line["tokens_kept"]
        assert [len(kept[site]) for site in ("vision", "bridge", "text")] == [2, 1, 1]
        assert kept["bridge"][0] <= kept["vision"][1] < PATCHES


def test_its_cost_adds_up(ran: Ran) -> None:
    """By hand: what `bridge` costs is its merge, one multiply-add for each number of the tokens that are folded."""
    found = document(ran, "profile")
    modules = {module["name"]: module["gmacs"] for module in found["modules"]}
    layers = {(layer["tower"], layer["layer"]): layer["tokens_mean"] for layer in found["layers"]}
    gone = layers["vision", 1] - layers["bridge", 0]
    assert modules["bridge.0.pruning"] == pytest.approx((gone + 1) * 24 / 1e9)
    assert sum(modules.values()) == pytest.approx(found["gmacs"]["pruned"])
    assert found["samples"][0]["tokens_entered"]["bridge"] == PATCHES
    assert "bridge layer 0" in ran["rows"][1]
    assert ran["pictures"][0] == 0


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("class row", 3, "pruning.method madtp needs class_row, which toy models do not have at the site vision; try "),
        ("no such site", 3, "pruning.layers.brigde is not a key; did you mean bridge?"),
        ("export", 2, "export has no graphs for caption (toy); it knows nlvr2 (blip), "),
        ("unpruned site", 3, "pruning.layers.text: the toy's decoder never prunes; remove it"),
    ],
)
def test_what_it_cannot_do_is_said(ran: Ran, command: str, code: int, message: str) -> None:
    assert ran[command][0] == code
    assert message in ran[command][2]
