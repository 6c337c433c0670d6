"""docs/troubleshooting.md quotes what is said: every command on the page is typed, and must say and end as it says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch

from madtp_cli.data.samples import write_samples
from tests.models import released_states
from tests.tiny_published import ROOT, go_offline, typed
from tests.tiny_runs import PRUNE, interrupt_at, write_recipe

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def quotes() -> list[tuple[str, str, int | None]]:
    """Find every command, what it says, and the exit code of its section, or of the sentence before it."""
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.M)[1:]:
        codes = re.findall(r"exit code (\d+)", section.partition("\n")[0])
        before = 0
        for block in re.finditer(r"^```console\n\$ (.+?)\n(.*?)^```$", section, re.M | re.S):
            own = codes or re.findall(r"exit code (\d+)", section[before : block.start()])
            found.append((block[1], block[2], int(own[-1]) if own else None))
            before = block.end()
    return found


@pytest.fixture
def desk(pruned: Path, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brief_latency: None) -> Path:
    """Lay out what the commands find: a run that is done, one that was stopped, weights, data that lack an image."""
    go_offline(monkeypatch, tmp_path)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    shutil.copytree(pruned, tmp_path / "runs" / "quickstart")
    (tmp_path / "runs" / "stopped.partial" / "state").mkdir(parents=True)
    (tmp_path / "runs" / "stopped.partial" / "state" / "run.json").write_text("{}", encoding="utf-8")
    torch.save(released_states.released("nlvr2", madtp=False), tmp_path / "weights.pth")
    write_recipe(tmp_path, PRUNE, dense).rename(tmp_path / "mine.yaml")
    written = write_samples("nlvr2", "nlvr2", tmp_path / "data" / "nlvr2")
    next(path for path in sorted(Path(written["images"]).rglob("*.png")) if "test" in path.name).unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_something_to_test() -> None:
    """Oracle: what the page had when this was written; a pattern that finds nothing would pass all else."""
    assert len(quotes()) >= 20
    assert PAGE.count("madtp: error:") + PAGE.count("madtp: interrupted:") > 20
    assert {code for _, _, code in quotes()} == {1, 2, 3, 4, 5, 130}


@pytest.mark.parametrize(("command", "said", "code"), quotes(), ids=[command for command, _, _ in quotes()])
def test_a_quoted_message_is_what_is_said(
    command: str, said: str, code: int, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = said.splitlines()
    if lines[0] == "^C":
        interrupt_at(monkeypatch, 2)
        lines = lines[1:]
    result = typed(command)
    errors = [line for line in result.stderr.splitlines() if line.startswith("madtp: ")]
    assert result.exit_code == code, result.stderr
    assert len(errors) == len(lines), errors
    for line, error in zip(lines, errors, strict=True):
        pattern = ".*".join(map(re.escape, line.split("...")))
        assert re.fullmatch(pattern, error), error
