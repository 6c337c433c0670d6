"""COCO and Flickr30k: both formats give the same images and captions, for learning captions and for retrieval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from image_files import draw
from plain import Plain, texts

from madtp_cli.data.karpathy import KarpathyCaptions, KarpathyRetrieval
from madtp_cli.errors import SourceError

IMAGES = [
    ("train2014", "COCO_train2014_000000000009.jpg", "train", ["A dog.", "One  Dog!"]),
    ("val2014", "COCO_val2014_000000000042.jpg", "restval", ["Two cats."]),
    ("val2014", "COCO_val2014_000000000073.jpg", "val", ["A bus.", "The bus (red)."]),
    ("val2014", "COCO_val2014_000000000074.jpg", "test", ["A boat."]),
]


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Write `dataset_coco.json` as published, and its images."""
    images = []
    for number, (folder, name, split, captions) in enumerate(IMAGES):
        draw(tmp_path / folder / name, 60 * number)
        sentences = [
            {"tokens": text.split(), "raw": text, "imgid": number, "sentid": k} for k, text in enumerate(captions)
        ]
        place = {"filepath": folder, "sentids": [0], "filename": name, "imgid": number, "cocoid": number}
        images.append(place | {"split": split, "sentences": sentences})
    return write(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})


def test_training_learns_every_caption_and_the_rest_of_the_validation_images(tmp_path: Path, coco: Path) -> None:
    prepare = Plain()
    batch = KarpathyCaptions(coco, tmp_path, "train", prepare, prompt="a picture of").batch(0, 3)
    assert texts(prepare, batch) == [f"[DEC] a picture of {text} [SEP]" for text in ("a dog", "one dog", "two cats")]
    assert batch.prompt_length == 4
    assert batch.image_index.tolist() == [0, 0, 1]
    assert batch.images.shape[0] == 2
    assert batch.references == (("A dog.", "One  Dog!"),) * 2 + (("Two cats.",),)
    assert len(set(batch.ids)) == 3


def test_evaluation_has_each_image_once_with_all_its_captions(tmp_path: Path, coco: Path) -> None:
    data = KarpathyCaptions(coco, tmp_path, "validation", Plain())
    batch = data.batch(0, 1)
    assert len(data) == 1
    assert batch.ids == ("val2014/COCO_val2014_000000000073.jpg",)
    assert batch.references == (("A bus.", "The bus (red)."),)
    assert batch.prompt_length == 1


def test_retrieval_has_every_caption_and_each_image_once(tmp_path: Path, coco: Path) -> None:
    prepare = Plain()
    batch = KarpathyRetrieval(coco, tmp_path, "train", prepare).batch(0, 3)
    assert texts(prepare, batch) == ["[ENC] a dog [SEP]", "[ENC] one dog [SEP]", "[ENC] two cats [SEP]"]
    assert batch.image_ids == ("train2014/COCO_train2014_000000000009.jpg", "val2014/COCO_val2014_000000000042.jpg")
    assert batch.image_index.tolist() == [0, 0, 1]
    assert len(KarpathyRetrieval(coco, tmp_path, "validation", prepare)) == 2


def test_blip_lists_give_what_karpathys_file_gives(tmp_path: Path, coco: Path) -> None:
    """Oracle: the same images and captions in the other format."""
    train = [
        {"caption": text, "image": f"{folder}/{name}", "image_id": f"coco_{name[-6:-4]}"}
        for folder, name, split, captions in IMAGES[:2]
        for text in captions
    ]
    test = [{"image": f"{folder}/{name}", "caption": captions} for folder, name, _, captions in IMAGES[2:3]]
    prepare = Plain()
    for split, entries, samples in [("train", train, 3), ("validation", test, 1)]:
        path = write(tmp_path / f"coco_karpathy_{split}.json", entries)
        for kind in (KarpathyCaptions, KarpathyRetrieval):
            listed: Any = kind(path, tmp_path, split, prepare).batch(0, samples)
            whole: Any = kind(coco, tmp_path, split, prepare).batch(0, samples)
            assert listed.ids == whole.ids
            assert listed.text.equal(whole.text)
            assert listed.images.equal(whole.images)
            assert listed.image_index.equal(whole.image_index)
            if kind is KarpathyCaptions:
                assert listed.references == whole.references


@pytest.mark.parametrize("place", ["", "flickr30k-images"])
def test_flickr30k_names_no_folder(tmp_path: Path, place: str) -> None:
    draw(tmp_path / place / "1000092795.jpg", 9)
    entry = {"sentids": [0], "imgid": 0, "sentences": [{"raw": "Two men.", "tokens": [], "imgid": 0, "sentid": 0}]}
    path = write(
        tmp_path / "dataset_flickr30k.json",
        {"images": [entry | {"split": "test", "filename": "1000092795.jpg"}], "dataset": "flickr30k"},
    )
    assert KarpathyRetrieval(path, tmp_path, "test", Plain()).batch(0, 1).samples == 1


def test_long_captions_are_cut(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg", 9)
    path = write(tmp_path / "l.json", [{"image": "a.jpg", "caption": ["w " * 99]}])
    assert KarpathyRetrieval(path, tmp_path, "test", Plain()).batch(0, 1).text_lengths == [32]  # 30 words
    short = KarpathyRetrieval(path, tmp_path, "test", Plain(), max_tokens=5)
    assert short.batch(0, 1).text.tolist() == [0, 3, 3, 3, 2]


def test_missing_images_of_the_split_are_counted_and_left_out(tmp_path: Path, coco: Path) -> None:
    (tmp_path / "train2014" / IMAGES[0][1]).unlink()
    with pytest.raises(
        SourceError, match=r"1 image is missing or unreadable: train2014/COCO_train2014_000000000009\.jpg"
    ):
        KarpathyRetrieval(coco, tmp_path, "train", Plain())
    assert len(KarpathyRetrieval(coco, tmp_path, "train", Plain(), max_broken=1)) == 1
    assert len(KarpathyRetrieval(coco, tmp_path, "test", Plain())) == 1  # its own images are all there


def test_splits_that_are_not_there_are_named(tmp_path: Path, coco: Path) -> None:
    content = json.loads(coco.read_text(encoding="utf-8"))
    write(coco, content | {"images": content["images"][:2]})
    with pytest.raises(SourceError, match=r"has no images of the split test, got restval, train;"):
        KarpathyCaptions(coco, tmp_path, "test", Plain())
    with pytest.raises(SourceError, match="there is no split 'dev'; try one of train, validation, test"):
        KarpathyCaptions(coco, tmp_path, "dev", Plain())
    path = write(tmp_path / "x.json", {"images": [{"split": "val", "sentences": [{}], "filename": "a.jpg"}]})
    with pytest.raises(SourceError, match=r"entry 0: sentences\[0\]: no key 'raw', got no keys"):
        KarpathyCaptions(path, tmp_path, "validation", Plain())


def test_a_list_of_one_split_is_not_read_as_several(tmp_path: Path, coco: Path) -> None:
    """Karpathy's file says which image is of which split, BLIP's lists do not."""
    path = write(tmp_path / "list.json", [{"image": "train2014/COCO_train2014_000000000009.jpg", "caption": "A dog."}])
    for kind in (KarpathyCaptions, KarpathyRetrieval):
        data: Any = kind(coco, tmp_path, "test", Plain(), shared=True)
        assert len(data) == 1
        with pytest.raises(SourceError) as caught:
            kind(path, tmp_path, "test", Plain(), shared=True)
        assert "entry 0: does not say which split it belongs to, but the file is given for several; name a file" in str(
            caught.value
        )
