"""Stopping and taking up again: signals become a flag, and the last good state survives whatever happens."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from madtp_cli.engine.training.resume import RUN, STATE, StopRequest, load_state, remove_tree, save_state
from madtp_cli.errors import SourceError
from tests.tiny_runs import names

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])


# Signals -----------------------------------------------------------------------------------------------------


@SIGNALS
def test_the_first_signal_is_a_flag_and_the_second_stops_at_once(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_what_is_finished_first_is_said() -> None:
    """Asked in a step, what comes before the state is announced; asked in a validation, that is what is waited for."""
    said: list[str] = []
    again = "the state will be saved; Ctrl-C again stops at once and saves nothing"
    with StopRequest(said.append) as stop:
        stop.says("the validation of this step")
        assert said == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert said == [f"stopping after the validation of this step, {again}"]
    said.clear()
    with StopRequest(said.append) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        stop.says("the validation of this step")
    assert said[0] == f"stopping after this step, {again}"
    assert said[1] == "the validation of this step is due and comes first: a resumed run is to reach the same weights"


@SIGNALS
def test_the_handlers_from_before_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest():
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_signals_are_somebody_elses() -> None:
    asked: list[bool] = []

    def work() -> None:
        with StopRequest() as stop:
            asked.append(stop.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]


# State on disk -----------------------------------------------------------------------------------------------


def prepared() -> tuple[Accelerator, nn.Module, torch.optim.Optimizer]:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module, optimizer = accelerator.prepare(module, optimizer)
    return accelerator, module, optimizer


def learn(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        loss: Any = module(torch.rand(4, 3)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def saved(folder: Path, step: int = 2) -> None:
    accelerator, module, optimizer = prepared()
    learn(module, optimizer, step)
    save_state(accelerator, folder, {"identity": "me", "step": step})


def test_weights_moments_and_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    accelerator, module, optimizer = prepared()
    learn(module, optimizer, 2)
    save_state(accelerator, tmp_path, {"identity": "me", "step": 2})
    learn(module, optimizer, 3)

    accelerator, again, optimizer = prepared()
    assert load_state(accelerator, tmp_path, "me") == {"identity": "me", "step": 2}
    learn(again, optimizer, 3)
    assert all(again.state_dict()[key].equal(value) for key, value in module.state_dict().items())


def test_only_the_newest_state_is_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    saved(tmp_path, 2)
    assert names(tmp_path) == {STATE}
    assert load_state(prepared()[0], tmp_path, "me")["step"] == 2


def test_a_run_that_is_killed_while_it_saves_goes_on_from_the_state_before(tmp_path: Path) -> None:
    """Between the two renames only the old state has its name; before them the new one is half there."""
    saved(tmp_path, 1)
    (tmp_path / f"{STATE}.new").mkdir()
    assert load_state(prepared()[0], tmp_path, "me")["step"] == 1
    (tmp_path / STATE).rename(tmp_path / f"{STATE}.old")
    assert load_state(prepared()[0], tmp_path, "me")["step"] == 1
    saved(tmp_path, 2)
    assert names(tmp_path) == {STATE}


def test_a_failure_while_saving_keeps_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    accelerator, _, _ = prepared()
    monkeypatch.setattr(accelerator, "save_state", full)
    with pytest.raises(OSError, match="No space left"):
        save_state(accelerator, tmp_path, {"identity": "me", "step": 2})
    assert load_state(prepared()[0], tmp_path, "me")["step"] == 1


def no_state(folder: Path) -> None:
    remove_tree(folder / STATE)


def half_a_run(folder: Path) -> None:
    (folder / STATE / RUN).write_text('{"identity": ', encoding="utf-8")


def half_the_weights(folder: Path) -> None:
    (path,) = (folder / STATE).glob("model*")
    path.write_bytes(path.read_bytes()[:50])


def no_optimizer(folder: Path) -> None:
    (folder / STATE / "optimizer.bin").unlink()


def another_recipe(folder: Path) -> None:
    (folder / STATE / RUN).write_text('{"identity": "you"}', encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "start", "end"),
    [
        (no_state, "", ": nothing to resume there; run without --resume"),
        (half_a_run, f"/{STATE}/{RUN}: cannot be read: ", "; start anew with --overwrite"),
        (half_the_weights, f"/{STATE}: cannot be read: ", "; start anew with --overwrite"),
        (no_optimizer, f"/{STATE}: cannot be read: ", "; start anew with --overwrite"),
        (
            another_recipe,
            ": its state belongs to another recipe",
            "; choose another --output, or start anew with --overwrite",
        ),
    ],
)
def test_what_cannot_be_resumed_is_one_line(
    damage: Callable[[Path], None], start: str, end: str, tmp_path: Path
) -> None:
    saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(SourceError) as caught:
        load_state(prepared()[0], tmp_path, "me")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}{start}")
    assert message.endswith(end)
    assert "\n" not in message


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove_tree(tmp_path / "a")
    (tmp_path / "a" / "b").mkdir(parents=True)
    remove_tree(tmp_path / "a")
    assert names(tmp_path) == set()
