"""The output folder: checked before anything is computed, filled beside its place, renamed into it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from madtp_cli.engine.training.resume import METRICS, RUN, STATE, remove_tree
from madtp_cli.errors import SourceError, UsageError
from madtp_cli.models.checkpoints import CONFIG


@dataclass(frozen=True)
class OutputFolder:
    """Where a run's checkpoint goes, and the folder beside it where the run works.

    `kind` is what lies there, known by its file `marker`: nothing else is ever replaced.
    """

    final: Path
    kind: str = "checkpoint"
    marker: str = CONFIG

    @property
    def work(self) -> Path:
        """The run's own folder: training state and metrics, deleted once the checkpoint is written."""
        return self.final.with_name(self.final.name + ".partial")

    def beside(self, name: str) -> Path:
        """Return a folder of its own beside the checkpoint, which outlives the run."""
        return self.final.with_name(f"{self.final.name}.{name}")

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse, before anything is computed, an output that would lose something or cannot be written.

        Raises UsageError, or SourceError if there is nothing to resume.
        """
        if self.final.name in ("", ".."):
            raise UsageError(f"{self.final}: is no name for a new folder; choose another --output, such as runs/mine")
        if self.final.exists():
            self._check_replaceable(resume=resume, overwrite=overwrite)
        unfinished = any((self.work / name / RUN).is_file() for name in (STATE, f"{STATE}.old"))
        if unfinished and not (resume or overwrite):
            raise UsageError(
                f"{self.work}: holds an unfinished run; go on with --resume, or start anew with --overwrite"
            )
        foreign = self.work.exists() and not (self.work / METRICS).is_file()
        if foreign and (not self.work.is_dir() or any(self.work.iterdir())):
            raise UsageError(f"{self.work}: is in the way and not ours; move it, or choose another --output")
        if resume and not unfinished:
            raise SourceError(f"{self.work}: nothing to resume there; run without --resume")
        nearest = next(folder for folder in self.final.parents if folder.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
            fault = "cannot be written to" if nearest.is_dir() else "is no folder"
            raise UsageError(f"{self.final}: cannot be written: {nearest} {fault}; choose another --output")

    def _check_replaceable(self, *, resume: bool, overwrite: bool) -> None:
        ours = self.final.is_dir() and ((self.final / self.marker).is_file() or not any(self.final.iterdir()))
        if not ours:
            raise UsageError(
                f"{self.final}: exists and is no {self.kind} folder, which is all that --overwrite replaces; choose "
                "another --output"
            )
        if not overwrite:
            done = "this run is already finished" if resume else "it exists"
            raise UsageError(f"{self.final}: {done}; choose another --output, or replace it with --overwrite")

    def prepare(self, *, resume: bool) -> None:
        """Make the work folder; raises UsageError if it cannot be written."""
        try:
            if not resume:
                remove_tree(self.work)
            self.work.mkdir(parents=True, exist_ok=True)
            (self.work / METRICS).touch()
        except OSError as error:
            raise UsageError(
                f"{self.work}: cannot be written: {error.strerror or error}; choose another --output"
            ) from None

    def publish(self, write: Callable[[Path], None]) -> None:
        """Let `write` fill a temporary folder, put it in place, and clear the work folder.

        Whatever fails, what was there before is there again and nothing lies beside it; the work folder stays. Raises
        UsageError if the disk refuses.
        """
        fresh = self.final.with_name(f".{self.final.name}.new")
        old = self.final.with_name(f".{self.final.name}.old")
        try:
            remove_tree(fresh)
            fresh.mkdir(parents=True)
            write(fresh)
            if self.final.exists():
                remove_tree(old)
                os.replace(self.final, old)
            os.replace(fresh, self.final)
        except BaseException as error:
            remove_tree(fresh)
            if old.exists() and not self.final.exists():
                os.replace(old, self.final)
            if isinstance(error, OSError):
                kept = f"the trained state is kept in {self.work}, make room and go on with --resume"
                hint = kept if self.work.exists() else "make room, or choose another --output"
                raise UsageError(f"{self.final}: cannot be written: {error}; {hint}") from error
            raise
        remove_tree(old)
        remove_tree(self.work)
