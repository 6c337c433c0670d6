"""Errors a user can meet, each with the exit code its command ends with.

A message says what is wrong, where, what was got and what to try, in one line. An error with several faults (a recipe)
has one line per fault. The command line prints every line as `madtp: error: <line>` and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence


class MadtpError(Exception):
    """Stop a command with a message meant for the user."""

    exit_code = 1
    label = "error"


class UsageError(MadtpError):
    """Report a command that was called wrongly, or an output that would overwrite something."""

    exit_code = 2


class RecipeError(MadtpError):
    """Report every fault of a recipe at once.

    `faults` holds one line per fault, each opening with where it stands (`file.yaml:12: ` or `--set key=value: `).
    """

    exit_code = 3

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))


class SourceError(MadtpError):
    """Report a checkpoint or data that is missing, unreadable, or only online while offline."""

    exit_code = 4


class BudgetError(MadtpError):
    """Report a cost budget that was not reached (the checkpoint is kept) or cannot be."""

    exit_code = 5


class ThresholdError(MadtpError):
    """Report a `--fail-if` threshold that was hit."""

    exit_code = 6


class ExportError(MadtpError):
    """Report exported files that do not agree with PyTorch; they are not handed over."""

    exit_code = 7


class Interrupted(MadtpError):
    """Report that the user stopped a command and what was saved."""

    exit_code = 130
    label = "interrupted"
