"""The task caption: the loss by plain loops, and that every image gets the caption written about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from madtp_cli.data.batch import CaptionBatch
from madtp_cli.data.shapes_single import ShapesCaptions, captioned
from madtp_cli.engine.tasks.base import Asked
from madtp_cli.engine.tasks.caption import Caption, Writing
from tests.engine.tasks.tiny_shapes import CPU, make_model, processor, words_of

DATA = ShapesCaptions("test", 16)
PROCESSOR = processor("blip", "caption")


def task_of(**options: Any) -> Caption:
    """Make the task; captions open with a prompt of two words."""
    writing = Writing(tuple(PROCESSOR.prompt("there are")), lambda ids: words_of(ids), 2, 5, 9)
    return Caption(options.pop("metric", captioned), writing, score="accuracy", **options)


@pytest.mark.parametrize("prompt_length", [1, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_words_after_the_prompt(prompt_length: int, smoothing: float) -> None:
    """Mean over all learned tokens, [SEP] with them, by a loop over captions and places."""
    batch = replace(DATA.batch(0, 5), prompt_length=prompt_length)
    task = task_of(label_smoothing=smoothing)
    with torch.inference_mode():
        output = task.forward(make_model("blip", "caption"), batch, CPU, Asked(training=True))
        losses = task.losses(output, batch)
    assert losses.keys() == {"task"}
    parts, start = [], 0
    for length in batch.text_lengths:
        for place in range(prompt_length, length):
            log = output.logits[start + place - 1].log_softmax(-1)
            parts.append((1 - smoothing) * log[batch.text[start + place]] + smoothing * log.mean())
        start += length
    assert losses["task"].item() == pytest.approx(-sum(parts).item() / len(parts), rel=1e-5)  # type: ignore[union-attr]
    assert task.compared(output)[0] is output.logits


def written(batches: Sequence[CaptionBatch], task: Caption) -> Any:
    model = make_model("blip", "caption")
    scorer = task.scorer(model)
    with torch.inference_mode():
        for batch in batches:
            scorer.add(batch, task.forward(model, batch, CPU))
        return scorer.scores()


def test_every_image_gets_its_own_caption() -> None:
    """As the model writes it about the image alone, in words; whatever the batches are."""
    model, task = make_model("blip", "caption"), task_of()
    scores = written([DATA.batch(0, 8)], task)
    for row, caption in enumerate(scores.predictions):
        with torch.inference_mode():
            alone = task.forward(model, DATA.batch(row, 1), CPU)
            (ids,) = model.generate(alone.images, task.writing.prompt, beams=2, min_length=5, max_length=9)
        assert caption == words_of(ids)
    assert len(set(scores.predictions)) > 1
    other = written([DATA.batch(0, 3), DATA.batch(3, 1), DATA.batch(4, 4)], task)
    assert other.predictions == scores.predictions
    assert other.metrics == scores.metrics
    assert scores.logits == [[]] * 8


def test_samples_may_share_an_image() -> None:
    """Three samples over two images: each has the caption of its image, under its own name."""
    batch = DATA.batch(0, 3)
    shared = replace(batch, images=batch.images[:2], image_index=torch.tensor([1, 0, 1]))
    first, second, third = written([shared], task_of()).predictions
    alone = written([DATA.batch(0, 2)], task_of()).predictions
    assert (first, second, third) == (alone[1], alone[0], alone[1])


def test_the_metric_is_asked_once_about_everything() -> None:
    asked: list[tuple[Any, ...]] = []

    def metric(captions: Sequence[str], references: Any, ids: Sequence[str]) -> Mapping[str, float]:
        asked.append((list(captions), list(references), list(ids)))
        return {"cider_javafree": 1.25}

    scores = written([DATA.batch(0, 3), DATA.batch(3, 2)], task_of(metric=metric))
    batch = DATA.batch(0, 5)
    assert asked == [(scores.predictions, list(batch.references), list(batch.ids))]
    assert scores.metrics == {"cider_javafree": 1.25}


def test_no_sample_is_lost_where_names_are_shared() -> None:
    """Samples of one name are two samples; a data set that has them is refused elsewhere."""
    batch = DATA.batch(0, 2)
    scores = written([batch, replace(batch, ids=(batch.ids[0],) * 2)], task_of())
    assert len(scores.predictions) == 4
    assert scores.predictions[:2] == scores.predictions[2:]
