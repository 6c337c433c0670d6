"""NLVR2 from both of its formats: the right images, in their order, with their labels and sentence keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from image_files import draw, spoil
from plain import Plain, texts

from madtp_cli.data.nlvr2 import Nlvr2Pairs
from madtp_cli.errors import SourceError


def official(identifier: str, sentence: str, label: str, **more: Any) -> str:
    entry = {"validation": {"61": "False"}, "sentence": sentence, "left_url": "https://x", "label": label}
    return json.dumps(entry | {"identifier": identifier, "synset": "dog"} | more)


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """Two pairs of one set with both sentences, and one pair of another; redness tells the images apart."""
    lines = [
        official("dev-850-0-0", "The LEFT image shows a dog.", "False"),
        official("dev-850-2-0", "The LEFT image shows a dog.", "True"),
        official("dev-850-0-1", "Two cats, in all!", "True"),
        official("dev-9-1-0", "A bottle.", "False"),
    ]
    path = tmp_path / "dev.json"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def draw_dev(folder: Path) -> None:
    for number, pair in enumerate(("850-0", "850-2", "9-1")):
        for side in (0, 1):
            draw(folder / f"dev-{pair}-img{side}.png", 100 * side + 10 * number)


@pytest.mark.parametrize("place", ["", "dev", "images", "images/dev"])
def test_official_lines_are_read_wherever_their_images_lie(tmp_path: Path, dev: Path, place: str) -> None:
    draw_dev(tmp_path / "all" / place)
    prepare = Plain()
    data = Nlvr2Pairs(dev, tmp_path / "all", prepare)
    batch = data.batch(0, 4)
    assert len(data) == 4
    assert batch.ids == ("dev-850-0-0", "dev-850-2-0", "dev-850-0-1", "dev-9-1-0")
    assert batch.labels.tolist() == [0, 1, 1, 0]
    # Three pairs, so six images; the third sentence asks about the first pair again.
    assert batch.images.shape == (6, 3, 8, 8)
    assert batch.image_index.tolist() == [[0, 1], [2, 3], [0, 1], [4, 5]]
    assert batch.images[:, 0, 0, 0].tolist() == [0, 100, 10, 110, 20, 120]
    assert texts(prepare, batch)[0] == "[ENC] the left image shows a dog [SEP]"
    assert texts(prepare, batch)[2] == "[ENC] two cats, in all [SEP]"


def test_groups_are_the_keys_of_the_official_consistency(tmp_path: Path, dev: Path) -> None:
    """Oracle: the identifier without its pair, as the official evaluation makes the key."""
    draw_dev(tmp_path)
    batch = Nlvr2Pairs(dev, tmp_path, Plain()).batch(0, 4)
    keys = ["-".join(["" if place == 2 else part for place, part in enumerate(name.split("-"))]) for name in batch.ids]
    assert list(batch.groups) == keys


def test_training_images_lie_in_numbered_directories(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(official("train-10171-0-0", "A dog.", "True", directory="27"), encoding="utf-8")
    for side in (0, 1):
        draw(tmp_path / "images" / "train" / "27" / f"train-10171-0-img{side}.png", side)
    assert Nlvr2Pairs(path, tmp_path, Plain()).batch(0, 1).images[:, 0, 0, 0].tolist() == [0, 1]


def test_a_blip_list_gives_the_same_batch_and_the_same_groups(tmp_path: Path, dev: Path) -> None:
    """Oracle: the official file of the same samples."""
    draw_dev(tmp_path / "dev")
    entries = []
    for line in dev.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        pair = entry["identifier"].rpartition("-")[0]
        images = [f"dev/{pair}-img0.png", f"dev/{pair}-img1.png"]
        entries.append({"sentence": entry["sentence"], "label": entry["label"], "images": images})
    path = tmp_path / "nlvr_dev.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    prepare = Plain()
    listed = Nlvr2Pairs(path, tmp_path, prepare).batch(0, 4)
    lines = Nlvr2Pairs(dev, tmp_path, prepare).batch(0, 4)
    for name in ("images", "text", "image_index", "labels"):
        assert getattr(listed, name).equal(getattr(lines, name)), name
    assert [listed.groups.index(group) for group in listed.groups] == [0, 0, 2, 3]
    assert [lines.groups.index(group) for group in lines.groups] == [0, 0, 2, 3]
    assert listed.ids == ("nlvr_dev/0", "nlvr_dev/1", "nlvr_dev/2", "nlvr_dev/3")


def test_missing_images_stop_or_leave_their_samples_out(tmp_path: Path, dev: Path) -> None:
    draw_dev(tmp_path)
    (tmp_path / "dev-850-0-img1.png").unlink()
    with pytest.raises(SourceError, match=r"1 image is missing or unreadable: dev-850-0-img1\.png \(no such file\)"):
        Nlvr2Pairs(dev, tmp_path, Plain())
    data = Nlvr2Pairs(dev, tmp_path, Plain(), max_broken=1)
    assert len(data) == 2
    assert data.batch(0, 2).ids == ("dev-850-2-0", "dev-9-1-0")
    assert data.broken == ["dev-850-0-img1.png (no such file)"]


def test_unreadable_images_leave_their_samples_out_of_their_batch(tmp_path: Path, dev: Path) -> None:
    draw_dev(tmp_path)
    spoil(tmp_path / "dev-850-0-img0.png")
    data = Nlvr2Pairs(dev, tmp_path, Plain(), max_broken=1)
    assert len(data) == 4
    batch = data.batch(0, 3)
    assert batch.ids == ("dev-850-2-0",)
    assert batch.image_index.tolist() == [[0, 1]]
    assert batch.images.shape[0] == 2
    assert data.broken[0].startswith("dev-850-0-img0.png (")
    empty = data.batch(0, 1)
    assert empty.samples == 0
    assert empty.images.shape[0] == empty.labels.numel() == 0
    with pytest.raises(SourceError, match=r"data\.max_broken is 0"):
        Nlvr2Pairs(dev, tmp_path, Plain()).batch(0, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"sentence": "x", "label": "True"}', "dev.json:1: no key 'identifier', got the keys sentence, label"),
        (official("dev-1-2", "x", "True"), "identifier must be <split>-<set>-<pair>-<sentence>, got 'dev-1-2'"),
        (official("dev-1-2-0", "x", "perhaps"), "label must be true or false, got 'perhaps'"),
        ('[{"sentence": "x", "label": "True", "images": ["a.png"]}]', "entry 0: images must be [left, right], got 1"),
    ],
)
def test_entries_of_another_form_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "dev.json"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(SourceError) as caught:
        Nlvr2Pairs(path, tmp_path, Plain(), max_broken=9)
    assert message in str(caught.value)


def test_a_split_without_any_image_or_with_a_sample_twice_is_refused(tmp_path: Path, dev: Path) -> None:
    with pytest.raises(SourceError, match=r"no sample has its images in .*docs/data\.md has its layout"):
        Nlvr2Pairs(dev, tmp_path, Plain(), max_broken=99)
    draw_dev(tmp_path)
    dev.write_text(dev.read_text(encoding="utf-8") * 2, encoding="utf-8")
    with pytest.raises(SourceError, match="has the sample dev-850-0-0 2 times"):
        Nlvr2Pairs(dev, tmp_path, Plain())


def test_samples_that_do_not_exist_are_refused(tmp_path: Path, dev: Path) -> None:
    draw_dev(tmp_path)
    with pytest.raises(ValueError, match="there are samples 0 to 3, got start 3 and size 2"):
        Nlvr2Pairs(dev, tmp_path, Plain()).batch(3, 2)
