"""What every task does alike: normalised pixels, the arguments of a forward pass, what a teacher's logits are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from madtp_cli.data.shapes import ShapesPairs, accuracy
from madtp_cli.data.shapes_single import ShapesQuestions
from madtp_cli.engine.tasks.base import IMAGE_MEAN, IMAGE_STD, Asked, Normalisation, inputs_of
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.models.processor import image_processor
from tests.engine.tasks.tiny_shapes import CPU, make_model

DATA = ShapesPairs("test", 40)


@pytest.mark.parametrize("family", ["blip", "clip"])
def test_pixels_are_those_of_the_image_processor(family: str) -> None:
    """What a user's processor gives a model is what training gave it."""
    batch = DATA.batch(0, 8)
    images = list(batch.images.permute(0, 2, 3, 1).numpy())
    expected = torch.from_numpy(np.stack(image_processor(family, 96)(images)["pixel_values"]))
    torch.testing.assert_close(Normalisation()(batch.images, CPU), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("normalise", "mean", "std"),
    [
        (Normalisation(), IMAGE_MEAN, IMAGE_STD),
        (Normalisation((0.5, 0.4, 0.3), (0.1, 0.2, 0.5)), (0.5, 0.4, 0.3), (0.1, 0.2, 0.5)),
    ],
    ids=["default", "own"],
)
def test_black_is_minus_mean_over_deviation(normalise: Normalisation, mean: Any, std: Any) -> None:
    black = normalise(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), CPU)[0, :, 0, 0]
    torch.testing.assert_close(black, -torch.tensor(mean) / torch.tensor(std))


def test_inputs_are_those_that_every_model_takes() -> None:
    """Pairs name two images each, the other tasks one."""
    pairs, questions = DATA.batch(0, 16), ShapesQuestions("test", 40).batch(2, 8)
    for batch, index in ((pairs, [[0, 1]] * 8 + [[2, 3]] * 8), (questions, [0, 0, 1, 1, 1, 1, 2, 2])):
        given = inputs_of(batch, Normalisation(), CPU)
        assert given.text.equal(batch.text)
        assert (given.text_lengths, given.image_index) == (batch.text_lengths, index)
        assert given.images.dtype == torch.float32
        assert (given.learn, given.probe) == (False, False)


def test_a_plain_task_trains_as_it_answers() -> None:
    """`learn` and `probe` reach the model, `training` changes nothing; the teacher's logits are compared."""
    model, task, batch = make_model("blip", "nlvr2"), Nlvr2(accuracy), DATA.batch(0, 8)
    with torch.inference_mode():
        plain, full = (
            task.forward(model, batch, CPU, Asked(training=more, learn=more, probe=more)) for more in (False, True)
        )
    assert (plain.aligned, plain.probes) == (None, ())
    assert full.aligned is not None
    assert len(full.probes) == 4  # two layers, two images
    torch.testing.assert_close(full.logits, plain.logits)
    (compared,) = task.compared(full)
    assert compared is full.logits
