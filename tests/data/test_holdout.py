"""Training samples held out as validation: which they are, and that no image is on both sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from image_files import draw
from plain import Plain

from madtp_cli.data.holdout import Part
from madtp_cli.data.nlvr2 import Nlvr2Pairs
from madtp_cli.data.nlvr_v1 import NlvrV1Pairs
from madtp_cli.data.samples import write_samples
from madtp_cli.data.vqav2 import VqaQuestions, given_answers
from madtp_cli.errors import SourceError

HELD, KEPT = Part(0.4, held_out=True), Part(0.4, held_out=False)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_the_parts_are_complements_of_about_the_share(share: float) -> None:
    """Oracle: five standard deviations of a binomial."""
    units = [f"COCO_train2014_{number:012d}" for number in range(20_000)]
    held = [Part(share, held_out=True).has(unit) for unit in units]
    assert [Part(share, held_out=False).has(unit) for unit in units] == [not one for one in held]
    assert abs(sum(held) / len(held) - share) < 5 * (share * (1 - share) / len(held)) ** 0.5


def test_a_unit_stays_on_its_side_for_ever() -> None:
    """By value: other samples must not move into validation between versions."""
    assert [unit for unit in "abcdefghij" if HELD.has(unit)] == CHOSEN


CHOSEN = ["a", "c", "e", "f", "h", "j"]


def questions(folder: Path, *, prefix: str = "train2014/") -> Path:
    """Write a list of 3 questions about each of 30 images."""
    entries = []
    for number in range(90):
        name = f"{prefix}COCO_train2014_{number // 3:012d}.jpg"
        entries.append(
            {"question_id": number, "question": "Q?", "answer": [f"a{number}"], "image": name, "dataset": "vqa"}
        )
        draw(folder / name, number)
    path = folder / "vqa_train.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def test_questions_about_one_image_stay_together_wherever_it_lies(tmp_path: Path) -> None:
    parts: dict[str, Any] = {}
    for place in ("train2014/", "images/"):
        path = questions(tmp_path / place.strip("/"), prefix=place)
        images = path.parent
        held = VqaQuestions(path, None, images, Plain(), part=HELD)
        kept = VqaQuestions(path, None, images, Plain(), part=KEPT)
        assert len(held) + len(kept) == 90
        assert not {s.images for s in held.samples} & {s.images for s in kept.samples}
        assert len(held) == 3 * len({s.images for s in held.samples})
        parts[place] = [sample.id for sample in held.samples]
        # Counting answers needs no image, and counts those of its part only.
        assert set(given_answers(path, None, KEPT)) == set(kept.answers())
    assert parts["train2014/"] == parts["images/"]


def test_a_missing_image_counts_in_its_own_part_only(tmp_path: Path) -> None:
    path = questions(tmp_path)
    gone = VqaQuestions(path, None, tmp_path, Plain(), part=HELD).samples[0].images[0]
    (tmp_path / gone).unlink()
    VqaQuestions(path, None, tmp_path, Plain(), part=KEPT)
    with pytest.raises(SourceError, match="1 image is missing or unreadable"):
        VqaQuestions(path, None, tmp_path, Plain(), part=HELD)


@pytest.mark.parametrize(("name", "kind"), [("nlvr2", Nlvr2Pairs), ("nlvr_v1", NlvrV1Pairs)])
def test_sets_of_images_and_sentences_are_not_divided(name: str, kind: Any, tmp_path: Path) -> None:
    written = write_samples(name, "nlvr2", tmp_path, 8)
    file, images = Path(written["annotations"]["train"]), Path(written["images"])
    held, kept = ({sample.unit for sample in kind(file, images, Plain(), part=part).samples} for part in (HELD, KEPT))
    assert held
    assert kept
    assert not held & kept
    assert all(unit.startswith("train-") for unit in held | kept)


def test_a_share_that_holds_nothing_out_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        VqaQuestions(questions(tmp_path), None, tmp_path, Plain(), part=Part(1e-9, held_out=True))
    assert str(caught.value).endswith(
        "vqa_train.json: has no samples in the held-out part (data.validation_share is 1e-09); change the share, or "
        "name a file for each split"
    )
