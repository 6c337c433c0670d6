"""The output folder: what is refused, and that a failure leaves everything as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from madtp_cli.engine.training.output import OutputFolder
from madtp_cli.engine.training.resume import METRICS, RUN, STATE
from madtp_cli.errors import MadtpError, SourceError, UsageError
from tests.tiny_runs import names


def checkpoint(folder: Path, text: str = "old") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def unfinished(output: OutputFolder, state: str = STATE) -> None:
    (output.work / state).mkdir(parents=True)
    (output.work / state / RUN).write_text("{}", encoding="utf-8")
    (output.work / METRICS).touch()


def refusal(output: OutputFolder, *, resume: bool = False, overwrite: bool = False) -> str:
    with pytest.raises(MadtpError) as caught:
        output.check(resume=resume, overwrite=overwrite)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is (SourceError if "nothing to resume" in str(caught.value) else UsageError)
    return str(caught.value)


# Checks ------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_fine_however_deep(tmp_path: Path) -> None:
    OutputFolder(tmp_path / "a" / "b").check(resume=False, overwrite=False)
    assert names(tmp_path) == set()


def test_a_relative_folder_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    OutputFolder(Path("a")).check(resume=False, overwrite=False)
    OutputFolder(Path("runs/a")).check(resume=False, overwrite=True)


def test_a_checkpoint_is_replaced_only_on_demand(tmp_path: Path) -> None:
    output = OutputFolder(checkpoint(tmp_path / "a"))
    what_to_do = "choose another --output, or replace it with --overwrite"
    assert refusal(output) == f"{output.final}: it exists; {what_to_do}"
    assert refusal(output, resume=True) == f"{output.final}: this run is already finished; {what_to_do}"
    output.check(resume=False, overwrite=True)


def test_an_empty_folder_is_replaced_on_demand(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    output = OutputFolder(tmp_path / "a")
    assert "it exists" in refusal(output)
    output.check(resume=False, overwrite=True)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_overwrite_replaces_nothing_but_checkpoints(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "thesis"
    if kind == "file":
        target.write_text("years of work", encoding="utf-8")
    else:
        target.mkdir()
        (target / "chapter1.txt").write_text("years of work", encoding="utf-8")
    message = refusal(OutputFolder(target), overwrite=True)
    assert message == (
        f"{target}: exists and is no checkpoint folder, which is all that --overwrite replaces; choose another --output"
    )


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_place_is_no_name(name: str) -> None:
    assert refusal(OutputFolder(Path(name)), overwrite=True) == (
        f"{name}: is no name for a new folder; choose another --output, such as runs/mine"
    )


@pytest.mark.parametrize("state", [STATE, f"{STATE}.old"])
def test_an_unfinished_run_is_not_lost_by_accident(state: str, tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "a")
    unfinished(output, state)
    assert refusal(output) == (
        f"{output.work}: holds an unfinished run; go on with --resume, or start anew with --overwrite"
    )
    output.check(resume=True, overwrite=False)
    output.check(resume=False, overwrite=True)


def test_work_without_a_state_is_nothing_to_lose_or_to_resume(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "a")
    (output.work / f"{STATE}.new").mkdir(parents=True)
    (output.work / METRICS).touch()
    output.check(resume=False, overwrite=False)
    assert refusal(output, resume=True) == f"{output.work}: nothing to resume there; run without --resume"


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "a")
    output.work.mkdir()
    (output.work / "thesis.tex").write_text("years", encoding="utf-8")
    assert refusal(output) == f"{output.work}: is in the way and not ours; move it, or choose another --output"
    assert names(output.work) == {"thesis.tex"}


@pytest.mark.parametrize("below", ["out", "deep/er/out"])
def test_a_file_in_the_way_is_seen_before_anything_is_computed(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    final = tmp_path / "file" / below
    assert refusal(OutputFolder(final)) == (
        f"{final}: cannot be written: {tmp_path / 'file'} is no folder; choose another --output"
    )


def test_a_folder_without_permission_is_seen_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    final = tmp_path / "out"
    assert refusal(OutputFolder(final)) == (
        f"{final}: cannot be written: {tmp_path} cannot be written to; choose another --output"
    )


# The work folder ---------------------------------------------------------------------------------------------


def test_preparing_starts_anew_unless_resumed(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "a")
    unfinished(output)
    output.prepare(resume=True)
    assert names(output.work) == {STATE, "metrics.jsonl"}
    output.prepare(resume=False)
    assert names(output.work) == {"metrics.jsonl"}


def test_a_file_in_place_of_the_work_folder_is_refused(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "a")
    output.work.write_text("", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        output.prepare(resume=False)
    assert str(caught.value) == f"{output.work}: cannot be written: File exists; choose another --output"


# Publishing --------------------------------------------------------------------------------------------------


def fill(folder: Path) -> None:
    (folder / "config.json").write_text("new", encoding="utf-8")


def failing(error: BaseException) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        fill(folder)
        raise error

    return write


@pytest.mark.parametrize("before", [True, False])
def test_the_folder_is_put_in_place_and_nothing_beside_it(before: bool, tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "deep" / "a")
    if before:
        output.final.parent.mkdir()
        checkpoint(output.final)
        (output.final / "gone").write_text("", encoding="utf-8")
    output.prepare(resume=False)
    output.publish(fill)
    assert names(output.final.parent) == {"a"}
    assert names(output.final) == {"config.json"}
    assert (output.final / "config.json").read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_failure_leaves_what_was_there(error: BaseException, before: bool, tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "a")
    if before:
        checkpoint(output.final)
    output.prepare(resume=False)
    with pytest.raises(type(error)):
        output.publish(failing(error))
    assert names(tmp_path) == ({"a", "a.partial"} if before else {"a.partial"})
    if before:
        assert (output.final / "config.json").read_text(encoding="utf-8") == "old"


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "a")
    output.prepare(resume=False)
    with pytest.raises(UsageError) as caught:
        output.publish(failing(OSError(28, "No space left on device")))
    assert str(caught.value) == (
        f"{output.final}: cannot be written: [Errno 28] No space left on device; the trained state is kept in "
        f"{output.work}, make room and go on with --resume"
    )
    assert names(tmp_path) == {"a.partial"}


def test_a_failure_between_the_two_renames_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = OutputFolder(checkpoint(tmp_path / "a"))
    output.prepare(resume=False)
    rename = os.replace

    def fails_once(source: Path, target: Path) -> None:
        if target == output.final and source.name.endswith(".new"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(UsageError, match="Input/output error"):
        output.publish(fill)
    assert names(tmp_path) == {"a", "a.partial"}
    assert (output.final / "config.json").read_text(encoding="utf-8") == "old"


def test_leftovers_of_a_killed_run_are_no_obstacle(tmp_path: Path) -> None:
    output = OutputFolder(checkpoint(tmp_path / "a"))
    for name in (".a.new", ".a.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("", encoding="utf-8")
    output.prepare(resume=False)
    output.publish(fill)
    assert names(tmp_path) == {"a"}
    assert names(output.final) == {"config.json"}
