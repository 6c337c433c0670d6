"""Rows of one's own data: which of them are about one image, what names them, and how many samples they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from image_files import draw
from PIL import Image
from plain import Plain, texts

from madtp_cli.data.custom import given_answers, open_custom
from madtp_cli.data.custom_rows import image_name
from madtp_cli.data.custom_source import stored_images
from madtp_cli.data.holdout import Part
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


def parquet(folder: Path, rows: Mapping[str, Any]) -> str:
    """Write a table whose images, if any, lie inside it."""
    table = datasets.Dataset.from_dict(dict(rows))
    if isinstance(rows["image"][0], dict):
        table = table.cast_column("image", datasets.Image())
    table.to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


def embedded(reds: list[int], path: str | None = None) -> list[dict[str, Any]]:
    return [{"bytes": png(red), "path": path} for red in reds]


def jsonl(folder: Path, rows: list[dict[str, Any]]) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / "rows.jsonl")


# One row per caption -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("path", [None, "image.png"])
def test_rows_of_one_embedded_image_are_one_image(tmp_path: Path, path: str | None, streaming: bool) -> None:
    """Also where all images are stored under one path, which tells nothing."""
    rows = {"image": embedded([1, 1, 1, 2, 2], path), "captions": list("abcde")}
    source, prepare = parquet(tmp_path, rows), Plain()
    more: dict[str, Any] = {"samples": 5} if streaming else {}
    ranked: Any = open_custom("retrieval", source, "train", {}, prepare, streaming, **more)
    first, last = ranked.batch(0, 2), ranked.batch(2, 3)
    assert len(set(first.image_ids) | set(last.image_ids)) == 2
    assert last.image_index.tolist() == [0, 1, 1]
    assert last.images[:, 0, 0, 0].tolist() == [1, 2]
    assert (*first.ids, *last.ids) == ("0#0", "0#1", "0#2", "3#0", "3#1")

    more = {"samples": 2} if streaming else {}
    judged: Any = open_custom("caption", source, "train", {}, prepare, streaming, **more)
    assert len(judged) == 2
    batch = judged.batch(0, 2)
    assert batch.references == (("a", "b", "c"), ("d", "e"))
    assert batch.ids == ("0", "3")

    learned: Any = open_custom("retrieval", source, "train", {}, prepare, training=True)
    assert learned.gather([0, 2, 4]).image_index.tolist() == [0, 0, 1]  # no image is its own wrong partner
    assert len(open_custom("caption", source, "train", {}, prepare, training=True)) == 5


def test_rows_of_one_file_are_one_image_wherever_they_stand(tmp_path: Path) -> None:
    """In a table; a stream cannot wait for them."""
    for name in "xy":
        draw(tmp_path / f"{name}.png", ord(name))
    rows = [{"image": f"{name}.png", "captions": text} for name, text in zip("xyx", "abc", strict=True)]
    source, prepare = jsonl(tmp_path, rows), Plain()
    data: Any = open_custom("caption", source, "train", {}, prepare)
    assert data.batch(0, 2).references == (("a", "c"), ("b",))
    stream: Any = open_custom("caption", source, "train", {}, prepare, True, samples=3)
    with pytest.raises(SourceError, match=r"image x\.png comes back after others; in a stream, rows of one image must"):
        stream.batch(0, 3)


def test_a_column_of_image_ids_names_the_images(tmp_path: Path) -> None:
    """Rows of one image share its id; training takes them as they are."""
    rows = {"image": embedded([1, 1, 2]), "captions": list("abc"), "id": [70, 70, 80]}
    source = parquet(tmp_path, rows)
    data: Any = open_custom("retrieval", source, "train", {}, Plain())
    assert data.batch(0, 3).ids == ("70#0", "70#1", "80#0")
    assert len(open_custom("retrieval", source, "train", {}, Plain(), training=True)) == 3


def test_rows_without_an_image_are_not_one_image(tmp_path: Path) -> None:
    rows = {"image": [*embedded([1]), None, None], "captions": list("abc")}
    data: Any = open_custom("caption", parquet(tmp_path, rows), "train", {}, Plain(), max_broken=2)
    assert data.batch(0, 3).references == (("a",),)
    assert data.broken == ["row 1, image (row 1, image: no image)", "row 2, image (row 2, image: no image)"]


def test_images_are_named_by_path_or_content() -> None:
    one, other = ({"bytes": png(red), "path": "a.png"} for red in (1, 2))
    assert image_name(one) == image_name(dict(one)) != image_name(other)
    assert str(image_name(one)).startswith("a.png@")
    assert image_name("b.png") == image_name({"bytes": None, "path": "b.png"}) == "b.png"
    assert image_name(None) is image_name({"bytes": None, "path": None}) is None


# Ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_ids_that_samples_share_are_refused(tmp_path: Path, streaming: bool) -> None:
    """Whatever the task: questions, and captions of different images."""
    for name in "xyz":
        draw(tmp_path / f"{name}.png", ord(name))
    rows = [{"image": f"{name}.png", "question": "q", "captions": "c", "id": 7} for name in "xyz"]
    source = jsonl(tmp_path, rows)
    for task in ("vqa", "caption", "retrieval"):
        with pytest.raises(SourceError, match=r"several samples have the id 7.*; ids must be unique, leave data\.col"):
            read_all(task, source, streaming)


def read_all(task: str, source: str, streaming: bool) -> None:
    data: Any = open_custom(task, source, "train", {}, Plain(), streaming, samples=3 if streaming else None)
    data.batch(0, 3)


# Streams -----------------------------------------------------------------------------------------------------


def captions(folder: Path) -> str:
    """Write 4 rows of 5 captions."""
    for row in range(4):
        draw(folder / f"{row}.png", row)
    rows = [{"image": f"{row}.png", "captions": [f"c{row}{k}" for k in range(5)]} for row in range(4)]
    return jsonl(folder, rows)


@pytest.mark.parametrize("task", ["retrieval", "caption"])
def test_a_stream_that_counts_rows_does_not_say_how_many_captions_it_has(
    tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of questions is one question, so there the source is believed."""
    source = captions(tmp_path)
    info = SimpleNamespace(splits={"train": datasets.SplitInfo("train", num_examples=4)})
    monkeypatch.setattr(datasets.IterableDataset, "info", property(lambda self: info))
    with pytest.raises(
        SourceError, match=r"does not say how many samples it has; give their number in data\.stream_sa"
    ):
        open_custom(task, source, "train", {}, Plain(), True, training=True)
    assert len(open_custom("vqa", source, "train", {"question": "captions"}, Plain(), True)) == 4


