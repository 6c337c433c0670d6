"""The data set `shapes`: one sample whatever the order, batches as samples, splits apart."""

from __future__ import annotations

import numpy as np
import pytest
import shapes_oracle as oracle
import torch
from torch.utils.data import DataLoader, Dataset

from madtp_cli.data.batch import PairBatch
from madtp_cli.data.sentences import FAMILY_NAMES, token_ids
from madtp_cli.data.shapes import ShapesPairs, accuracy, make_block
from madtp_cli.data.shapes_single import ShapesCaptions, ShapesQuestions, ShapesRetrieval
from madtp_cli.errors import SourceError


def _same(one: PairBatch, two: PairBatch) -> bool:
    tensors = ("images", "text", "image_index", "labels")
    return (
        all(torch.equal(getattr(one, name), getattr(two, name)) for name in tensors)
        and (one.ids, one.groups) == (two.ids, two.groups)
        and all(torch.equal(one.auxiliary[k], two.auxiliary[k]) for k in one.auxiliary)
    )


def test_a_batch_holds_the_samples_it_names() -> None:
    data = ShapesPairs("test", 1000)
    batch = data.batch(250, 21)  # crosses a block at 256, starts and ends inside a pair
    samples = [data.sample(index) for index in range(250, 271)]
    assert batch.ids == tuple(sample.id for sample in samples)
    assert batch.ids[0] == "shapes/test/250"
    assert batch.groups == tuple(sample.family for sample in samples)
    assert batch.labels.tolist() == [int(sample.label) for sample in samples]
    assert batch.text.tolist() == [t for sample in samples for t in token_ids(sample.sentence)]
    assert batch.text_lengths == [len(token_ids(sample.sentence)) for sample in samples]
    for row, sample in enumerate(samples):
        for side, pixels in enumerate((sample.left, sample.right)):
            image = batch.images[batch.image_index[row, side]]
            assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)
    assert len(batch.images) == 6  # pairs 31, 32 and 33


def test_a_batch_has_the_shapes_and_types_of_the_contract() -> None:
    batch = ShapesPairs("train", 512).batch(0, 16)
    assert batch.images.shape == (4, 3, 96, 96)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous()
    assert batch.text.shape == (sum(batch.text_lengths),)
    assert batch.image_index.tolist() == [[0, 1]] * 8 + [[2, 3]] * 8
    assert {name: tuple(t.shape) for name, t in batch.auxiliary.items()} == {
        "text_counts": (16, 2),
        "patches": (4, 144),
        "image_counts": (4, 9),
    }
    integers = [batch.text, batch.image_index, batch.labels, *batch.auxiliary.values()]
    assert all(t.dtype == torch.int64 for t in integers)


