"""NLVR v1: every permutation of the boxes is a sample, the whole image is both of its pair's images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from image_files import draw
from plain import Plain, texts

from madtp_cli.data.nlvr_v1 import NlvrV1Pairs
from madtp_cli.errors import SourceError

ENTRIES = [
    {"sentence": "There is a Black square.", "label": "true", "identifier": "2536-0", "directory": "0"},
    {"sentence": "There is a Black square.", "label": "false", "identifier": "2536-3", "directory": "0"},
    {"sentence": "two circles", "label": "true", "identifier": "14-1", "directory": "7"},
]


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    path = tmp_path / "dev" / "dev.json"
    path.parent.mkdir()
    path.write_text(
        "".join(json.dumps(entry | {"evals": {"r5": "true"}}) + "\n" for entry in ENTRIES), encoding="utf-8"
    )
    return path


def draw_all(folder: Path) -> None:
    for number, entry in enumerate(ENTRIES):
        for k in range(6):
            draw(folder / entry["directory"] / f"dev-{entry['identifier']}-{k}.png", 10 * number + k)


@pytest.mark.parametrize("place", ["dev/images", "images", ""])
def test_six_permutations_are_six_samples_with_one_image_each(tmp_path: Path, dev: Path, place: str) -> None:
    draw_all(tmp_path / "all" / place)
    prepare = Plain()
    data = NlvrV1Pairs(dev, tmp_path / "all", prepare)
    assert len(data) == 18
    batch = data.batch(4, 4)
    assert batch.ids == ("dev-2536-0-4", "dev-2536-0-5", "dev-2536-3-0", "dev-2536-3-1")
    assert batch.labels.tolist() == [1, 1, 0, 0]
    assert batch.image_index.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert batch.images[:, 0, 0, 0].tolist() == [4, 5, 10, 11]
    assert texts(prepare, batch)[0] == "[ENC] there is a black square [SEP]"


def test_groups_are_sentences_with_all_their_examples(tmp_path: Path, dev: Path) -> None:
    """Oracle: the official evaluation's key is the first number of the identifier."""
    draw_all(tmp_path / "images")
    assert set(NlvrV1Pairs(dev, tmp_path, Plain()).batch(0, 18).groups) == {"dev-2536", "dev-14"}


def test_fewer_permutations_are_fewer_samples_but_a_gap_is_a_missing_image(tmp_path: Path, dev: Path) -> None:
    draw_all(tmp_path)
    for k in (4, 5):
        (tmp_path / "7" / f"dev-14-1-{k}.png").unlink()
    assert len(NlvrV1Pairs(dev, tmp_path, Plain())) == 16
    (tmp_path / "7" / "dev-14-1-2.png").unlink()
    with pytest.raises(SourceError, match=r"1 image is missing or unreadable: .*dev-14-1-2\.png"):
        NlvrV1Pairs(dev, tmp_path, Plain())
    assert len(NlvrV1Pairs(dev, tmp_path, Plain(), max_broken=1)) == 15


def test_an_example_without_any_image_is_one_missing_image(tmp_path: Path, dev: Path) -> None:
    draw_all(tmp_path)
    for k in range(6):
        (tmp_path / "7" / f"dev-14-1-{k}.png").unlink()
    with pytest.raises(SourceError, match=r"1 image is missing or unreadable: dev/images/7/dev-14-1-0\.png"):
        NlvrV1Pairs(dev, tmp_path, Plain())


def test_an_identifier_of_another_form_is_named(tmp_path: Path, dev: Path) -> None:
    dev.write_text(json.dumps(ENTRIES[0] | {"identifier": "2536"}), encoding="utf-8")
    with pytest.raises(SourceError, match=r"dev\.json:1: identifier must be <sentence>-<position>, got '2536'"):
        NlvrV1Pairs(dev, tmp_path, Plain())
