"""Start one task from a checkpoint of another: which parts go along, and which start anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from madtp_cli.errors import SourceError
from madtp_cli.models.family import family_of
from madtp_cli.models.layouts import PRETRAINED


@dataclass(frozen=True)
class Start:
    """Tensors for a task, the keys that start anew (absent from the tensors, or made up), and what was done.

    `started_from` is what the tensors were for, where that is another task or PRETRAINED.
    """

    task: str
    state: Mapping[str, Tensor] = field(repr=False)
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    started_from: str | None = None


def start(
    state: Mapping[str, Tensor], family: str, own: str, task: str | None, known: Mapping[str, Any], where: str
) -> Start:
    """Turn tensors under HF's names that are for `own` into those for `task` (None: the same).

    `known` are settings of the configuration. Raises SourceError where that cannot be, or where tensors before
    finetuning leave the task open.
    """
    if task in (None, own) and own != PRETRAINED:
        return Start(own, state)
    found = family_of(family)
    starting, possible = found.starting, found.starting.starts.get(own, ())
    if task is None:
        raise SourceError(
            f"{where}: is {found.title} before finetuning, from which several tasks can start; say which: task "
            f"{', '.join(possible)}"
        )
    if task not in possible:
        raise SourceError(
            f"{where}: is for {own}, and {task} cannot start from it; it can be opened for "
            f"{', '.join((own, *possible))}"
        )
    if any(key.startswith("alignment.") for key in state):
        raise SourceError(
            f"{where}: holds alignment tokens that were learned for {own}; start {task} from a checkpoint without them"
        )
    parts, heads = starting.parts[task], starting.heads[task]
    if lacking := [part for part in parts if not any(key.startswith(part) for key in state)]:
        raise SourceError(f"{where}: has no {lacking[0].rstrip('.')}, and {task} cannot start without")
    going = {key: value for key, value in state.items() if key.startswith(parts) or key in heads}
    left = sorted({key.partition(".")[0] for key in state if key not in going})
    fresh = [key for key in heads if key not in going]
    notes = [f"{task} started from {own}" + (f"; left out: {', '.join(left)}" if left else "")]
    if fresh:
        notes.append(f"not in the checkpoint, so drawn at random: {', '.join(fresh)}")
    adapted, made, more = starting.adapt(task, going, known)
    return Start(task, adapted, tuple(fresh + made), (*notes, *more), own)
