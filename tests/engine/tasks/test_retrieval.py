"""The task retrieval: losses by plain loops, pairs to match, and galleries ranked as by brute force."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from madtp_cli.data.batch import RetrievalBatch
from madtp_cli.data.metrics import recalls
from madtp_cli.data.shapes_single import ShapesRetrieval
from madtp_cli.engine.tasks import retrieval
from madtp_cli.engine.tasks.base import Asked, Scores
from madtp_cli.engine.tasks.retrieval import Retrieval
from madtp_cli.engine.training.losses import logit_loss
from madtp_cli.engine.training.settings import LossWeights
from madtp_cli.engine.training.step import TrainingStep
from tests.engine.tasks.tiny_shapes import CPU, PRUNED, make_model

DATA = ShapesRetrieval("test", 40)
BLIP, CLIP = ("blip", "retrieval"), ("clip", "retrieval")


class Several:
    """A split in which 3 successive captions are about one image, whatever the batches are."""

    def __len__(self) -> int:
        return 30

    def batch(self, start: int, size: int) -> RetrievalBatch:
        """Return captions; an image is cut off by the end of a batch and comes again in the next."""
        captions = DATA.batch(start, size)
        rows = [row // 3 for row in range(start, start + size)]
        wanted = sorted(set(rows))
        images = [DATA.batch(row, 1) for row in wanted]
        return replace(
            captions,
            images=torch.cat([image.images for image in images]),
            image_ids=tuple(image.image_ids[0] for image in images),
            image_index=torch.tensor([wanted.index(row) for row in rows]),
        )


# Training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BLIP, CLIP], ids=["blip", "clip"])
@pytest.mark.parametrize("data", [DATA, Several()], ids=["one", "several"])
def test_the_contrastive_loss_goes_both_ways(kind: tuple[str, str], data: Any) -> None:
    """Each text is for its one image, each image for its texts in equal parts: cross-entropies by loops."""
    task, batch = Retrieval(recalls), data.batch(0, 7)
    with torch.inference_mode():
        output = task.forward(make_model(*kind), batch, CPU)
        losses = task.losses(output, batch)
    assert losses.keys() == {"task"}
    owners, logits = batch.image_index.tolist(), output.logits
    by_text = -sum(logits[row].log_softmax(0)[owner].item() for row, owner in enumerate(owners)) / 7
    by_image = 0.0
    for image in range(len(batch.images)):
        own = [row for row, owner in enumerate(owners) if owner == image]
        by_image -= sum(logits[:, image].log_softmax(0)[row].item() for row in own) / len(own) / len(batch.images)
    assert losses["task"].item() == pytest.approx((by_text + by_image) / 2, rel=1e-5)
    for compared, expected in zip(task.compared(output), (logits, logits.T), strict=True):
        assert compared.equal(expected)


@pytest.mark.parametrize("data", [DATA, Several()], ids=["one", "several"])
def test_true_pairs_are_matched_beside_wrong_ones_for_every_text_and_image(data: Any) -> None:
    """No wrong pair is a true one; the matching loss is the cross-entropy of which is which, by a loop."""
    task, batch, model = Retrieval(recalls), data.batch(0, 8), make_model(*BLIP)
    owners, images = batch.image_index.tolist(), len(batch.images)
    for seed in range(20):
        torch.manual_seed(seed)
        with torch.inference_mode():
            output = task.forward(model, batch, CPU, Asked(training=True))
        true, wrong = output.itm.pairs[:8], output.itm.pairs[8:]
        assert true == list(enumerate(owners))
        assert [text for text, _ in wrong[:8]] == list(range(8))
        assert [image for _, image in wrong[8:]] == list(range(images))
        assert all(owners[text] != image for text, image in wrong)
    losses = task.losses(output, batch)
    assert losses.keys() == {"task", "matching"}
    parts = [-row.log_softmax(0)[int(place < 8)].item() for place, row in enumerate(output.itm.logits)]
    assert losses["matching"].item() == pytest.approx(sum(parts) / len(parts), rel=1e-5)
    assert task.compared(output)[2] is output.itm.logits


def test_a_batch_of_one_pair_has_no_wrong_one() -> None:
    """Nothing to tell it from: only the true pair is matched, and the losses are numbers."""
    task, batch = Retrieval(recalls), DATA.batch(0, 1)
    output = task.forward(make_model(*BLIP), batch, CPU, Asked(training=True))
    assert output.itm.pairs == [(0, 0)]
    assert all(loss.isfinite() for loss in task.losses(output, batch).values())


@pytest.mark.parametrize("kind", [BLIP, CLIP], ids=["blip", "clip"])
def test_the_teacher_matches_the_pairs_of_the_student(kind: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """So that their answers are about the same: the logit loss is that of both similarities and these pairs."""
    student, teacher = make_model(*kind, spec=PRUNED), make_model(*kind, seed=1)
    task, batch, outputs = Retrieval(recalls), DATA.batch(0, 6), []
    forward = Retrieval.forward

    def watched(self: Retrieval, *arguments: Any, **options: Any) -> Any:
        outputs.append(forward(self, *arguments, **options))
        return outputs[-1]

    monkeypatch.setattr(Retrieval, "forward", watched)
    weights = LossWeights(logits=1.0, temperature=2.0)
    found = TrainingStep(task, student, teacher, None, weights, guided={"vision": frozenset({0, 1})})(batch)
    own, dense = outputs
    pairs = [(own.logits, dense.logits), (own.logits.T, dense.logits.T)]
    if kind == BLIP:
        assert dense.itm.pairs == own.itm.pairs
        pairs.append((own.itm.logits, dense.itm.logits))
    expected = sum(logit_loss(one, other, 2.0).item() for one, other in pairs) / len(pairs)
    assert found.losses["logits"].item() == pytest.approx(expected, rel=1e-4)
    assert found.losses["guidance"] > 0
    assert "matching" in found.losses or kind == CLIP


# Galleries ---------------------------------------------------------------------------------------------------


class Metric:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor, list[int]]] = []

    def __call__(self, by_image: Tensor, by_text: Tensor, owners: Sequence[int]) -> Mapping[str, float]:
        self.asked.append((by_image, by_text, list(owners)))
        return recalls(by_image, by_text, owners)


def ranked(kind: tuple[str, str], k: int, cuts: Sequence[int], data: Any = DATA) -> tuple[Scores, Any]:
    """Rank a gallery that was read in batches, and return the matrices that the metric was given."""
    model, metric = make_model(*kind, spec=PRUNED), Metric()
    task = Retrieval(metric, k=k)
    scorer = task.scorer(model)
    with torch.inference_mode():
        for start, stop in pairwise(cuts):
            batch = data.batch(start, stop - start)
            scorer.add(batch, task.forward(model, batch, CPU))
        scores = scorer.scores()
    (asked,) = metric.asked
    return scores, asked


def brute_force(k: int, data: Any, count: int) -> tuple[Tensor, Tensor]:
    """Score every image and text alone; the k most similar of each query also by how well the two match."""
    model, task = make_model(*BLIP, spec=PRUNED), Retrieval(recalls)
    batch = data.batch(0, count)
    texts = list(batch.text.split(batch.text_lengths))
    with torch.inference_mode():
        output = task.forward(model, batch, CPU)
        similarity = output.image_embeds @ output.text_embeds.T  # [I, S]
        matched = torch.empty_like(similarity)
        for image in range(len(similarity)):
            for text in range(count):
                pixels = task.normalise(batch.images[image : image + 1], CPU)
                alone, _ = model.encode_images(pixels)
                matched[image, text] = model.match(alone, texts[text], [len(texts[text])], [(0, 0)])[0, 1]
    by_image, by_text = similarity.double() - 1e4, similarity.double() - 1e4
    for image in range(len(similarity)):
        for text in sorted(range(count), key=lambda t: -similarity[image, t].item())[:k]:
            by_image[image, text] = similarity[image, text] + matched[image, text]
    for text in range(count):
        for image in sorted(range(len(similarity)), key=lambda i: -similarity[i, text].item())[:k]:
            by_text[image, text] = similarity[image, text] + matched[image, text]
    return by_image, by_text


@pytest.mark.parametrize(("data", "count"), [(DATA, 10), (Several(), 12)], ids=["one", "several"])
@pytest.mark.parametrize("k", [2, 99])
def test_a_gallery_is_ranked_again_as_by_brute_force(
    k: int, data: Any, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-3, which is what float32 holds of what is 10,000 below; with pairs matched seven at once."""
    monkeypatch.setattr(retrieval, "PAIRS", 7)
    scores, (by_image, by_text, owners) = ranked(BLIP, k, (0, count), data)
    for found, expected in zip((by_image, by_text), brute_force(k, data, count), strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
        torch.testing.assert_close(found[expected > -5e3], expected[expected > -5e3], atol=1e-4, rtol=0)
    batch = data.batch(0, count)
    assert owners == batch.image_index.tolist()
    best = by_text.argmax(0).tolist()
    assert list(scores.predictions) == [batch.image_ids[row] for row in best]
    assert [value for (value,) in scores.logits] == pytest.approx(by_text.amax(0).tolist())
    assert scores.metrics == recalls(by_image, by_text, owners)


@pytest.mark.parametrize("kind", [BLIP, CLIP], ids=["blip", "clip"])
@pytest.mark.parametrize("data", [DATA, Several()], ids=["one", "several"])
def test_a_gallery_in_one_batch_equals_several(kind: tuple[str, str], data: Any) -> None:
    """The cuts go through the captions of an image, which is in the gallery once all the same."""
    whole, (by_image, by_text, owners) = ranked(kind, 4, (0, 30), data)
    parts, (images, texts, others) = ranked(kind, 4, (0, 1, 8, 22, 30), data)
    torch.testing.assert_close(images, by_image, atol=2e-3, rtol=0)
    torch.testing.assert_close(texts, by_text, atol=2e-3, rtol=0)
    assert others == owners
    assert len(by_image) == len(set(owners)) == (30 if data is DATA else 10)
    assert list(parts.predictions) == list(whole.predictions)
    assert parts.metrics == whole.metrics


def test_clip_ranks_by_similarity_alone() -> None:
    """It has nothing to match with, whatever k is."""
    _, (by_image, by_text, _) = ranked(CLIP, 128, (0, 12))
    task, model = Retrieval(recalls), make_model(*CLIP, spec=PRUNED)
    with torch.inference_mode():
        output = task.forward(model, DATA.batch(0, 12), CPU, Asked(training=True))
    expected = output.logits.T / math.exp(model.logit_scale.item())
    torch.testing.assert_close(by_image, expected, atol=1e-5, rtol=0)
    assert by_text.equal(by_image)
