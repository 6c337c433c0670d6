"""Whole answers of an export folder beside the model's own, by the task's metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from madtp_cli.data.batch import CaptionBatch, QuestionBatch
from madtp_cli.data.shapes_single import answered
from madtp_cli.engine.exporting.answers import answers, scored
from madtp_cli.engine.tasks.caption import Caption, Writing
from madtp_cli.engine.tasks.vqa import Answering, Vqa
from tests.export.tiny_exports import DEC, SEP, build, singles
from tests.export.toy_graphs import write_folder

NAMES = ("three", "four", "five")
IDS = tuple((DEC, word, SEP) for word in (3, 4, 5))


def questions(count: int) -> list[QuestionBatch]:
    """Ask some questions, all of which "three" answers; images and words differ."""
    drawn = singles([4] * count)
    return [
        QuestionBatch(
            images=drawn.images[row : row + 1],
            text=drawn.text[4 * row : 4 * row + 4],
            text_lengths=[4],
            image_index=torch.tensor([0]),
            ids=(str(row),),
            groups=("number",),
            answers=torch.tensor(IDS[0]),
            answer_lengths=[3],
            answer_index=torch.tensor([0]),
            answer_weights=torch.tensor([1.0]),
            references=(("three",),),
        )
        for row in range(count)
    ]


def test_answers_are_the_folder_s_own(tmp_path: Path) -> None:
    """By the toy decoder's table, whatever is seen and asked; written, where none are listed."""
    small = [replace(each, images=torch.randn(1, 3, 8, 8)) for each in questions(2)]
    write_folder(tmp_path / "ranked", "vqa", answers=("blue", "red", "green"))
    assert answers(tmp_path / "ranked", small, 1) == ["red", "red"]
    write_folder(tmp_path / "written", "caption")
    assert answers(tmp_path / "written", small, 1) == ["a circle", "a circle"]


def test_both_are_scored_by_the_same_metric() -> None:
    """The model's own answers are those that it ranks first; what the export said is right two times in four."""
    model = build("blip", "vqa")
    task = Vqa(answered, Answering(by="rank", candidates=NAMES, candidate_ids=IDS, decode=str))
    samples = questions(4)
    flat = torch.tensor([word for ids in IDS for word in ids])
    ranked = [NAMES[model.rank(model(s.images, s.text, [4], [0]), flat, [3, 3, 3], 3)[0].item()] for s in samples]
    own, exported = scored(task, model, samples, ["three", "four", "three", "five"])
    assert own == pytest.approx(ranked.count("three") / 4)
    assert exported == 0.5


def test_what_is_written_is_written_greedily() -> None:
    """The model's own captions are those of one beam, whatever the task searches with; ids go to the metric."""
    model = build("blip", "caption")
    seen: list[tuple[str, ...]] = []

    def metric(captions: Sequence[str], references: Sequence[tuple[str, ...]], ids: Sequence[str]) -> dict[str, float]:
        assert list(ids) == ["0", "1"]
        seen.append(tuple(captions))
        return {"score": float(len(seen))}

    task = Caption(metric, Writing((DEC,), str, beams=3, min_length=1, max_length=6), score="score")
    drawn = singles([4, 4])
    samples = [
        CaptionBatch(
            images=drawn.images[row : row + 1],
            text=torch.tensor([DEC, 5, 6, SEP]),
            text_lengths=[4],
            image_index=torch.tensor([0]),
            ids=(str(row),),
            groups=("",),
            prompt_length=1,
            references=(("a",),),
        )
        for row in range(2)
    ]
    assert set(scored(task, model, samples, ["said", "so"])) == {1.0, 2.0}
    tokens, _ = model.encode_images(drawn.images)
    greedy = tuple(str(ids) for ids in model.generate(tokens, [DEC], beams=1, min_length=1, max_length=6))
    assert sorted(seen) == sorted([("said", "so"), greedy])
    assert task.writing.beams == 3
