"""Stop training cleanly and take it up again: signals, and the state on disk."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from accelerate import Accelerator

from madtp_cli.errors import SourceError

STATE = "state"
RUN = "run.json"
METRICS = "metrics.jsonl"  # also marks a work folder as ours


class StopRequest:
    """Turn the first Ctrl-C or SIGTERM into a flag that the loop reads between steps; a second one stops at once.

    `during` names what the loop is doing, which is finished first.
    """

    def __init__(self, notify: Callable[[str], None] = lambda text: None) -> None:
        self.asked = False
        self.during = "this step"
        self._notify = notify
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: whoever runs us there handles signals
                continue
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._notify(
            f"stopping after {self.during}, the state will be saved; Ctrl-C again stops at once and saves nothing"
        )

    def says(self, during: str) -> None:
        """Note what the loop does next, and tell whoever asked to stop already that it comes first."""
        self.during = during
        if self.asked:
            self._notify(f"{during} is due and comes first: a resumed run is to reach the same weights")


def save_state(accelerator: Accelerator, folder: Path, run: Mapping[str, Any]) -> None:
    """Write weights, optimiser, schedule and random state with the run's own numbers; the last good state survives."""
    fresh, final, old = (folder / name for name in (f"{STATE}.new", STATE, f"{STATE}.old"))
    for leftover in (fresh, old):
        remove_tree(leftover)
    # It warns of tensors that two keys share, as a decoder's head and its word embeddings do; they load as they should.
    warner = logging.getLogger("accelerate.utils.other")
    level = warner.level
    warner.setLevel(logging.ERROR)
    try:
        accelerator.save_state(str(fresh))
    finally:
        warner.setLevel(level)
    (fresh / RUN).write_text(json.dumps(run), encoding="utf-8")
    if final.exists():
        os.replace(final, old)
    os.replace(fresh, final)
    remove_tree(old)


def load_state(accelerator: Accelerator, folder: Path, identity: str) -> dict[str, Any]:
    """Load the newest state and return the run's own numbers.

    Raises SourceError if there is none, it cannot be read, or it belongs to another recipe (`identity` differs).
    """
    saved = folder / STATE if (folder / STATE / RUN).is_file() else folder / f"{STATE}.old"
    try:
        run: dict[str, Any] = json.loads((saved / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{folder}: nothing to resume there; run without --resume") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{saved / RUN}: cannot be read: {error}; start anew with --overwrite") from None
    if run.get("identity") != identity:
        raise SourceError(
            f"{folder}: its state belongs to another recipe; choose another --output, or start anew with --overwrite"
        )
    try:
        accelerator.load_state(str(saved))
    except Exception as error:  # accelerate raises many kinds
        message = " ".join(str(error).split())
        raise SourceError(f"{saved}: cannot be read: {message}; start anew with --overwrite") from error
    return run


def remove_tree(folder: Path) -> None:
    """Delete a folder and what is in it, if it exists."""
    shutil.rmtree(folder, ignore_errors=True)
