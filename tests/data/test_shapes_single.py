"""Questions, captions and retrieval of `shapes` in batches: as their samples, each image once, labels of their images.

What the samples themselves say is tested in test_shapes.py and test_descriptions.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from madtp_cli.data.batch import CaptionBatch, QuestionBatch, RetrievalBatch
from madtp_cli.data.sentences import CLS, DEC, ENC, TOKEN_IDS, VOCABULARY, words_ids
from madtp_cli.data.shapes import make_block
from madtp_cli.data.shapes_single import (
    ShapesCaptions,
    ShapesQuestions,
    ShapesRetrieval,
    answer_list,
    answered,
    captioned,
)

KINDS: list[tuple[type[Any], int]] = [(ShapesQuestions, 250), (ShapesCaptions, 58), (ShapesRetrieval, 18)]


@pytest.mark.parametrize(("kind", "start"), KINDS, ids=["questions", "captions", "retrieval"])
def test_a_batch_holds_its_samples(kind: type[Any], start: int) -> None:
    """Pixels, names and texts of samples on both sides of the end of a block; each image is in it once."""
    data = kind("test", 1000, seed=3)
    batch = data.batch(start, 13)
    samples = [data.sample(index) for index in range(start, start + 13)]
    assert batch.samples == 13
    assert batch.ids == tuple(sample.id for sample in samples)
    assert len(set(batch.ids)) == 13
    for row, sample in enumerate(samples):
        assert np.array_equal(batch.images[batch.image_index[row]].permute(1, 2, 0).numpy(), sample.image)
    assert len({image.numpy().tobytes() for image in batch.images}) == len(batch.images)
    assert set(batch.image_index.tolist()) == set(range(len(batch.images)))
    first = {ShapesQuestions: ENC, ShapesCaptions: DEC, ShapesRetrieval: CLS}[kind]
    words = [sample.question if kind is ShapesQuestions else sample.captions[0] for sample in samples]
    assert [part.tolist() for part in batch.text.split(batch.text_lengths)] == [
        words_ids(first, text) for text in words
    ]
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous()
    assert {batch.text.dtype, batch.image_index.dtype} == {torch.int64}


@pytest.mark.parametrize(("kind", "start"), KINDS, ids=["questions", "captions", "retrieval"])
def test_batches_do_not_depend_on_how_they_are_cut(kind: type[Any], start: int) -> None:
    """Sample by sample: the same image, text and name."""
    data = kind("train", 1000)
    whole = data.batch(start, 10)
    parts = whole.text.split(whole.text_lengths)
    for row in range(10):
        one = data.batch(start + row, 1)
        assert one.ids == (whole.ids[row],)
        assert one.text.equal(parts[row])
        assert one.images[0].equal(whole.images[whole.image_index[row]])
        for name, label in one.auxiliary.items():
            assert label[0].equal(whole.auxiliary[name][whole.image_index[row]])


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS], ids=["questions", "captions", "retrieval"])
def test_auxiliary_labels_belong_to_the_images(kind: type[Any]) -> None:
    """As many objects by colour as by shape as the scene has, and patches of those kinds only."""
    data = kind("train", 40)
    batch = data.batch(0, 24)
    scenes = make_block(0, "train", 0).scenes
    pixels = {scenes.render([image])[0].tobytes(): image for image in range(64)}
    assert batch.auxiliary.keys() == {"patches", "image_counts"}
    for row, image in enumerate(batch.images):
        objects = scenes.objects(pixels[np.ascontiguousarray(image.permute(1, 2, 0).numpy()).tobytes()])
        assert batch.auxiliary["image_counts"][row, :6].sum() == len(objects)
        assert batch.auxiliary["image_counts"][row, 6:].sum() == len(objects)
        assert len(set(batch.auxiliary["patches"][row].tolist()) - {0}) == len({(o.shape, o.colour) for o in objects})


# Each kind's own ---------------------------------------------------------------------------------------------


def test_questions_bring_their_answers() -> None:
    """Ids open with [DEC]; the weights of a question's answers add up to one; references are in words."""
    data = ShapesQuestions("test", 100)
    batch = data.batch(0, 24)
    assert isinstance(batch, QuestionBatch)
    samples = [data.sample(index) for index in range(24)]
    assert batch.references == tuple(sample.answers for sample in samples)
    assert batch.groups == tuple(sample.kind for sample in samples)
    given = [(row, answer) for row, sample in enumerate(samples) for answer in sample.answers]
    assert batch.answer_index.tolist() == [row for row, _ in given]
    parts = batch.answers.split(batch.answer_lengths)
    assert [part.tolist() for part in parts] == [words_ids(DEC, answer) for _, answer in given]
    sums = torch.zeros(24).index_add(0, batch.answer_index, batch.answer_weights)
    torch.testing.assert_close(sums, torch.ones(24))
    assert len(batch.images) == 6  # four questions of each


def test_captions_bring_all_wordings_and_teach_the_first() -> None:
    batch = ShapesCaptions("test", 100).batch(3, 9)
    assert isinstance(batch, CaptionBatch)
    assert batch.prompt_length == 1
    assert all(len(wordings) == 3 for wordings in batch.references)
    assert [len(wordings[0].split()) + 2 for wordings in batch.references] == batch.text_lengths


def test_retrieval_names_its_images() -> None:
    """One caption each: an image's name is its caption's."""
    batch = ShapesRetrieval("test", 100).batch(20, 9)
    assert isinstance(batch, RetrievalBatch)
    assert batch.image_ids == batch.ids
    assert batch.image_index.tolist() == list(range(9))


def test_every_answer_is_in_the_list_once() -> None:
    answers = answer_list()
    assert len(set(answers)) == len(answers)
    data = ShapesQuestions("validation", 2000)
    given = {answer for start in range(0, 2000, 250) for found in data.batch(start, 250).references for answer in found}
    assert given == set(answers)
    assert all(TOKEN_IDS[answer] < len(VOCABULARY) for answer in answers)


# Scores ------------------------------------------------------------------------------------------------------


def test_answered_counts_any_accepted_answer() -> None:
    found = answered(["red", "two", "no", ""], [("red",), ("one", "two"), ("yes",), ("yes",)], ["a", "b", "b", "b"])
    assert found == {"accuracy": 0.5, "accuracy/a": 1.0, "accuracy/b": pytest.approx(1 / 3)}


def test_captioned_counts_captions_that_name_the_same_objects_in_any_order() -> None:
    """Right: another order. Wrong: a missing part, a part too many, another number, nothing."""
    reference = ("a red circle and two blue squares",)
    said = [
        "two blue squares and a red circle",
        "a red circle",
        "a red circle and two blue squares and a red circle",
        "a red circle and three blue squares",
        "",
    ]
    found = captioned(said, [reference] * 5, [str(row) for row in range(5)])
    assert found["accuracy"] == 0.2
    assert found.keys() >= {"accuracy", "cider_javafree", "bleu4_javafree"}
