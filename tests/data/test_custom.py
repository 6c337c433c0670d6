"""Data of one's own: files, folders and saved data sets with named columns, as a table and as a stream."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from image_files import draw, spoil
from PIL import Image
from plain import Plain, texts

from madtp_cli.data import custom
from madtp_cli.data.custom import CustomSplit, CustomStream, open_custom
from madtp_cli.data.custom_rows import ROLES
from madtp_cli.data.metrics import vqa_accuracy
from madtp_cli.data.order import Shuffled
from madtp_cli.errors import SourceError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` writes inside the test's folder, and the network out."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def png(red: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (6, 6), (red, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def pairs(count: int = 4) -> datasets.Dataset:
    """Make pairs with images in the table itself, and columns of other names than the roles."""
    return (
        datasets.Dataset.from_dict(
            {
                "img_a": [{"bytes": png(row), "path": None} for row in range(count)],
                "img_b": [{"bytes": png(100 + row), "path": None} for row in range(count)],
                "sentence": [f"Sentence {row}." for row in range(count)],
                "label": [bool(row % 2) for row in range(count)],
            }
        )
        .cast_column("img_a", datasets.Image())
        .cast_column("img_b", datasets.Image())
    )


COLUMNS = {"left": "img_a", "right": "img_b", "text": "sentence"}


def test_pairs_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pairs().to_parquet(path)
    prepare = Plain()
    data = open_custom("nlvr2", str(path), "train", COLUMNS, prepare)
    batch: Any = data.batch(1, 3)
    assert len(data) == 4
    assert batch.labels.tolist() == [1, 0, 1]
    assert batch.images[:, 0, 0, 0].tolist() == [1, 101, 2, 102, 3, 103]
    assert batch.image_index.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert texts(prepare, batch)[0] == "[ENC] sentence 1 [SEP]"
    assert batch.ids == ("1", "2", "3")


def test_a_part_of_a_file_is_a_split(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pairs().to_parquet(path)
    assert len(open_custom("nlvr2", str(path), "train[:75%]", COLUMNS, Plain())) == 3
    assert len(open_custom("nlvr2", str(path), "train[75%:]", COLUMNS, Plain())) == 1


def test_a_saved_data_set_has_named_splits(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": pairs(4), "dev": pairs(2)}).save_to_disk(tmp_path / "saved")
    assert len(open_custom("nlvr2", str(tmp_path / "saved"), "dev", COLUMNS, Plain())) == 2
    with pytest.raises(
        SourceError, match=r"its split 'test' cannot be read: it has the splits train, dev; see data\.splits"
    ):
        open_custom("nlvr2", str(tmp_path / "saved"), "test", COLUMNS, Plain())


def test_saved_data_can_be_sliced_and_one_table_is_not_every_split(tmp_path: Path) -> None:
    """Saved rows, as files are, under `train` only."""
    datasets.DatasetDict({"train": pairs(4), "dev": pairs(2)}).save_to_disk(tmp_path / "several")
    several: Any = open_custom("nlvr2", str(tmp_path / "several"), "train[3:]+dev[:50%]", COLUMNS, Plain())
    assert several.batch(0, 2).images[:, 0, 0, 0].tolist() == [3, 103, 0, 100]
    pairs(4).save_to_disk(tmp_path / "one")
    one: Any = open_custom("nlvr2", str(tmp_path / "one"), "train[75%:]", COLUMNS, Plain())
    assert one.batch(0, 1).images[:, 0, 0, 0].tolist() == [3, 103]
    with pytest.raises(SourceError, match="one: has no split 'dev', all that one table has is 'train'"):
        open_custom("nlvr2", str(tmp_path / "one"), "dev", COLUMNS, Plain())
    with pytest.raises(SourceError, match="cannot be read: it has no rows there; see"):
        open_custom("nlvr2", str(tmp_path / "one"), "train[9:]", COLUMNS, Plain())


@pytest.mark.parametrize("rows", [1, 20])
def test_a_file_with_other_columns_is_said_whatever_split_is_asked_for(rows: int, tmp_path: Path) -> None:
    """`datasets` does not always say which file it was."""
    folder = tmp_path / "several"
    folder.mkdir()
    for name, column in (("train", "image"), ("test", "picture")):
        lines = [f"a.png,q{row},red\n" for row in range(rows)]
        (folder / f"{name}.csv").write_text(f"{column},question,answers\n{''.join(lines)}", encoding="utf-8")
    for split in ("train", "test"):
        with pytest.raises(SourceError) as caught:
            open_custom("vqa", str(folder), split, {}, Plain())
        message = str(caught.value)
        assert f"its split '{split}' cannot be read, because all files there must have the same columns and" in message
        assert message.endswith(
            " has picture, question, answers, not image, question, answers; rename its columns, or move it away"
        )


def captions_file(tmp_path: Path) -> Path:
    """Write captions as JSON lines with paths beside it."""
    rows = [{"file": f"img/{n}.png", "captions": [f"A dog {n}.", f"Dog {n}"]} for n in range(3)]
    for n in range(3):
        draw(tmp_path / "img" / f"{n}.png", 10 * n)
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_captions_with_paths_relative_to_the_file(tmp_path: Path) -> None:
    path = captions_file(tmp_path)
    prepare, columns = Plain(), {"image": "file"}
    learn: Any = open_custom("caption", str(path), "train", columns, prepare, training=True, prompt="a picture of")
    assert len(learn) == 6
    batch = learn.batch(1, 2)
    assert texts(prepare, batch) == ["[DEC] a picture of dog 0 [SEP]", "[DEC] a picture of a dog 1 [SEP]"]
    assert batch.prompt_length == 4
    judge: Any = open_custom("caption", str(path), "train", columns, prepare)
    assert len(judge) == 3
    assert judge.batch(2, 1).references == (("A dog 2.", "Dog 2"),)
    rank: Any = open_custom("retrieval", str(path), "train", columns, prepare)
    batch = rank.batch(0, 6)
    assert batch.image_ids == ("img/0.png", "img/1.png", "img/2.png")
    assert batch.image_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(set(batch.ids)) == 6


@pytest.mark.parametrize(
    "answers",
    [["2", "2", "3"], [{"answer": "2"}, {"answer": "2"}, {"answer": "3"}]],
)
def test_questions_with_answers_of_several_forms(tmp_path: Path, answers: list[Any]) -> None:
    draw(tmp_path / "a.png", 3)
    row = {"image": "a.png", "question": "How many (dogs)?", "answers": answers, "kind": "number"}
    path = tmp_path / "q.json"
    path.write_text(json.dumps([row, row]), encoding="utf-8")
    prepare = Plain()
    data: Any = open_custom("vqa", str(path), "train", {"group": "kind"}, prepare)
    batch = data.batch(0, 2)
    assert texts(prepare, batch)[0] == "[ENC] how many dogs? [SEP]"
    assert batch.answer_weights.tolist() == pytest.approx([2 / 3, 1 / 3] * 2)
    assert batch.groups == ("number", "number")
    assert batch.image_index.tolist() == [0, 0]
    assert list(data.answers()) == [("2", "2", "3")] * 2
    assert vqa_accuracy(["two", "3"], batch.references, batch.groups)["accuracy"] == pytest.approx(0.5)


def test_a_csv_with_one_answer_each(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 3)
    (tmp_path / "q.csv").write_text("image,question,reply\na.png,what?,dog\n", encoding="utf-8")
    data: Any = open_custom("vqa", str(tmp_path / "q.csv"), "train", {"answers": "reply"}, Plain())
    assert data.batch(0, 1).references == (("dog",),)


def test_a_stream_serves_what_the_table_does(tmp_path: Path) -> None:
    """Oracle: the same file as a table; also after going back, and when captions share rows."""
    path = captions_file(tmp_path)
    table: Any = open_custom("retrieval", str(path), "train", {"image": "file"}, Plain())
    stream: Any = open_custom("retrieval", str(path), "train", {"image": "file"}, Plain(), True, samples=6)
    assert isinstance(table, CustomSplit)
    assert isinstance(stream, CustomStream)
    assert len(stream) == 6
    for start, size in ((0, 2), (2, 3), (1, 4), (5, 1)):
        one, other = stream.batch(start, size), table.batch(start, size)
        assert one.ids == other.ids
        assert one.images.equal(other.images)
        assert one.image_index.equal(other.image_index)
    with pytest.raises(ValueError, match="there are samples 0 to 5"):
        stream.batch(5, 2)


def test_a_shuffled_stream_repeats_itself_for_its_seed_and_has_every_sample_in_every_epoch(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pairs(12).to_parquet(path)

    def read(seed: int, *starts: int) -> list[str]:
        stream: Any = open_custom("nlvr2", str(path), "train", COLUMNS, Plain(), True, samples=12)
        shuffled = stream.shuffled(seed)
        return [name for start in starts for name in shuffled.batch(start, 6).ids]

    whole = read(1, 0, 6, 12, 18)
    assert sorted(whole[:12]) == sorted(whole[12:])
    assert len(set(whole[:12])) == 12
    assert whole[:12] != whole[12:]
    assert read(1, 18) == whole[18:]  # resumed
    assert read(2, 0, 6) != whole[:12]


def test_a_long_stream_is_mixed_within_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom, "_SHUFFLE_ROWS", 5)
    order = list(custom._mixed(range(100), np.random.default_rng(0)))
    assert sorted(order) == list(range(100))
    assert order != list(range(100))
    # A row waits for any time, but none can come before the window has reached it.
    assert all(row <= place + 5 for place, row in enumerate(order))


def test_a_table_can_be_shuffled(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pairs().to_parquet(path)
    data: Any = open_custom("nlvr2", str(path), "train", COLUMNS, Plain())
    assert sorted(Shuffled[Any](data, 1).batch(0, 4).ids) == ["0", "1", "2", "3"]


def test_a_stream_that_does_not_say_its_length_or_ends_early_is_refused(tmp_path: Path) -> None:
    path = str(captions_file(tmp_path))
    with pytest.raises(SourceError, match="a stream does not say how many samples it has; give their number"):
        open_custom("caption", path, "train", {"image": "file"}, Plain(), True)
    stream: Any = open_custom("caption", path, "train", {"image": "file"}, Plain(), True, samples=9)
    message = "ended after 3 samples, not 9; give that as their number"
    with pytest.raises(SourceError, match=message):
        stream.batch(0, 9)
    with pytest.raises(SourceError, match=message):
        stream.shuffled(0).batch(0, 9)


def test_broken_and_missing_images_are_tolerated_up_to_the_limit(tmp_path: Path) -> None:
    path = captions_file(tmp_path)
    (tmp_path / "img" / "0.png").unlink()
    spoil(tmp_path / "img" / "1.png")
    columns = {"image": "file"}
    with pytest.raises(SourceError, match=r"1 image is missing or unreadable: img/0\.png \(no such file\)"):
        open_custom("caption", str(path), "train", columns, Plain())
    data: Any = open_custom("caption", str(path), "train", columns, Plain(), max_broken=2)
    assert len(data) == 2
    assert data.left_out == 1
    for _ in range(2):
        assert data.batch(0, 2).samples == 1
        assert data.left_out == Shuffled[Any](data, 1).left_out == 2
    learn: Any = open_custom("caption", str(path), "train", columns, Plain(), training=True, max_broken=2)
    assert learn.batch(0, 4).samples == 2
    assert learn.left_out == 4  # captions
    assert [text.partition(" ")[0] for text in data.broken] == ["img/0.png", "img/1.png"]
    stream: Any = open_custom("caption", str(path), "train", columns, Plain(), True, samples=3, max_broken=2)
    assert stream.batch(0, 3).samples == 1
    assert len(stream.broken) == stream.left_out == stream.shuffled(0).left_out == 2


def test_broken_bytes_spoil_their_own_sample_only(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": b"nothing", "path": None}, {"bytes": png(1), "path": None}], "captions": [["a"], ["b"]]}
    path = tmp_path / "x.parquet"
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(path)
    data: Any = open_custom("caption", str(path), "train", {}, Plain(), max_broken=1)
    assert data.batch(0, 2).ids == ("1",)
    assert data.broken[0].startswith("image@d5874909427e5e56 (row 0, image: ")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"left": "img_a", "right": "img_b"},
            "no column 'text' for text, got img_a, img_b, sentence, label; name it in data.columns.text",
        ),
        (COLUMNS | {"group": "family"}, "no column 'family' for group"),
        (
            COLUMNS | {"caption": "x"},
            "data.columns.caption: the task nlvr2 has no such role; try one of left, right, text",
        ),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    path = tmp_path / "pairs.parquet"
    pairs().to_parquet(path)
    with pytest.raises(SourceError) as caught:
        open_custom("nlvr2", str(path), "train[:50%]", columns, Plain())
    assert str(caught.value).startswith(f"{path} (train[:50%]): {message}")


def test_sources_that_cannot_be_had_are_explained(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"x")
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    for source, message in [
        (str(tmp_path / "none"), "no such file or folder; give a path or a Hugging Face data set id in data.source"),
        ("./none.parquet", "no such file or folder"),
        (str(tmp_path / "a.zip"), "unknown kind of file '.zip'; try one of .parquet, .json"),
        (str(tmp_path / "a.json"), "its split 'train' cannot be read"),
        ("someone/something", "someone/something: cannot be fetched while offline"),
    ]:
        with pytest.raises(SourceError) as caught:
            open_custom("vqa", source, "train", {}, Plain())
        assert message in str(caught.value), source
        assert "\n" not in str(caught.value)


def test_a_row_of_another_form_is_named(tmp_path: Path) -> None:
    rows = {"image": ["a.png"], "question": ["q?"], "answers": [["a"]]}
    draw(tmp_path / "a.png", 1)
    path = tmp_path / "q.parquet"
    datasets.Dataset.from_dict(rows | {"answers": [[]]}).to_parquet(path)
    data: Any = open_custom("vqa", str(path), "train", {}, Plain())
    with pytest.raises(SourceError, match="row 0: answers must be a text or a list of texts, got a list of 0"):
        data.batch(0, 1)


def test_every_task_has_roles() -> None:
    assert set(ROLES) == {"nlvr2", "vqa", "caption", "retrieval"}