def test_a_stream_that_goes_on_after_its_last_sample_is_refused(tmp_path: Path) -> None:
    """Four rows are twenty captions, not four; training may stop before the end."""
    source = captions(tmp_path)
    short: Any = open_custom("retrieval", source, "train", {}, Plain(), True, samples=4)
    short.batch(0, 2)
    with pytest.raises(SourceError, match=r"has more samples than 4; give their number in data\.stream_samples"):
        short.batch(2, 2)
    assert short.shuffled(0).batch(0, 4).samples == 4
    whole: Any = open_custom("retrieval", source, "train", {}, Plain(), True, samples=20)
    assert whole.batch(0, 20).samples == 20


# Questions ---------------------------------------------------------------------------------------------------


def test_answers_are_read_where_no_image_is(tmp_path: Path) -> None:
    rows = [{"image": "gone.png", "question": "q", "answers": given} for given in (["a", "b"], ["a"], None)]
    assert list(given_answers(jsonl(tmp_path, rows), "train", {})) == [("a", "b"), ("a",), ()]
    rows = [{"image": "gone.png", "question": "q"}]
    assert list(given_answers(jsonl(tmp_path, rows), "train", {})) == [()]


def test_a_question_to_learn_has_an_answer(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 1)
    source = jsonl(tmp_path, [{"image": "a.png", "question": "q", "answers": None}])
    stream: Any = open_custom("vqa", source, "train", {}, Plain(), True, training=True, samples=1)
    with pytest.raises(SourceError, match="row 0: has no answers to learn; leave it out"):
        stream.shuffled(0).batch(0, 1)


# Held-out samples --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [None, "files", "stored"])
def test_images_held_out_are_on_one_side(tmp_path: Path, path: str | None) -> None:
    """Two questions about each image; by path, by stored path, or by content, in a table as in a stream."""
    images: list[Any] = [{"bytes": png(row // 2), "path": f"{row // 2}.png" if path else None} for row in range(60)]
    if path == "files":
        images = [Path(draw(tmp_path / f"{row // 2}.png", row // 2)).name for row in range(60)]
    rows = {"image": images, "question": ["q"] * 60, "answers": [f"a{row}" for row in range(60)]}
    source = parquet(tmp_path, rows)
    found = []
    for held in (True, False):
        part = Part(0.3, held_out=held)
        data: Any = open_custom("vqa", source, "train", {}, Plain(), part=part)
        names = data.batch(0, len(data)).ids
        stream: Any = open_custom("vqa", source, "train", {}, Plain(), True, part=part, samples=len(data))
        assert stream.batch(0, len(data)).ids == names
        assert len(list(given_answers(source, "train", {}, part=part))) == len(data)
        found.append({int(name) for name in names})
    assert found[0] | found[1] == set(range(60))
    assert found[0]
    assert not {row // 2 for row in found[0]} & {row // 2 for row in found[1]}


def test_a_share_that_holds_nothing_out_is_told(tmp_path: Path) -> None:
    source = captions(tmp_path)
    with pytest.raises(SourceError, match=r"has no samples in the held-out part .*; change the share, or name a valid"):
        open_custom("caption", source, "train", {}, Plain(), part=Part(1e-9, held_out=True))


# Large tables ------------------------------------------------------------------------------------------------


def test_images_inside_a_table_are_not_read_to_look_for_files(tmp_path: Path) -> None:
    """Oracle: of which there are paths and bytes, by hand."""
    for images, expected in [
        (embedded([1, 2], "p.png"), [("p.png", True)] * 2),
        ([*embedded([1]), None], [(None, True), (None, False)]),
        (["a.png", "b.png"], [("a.png", False), ("b.png", False)]),
    ]:
        table = datasets.Dataset.from_dict({"image": images})
        assert stored_images(table, "image") == expected
    table = datasets.Dataset.from_dict({"image": [b"1", b"2"]})
    assert stored_images(table, "image") == [(None, True)] * 2


def test_opening_a_table_reads_no_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, prepare = (
        parquet(tmp_path, {"image": embedded([1, 2]), "question": ["q"] * 2, "answers": ["a"] * 2}),
        Plain(),
    )
    read: list[str] = []
    plain: Any = datasets.Dataset.__getitem__

    def watched(self: Any, key: Any) -> Any:
        if "image" in self.column_names and self.format["type"] is None:
            read.append(str(key))
        return plain(self, key)

    monkeypatch.setattr(datasets.Dataset, "__getitem__", watched)
    data: Any = open_custom("vqa", source, "train", {}, prepare)
    assert list(data.answers()) == [("a",)] * 2
    assert read == []
    assert texts(prepare, data.batch(0, 1)) == ["[ENC] q [SEP]"]
    assert read == ["0"]
