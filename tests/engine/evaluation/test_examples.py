"""Samples to look at, for every kind of model: held against evaluation, which counts by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.data.shapes import ShapesPairs, accuracy
from madtp_cli.data.shapes_single import (
    ShapesCaptions,
    ShapesQuestions,
    ShapesRetrieval,
    answer_list,
    answered,
    captioned,
)
from madtp_cli.engine.evaluation.evaluate import evaluate
from madtp_cli.engine.evaluation.examples import own_sample, pieces, show_samples
from madtp_cli.engine.tasks.caption import Caption, Writing
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.engine.tasks.retrieval import Retrieval
from madtp_cli.engine.tasks.vqa import Answering, Vqa
from madtp_cli.models.spec import PruningSpec
from tests.engine.tasks.tiny_shapes import CPU, DENSE, LAYERS, PRUNED, make_model, processor
from tests.models.kinds import kinds

KINDS = tuple(kinds())
SAMPLES = 6
SCHEDULED = PruningSpec(**{**PRUNED.to_dict(), "tokens": "scheduled", "layers": LAYERS})
DATA: dict[str, Any] = {
    "nlvr2": ShapesPairs("test", 24),
    "vqa": ShapesQuestions("test", 24),
    "caption": ShapesCaptions("test", 24),
    "retrieval": ShapesRetrieval("test", 24),
}


def task_of(kind: tuple[str, str]) -> Any:
    prepare = processor(*kind)
    ids = tuple(tuple(prepare.answer(words)) for words in answer_list())
    made: dict[str, Any] = {
        "nlvr2": lambda: Nlvr2(accuracy),
        "vqa": lambda: Vqa(answered, Answering("rank", answer_list(), ids, prepare.decode)),
        "caption": lambda: Caption(
            captioned, Writing(tuple(prepare.prompt("")), prepare.decode, beams=1), score="accuracy"
        ),
        "retrieval": lambda: Retrieval(lambda *scores: {}, k=4),
    }
    return made[kind[1]]()


@pytest.mark.parametrize("spec", [PRUNED, SCHEDULED], ids=["adaptive", "scheduled"])
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_what_is_shown_is_what_evaluation_counts(kind: tuple[str, str], spec: PruningSpec) -> None:
    """The same costs, the same tokens after every layer, and the same answers where they need no gallery."""
    model, task, data = make_model(*kind, spec=spec), task_of(kind), DATA[kind[1]]
    found = evaluate(model, task, data, batch_size=SAMPLES, limit=SAMPLES, records=True)
    shown = show_samples(model, task, [data.batch(row, 1) for row in range(SAMPLES)], processor(*kind))
    assert [sample.id for sample in shown] == [record["id"] for record in found.records]
    for sample, record in zip(shown, found.records, strict=True):
        assert sample.gmacs == record["gmacs"] < sample.dense_gmacs
        assert sample.sites.keys() == record["tokens_kept"].keys()
        for name, view in sample.sites.items():
            left = [len(layer.alone) + layer.merged for layer in view.layers]
            assert left == [record["tokens_kept"][name][layer.layer] for layer in view.layers]
        if kind[1] != "retrieval":
            said = record["prediction"]
            assert sample.answer == (str(said).lower() if kind[1] == "nlvr2" else said)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_who_is_gone_stays_gone(kind: tuple[str, str]) -> None:
    """Every layer's kept tokens are among those of the one before; class and end tokens are always left."""
    model, data = make_model(*kind, spec=PRUNED), DATA[kind[1]]
    for sample in show_samples(model, task_of(kind), [data.batch(row, 1) for row in range(3)], processor(*kind)):
        assert sample.views[0][2].layers
        for name, view in sample.sites.items():
            before = set(range(view.tokens))
            for layer in view.layers:
                assert set(layer.alone) <= before
                assert 0 in layer.alone
                before = set(layer.alone)
            if name == "text" and kind[0] == "clip":
                assert view.tokens - 1 in before
        assert sample.sites["text"].tokens == len(sample.words)
        assert all(view.tokens == 10 for _, _, view in sample.views)  # nine patches and the class token


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_ones_own_images_and_text_are_shown_like_a_data_sets(kind: tuple[str, str]) -> None:
    """What a data set prepared, given as pictures and a sentence, comes to the same; nobody knows what is right."""
    model, task, data = make_model(*kind, spec=PRUNED), task_of(kind), DATA[kind[1]]
    prepare, given = processor(*kind), data.batch(5, 1)
    (known,) = show_samples(model, task, [given], prepare)
    words = " ".join(VOCABULARY[token] for token in given.text.tolist()[1:-1])
    images = [Image.fromarray(image) for image in known.images]
    (own,) = show_samples(model, task, [own_sample(prepare, images, words, "mine")], prepare, labelled=False)
    assert (own.id, own.reference) == ("mine", None)
    assert known.reference
    assert (own.words, own.answer, own.gmacs, own.sites) == (known.words, known.answer, known.gmacs, known.sites)
    assert all((one == other).all() for one, other in zip(own.images, known.images, strict=True))


