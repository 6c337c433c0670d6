"""What an exported model says about itself in `inference.json`: its graphs, and how its outputs become answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from madtp_cli.engine.building.data import make_task
from madtp_cli.engine.building.own_recipe import own_recipe
from madtp_cli.engine.tasks.caption import Caption
from madtp_cli.engine.tasks.vqa import Vqa
from madtp_cli.errors import SourceError
from madtp_cli.export.folder import GraphFile, Port, Ranking, Writing
from madtp_cli.models.checkpoints import Checkpoint
from madtp_cli.models.configs import special_id
from madtp_cli.models.language import LABEL_SMOOTHING
from madtp_cli.models.processor import Processor

LABELS: Mapping[str, tuple[str, ...]] = {"nlvr2": ("false", "true")}
PROMPT = "a picture of"  # of BLIP's captions, where no recipe says another
_TYPES = {torch.float32: "float32", torch.int64: "int64"}

Ports = Mapping[str, tuple[torch.dtype, tuple[int | str, ...]]]


def graph_file(file: str, ports: Ports, inputs: Sequence[str], outputs: Sequence[str]) -> GraphFile:
    """Describe one file by what its graph takes and gives."""

    def port(name: str) -> Port:
        dtype, shape = ports[name]
        return Port(name=name, dtype=_TYPES[dtype], shape=shape)

    return GraphFile(file=file, inputs=tuple(map(port, inputs)), outputs=tuple(map(port, outputs)))


def answering(opened: Checkpoint, processor: Processor) -> dict[str, Any]:
    """Say how a checkpoint's outputs become answers: the fields of Inference that depend on the task.

    A checkpoint without a recipe of its own answers as BLIP does, word by word.
    """
    if opened.task in LABELS:
        return {"labels": LABELS[opened.task]}
    if opened.task not in ("vqa", "caption"):
        return {}
    text = opened.config.text_config
    start, end = special_id(text, "bos_token_id"), special_id(text, "sep_token_id")
    task = task_of(opened, processor)
    if isinstance(task, Vqa) and task.answering.candidates:
        found = task.answering
        k = min(found.k, len(found.candidates))
        return {"ranking": Ranking(answers=found.candidates, opens=start, compared=k, label_smoothing=LABEL_SMOOTHING)}
    shortest, longest = (5, 20) if opened.task == "caption" else (1, 10)
    prompt = tuple(processor.prompt(PROMPT)) if opened.task == "caption" else (start,)
    if isinstance(task, Caption):
        prompt, shortest, longest = task.writing.prompt, task.writing.min_length, task.writing.max_length
    elif isinstance(task, Vqa):
        shortest, longest = task.answering.min_length, task.answering.max_length
    return {"writing": Writing(prompt=prompt, closes=end, min_length=shortest, max_length=longest)}


def task_of(opened: Checkpoint, processor: Processor) -> Any:
    """Return what a checkpoint's own recipe asks of it; None without one, or without the data that it needs."""
    try:
        return make_task(own_recipe(opened), processor, opened.folder)
    except SourceError:  # no recipe, or its data, from which answers would be counted, are not here
        return None