def test_auxiliary_labels_belong_to_the_images_and_sentences_of_the_batch() -> None:
    data = ShapesPairs("train", 1000)
    batch = data.batch(100, 30)
    scenes = make_block(0, "train", 0).scenes
    for row in range(30):
        phrase = oracle.first_phrase(data.sample(100 + row).sentence)
        for side in (0, 1):
            objects = scenes.objects(2 * ((100 + row) // 8) + side)
            image = batch.image_index[row, side]
            assert batch.auxiliary["text_counts"][row, side] == oracle.count(phrase, objects)
            assert batch.auxiliary["image_counts"][image, :6].sum() == len(objects)
            assert batch.auxiliary["image_counts"][image, 6:].sum() == len(objects)
            seen = set(batch.auxiliary["patches"][image].tolist()) - {0}
            shapes, colours = ["circle", "square", "triangle"], "red green blue yellow pink cyan"
            kinds = {1 + shapes.index(o.shape) * 6 + colours.split().index(o.colour) for o in objects}
            assert seen == kinds


def test_samples_do_not_depend_on_the_order_of_access() -> None:
    starts = [0, 512, 1008, 256, 2000, 8]
    forward = ShapesPairs("validation", 4000, seed=7)
    one = [forward.batch(start, 24) for start in starts]
    make_block.cache_clear()
    backward = ShapesPairs("validation", 4000, seed=7)
    two = [backward.batch(start, 24) for start in reversed(starts)][::-1]
    assert all(_same(a, b) for a, b in zip(one, two, strict=True))


class _Batches(Dataset[PairBatch]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> PairBatch:
        return ShapesPairs("train", 2000).batch(300 * index, 16)


def test_samples_do_not_depend_on_the_number_of_workers() -> None:
    alone = list(DataLoader(_Batches(), batch_size=None))
    shared = list(DataLoader(_Batches(), batch_size=None, num_workers=2))
    assert all(_same(a, b) for a, b in zip(alone, shared, strict=True))


def test_a_longer_data_set_starts_with_the_shorter_one() -> None:
    assert _same(ShapesPairs("train", 64).batch(40, 24), ShapesPairs("train", 6400).batch(40, 24))


def test_sentences_stay_what_they_were() -> None:
    """Fail when generation changes: the shipped checkpoint was trained on these samples."""
    samples = [ShapesPairs("test", 4000).sample(index) for index in (0, 255, 3999)]
    assert [(sample.sentence, sample.label) for sample in samples] == [
        ("neither image contains a red triangle", True),
        ("there is no triangle in the left image", False),
        ("there are at least two large blue objects in the left image", False),
    ]


def test_splits_and_seeds_share_no_scene() -> None:
    seen = [
        make_block(seed, split, number).scenes.centre[image].tobytes()
        for seed in (0, 1)
        for split in ("train", "validation", "test")
        for number in range(20)
        for image in range(64)
    ]
    assert len(set(seen)) == len(seen) == 2 * 3 * 20 * 64


def test_length_and_families() -> None:
    data = ShapesPairs("train", 123)
    assert len(data) == 123
    assert data.families == FAMILY_NAMES


@pytest.mark.parametrize(("start", "size"), [(-1, 4), (0, 0), (8, 3), (11, 1)])
def test_samples_outside_the_data_set_are_refused(start: int, size: int) -> None:
    with pytest.raises(ValueError, match="shapes has samples 0 to 9, got start"):
        ShapesPairs("train", 10).batch(start, size)
    with pytest.raises(ValueError, match="shapes has samples 0 to 9"):
        ShapesPairs("train", 10).sample(10)


@pytest.mark.parametrize("task", [ShapesPairs, ShapesQuestions, ShapesCaptions, ShapesRetrieval])
def test_other_sizes_and_splits_are_refused(task: type[ShapesPairs]) -> None:
    with pytest.raises(SourceError, match=r"96 pixels, got data\.image_size 224; try"):
        task("train", 10, image_size=224)
    with pytest.raises(SourceError, match="no split 'dev'; try one of train, validation, test"):
        task("dev", 10)


def test_questions_are_about_their_image() -> None:
    data = ShapesQuestions("test", 600)
    assert len(data) == 600
    scenes = make_block(0, "test", 2).scenes
    for index in range(512, 600):
        sample = data.sample(index)
        image = (index - 512) // 4
        assert sample.id == f"shapes_questions/test/{index}"
        assert set(sample.answers) == oracle.answers(sample.question, scenes.objects(image))
        assert np.array_equal(sample.image, scenes.render([image])[0])


def test_captions_are_about_their_image() -> None:
    data = ShapesCaptions("test", 100)
    scenes = make_block(0, "test", 1).scenes
    for index in range(64, 100):
        sample = data.sample(index)
        assert sample.id == f"shapes_captions/test/{index}"
        assert all(oracle.caption_holds(c, scenes.objects(index - 64)) for c in sample.captions)
        assert np.array_equal(sample.image, scenes.render([index - 64])[0])
    assert data.sample(70).captions == ShapesCaptions("test", 100).sample(70).captions


def test_retrieval_captions_are_unique_in_their_block() -> None:
    data = ShapesRetrieval("test", 240)
    for block in range(10):
        samples = [data.sample(24 * block + place) for place in range(24)]
        scenes = make_block(0, "test", block).scenes
        pixels = scenes.render(range(len(scenes)))
        for sample in samples:
            (caption,) = sample.captions
            holds = [i for i in range(64) if oracle.caption_holds(caption, scenes.objects(i))]
            assert len(holds) == 1
            assert np.array_equal(sample.image, pixels[holds[0]])
        assert len({sample.captions for sample in samples}) == 24


def test_single_image_tasks_refuse_samples_they_do_not_have() -> None:
    for data in (ShapesQuestions("test", 5), ShapesCaptions("test", 5), ShapesRetrieval("test", 5)):
        with pytest.raises(ValueError, match="shapes has samples 0 to 4"):
            data.sample(5)


def test_accuracy_counts_right_predictions_per_family() -> None:
    found = accuracy([1, 0, 1, 1], [1, 1, 1, 0], ["both", "both", "total", "both"])
    assert found == {
        "accuracy": 0.5,
        "accuracy/both": pytest.approx(1 / 3),
        "accuracy/total": 1.0,
    }
