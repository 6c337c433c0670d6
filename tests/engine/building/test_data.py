"""From a recipe to splits and the task that reads them: every data set in its own files, generated or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from madtp_cli.data.metrics import nlvr2_scores, recalls, vqa_accuracy
from madtp_cli.data.order import Repeated, Shuffled
from madtp_cli.data.samples import write_samples
from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.data.shapes import accuracy
from madtp_cli.data.shapes_single import answer_list
from madtp_cli.engine.building.data import SHAPES_SPLITS, Splits, data_notes, facts, open_splits
from madtp_cli.engine.tasks.base import IMAGE_MEAN
from madtp_cli.engine.tasks.caption import Caption
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.engine.tasks.retrieval import Retrieval
from madtp_cli.engine.tasks.vqa import Vqa
from madtp_cli.errors import SourceError
from madtp_cli.models.processor import Processor, image_processor
from madtp_cli.recipe import TASKS_OF_DATA
from tests.tiny_runs import DENSE, tiny

KINDS: dict[str, type[Any]] = {"nlvr2": Nlvr2, "vqa": Vqa, "caption": Caption, "retrieval": Retrieval}
FILES = [(name, task) for name, tasks in TASKS_OF_DATA.items() if name not in ("shapes", "custom") for task in tasks]


def processor(task: str, family: str = "blip") -> Processor:
    """Make one of the generated data's words."""
    return Processor.from_words(VOCABULARY, 96, family=family, task=task)


def opened(folder: Path, task: str, *changes: str) -> Splits:
    """Open the splits of the tiny recipe for another task."""
    model = [] if task == "nlvr2" else ["model={family: blip, checkpoint: x}"]
    return open_splits(tiny(folder, DENSE, *model, f"task={task}", *changes), processor(task))


def in_files(folder: Path, name: str, task: str, *changes: str, count: int = 4) -> Splits:
    """Write samples in a data set's own format, and open them as a recipe names them."""
    data = json.dumps(write_samples(name, task, folder / "data", count))
    scratch = ["model={family: blip, checkpoint: x}", f"data={data}", f"task={task}"]
    return open_splits(tiny(folder, DENSE, *scratch, *changes), processor(task))


SCRATCH = "model={family: blip, checkpoint: x}"


def questions(folder: Path, *, test: str | None = None) -> dict[str, Any]:
    """Write questions, in the training file enough to hold some out, as a data section names them."""
    data = write_samples("vqav2", "vqa", folder, 8)
    if test is not None:
        for key in ("questions", "annotations"):
            data[key]["test"] = data[key][test]
    return data


def opened_from(folder: Path, data: dict[str, Any], task: str, *changes: str, checkpoint: Path | None = None) -> Splits:
    recipe = tiny(folder, DENSE, SCRATCH, f"task={task}", f"data={json.dumps(data)}", *changes)
    return open_splits(recipe, processor(task), checkpoint)


# Splits ------------------------------------------------------------------------------------------------------


def test_a_split_is_opened_when_it_is_asked_for_and_once() -> None:
    asked: list[str] = []

    def open_split(name: str) -> Any:
        asked.append(name)
        return [name]

    splits: Any = Splits(open_split, lambda own: f"task of {own.train}")  # type: ignore[arg-type, return-value]
    assert asked == []
    assert splits.named("val") is splits.named("validation") is splits.validation
    assert asked == ["validation"]
    assert splits.task == splits.task == "task of ['train']"
    splits.open()
    assert splits.named("test") == ["test"]
    assert asked == ["validation", "train", "test"]


def test_lines_about_broken_images_name_the_first_and_count_their_samples() -> None:
    """At most five names, and how many more there are."""
    names = tuple("abcdefg")

    class Damaged(list[int]):
        def __init__(self, broken: tuple[str, ...], left_out: int) -> None:
            super().__init__()
            self.broken, self.left_out = broken, left_out

    found = {"train": (names, 1200), "validation": ((), 0), "test": (names[:1], 1)}
    splits = Splits(lambda name: Damaged(*found[name]), lambda own: None)  # type: ignore[arg-type, return-value]
    splits.open()
    assert data_notes(splits) == [
        "train: 7 images and 1,200 samples left out (data.max_broken): a, b, c, d, e and 2 more",
        "test: 1 image and 1 sample left out (data.max_broken): a",
    ]