def test_a_wrong_number_of_images_is_refused() -> None:
    image = Image.fromarray(np.zeros((96, 96, 3), np.uint8))
    with pytest.raises(ValueError, match=r"nlvr2 takes 2 images with a text, got 1"):
        own_sample(processor("blip", "nlvr2"), [image], "both", "mine")
    with pytest.raises(ValueError, match=r"vqa takes 1 image with a text, got 2"):
        own_sample(processor("blip", "vqa"), [image, image], "both", "mine")


def test_of_two_images_that_are_one_both_are_shown() -> None:
    """A pair may repeat its image, which a batch then holds once."""
    model, task, data = make_model("blip", "nlvr2", spec=PRUNED), task_of(KINDS[0]), DATA["nlvr2"]
    batch = data.batch(0, 1)
    batch.image_index[:] = 1
    (shown,) = show_samples(model, task, [batch], processor("blip", "nlvr2"))
    assert (shown.images[0] == shown.images[1]).all()
    assert shown.sites["vision_left"] == shown.sites["vision_right"]


def test_a_dense_model_prunes_nowhere_and_stays_in_training() -> None:
    model, task = make_model("blip", "nlvr2", spec=DENSE).train(), task_of(KINDS[0])
    (shown,) = show_samples(model, task, [DATA["nlvr2"].batch(0, 1)], processor("blip", "nlvr2"))
    assert all(not view.layers for view in shown.sites.values())
    assert shown.gmacs == shown.dense_gmacs
    assert model.training


def test_words_are_the_tokenizers_pieces() -> None:
    class Pieces:
        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [["<|startoftext|>", "skate", "board</w>"][token] for token in ids]

    stand_in: Any = type("Prepare", (), {"tokenizer": Pieces()})()
    assert pieces(stand_in, torch.tensor([0, 1, 2])) == ("<|startoftext|>", "skate", "board")
    text = DATA["caption"].batch(0, 1).text
    assert pieces(processor("blip", "caption"), text) == tuple(VOCABULARY[token] for token in text.tolist())


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_right_answers_are_those_the_metric_counts(kind: tuple[str, str]) -> None:
    """The share of right answers is the accuracy; for retrieval, who names the text's own image is right."""
    model, task, data = make_model(*kind), task_of(kind), DATA[kind[1]]
    scorer = task.scorer(model, final=True)
    batch = data.batch(0, 12)
    with torch.inference_mode():
        scorer.add(batch, task.forward(model, batch, CPU))
        scores = scorer.scores()
    if kind[1] == "retrieval":
        assert scores.right == [said == own for said, own in zip(scores.predictions, batch.ids, strict=True)]
    else:
        assert sum(scores.right) / 12 == scores.metrics["accuracy"]
    assert len(task.references(batch)) == 12


def test_references_are_what_people_said() -> None:
    """The captions of `shapes` name all objects; labels and answers are in words."""
    assert task_of(KINDS[0]).references(DATA["nlvr2"].batch(0, 2)) == [
        str(DATA["nlvr2"].sample(row).label).lower() for row in range(2)
    ]
    captions = task_of(("blip", "caption")).references(DATA["caption"].batch(0, 2))
    assert captions == [DATA["caption"].sample(row).captions[0] for row in range(2)]
