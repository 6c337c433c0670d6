"""Samples to measure costs on: spread, each with its own images, fitted to a model."""

from __future__ import annotations

import pytest
import torch

from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.data.shapes import ShapesPairs, accuracy
from madtp_cli.engine.evaluation.samples import fit_samples, join_samples, one_sample, spread_samples
from madtp_cli.engine.tasks.base import Normalisation
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.blip.nlvr import BlipForNlvr

PLAIN = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def data() -> ShapesPairs:
    return ShapesPairs("validation", 400)


def model_of(image_size: int = 96) -> BlipForNlvr:
    torch.manual_seed(0)
    sizes = {"vision_layers": 1, "vision_width": 24, "text_layers": 1, "text_width": 24}
    return BlipForNlvr(small_config(image_size=image_size, vocab_size=len(VOCABULARY), **sizes)).eval()


def test_samples_spread_over_the_split_and_share_no_images(data: ShapesPairs) -> None:
    """Ten of 400 samples are every fortieth, and a joined batch holds twenty images."""
    samples = spread_samples(data, 10)
    assert [sample.ids[0] for sample in samples] == [f"shapes/validation/{40 * row}" for row in range(10)]
    batch = join_samples(samples)
    assert len(batch.images) == 20
    assert batch.image_index.flatten().tolist() == list(range(20))
    assert len(batch.text) == sum(batch.text_lengths)


def test_a_small_split_repeats() -> None:
    """More samples than there are: some come twice."""
    assert [sample.ids[0][-1] for sample in spread_samples(ShapesPairs("validation", 2), 4)] == ["0", "0", "1", "1"]


def test_a_joined_batch_gives_what_its_samples_give_alone(data: ShapesPairs) -> None:
    """Joining changes no sample: its logits are those it has alone."""
    model, task, device = model_of(), Nlvr2(accuracy), torch.device("cpu")
    samples = fit_samples(spread_samples(data, 3), model, PLAIN)
    with torch.inference_mode():
        together = task.forward(model, join_samples(samples), device).logits
        alone = torch.cat([task.forward(model, sample, device).logits for sample in samples])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_images_get_the_size_of_the_model(data: ShapesPairs) -> None:
    """An image of the right size stays as it is, another one is resized and keeps its brightness."""
    sample = spread_samples(data, 1)
    assert fit_samples(sample, model_of(96), PLAIN)[0].images.equal(sample[0].images / 255)
    small = fit_samples(sample, model_of(48), PLAIN)[0].images
    assert small.shape == (2, 3, 48, 48)
    assert 255 * small.mean() == pytest.approx(sample[0].images.float().mean(), abs=1)


def test_pixels_are_normalised_as_the_model_wants(data: ShapesPairs) -> None:
    """By the mean and deviation given, and only once however often they are asked for."""
    own = Normalisation((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    sample = spread_samples(data, 1)
    fitted = fit_samples(sample, model_of(96), own)[0].images
    expected = (sample[0].images / 255 - torch.tensor(own.mean).view(3, 1, 1)) / torch.tensor(own.std).view(3, 1, 1)
    torch.testing.assert_close(fitted, expected)
    assert Normalisation()(fitted, torch.device("cpu")).equal(fitted)


def test_text_is_cut_or_repeated(data: ShapesPairs) -> None:
    """[ENC] opens the sentence whatever its length; words repeat, [ENC] does not."""
    model, drawn = model_of(), spread_samples(data, 1)
    original = drawn[0].text.tolist()
    (short,) = fit_samples(drawn, model, PLAIN, 3)
    (long,) = fit_samples(drawn, model, PLAIN, 60)
    assert short.text.tolist() == original[:3]
    assert long.text.tolist()[: len(original)] == original
    assert long.text.tolist().count(original[0]) == 1
    assert (short.text_lengths, long.text_lengths) == ([3], [60])


def test_one_sample_is_cut_out_whole(data: ShapesPairs) -> None:
    """Images, words and names are those it has when it is read alone; a pair may be one image twice."""
    batch = data.batch(10, 12)
    for row in range(12):
        one, alone = one_sample(batch, row), data.batch(10 + row, 1)
        assert one.images[one.image_index].equal(alone.images[alone.image_index])
        assert one.text.equal(alone.text)
        assert (one.text_lengths, one.ids, one.groups) == (alone.text_lengths, alone.ids, alone.groups)
    batch.image_index[3] = 1
    assert one_sample(batch, 3).image_index.tolist() == [[0, 0]]
    assert len(one_sample(batch, 3).images) == 1
