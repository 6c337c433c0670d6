"""The task vqa: the loss by plain loops, answers ranked by brute force, and answers written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.data.shapes_single import ShapesQuestions, answer_list, answered
from madtp_cli.data.vqav2 import read_answers
from madtp_cli.engine.tasks.base import Asked, Scores
from madtp_cli.engine.tasks.vqa import ANSWER_LIST, Answering, Vqa
from madtp_cli.models.language import LABEL_SMOOTHING
from tests.engine.tasks.tiny_shapes import CPU, make_model, processor, words_of

DATA = ShapesQuestions("test", 24)
PROCESSOR = processor("blip", "vqa")
# Of one to three words; no two begin alike, so that no two tie for the k that are compared.
CANDIDATES = (*answer_list()[:9], "red circle", "large blue squares", "there are many", "left image", "both")


def task_of(by: Any = "rank", k: int = 128, **options: Any) -> Vqa:
    """Make the task; answers are among the candidates."""
    ids = tuple(tuple(PROCESSOR.answer(words)) for words in CANDIDATES)
    answering = Answering(by, CANDIDATES, ids, PROCESSOR.decode, k=k, beams=2, max_length=6)
    return Vqa(options.pop("metric", answered), answering, **options)


def scores_of(task: Vqa, cuts: Sequence[int] = (0, 12)) -> Scores:
    """Answer the questions between the cuts, batch by batch."""
    model = make_model("blip", "vqa")
    scorer = task.scorer(model)
    with torch.inference_mode():
        for start, stop in pairwise(cuts):
            batch = DATA.batch(start, stop - start)
            scorer.add(batch, task.forward(model, batch, CPU))
        return scorer.scores()


# Training ----------------------------------------------------------------------------------------------------


def test_answers_are_read_in_training_only() -> None:
    model, task, batch = make_model("blip", "vqa"), task_of(), DATA.batch(0, 6)
    with torch.inference_mode():
        trained, asked = (task.forward(model, batch, CPU, Asked(training=training)) for training in (True, False))
    assert trained.logits.shape == (sum(batch.answer_lengths) - len(batch.answer_lengths), len(VOCABULARY))
    assert asked.logits.shape == (0, len(VOCABULARY))
    torch.testing.assert_close(trained.encoded, asked.encoded)
    assert task.compared(trained)[0] is trained.logits


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_weighs_answers_by_how_many_gave_them(smoothing: float) -> None:
    """-log-probability of every token after [DEC], by a loop; two of the questions have two answers."""
    batch = DATA.batch(0, 3)
    given = [(0, "red", 0.75), (0, "two red", 0.25), (1, "yes", 1.0), (2, "one", 0.5), (2, "no", 0.5)]
    ids = [PROCESSOR.answer(words) for _, words, _ in given]
    batch = replace(
        batch,
        answers=torch.tensor([token for answer in ids for token in answer]),
        answer_lengths=[len(answer) for answer in ids],
        answer_index=torch.tensor([question for question, _, _ in given]),
        answer_weights=torch.tensor([weight for _, _, weight in given]),
    )
    task = task_of(label_smoothing=smoothing)
    with torch.inference_mode():
        output = task.forward(make_model("blip", "vqa"), batch, CPU, Asked(training=True))
        losses = task.losses(output, batch)
    assert losses.keys() == {"task"}
    expected, row = 0.0, 0
    for (_, _, weight), answer in zip(given, ids, strict=True):
        for token in answer[1:]:
            log = output.logits[row].log_softmax(-1)
            expected -= weight * ((1 - smoothing) * log[token] + smoothing * log.mean()).item() / 3
            row += 1
    assert losses["task"].item() == pytest.approx(expected, rel=1e-5)


# Answers -----------------------------------------------------------------------------------------------------


def brute_force(k: int) -> list[tuple[str, list[float]]]:
    """Rank every question's candidates one by one: the k with the likeliest first word, by the sum over all words."""
    model, task = make_model("blip", "vqa"), task_of()
    found = []
    for row in range(12):
        alone = DATA.batch(row, 1)
        first, whole = {}, {}
        for words in CANDIDATES:
            ids = PROCESSOR.answer(words)
            only: dict[str, Any] = {
                "answers": torch.tensor(ids),
                "answer_lengths": [len(ids)],
                "answer_index": torch.tensor([0]),
            }
            with torch.inference_mode():
                logits = task.forward(model, replace(alone, **only), CPU, Asked(training=True)).logits
            logs = logits.log_softmax(-1)
            first[words] = logs[0, ids[1]].item()
            smooth = LABEL_SMOOTHING
            whole[words] = sum(
                ((1 - smooth) * log[token] + smooth * log.mean()).item()
                for log, token in zip(logs, ids[1:], strict=True)
            )
        chosen = sorted(CANDIDATES, key=lambda words: -first[words])[:k]
        found.append((max(chosen, key=lambda words: whole[words]), sorted(whole[words] for words in chosen)))
    return found


@pytest.mark.parametrize("k", [1, 9, 128])
def test_answers_are_ranked_as_by_brute_force(k: int) -> None:
    """The same answers, and the log-probabilities of those compared, to 1e-4."""
    scores = scores_of(task_of(k=k))
    for (words, values), answer, logits in zip(brute_force(k), scores.predictions, scores.logits, strict=True):
        assert answer == words
        assert sorted(logits) == pytest.approx(values, abs=1e-4)


def test_answers_are_those_of_the_decoder_in_words() -> None:
    """Without special tokens, at most as long as asked for."""
    model, task = make_model("blip", "vqa"), task_of("generate")
    scores = scores_of(task)
    with torch.inference_mode():
        written = model.generate(task.forward(model, DATA.batch(0, 12), CPU), beams=2, max_length=6)
    assert scores.predictions == [words_of(ids) for ids in written]
    assert all(len(answer.split()) <= 5 for answer in scores.predictions)
    assert scores.logits == [[]] * 12


@pytest.mark.parametrize("by", ["rank", "generate"])
def test_the_batch_size_changes_no_answer(by: Any) -> None:
    one, other = scores_of(task_of(by)), scores_of(task_of(by), (0, 5, 6, 12))
    assert one.predictions == other.predictions
    assert one.metrics == other.metrics
    for first, second in zip(one.logits, other.logits, strict=True):
        assert first == pytest.approx(second, abs=1e-4)


def test_answers_references_and_kinds_are_scored_together() -> None:
    asked: list[tuple[Any, ...]] = []

    def metric(answers: Sequence[str], references: Any, kinds: Sequence[str]) -> Mapping[str, float]:
        asked.append((list(answers), list(references), list(kinds)))
        return {"accuracy": 0.5}

    scores = scores_of(task_of(metric=metric), (0, 7, 12))
    batch = DATA.batch(0, 12)
    assert asked == [(list(scores.predictions), list(batch.references), list(batch.groups))]
    assert scores.metrics == {"accuracy": 0.5}


def test_the_answers_that_are_ranked_are_kept_beside_the_weights(tmp_path: Path) -> None:
    """Read back equal, in their order; there is no file where answers are written."""
    task_of("rank").save(tmp_path)
    assert tuple(read_answers(tmp_path / ANSWER_LIST)) == CANDIDATES
    Vqa(answered, Answering("generate", (), (), PROCESSOR.decode)).save(tmp_path / "nowhere")
