"""Which files a recipe names for each split: none that measures what was trained on, and parts where one is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from madtp_cli.data.samples import write_samples
from madtp_cli.engine.building.data import data_notes
from madtp_cli.errors import SourceError
from tests.engine.building.test_data import opened_from, questions


@pytest.mark.parametrize("split", ["validation", "test"])
def test_training_refuses_what_it_is_measured_on(split: str, tmp_path: Path) -> None:
    """The files are the same ones; evaluating alone reads no training split and does not mind."""
    data = questions(tmp_path)
    for key in ("questions", "annotations"):
        data[key][split] = data[key]["train"]
    splits = opened_from(tmp_path, data, "vqa")
    assert len(splits.named(split)) == 8
    with pytest.raises(SourceError) as caught:
        splits.open()
    assert str(caught.value).startswith(f"data: train and {split} are both read from {data['questions']['train']}; ")


def test_a_test_split_that_chose_weights_is_said(tmp_path: Path) -> None:
    splits = opened_from(tmp_path, questions(tmp_path, test="validation"), "vqa")
    splits.open()
    assert data_notes(splits) == [
        "validation and test are the same samples: what is reported as test also chose weights and strength"
    ]
    assert data_notes(opened_from(tmp_path, questions(tmp_path), "vqa")) == []


def table(folder: Path, **splits: str | None) -> dict[str, Any]:
    """Write 20 questions of one's own in one file."""
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    rows = "".join(f"a.png,q{row},red\n" for row in range(20))
    (folder / "q.csv").write_text("image,question,answers\n" + rows, encoding="utf-8")
    return {"name": "custom", "source": str(folder / "q.csv"), "splits": splits}


def test_one_table_is_cut_into_splits(tmp_path: Path) -> None:
    data = table(tmp_path, train="train[:60%]", validation="train[60%:80%]", test="train[16:]")
    splits = opened_from(tmp_path, data, "vqa")
    splits.open()
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [12, 4, 4]
    assert data_notes(splits) == []


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ({"train": "train", "validation": "val", "test": "tst"}, "has no split 'val', all that one table has is"),
        ({"train": "trian", "validation": "train[:5]", "test": "train[5:]"}, "has no split 'trian', all that one"),
        ({}, "has no split 'validation', all that one table has is 'train'; name slices of it in data.splits"),
        (
            {"train": "train", "validation": "train[80%:]", "test": "train[80%:]"},
            "data: train and validation are both read from the same rows of {source} (train and train[80%:]); what",
        ),
        (
            {"train": "train[:80%]", "validation": "train[80%:90%]", "test": "train[15:]"},  # told by the size alone
            "data: train and test are both read from the same rows of {source} (train[:80%] and train[15:]); what",
        ),
        (
            {"train": "train", "validation": "train", "test": "train"},
            "data: train and validation are both read from train; what",
        ),
    ],
)
def test_one_table_is_never_read_whole_for_every_split(names: dict[str, str], fault: str, tmp_path: Path) -> None:
    data = table(tmp_path, **names)
    with pytest.raises(SourceError) as caught:
        opened_from(tmp_path, data, "vqa").open()
    assert fault.format(source=data["source"]) in str(caught.value)


@pytest.mark.parametrize(
    ("test", "note"), [("train[80%:]", "are the same samples: what"), ("train[90%:]", "share samples: a part of what")]
)
def test_slices_that_chose_weights_are_said(test: str, note: str, tmp_path: Path) -> None:
    splits = opened_from(tmp_path, table(tmp_path, train="train[:80%]", validation="train[80%:]", test=test), "vqa")
    splits.open()
    assert len(data_notes(splits)) == 1
    assert data_notes(splits)[0].startswith(f"validation and test {note} is reported as test also chose weights")


def test_columns_of_the_answers_to_rank_are_said_to_be_so(tmp_path: Path) -> None:
    """Evaluating one split counts the answers of another."""
    data = table(tmp_path, train="train[:80%]", validation="train[80%:90%]", test="train[90%:]")
    splits = opened_from(tmp_path, data | {"columns": {"imge": "image"}}, "vqa")
    with pytest.raises(SourceError, match=r"q\.csv \(train\[90%:\]\): data\.columns\.imge: the task vqa has no such"):
        splits.test  # noqa: B018
    with pytest.raises(SourceError, match=r"q\.csv \(train\[:80%\], whose answers are ranked\): data\.columns\.imge"):
        splits.task  # noqa: B018


def test_one_list_is_no_three_splits(tmp_path: Path) -> None:
    """BLIP's lists do not tell splits apart, Karpathy's files do, which may be named for all splits."""
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"image": "a.jpg", "caption": "A dog."}]), encoding="utf-8")
    for given in (str(path), {"train": "x.json", "validation": str(path), "test": str(path)}):
        data = {"name": "coco", "annotations": given, "images": str(tmp_path)}
        with pytest.raises(SourceError, match="does not say which split it belongs to"):
            opened_from(tmp_path, data, "caption").test  # noqa: B018
    whole = write_samples("coco", "caption", tmp_path / "data", 2)
    splits = opened_from(tmp_path, whole, "caption")
    splits.open()
    assert data_notes(splits) == []
    names = {"train": whole["annotations"], "test": whole["annotations"]}
    with pytest.raises(SourceError, match=r"data\.annotations\.validation is missing; coco has a validation split"):
        opened_from(tmp_path, whole | {"annotations": names}, "caption").test  # noqa: B018


def test_validation_without_a_file_is_held_out_of_training(tmp_path: Path) -> None:
    """No image on both sides, whatever the data set; the share is the recipe's."""
    for name, task, key, share in (("vqav2", "vqa", "questions", 0.2), ("nlvr2", "nlvr2", "annotations", 0.5)):
        data = write_samples(name, task, tmp_path / name, 8)
        for given in {key, "annotations"}:
            del data[given]["validation"]
        splits = opened_from(tmp_path, data | {"validation_share": share}, task)
        splits.open()
        train: Any = splits.train
        ids = [set(train.split.batch(0, len(train)).ids), set(splits.validation.batch(0, len(splits.validation)).ids)]
        assert not ids[0] & ids[1]
        assert len(ids[0] | ids[1]) == 8
        assert len(splits.test) == 8
        assert data_notes(splits) == []
    data = write_samples("vqav2", "vqa", tmp_path / "vqav2", 8)
    del data["annotations"]["validation"]
    with pytest.raises(SourceError, match="one names a validation file and the other does not; name both or none"):
        opened_from(tmp_path, data, "vqa").train  # noqa: B018
