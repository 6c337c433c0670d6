"""VQAv2: official files and BLIP's lists, what is learned and with which weight, and which image is asked about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from image_files import draw
from plain import Plain, texts

from madtp_cli.data.vqav2 import VqaQuestions, frequent_answers, given_answers, read_answers
from madtp_cli.errors import SourceError

QUESTIONS = [
    {"image_id": 458752, "question": "What is this photo taken looking through?", "question_id": 458752000},
    {"image_id": 458752, "question": "Is it (really) fun?", "question_id": 458752001},
    {"image_id": 262146, "question": "How many?", "question_id": 262146000},
]
ANSWERS = [["net"] * 9 + ["netting"], ["yes"] * 10, ["2"] * 5 + ["3"] * 5]
KINDS = ["other", "yes/no", "number"]


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def official(folder: Path, year: str = "train2014") -> tuple[Path, Path]:
    head = {"info": {}, "license": {}, "data_subtype": year, "data_type": "mscoco"}
    annotations = [
        {
            "question_type": "none of the above",
            "multiple_choice_answer": answers[0],
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": n + 1} for n, a in enumerate(answers)],
            "image_id": question["image_id"],
            "answer_type": kind,
            "question_id": question["question_id"],
        }
        for question, answers, kind in zip(QUESTIONS, ANSWERS, KINDS, strict=True)
    ]
    return (
        write(folder / f"v2_OpenEnded_mscoco_{year}_questions.json", head | {"questions": QUESTIONS}),
        # In another order than the questions: they belong together by their ids.
        write(folder / f"v2_mscoco_{year}_annotations.json", head | {"annotations": annotations[::-1]}),
    )


def draw_images(folder: Path, year: str = "train2014") -> None:
    draw(folder / f"COCO_{year}_000000458752.jpg", 200)
    draw(folder / f"COCO_{year}_000000262146.jpg", 20)


@pytest.mark.parametrize("place", ["", "train2014"])
def test_official_questions_meet_their_answers_and_images(tmp_path: Path, place: str) -> None:
    questions, annotations = official(tmp_path)
    draw_images(tmp_path / "coco" / place)
    prepare = Plain()
    data = VqaQuestions(questions, annotations, tmp_path / "coco", prepare)
    batch = data.batch(0, 3)
    assert batch.ids == ("458752000", "458752001", "262146000")
    assert texts(prepare, batch)[1] == "[ENC] is it really fun? [SEP]"
    assert batch.image_index.tolist() == [0, 0, 1]
    assert batch.images.shape[0] == 2
    assert batch.groups == tuple(KINDS)
    answers = [prepare.read(part) for part in batch.answers.split(batch.answer_lengths)]
    assert answers == [f"[DEC] {word} [SEP]" for word in ("net", "netting", "yes", "2", "3")]
    assert batch.answer_index.tolist() == [0, 0, 1, 2, 2]
    assert batch.answer_weights.tolist() == pytest.approx([0.9, 0.1, 1.0, 0.5, 0.5])
    assert batch.references == tuple(tuple(given) for given in ANSWERS)


@pytest.mark.parametrize(
    ("year", "images"), [("val2014", "val2014"), ("test-dev2015", "test2015"), ("test2015", "test2015")]
)
def test_the_name_of_a_file_says_which_images_it_is_about(tmp_path: Path, year: str, images: str) -> None:
    questions, _ = official(tmp_path, year)
    draw_images(tmp_path / images, images)
    batch = VqaQuestions(questions, None, tmp_path, Plain()).batch(0, 3)
    # The test split has no answers: nothing to learn, nothing to compare with.
    assert batch.references == ((), (), ())
    assert batch.answers.numel() == batch.answer_index.numel() == batch.answer_weights.numel() == 0


def test_blip_lists_of_vqa_and_visual_genome_train_together(tmp_path: Path) -> None:
    vqa = [
        {
            "question_id": 9,
            "question": "What?",
            "answer": ["net", "net", "fog", "net"],
            "image": "val2014/a.jpg",
            "dataset": "vqa",
        },
        {"question_id": 10, "question": "Who?", "answer": ["man"], "image": "val2014/a.jpg", "dataset": "vqa"},
    ]
    genome = [{"question_id": 9, "question": "Where?", "answer": "here", "image": "VG_100K/1.jpg", "dataset": "vg"}]
    paths = [write(tmp_path / "vqa_val.json", vqa), write(tmp_path / "vg_qa.json", genome)]
    draw(tmp_path / "coco" / "val2014" / "a.jpg", 200)
    draw(tmp_path / "vg" / "VG_100K" / "1.jpg", 20)
    prepare = Plain()
    data = VqaQuestions(paths, None, tmp_path / "coco", prepare, genome_images=tmp_path / "vg")
    batch = data.batch(0, 3)
    assert batch.ids == ("9", "10", "vg_qa/0")
    assert batch.answer_weights.tolist() == pytest.approx([0.75, 0.25, 1.0, 0.2])
    assert batch.answer_index.tolist() == [0, 0, 1, 2]
    assert batch.image_index.tolist() == [0, 0, 1]
    assert batch.images[1, 0, 0, 0] < 100 < batch.images[0, 0, 0, 0]
    with pytest.raises(SourceError, match=r"entry 0: is a Visual Genome question; .* data\.genome_images"):
        VqaQuestions(paths, None, tmp_path / "coco", prepare)


def test_a_blip_test_list_has_no_answers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "vqa_test.json", [{"question_id": 1, "question": "Q?", "image": "test2015/b.jpg", "dataset": "vqa"}]
    )
    draw(tmp_path / "b.jpg", 1)
    assert VqaQuestions(path, None, tmp_path, Plain()).batch(0, 1).references == ((),)


def test_long_questions_are_cut_but_keep_their_end(tmp_path: Path) -> None:
    question = {"question_id": 1, "question": "a " * 60, "answer": ["b"], "image": "b.jpg", "dataset": "vqa"}
    draw(tmp_path / "b.jpg", 1)
    prepare = Plain()
    batch = VqaQuestions(write(tmp_path / "vqa_train.json", [question]), None, tmp_path, prepare).batch(0, 1)
    assert batch.text_lengths == [35]
    assert texts(prepare, batch)[0].endswith("a [SEP]")


def test_the_answers_to_rank_are_a_file_or_the_most_frequent_ones(tmp_path: Path) -> None:
    questions, annotations = official(tmp_path)
    assert set(frequent_answers(given_answers(questions, annotations), 9)) == {"net", "netting", "yes", "2", "3"}
    assert len(frequent_answers(given_answers(questions, annotations), 2)) == 2
    assert read_answers(write(tmp_path / "answer_list.json", ["yes", "no", "yes"])) == ["yes", "no"]
    for value, message in [({"a": 1}, "must be a JSON list of answers"), ([], "must be a JSON list")]:
        with pytest.raises(SourceError, match=message):
            read_answers(write(tmp_path / "answer_list.json", value))
    with pytest.raises(SourceError, match="no such file"):
        read_answers(tmp_path / "none.json")
    (tmp_path / "answer_list.json").write_text("[", encoding="utf-8")
    with pytest.raises(SourceError, match="cannot be read as a JSON list of answers"):
        read_answers(tmp_path / "answer_list.json")


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    questions, annotations = official(tmp_path)
    draw_images(tmp_path)
    with pytest.raises(SourceError, match="got 2 files of questions and 1 of annotations; give one for each"):
        VqaQuestions([questions, questions], annotations, tmp_path, Plain())
    content = json.loads(annotations.read_text(encoding="utf-8"))
    write(annotations, content | {"annotations": content["annotations"][:2]})
    with pytest.raises(
        SourceError, match=r"questions\[0\]|entry 0: question_id 458752000 has no answers in .*same split"
    ):
        VqaQuestions(questions, annotations, tmp_path, Plain())
    nameless = write(tmp_path / "q.json", {"questions": QUESTIONS})
    with pytest.raises(SourceError, match="neither its name nor its data_subtype says which images"):
        VqaQuestions(nameless, None, tmp_path, Plain())
    with pytest.raises(SourceError, match="no such file"):
        VqaQuestions(tmp_path / "none.json", None, tmp_path, Plain())
