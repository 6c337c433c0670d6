"""Start one task from a checkpoint of another: which parts go along, and which start anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from madtp_cli.errors import SourceError
from madtp_cli.models.layouts import PRETRAINED, twin_attention

# The parts of a BLIP for each task; a part stands for every key that begins so.
PARTS: Mapping[str, tuple[str, ...]] = {
    "nlvr2": ("vision_model.", "text_encoder."),
    "vqa": ("vision_model.", "text_encoder.", "text_decoder."),
    "caption": ("vision_model.", "text_decoder."),
    "retrieval": ("vision_model.", "text_encoder."),
}
# Heads: taken along where there are any, else as in a new model: drawn at random (the temperature is a constant).
HEADS: Mapping[str, tuple[str, ...]] = {
    "nlvr2": ("cls_head.0.weight", "cls_head.0.bias", "cls_head.2.weight", "cls_head.2.bias"),
    "vqa": (),
    "caption": (),
    "retrieval": (
        "vision_proj.weight",
        "vision_proj.bias",
        "text_proj.weight",
        "text_proj.bias",
        "itm_head.weight",
        "itm_head.bias",
        "temp",
    ),
}
STARTS: Mapping[str, tuple[str, ...]] = {
    PRETRAINED: ("nlvr2", "vqa", "caption", "retrieval"),
    "retrieval": ("nlvr2",),
    "vqa": ("nlvr2", "caption", "retrieval"),
}
"""From what the tensors are for to what else may start from them."""


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


def start(state: Mapping[str, Tensor], family: str, own: str, task: str | None, merge_from: int, where: str) -> Start:
    """Turn tensors under HF's names that are for `own` into those for `task` (None: the same).

    Raises SourceError where that cannot be, or where tensors before finetuning leave the task open.
    """
    if task in (None, own) and own != PRETRAINED:
        return Start(own, state)
    if task is None:
        raise SourceError(
            f"{where}: is BLIP before finetuning, from which several tasks can start; say which: task "
            f"{', '.join(STARTS[PRETRAINED])}"
        )
    if family != "blip" or task not in STARTS.get(own, ()):
        others = ", ".join((own, *STARTS.get(own, ()))) if family == "blip" else own
        raise SourceError(f"{where}: is for {own}, and {task} cannot start from it; it can be opened for {others}")
    if any(key.startswith("alignment.") for key in state):
        raise SourceError(
            f"{where}: holds alignment tokens that were learned for {own}; start {task} from a checkpoint without them"
        )
    if lacking := [part for part in PARTS[task] if not any(key.startswith(part) for key in state)]:
        raise SourceError(f"{where}: has no {lacking[0].rstrip('.')}, and {task} cannot start without")
    heads = HEADS[task]
    going = {key: value for key, value in state.items() if key.startswith(PARTS[task]) or key in heads}
    left = sorted({key.partition(".")[0] for key in state if key not in going})
    fresh = [key for key in heads if key not in going]
    notes = [f"{task} started from {own}" + (f"; left out: {', '.join(left)}" if left else "")]
    if fresh:
        notes.append(f"not in the checkpoint, so drawn at random: {', '.join(fresh)}")
    if task == "nlvr2":
        going, made = twin_attention(going, merge_from)
        fresh += made
        notes.append("both images start from the one cross-attention; merge layers start as the mean of the two")
    return Start(task, going, tuple(fresh), tuple(notes), own)
