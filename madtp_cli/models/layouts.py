"""Key layouts of real checkpoints: recognise them, and rename their tensors to ours and back, losing no bit.

Ours are the names of HF transformers (`hf`). The others are in the families' own `layouts.py`. Everything here is a
function of dictionaries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from madtp_cli.errors import SourceError
from madtp_cli.models.family import families, family_of

Layout = str
State = Mapping[str, Tensor]
HF = "hf"
PRETRAINED = "pretrained"
"""Instead of a task: a model before any finetuning, which holds the parts of several tasks."""

# State of a training that is over (momentum copies, queues of negatives), and constants that files carry along.
_TRAINING = re.compile(r"^\w+_m(\.|$)|^(image|text|idx|ptr)_queue$|^queue_ptr$")
_CONSTANT = re.compile(r"\.position_ids$|^(input_resolution|context_length|vocab_size)$")


@dataclass(frozen=True)
class Fused:
    """Query, key and value in one tensor of theirs, in three of ours.

    theirs and ours match both kinds of keys: the block's prefix and, last, weight or bias; ours has q, k or v between.
    name and names say what to put between prefix and last part; beside is a key of the block, theirs and ours, by which
    one prefix is turned into the other.
    """

    theirs: re.Pattern[str]
    ours: re.Pattern[str]
    name: str
    names: str
    beside: tuple[str, str]


@dataclass(frozen=True)
class KeyTable:
    """How a layout calls tensors: names maps theirs to ours.

    A name that ends with a dot stands for all that begins so; {n} is a layer's number. transposed: theirs that multiply
    from the right, where HF has linear maps. finish: adds what the layout's own code expects beside a model's tensors.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    fused: Fused | None = None
    finish: Callable[[State], dict[str, Tensor]] = dict


@dataclass(frozen=True)
class Found:
    """What the keys of a state dict say: its layout, its family and its task, or PRETRAINED."""

    layout: Layout
    family: str
    task: str


def recognise(state: State, where: str) -> Found:
    """Recognise a state dict by its keys; raises SourceError for one that is of no family."""
    known = list(families())
    for family in known:
        if found := family.recognise(state, where):
            return found
    some = ", ".join(list(state)[:4]) or "none"
    tasks = dict.fromkeys(task for family in known for task in family.models)
    *others, last = tasks
    raise SourceError(
        f"{where}: its tensors are those of no {' or '.join(family.title for family in known)} with an image and a "
        f"text side, the first are {some}; try a checkpoint for {', '.join(others)} or {last}"
    )


def to_hf(state: State, where: str = "state dict") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename to HF's names (alignment tensors to ours): the tensors, and the extras that are no part of a model.

    Extras are momentum copies, queues and constants, under their own names. Raises SourceError as `recognise` does.
    """
    found = recognise(state, where)
    family = family_of(found.family)
    table = family.layouts.get(found.layout, KeyTable())
    converted: dict[str, Tensor] = {}
    extras: dict[str, Tensor] = {}
    for key, value in state.items():
        if is_training_state(key) or _CONSTANT.search(key) or key in family.unused:
            extras[key] = value
        elif table.fused is not None and (match := table.fused.theirs.match(key)):
            theirs, ours = table.fused.beside
            block = _rename(match[1] + theirs, table.names).removesuffix(ours)
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                converted[f"{block}{table.fused.names.format(letter)}.{match[2]}"] = part
        else:
            converted[_rename(key, table.names)] = value.T.contiguous() if key in table.transposed else value
    return converted, extras


def is_training_state(key: str) -> bool:
    """Tell momentum copies and queues, which no model has, from other extras."""
    return _TRAINING.search(key) is not None


def from_hf(converted: State, extras: State, layout: Layout) -> dict[str, Tensor]:
    """Undo `to_hf`; raises SourceError naming tensors that the layout has no place for."""
    found = _table(layout)
    table = {ours: theirs for theirs, ours in found.names.items()}
    state: dict[str, Tensor] = {}
    lost = []
    for key, value in converted.items():
        if found.fused is not None and (part := found.fused.ours.match(key)):
            if part[2] == "q":
                names = [f"{part[1]}{found.fused.names.format(letter)}.{part[3]}" for letter in "qkv"]
                theirs, ours = found.fused.beside
                block = _rename(part[1] + ours, table).removesuffix(theirs)
                state[f"{block}{found.fused.name}{part[3]}"] = torch.cat([converted[name] for name in names])
            continue
        name = _rename(key, table)
        if layout != HF and name.startswith(("alignment.", "vision_model.", "text_model.")):
            lost.append(key)
        state[name] = value.T.contiguous() if name in found.transposed else value
    if lost:
        raise SourceError(
            f"layout {layout}: has no place for {', '.join(lost[:4])}{f' and {len(lost) - 4} more' * (len(lost) > 4)}; "
            "try the layout hf, or the one the checkpoint came in"
        )
    return state | dict(extras)


def finished(state: State, layout: Layout) -> dict[str, Tensor]:
    """Add what the layout's own code expects beside a model's own tensors."""
    return _table(layout).finish(state)


def _table(layout: Layout) -> KeyTable:
    tables = {name: table for family in families() for name, table in family.layouts.items()}
    return tables.get(layout, KeyTable()) if layout == HF else tables[layout]


def position_key(state: State) -> str:
    """Name the vision tower's position embedding, [1, N + 1, C] or [N + 1, C]."""
    key = "vision_model.embeddings.position_embedding"
    return key if key in state else f"{key}.weight"


def resize_positions(state: State, patches: int, prefix: int = 1) -> dict[str, Tensor]:
    """Interpolate the vision tower's positions to `patches` x `patches`, bicubically as BLIP does.

    The tokens before the patches, `prefix` of them, keep their own.
    """
    key = position_key(state)
    old = state[key]
    table = old.view(-1, old.shape[-1])  # [prefix + n * n, C]
    side = int((len(table) - prefix) ** 0.5)
    grid = table[prefix:].float().unflatten(0, (side, side)).permute(2, 0, 1)[None]  # [1, C, n, n]
    grid = interpolate(grid, size=(patches, patches), mode="bicubic", align_corners=False)
    positions = grid[0].flatten(1).T.to(old.dtype)  # [patches * patches, C]
    return {**state, key: torch.cat([table[:prefix], positions]).view(*old.shape[:-2], -1, old.shape[-1])}


def _rename(key: str, table: Mapping[str, str]) -> str:
    """Rename one key by a table of names and prefixes; a key that stands in none keeps its name."""
    number = re.search(r"\.(\d+)\.", key)
    template = f"{key[: number.start(1)]}{{n}}{key[number.end(1) :]}" if number else key
    for old, new in table.items():
        if template == old or (old.endswith(".") and template.startswith(old)):
            renamed = new + template.removeprefix(old)
            return renamed.replace("{n}", number[1]) if number else renamed
    return key
