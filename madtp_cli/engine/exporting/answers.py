"""What an export folder answers by itself, beside the model that it was made from: the same samples, the same metric.

Graphs may agree and a folder still answer otherwise, if its description or its own code went wrong; and where an answer
is several words long, only whole answers tell how right a model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from madtp_cli.data.batch import Batch
from madtp_cli.engine.tasks.caption import Caption
from madtp_cli.engine.tasks.vqa import Vqa
from madtp_cli.export import runtime

ANSWERED = 50  # samples: a text is written word by word, and each takes a pass of its own


def answers(folder: Path, samples: Sequence[Batch], threads: int) -> list[str]:
    """Answer samples of one, whose images are normalised, with the code and the files of an export folder."""
    model: Any = runtime.load(folder, threads)
    return [_answer(model, sample).text for sample in samples]


def _answer(model: Any, sample: Batch) -> runtime.Answer:
    image = sample.images[0].numpy()
    found: runtime.Answer
    if isinstance(model, runtime.Caption):
        found = model.caption(image)
    else:
        found = model.answer(image, sample.text.tolist())
    return found


def scored(task: Vqa | Caption, model: Any, samples: Sequence[Any], said: Sequence[str]) -> tuple[float, float]:
    """Score a model's own answers to samples, and what an export said: by the metric that weights are chosen by.

    What is written is written in the export's way, the likeliest word at each step.
    """
    greedy = _greedy(task)
    scorer = greedy.scorer(model)
    with torch.inference_mode():
        for sample in samples:
            scorer.add(sample, greedy.forward(model, sample, torch.device("cpu")))
    names = [name for sample in samples for name in (sample.ids if isinstance(task, Caption) else sample.groups)]
    exported = task.metric(said, [answer for sample in samples for answer in sample.references], names)
    return scorer.scores().metrics[task.score], exported[task.score]


def _greedy(task: Vqa | Caption) -> Vqa | Caption:
    """Return the same task with one beam."""
    found = copy(task)
    if isinstance(found, Caption):
        found.writing = replace(found.writing, beams=1)
    else:
        found.answering = replace(found.answering, beams=1)
    return found