def test_broken_images_are_named_by_split() -> None:
    """Only of splits that were opened, and only where there are any."""

    class Damaged(list[int]):
        broken = ("a.png", "b.png")

    splits = Splits(lambda name: Damaged() if name == "train" else [], lambda own: None)  # type: ignore[arg-type, return-value]
    assert splits.broken() == {}
    splits.open()
    assert splits.broken() == {"train": ("a.png", "b.png")}


# Generated data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", KINDS)
def test_splits_have_the_sizes_and_the_seed_of_the_recipe(task: str, tmp_path: Path) -> None:
    splits = opened(tmp_path, task, "data.seed=5")
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [256, 64, 96]
    assert isinstance(splits.train, Repeated)
    assert isinstance(splits.validation, SHAPES_SPLITS[task])
    first = splits.train.batch(0, 8).ids
    assert first[0].endswith("/train/0")
    assert splits.train.batch(256, 8).ids == first  # training goes round
    other = opened(tmp_path, task).test.batch(0, 8)
    assert not splits.test.batch(0, 8).images.equal(other.images)
    assert isinstance(splits.task, KINDS[task])


def test_data_of_another_image_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"shapes draws images of 96 pixels, got data.image_size 32"):
        opened(tmp_path, "nlvr2", "data.image_size=32").train  # noqa: B018


def test_what_is_known_of_data() -> None:
    """Generated data bring their words and sizes, other data a caution only."""
    assert (facts("shapes").vocabulary, facts("shapes").image_size) == (tuple(VOCABULARY), 96)
    assert (facts("coco").vocabulary, facts("coco").image_size, facts("coco").labelled_patch) == ((), None, 0)
    assert facts("coco").limits


# Data in files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "task"), FILES, ids=["-".join(pair) for pair in FILES])
def test_every_data_set_is_read_in_its_own_files(name: str, task: str, tmp_path: Path) -> None:
    """Training reads it in an order of its own, the others as it lies; batches are what the model takes."""
    splits = in_files(tmp_path, name, task)
    assert isinstance(splits.train, Shuffled)
    assert not isinstance(splits.validation, Shuffled)
    assert isinstance(splits.task, KINDS[task])
    for split in (splits.train, splits.validation, splits.test):
        assert len(split) >= 4
        batch = split.batch(0, 4)
        assert batch.samples == 4
        assert batch.images.shape[1:] == (3, 96, 96)
        assert int(batch.text.max()) < len(VOCABULARY)
    epoch = {splits.train.batch(start, 1).ids[0] for start in range(len(splits.train))}
    assert len(epoch) == len(splits.train)


def test_the_seed_orders_the_training_split(tmp_path: Path) -> None:
    """Another seed, another order; the same one, the same."""
    ids = []
    for seed in (0, 0, 1):
        splits = in_files(tmp_path, "coco", "caption", f"data.seed={seed}", count=8)
        ids.append(splits.train.batch(0, len(splits.train)).ids)
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]
    assert set(ids[0]) == set(ids[2])


