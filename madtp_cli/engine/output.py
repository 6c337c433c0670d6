"""The output folder: checked before anything is computed, filled beside its place, renamed into it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from madtp_cli.engine.resume import RUN, STATE, remove_tree
from madtp_cli.errors import UsageError


@dataclass(frozen=True)
class OutputFolder:
    """Where a run's checkpoint goes, and the folder beside it where the run works."""

    final: Path

    @property
    def work(self) -> Path:
        """The run's own folder: training state and metrics, deleted once the checkpoint is written."""
        return self.final.with_name(self.final.name + ".partial")

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse an output that would lose something; raises UsageError."""
        if self.final.exists() and not overwrite:
            done = "this run is already finished" if resume else "it exists"
            raise UsageError(f"{self.final}: {done}; choose another --output, or replace it with --overwrite")
        unfinished = any((self.work / name / RUN).is_file() for name in (STATE, f"{STATE}.old"))
        if unfinished and not (resume or overwrite):
            raise UsageError(
                f"{self.work}: holds an unfinished run; go on with --resume, or start anew with --overwrite"
            )

    def prepare(self, *, resume: bool) -> None:
        """Make the work folder; raises UsageError if it cannot be written."""
        try:
            if not resume:
                remove_tree(self.work)
            self.work.mkdir(parents=True, exist_ok=True)
            (self.work / "metrics.jsonl").touch()
        except OSError as error:
            raise UsageError(
                f"{self.final}: cannot be written: {error.strerror or error}; choose another --output"
            ) from None

    def publish(self, write: Callable[[Path], None]) -> None:
        """Let `write` fill a temporary folder, put it in place, and clear the work folder."""
        fresh = self.final.with_name(f".{self.final.name}.new")
        old = self.final.with_name(f".{self.final.name}.old")
        remove_tree(fresh)
        fresh.mkdir(parents=True)
        write(fresh)
        if self.final.exists():
            remove_tree(old)
            os.replace(self.final, old)
        os.replace(fresh, self.final)
        remove_tree(old)
        remove_tree(self.work)
