"""Questions and captions: right, unambiguous, and inside the vocabulary."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
import shapes_oracle as oracle

from madtp_cli.data.descriptions import (
    MAX_CAPTION_TOKENS,
    Question,
    full_caption,
    identified_images,
    write_captions,
    write_questions,
)
from madtp_cli.data.scenes import Scenes, sample_scenes
from madtp_cli.data.sentences import VOCABULARY, token_ids

Asked = list[tuple[Scenes, list[list[Question]]]]


@pytest.fixture(scope="module")
def asked() -> Asked:
    rng = np.random.default_rng(8)
    scenes = [sample_scenes(rng, 64) for _ in range(8)]
    return [(s, write_questions(rng, s)) for s in scenes]


def test_each_question_has_one_answer_and_it_is_right(asked: Asked) -> None:
    for scenes, questions in asked:
        for image, of_image in enumerate(questions):
            for question in of_image:
                expected = oracle.answers(question.text, scenes.objects(image))
                assert set(question.answers) == expected, question
                assert len(expected) == 1


def test_each_image_is_asked_the_four_kinds(asked: Asked) -> None:
    kinds: Counter[str] = Counter()
    for _, questions in asked:
        for of_image in questions:
            assert len(of_image) == 4
            kinds.update(question.kind for question in of_image)
            assert Counter(question.kind for question in of_image)["exists"] == 2
    assert set(kinds) == {"exists", "count", "colour", "shape", "size"}
    assert kinds["count"] == 8 * 64


def test_a_yes_or_no_question_is_answered_both_ways_equally_often(asked: Asked) -> None:
    for _, questions in asked:
        given: dict[str, Counter[str]] = defaultdict(Counter)
        for of_image in questions:
            for question in of_image:
                if question.kind == "exists":
                    given[question.text][question.answers[0]] += 1
        assert all(answers["yes"] == answers["no"] for answers in given.values())


def test_questions_answers_and_captions_stay_inside_the_vocabulary(asked: Asked) -> None:
    rng = np.random.default_rng(0)
    unknown = VOCABULARY.index("[UNK]")
    for scenes, questions in asked:
        for image, of_image in enumerate(questions):
            texts = [text for q in of_image for text in (q.text, *q.answers)]
            texts += [full_caption(scenes, image), *write_captions(rng, scenes, image)]
            for text in texts:
                assert unknown not in token_ids(text)
                assert len(token_ids(text)) <= MAX_CAPTION_TOKENS


def test_captions_name_all_objects_and_nothing_else(asked: Asked) -> None:
    rng = np.random.default_rng(0)
    for scenes, _ in asked:
        for image in range(len(scenes)):
            objects = scenes.objects(image)
            captions = (full_caption(scenes, image), *write_captions(rng, scenes, image))
            for caption in captions:
                assert oracle.caption_holds(caption, objects)
                assert oracle.caption_total(caption) == len(objects)


def test_a_full_caption_identifies_its_image(asked: Asked) -> None:
    for scenes, _ in asked:
        identified = set(identified_images(scenes).tolist())
        for image in range(len(scenes)):
            caption = full_caption(scenes, image)
            holds = [i for i in range(len(scenes)) if oracle.caption_holds(caption, scenes.objects(i))]
            assert (holds == [image]) == (image in identified)