def test_data_of_ones_own_are_read_by_their_columns(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    written = write_samples("coco", "caption", tmp_path / "data", 2)
    images = sorted(path for path in Path(written["images"]).rglob("*") if path.suffix in (".png", ".jpg"))[:2]
    folder.mkdir()
    lines = [json.dumps({"picture": str(path), "says": "a red circle"}) for path in images]
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {"name": "custom", "source": str(folder), "columns": {"image": "picture", "captions": "says"}}
    splits = open_splits(
        tiny(tmp_path, DENSE, "model={family: blip, checkpoint: x}", "task=caption", f"data={json.dumps(data)}"),
        processor("caption"),
    )
    assert isinstance(splits.train, Shuffled)
    batch = splits.test.batch(0, 2)
    assert batch.references == (("a red circle",), ("a red circle",))


def test_missing_files_are_found_when_the_splits_are_opened(tmp_path: Path) -> None:
    data = f"data={{name: coco, annotations: nowhere.json, images: {tmp_path}}}"
    splits = open_splits(
        tiny(tmp_path, DENSE, "model={family: blip, checkpoint: x}", "task=caption", data), processor("caption")
    )
    with pytest.raises(SourceError, match=r"nowhere\.json"):
        splits.open()


def test_only_questions_may_lie_in_several_files(tmp_path: Path) -> None:
    data = "data={name: nlvr2, annotations: {train: [a, b], validation: c, test: d}, images: i}"
    splits = open_splits(tiny(tmp_path, DENSE, "model={family: blip, checkpoint: x}", data), processor("nlvr2"))
    with pytest.raises(SourceError) as caught:
        splits.train  # noqa: B018
    assert str(caught.value) == "data.annotations.train: nlvr2 reads one file for each split; name one"


# Tasks -------------------------------------------------------------------------------------------------------


def test_every_data_set_has_its_own_metric(tmp_path: Path) -> None:
    """shapes counts right answers, published data are scored as their authors do."""
    found: dict[tuple[str, str], Any] = {("shapes", task): opened(tmp_path, task).task for task in KINDS}
    for name, task in (("nlvr2", "nlvr2"), ("vqav2", "vqa"), ("coco", "caption"), ("flickr30k", "retrieval")):
        (tmp_path / name).mkdir()
        found[name, task] = in_files(tmp_path / name, name, task).task
    assert found["shapes", "nlvr2"].metric is accuracy
    assert found["nlvr2", "nlvr2"].metric is nlvr2_scores
    assert found["vqav2", "vqa"].metric is vqa_accuracy
    assert found["flickr30k", "retrieval"].metric is recalls
    scores = {key: task.score for key, task in found.items()}
    assert scores == {
        **{("shapes", "nlvr2"): "accuracy", ("shapes", "vqa"): "accuracy", ("shapes", "caption"): "accuracy"},
        **{("shapes", "retrieval"): "mean", ("flickr30k", "retrieval"): "mean", ("nlvr2", "nlvr2"): "accuracy"},
        **{("vqav2", "vqa"): "accuracy", ("coco", "caption"): "cider_javafree"},
    }


def test_pixels_are_normalised_as_the_checkpoint_wants_them(tmp_path: Path) -> None:
    plain = processor("nlvr2")
    own = Processor(image_processor("blip", 96, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]), plain.tokenizer)
    recipe = tiny(tmp_path, DENSE)
    normalise = open_splits(recipe, own).task.normalise
    assert (normalise.mean, normalise.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert open_splits(recipe, plain).task.normalise.mean == IMAGE_MEAN


def answering(splits: Splits) -> Any:
    task: Any = splits.task
    return task.answering


def test_answers_are_ranked_among_the_list_that_the_recipe_names(tmp_path: Path) -> None:
    """All there are of generated data, a file, or those of the training split; ids open with [DEC]."""
    generated = answering(opened(tmp_path, "vqa", "inference.k_test=7"))
    assert (generated.by, generated.candidates, generated.k) == ("rank", answer_list(), 7)
    words = processor("vqa")
    assert generated.candidate_ids == tuple(tuple(words.answer(answer)) for answer in answer_list())

    path = tmp_path / "answers.json"
    path.write_text('["red", "two"]', encoding="utf-8")
    assert answering(opened(tmp_path, "vqa", f"inference.answer_list={path}")).candidates == ("red", "two")

    splits = in_files(tmp_path, "vqav2", "vqa", "training.label_smoothing=0.1")
    given = {answer for found in splits.train.batch(0, len(splits.train)).references for answer in found}
    assert set(answering(splits).candidates) <= given
    assert answering(splits).candidates
    task: Any = splits.task
    assert task.label_smoothing == 0.1


def test_answers_are_written_where_the_recipe_says(tmp_path: Path) -> None:
    """Without a list."""
    how = answering(opened(tmp_path, "vqa", "inference={answers: generate, beams: 5, max_length: 9}"))
    assert (how.by, how.candidates, how.beams, how.max_length) == ("generate", (), 5, 9)
    assert how.decode(processor("vqa").answer("two red")) == "two red"


def test_captions_open_with_the_prompt_and_are_read_without_it(tmp_path: Path) -> None:
    """Those of generated data have none."""
    words = processor("caption")
    plain: Any = opened(tmp_path, "caption").task
    assert plain.writing.prompt == tuple(words.answer("")[:1])
    changes = "inference={prompt: there are, beams: 1, min_length: 2, max_length: 8}"
    splits = in_files(tmp_path, "coco", "caption", changes)
    task: Any = splits.task
    assert task.writing.prompt == tuple(words.answer("there are")[:-1])
    assert (task.writing.beams, task.writing.min_length, task.writing.max_length) == (1, 2, 8)
    assert task.writing.decode(words.answer("two red circles")) == "two red circles"
    batch: Any = splits.train.batch(0, 3)
    assert batch.prompt_length == 3
    opening = torch.tensor(task.writing.prompt)
    assert all(text[:3].equal(opening) for text in batch.text.split(batch.text_lengths))


def test_galleries_are_ranked_again_as_deep_as_the_recipe_says(tmp_path: Path) -> None:
    task: Any = opened(tmp_path, "retrieval", "inference.k_test=16").task
    assert task.k == 16


# Answers -----------------------------------------------------------------------------------------------------


def test_evaluating_needs_no_training_images(tmp_path: Path) -> None:
    """The answers to rank are counted in the annotations, by the same files whether images are there or not."""
    data = questions(tmp_path)
    with_images = answering(opened_from(tmp_path, data, "vqa")).candidates
    for path in Path(data["images"]).rglob("COCO_train2014*"):
        path.unlink()
    splits = opened_from(tmp_path, data, "vqa")
    assert len(splits.test) == 8
    assert answering(splits).candidates == with_images
    with pytest.raises(SourceError, match="missing or unreadable"):
        splits.open()


def test_a_checkpoint_brings_the_answers_it_ranks(tmp_path: Path) -> None:
    """Where the recipe names no list, or one that is not on this machine; no training file is read."""
    data = questions(tmp_path)
    data["questions"]["train"] = "gone.json"
    (tmp_path / "answers.json").write_text('["one", "two"]', encoding="utf-8")
    for changes in ((), ("inference.answer_list=nowhere.json",)):
        assert answering(opened_from(tmp_path, data, "vqa", *changes, checkpoint=tmp_path)).candidates == ("one", "two")
    (tmp_path / "mine.json").write_text('["red"]', encoding="utf-8")
    mine = f"inference.answer_list={tmp_path / 'mine.json'}"
    assert answering(opened_from(tmp_path, data, "vqa", mine, checkpoint=tmp_path)).candidates == ("red",)
    with pytest.raises(SourceError, match=r"gone\.json"):
        answering(opened_from(tmp_path, data, "vqa"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_questions_without_answers_are_found_before_training(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = questions(tmp_path)
    listed = [{"question_id": n, "question": "Q?", "image": "a.jpg", "dataset": "vqa"} for n in range(3)]
    image = next(Path(data["images"]).rglob("*.jpg"))
    (Path(data["images"]) / "a.jpg").write_bytes(image.read_bytes())
    path = tmp_path / "list.json"
    path.write_text(json.dumps(listed), encoding="utf-8")
    del data["annotations"]
    data["questions"] = {"train": str(path), "validation": "v.json", "test": str(path)}
    splits = opened_from(tmp_path, data, "vqa")
    monkeypatch.setattr("madtp_cli.engine.building.data.check_apart", lambda data: None)
    with pytest.raises(SourceError, match=rf"^{split}: 3 of 3 questions have no answers, which training learns"):
        getattr(splits, split)
    with pytest.raises(
        SourceError, match="the training split has no answers to rank: name a list of them in inference"
    ):
        answering(opened_from(tmp_path, data, "vqa"))


def own(folder: Path, **more: Any) -> dict[str, Any]:
    """Write questions of one's own, with columns of their roles' names."""
    folder = folder / "own"
    image = next(Path(questions(folder.parent / "q")["images"]).rglob("*.jpg"))
    folder.mkdir()
    for split in ("train", "validation", "test"):
        row = {"image": str(image), "question": "q", "answers": "red"}
        (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return {"name": "custom", "source": str(folder), **more}


def test_columns_need_no_names_where_they_are_called_as_their_roles(tmp_path: Path) -> None:
    splits = opened_from(tmp_path, own(tmp_path), "vqa")
    splits.open()
    assert answering(splits).candidates == ("red",)


def test_answers_in_a_stream_cannot_be_counted(tmp_path: Path) -> None:
    data = own(tmp_path, streaming=True, stream_samples={"train": 1, "validation": 1, "test": 1})
    splits = opened_from(tmp_path, data, "vqa")
    with pytest.raises(SourceError) as caught:
        splits.open()
    assert str(caught.value) == (
        "data.streaming: the answers to rank cannot be counted in a stream; name a list of them in "
        "inference.answer_list, or set inference.answers to generate"
    )
    opened_from(tmp_path, data, "vqa", "inference.answers=generate").open()


def test_a_configuration_of_a_data_set_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def open_source(source: str, split: str, **options: Any) -> Any:
        asked.append((source, split, options))
        raise SourceError("enough")

    monkeypatch.setattr("madtp_cli.data.custom.open_source", open_source)
    with pytest.raises(SourceError, match="enough"):
        opened_from(tmp_path, {"name": "custom", "source": "a/b", "config": "de"}, "caption").test  # noqa: B018
    assert asked == [("a/b", "test", {"config": "de", "streaming": False})]
