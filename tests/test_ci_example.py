"""docs/ci: the script does what it says, with real commands and any exit code; the workflow uses what exists."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny_published import ROOT, check_accepted
from tests.tiny_runs import PRUNE, write_recipe

SCRIPT = ROOT / "docs" / "ci" / "compress.sh"
WORKFLOW = ROOT / "docs" / "ci" / "compress.yml"
# A `madtp` that notes how it was called, writes what a run leaves, and ends as it is told to.
FAKE = """\
#!/bin/sh
printf '%s\\n' "$*" >> calls
case $1 in
  prune)
    if [ -n "${WRITES-yes}" ]; then
      mkdir -p out
      echo '{"dense": {"metrics": {"accuracy": 0.99}}, "pruned": {"metrics": {"accuracy": 0.97}}}' > out/profile.json
      touch out/config.json out/report.html out/README.md
    fi
    echo '{"command": "prune"}'; exit "${PRUNE_ENDS:-0}";;
  profile) echo '{"command": "profile"}'; exit "${PROFILE_ENDS:-0}";;
esac
"""


def install(folder: Path, program: str) -> dict[str, str]:
    """Put a `madtp` first on the path and return the environment."""
    folder.mkdir()
    (folder / "madtp").write_text(program, encoding="utf-8")
    (folder / "madtp").chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def compress(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(SCRIPT), *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_it_compresses_gates_and_gathers(dense: Path, tmp_path: Path) -> None:
    """The real commands on a tiny model: of two limits one is hit, and all there is to keep is kept."""
    program = f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)} -m madtp_cli "$@"\n'
    recipe = write_recipe(tmp_path, PRUNE, dense)
    environment = {**install(tmp_path / "bin", program), "PRUNE_OPTIONS": "--set training.steps=2 --device cpu"}
    done = compress(tmp_path, environment, str(recipe), "out", "gmacs>1", "reduction<0.9")
    assert done.returncode == 6, done.stderr
    assert "reduction<0.9" in done.stderr
    artifacts = tmp_path / "out-artifacts"
    assert {"README.md", "profile.json", "prune.json"} <= {path.name for path in artifacts.iterdir()}
    assert json.loads((artifacts / "prune.json").read_text())["command"] == "prune"
    hits = {
        each["expression"]: each["hit"] for each in json.loads((artifacts / "profile.json").read_text())["thresholds"]
    }
    assert hits == {"gmacs>1": False, "reduction<0.9": True}


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ({}, 0),
        ({"MAX_LOSS": "2.5"}, 0),
        ({"MAX_LOSS": "1.5"}, 6),
        ({"PROFILE_ENDS": "6"}, 6),
        ({"PRUNE_ENDS": "5"}, 5),
        ({"PRUNE_ENDS": "5", "PROFILE_ENDS": "6", "MAX_LOSS": "1"}, 5),
        ({"PRUNE_ENDS": "2", "WRITES": ""}, 2),
        ({"PRUNE_ENDS": "4", "WRITES": ""}, 4),
        ({"PRUNE_ENDS": "130", "WRITES": ""}, 130),
    ],
    ids=lambda value: "-".join(f"{key}={each}" for key, each in value.items()) if isinstance(value, dict) else None,
)
def test_it_ends_with_the_first_code_that_matters(told: dict[str, str], code: int, tmp_path: Path) -> None:
    """What is there is kept; without a checkpoint of this run nothing is profiled, and none of an older run kept."""
    environment = {**install(tmp_path / "bin", FAKE), **told}
    if "WRITES" in told:
        (tmp_path / "out").mkdir()
        for name in ("config.json", "report.html"):
            (tmp_path / "out" / name).touch()
    assert compress(tmp_path, environment, "quickstart", "out").returncode == code
    kept = {path.name for path in (tmp_path / "out-artifacts").iterdir()}
    if "WRITES" in told:
        assert kept == {"prune.json"}
    else:
        assert kept == {"prune.json", "profile.json", "report.html", "README.md"}


def test_its_arguments_arrive_as_they_are(tmp_path: Path) -> None:
    environment = {**install(tmp_path / "bin", FAKE), "PRUNE_OPTIONS": "--set training.steps=9"}
    (tmp_path / "out.partial" / "state").mkdir(parents=True)
    compress(tmp_path, environment, "my recipe.yaml", "out", "gmacs>0.3", "efficiency.32 < 0.9")
    assert (tmp_path / "calls").read_text().splitlines() == [
        "prune --recipe my recipe.yaml --output out --json --resume --set training.steps=9",
        "profile out --json --fail-if gmacs>0.3 --fail-if efficiency.32 < 0.9",
    ]


def test_it_says_how_it_is_called(tmp_path: Path) -> None:
    done = compress(tmp_path, {**os.environ}, "quickstart")
    assert done.returncode != 0
    assert "usage: compress.sh RECIPE OUTPUT [LIMIT...]" in done.stderr


@pytest.mark.parametrize("loss", ["2%", "nan", "1.5.5", "-1"])
def test_a_loss_that_is_no_number_is_refused_before_anything_runs(loss: str, tmp_path: Path) -> None:
    environment = {**install(tmp_path / "bin", FAKE), "MAX_LOSS": loss}
    done = compress(tmp_path, environment, "quickstart", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"MAX_LOSS={loss} is no number of points" in done.stderr
    assert not (tmp_path / "calls").exists()


def test_the_commands_of_the_script_exist() -> None:
    found = re.findall(r"^madtp .*?(?= >)", SCRIPT.read_text(encoding="utf-8"), re.M)
    assert len(found) == 2
    for command in found:
        plain = command.replace('"$recipe"', "quickstart").replace('"$output"', "out").replace('"$@"', "--fail-if x>1")
        check_accepted(re.sub(r"\$\S+( \S+)?$", "", plain))


def steps() -> list[dict[str, Any]]:
    (job,) = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"].values()
    found: list[dict[str, Any]] = job["steps"]
    return found


def test_the_workflow_is_one() -> None:
    """Steps either use an action or run something; `on` is read as YAML 1.1 reads it, as a truth."""
    document = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert set(document) == {"name", True, "jobs"}
    assert all(("uses" in step) != ("run" in step) for step in steps())
    assert [step["if"] for step in steps()[-2:]] == ["always()"] * 2


def test_what_the_workflow_runs_exists() -> None:
    """Commands are accepted, files are there, and what is kept is what the script gathers."""
    lines = [line for step in steps() if "run" in step for line in step["run"].splitlines()]
    commands = [line for line in lines if line.startswith("madtp ")]
    assert commands
    for command in commands:
        check_accepted(command)
    (script,) = (shlex.split(line) for line in lines if line.startswith("sh "))
    _, path, recipe, output, *limits = script
    assert ROOT / path == SCRIPT
    assert (ROOT / recipe).is_file()
    assert (ROOT / "constraints.txt").is_file()
    assert steps()[-1]["with"]["path"] == f"{output}-artifacts"
    check_accepted(f"madtp profile {output} {' '.join(f'--fail-if {shlex.quote(limit)}' for limit in limits)}")
    pinned = re.search(r"torch==(\S+)", "\n".join(lines))
    assert pinned is not None
    assert f"torch=={pinned[1]}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_a_summary_is_the_card_without_its_header(tmp_path: Path) -> None:
    """The workflow's own line, on a card."""
    (line,) = [step["run"] for step in steps() if "GITHUB_STEP_SUMMARY" in step.get("run", "")]
    (tmp_path / "runs" / "ci-artifacts").mkdir(parents=True)
    (tmp_path / "runs" / "ci-artifacts" / "README.md").write_text("---\na: b\n---\n\n# name\n\n---\n", encoding="utf-8")
    environment = {**os.environ, "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "summary").read_text() == "\n# name\n\n---\n"
