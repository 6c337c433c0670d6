"""Sections beyond the first task: other data, what a checkpoint cannot tell, how answers are found, contradictions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest

from madtp_cli.recipe import TASKS_OF_DATA, Recipe, load_recipe
from madtp_cli.recipe_usage import READ_BY
from tests import recipe_samples
from tests.recipe_samples import GOOD, faults

Write = Callable[[str], Path]
FILES = "images: i, annotations: a"
SCRATCH = ("model={family: blip, architecture: {}}", "training.teacher=false", "budget=null")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(recipe_samples.write, tmp_path)


def data_of(name: str) -> str:
    """Return a whole data section, as by --set."""
    keys = {"shapes": "", "vqav2": "images: i, questions: {train: q, validation: q, test: q}"}
    keys |= dict.fromkeys(("nlvr2", "nlvr_v1"), "images: i, annotations: {train: a, validation: b, test: c}")
    rest = {**keys, "custom": "source: s, columns: {image: picture}"}.get(name, FILES)
    return f"data={{name: {name}, {rest}}}"


# What is read ------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_published_settings(write: Write) -> None:
    recipe = load_recipe(write(GOOD))
    how = recipe.inference
    assert (how.k_test, how.answers, how.answer_list) == (128, "rank", None)
    assert (how.beams, how.min_length, how.max_length, how.prompt) == (3, None, None, "a picture of")
    assert recipe.model.config.given() == {}
    assert (recipe.model.tokenizer, recipe.model.vision_from) == (None, None)
    assert (recipe.data.max_broken, recipe.data.streaming, recipe.training.label_smoothing) == (0, False, 0.0)
    assert recipe.data.splits.model_dump() == {"train": "train", "validation": "validation", "test": "test"}


def test_what_a_checkpoint_cannot_tell(write: Write) -> None:
    """Only what is set is given, as plain values."""
    overrides = "{vision_heads: 16, activation: quick_gelu, text_layer_norm_eps: 1e-5, sep_token_id: 0}"
    recipe = load_recipe(write(GOOD), [f"model.config={overrides}", "model.tokenizer=words/bert"])
    assert recipe.model.config.given() == {
        "vision_heads": 16,
        "activation": "quick_gelu",
        "text_layer_norm_eps": 1e-5,
        "sep_token_id": 0,
    }
    assert recipe.model.tokenizer == "words/bert"


def test_files_of_every_split(write: Write) -> None:
    """One file, one for each split, or several that are read as one; read back equal."""
    data = "{name: vqav2, images: i, annotations: {train: a, validation: b, test: c}, questions: QUESTIONS}"
    questions = "{train: [q1, q2], validation: q3, test: [q4]}"
    path = write(GOOD)
    recipe = load_recipe(path, ["task=vqa", f"data={data.replace('QUESTIONS', questions)}"])
    assert recipe.data.questions is not None
    assert (recipe.data.questions.train, recipe.data.questions.validation) == (("q1", "q2"), "q3")
    assert load_recipe(write(recipe.to_yaml())) == recipe
    one = load_recipe(write(GOOD), ["task=caption", data_of("coco")])
    assert (one.data.annotations, one.data.images) == ("a", "i")


@pytest.mark.parametrize("name", TASKS_OF_DATA)
def test_every_data_set_serves_its_tasks_and_no_others(name: str, write: Write) -> None:
    known = TASKS_OF_DATA[name]
    for task in ("nlvr2", "vqa", "caption", "retrieval"):
        path = write(GOOD)
        if task in known:
            assert load_recipe(path, [data_of(name), f"task={task}"]).task == task
            continue
        assert faults(path, data_of(name), f"task={task}") == [
            f"--set {data_of(name)}: data.name {name} has no samples for task {task}; its tasks: {', '.join(known)}"
        ]


# Contradictions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (["model.family=clip"], ["model.family clip knows the task retrieval only, got nlvr2"]),
        (
            [*SCRATCH, data_of("nlvr2")],
            ["model.architecture needs the words of data.name shapes; for other data name a model.checkpoint"],
        ),
        (
            ["model.vision_from=x"],
            ["model.vision_from is for training from scratch, the checkpoint brings its own; remove one"],
        ),
        (
            ["task=caption", "data={name: coco}"],
            [
                "data.annotations is missing; coco needs it: docs/data.md",
                "data.images is missing; coco needs it: docs/data.md",
            ],
        ),
        (
            ["task=vqa", f"data={{name: vqav2, {FILES}}}"],
            ["data.questions is missing; vqav2 needs it: docs/data.md"],
        ),
        (
            ["data={name: custom}"],
            ["data.source is missing; custom needs it: docs/data.md"],
        ),
    ],
    ids=["clip", "architecture", "vision_from", "coco", "vqav2", "custom"],
)
def test_settings_that_contradict_each_other(changes: list[str], messages: list[str], write: Write) -> None:
    """Each names the override that is at fault: the one that sets the section of the message."""
    section = messages[0].partition(".")[0]
    (at_fault,) = (change for change in changes if change.startswith(section))
    assert faults(write(GOOD), *changes) == [f"--set {at_fault}: {message}" for message in messages]


def test_a_vision_tower_of_another_checkpoint_is_for_training_from_scratch(write: Write) -> None:
    changes = [*SCRATCH, "model.vision_from=builtin:shapes_nlvr"]
    assert load_recipe(write(GOOD), changes).model.vision_from == "builtin:shapes_nlvr"


# Single settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.config.activation=relu", "model.config.activation must be gelu or quick_gelu, got 'relu' (text); did "),
        ("model.config.text_heads=0", "model.config.text_heads must be at least 1, got 0"),
        ("model.config.eos=3", "model.config.eos is not a key; the keys here are vision_heads, text_heads, activation"),
        ("model.config.vision_layer_norm_eps=0", "model.config.vision_layer_norm_eps must be above 0, got 0"),
        ("model.tokenizer=''", "model.tokenizer must not be empty"),
        ("inference.answers=guess", "inference.answers must be rank or generate, got 'guess' (text)"),
        ("inference.k_test=0", "inference.k_test must be at least 1, got 0"),
        ("inference.beam=3", "inference.beam is not a key; did you mean beams?"),
        ("data.max_broken=-1", "data.max_broken must be at least 0, got -1"),
        ("data.streaming=yes", "data.streaming must be true or false, got 'yes' (text); try true"),
        ("data.columns={image: 3}", "data.columns.image must be text, got 3 (a whole number); put it in quotes"),
        ("training.label_smoothing=1", "training.label_smoothing must be below 1, got 1"),
    ],
)
def test_a_setting_that_cannot_be(change: str, message: str, write: Write) -> None:
    (fault,) = faults(write(GOOD), change)
    assert fault.startswith(f"--set {change}: {message}")


@pytest.mark.parametrize(
    ("files", "messages"),
    [
        ("annotations: 3", ["data.annotations must be text or a section of keys, got 3 (a whole number)"]),
        ("annotations: ''", ["data.annotations must not be empty"]),
        (
            "annotations: {validation: a, test: b}",
            ["data.annotations.train is missing (file of the training split)"],
        ),
        (
            "annotations: {train: a, validation: b, test: c, dev: d}",
            ["data.annotations.dev is not a key; the keys here are train, validation, test"],
        ),
        (
            "annotations: {train: a, validation: 3, test: []}",
            [
                "data.annotations.validation must be text or a list, got 3 (a whole number)",
                "data.annotations.test must not be empty",
            ],
        ),
        (
            "annotations: {train: a, validation: b, test: [c, 4]}",
            ["data.annotations.test[1] must be text, got 4 (a whole number); put it in quotes"],
        ),
    ],
    ids=["number", "empty", "missing", "unknown", "values", "list"],
)
def test_files_that_cannot_be_are_told_by_their_key(files: str, messages: list[str], write: Write) -> None:
    """A setting of several kinds gives one fault each, of the kind that was meant."""
    change = f"data={{name: coco, images: i, {files}}}"
    assert faults(write(GOOD), "task=caption", change) == [f"--set {change}: {message}" for message in messages]


def test_a_cache_is_for_tasks_whose_samples_do_not_meet(write: Write) -> None:
    told = (
        "--set distillation.cache=true: distillation.cache keeps what the dense model says of each sample alone, but "
        "in task retrieval it compares the samples of a batch with each other; set it to false"
    )
    assert faults(write(GOOD), "distillation.cache=true", "task=retrieval") == [told]
    assert load_recipe(write(GOOD), ["distillation.cache=true"]).distillation.cache


# What nothing reads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reader"),
    [
        ("inference.k_test=3", "ranked answers and BLIP's retrieval"),
        ("inference.answers=generate", "task vqa"),
        ("inference.prompt=a photo of", "captions of files"),
        ("data.max_broken=1", "data sets of files"),
        ("data.genome_images=vg", "data.name vqav2"),
        ("data.columns={image: picture}", "data.name custom"),
        ("training.label_smoothing=0.1", "tasks vqa and caption"),
        ("model.config.eos_token_id=2", "family clip"),
        ("distillation.cache=true", "runs with training.teacher"),
    ],
)
def test_a_setting_that_does_nothing_is_refused(change: str, reader: str, write: Write) -> None:
    """GOOD is nlvr2 on shapes: strict means that no key is without effect."""
    key = change.partition("=")[0]
    told = f"--set {change}: {key} is read by {reader} only, so it does nothing here; remove it"
    setting = ["training.teacher=false"] if key == "distillation.cache" else []
    assert faults(write(GOOD), change, *setting) == [told]


def test_a_default_spelled_out_is_no_fault(write: Write) -> None:
    """A saved recipe has every key: what equals its default says nothing."""
    load_recipe(write(GOOD), ["inference.k_test=128", "data.max_broken=0", "training.label_smoothing=0"])


def test_every_key_that_is_told_exists() -> None:
    for key in READ_BY:
        section: Any = Recipe
        for part in key.split("."):
            fields = section.model_fields
            assert part in fields, key
            kinds = (fields[part].annotation, *get_args(fields[part].annotation))
            section = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)


def test_files_that_hold_one_split_need_one_for_each(write: Write) -> None:
    """One file for all three would be training, validation and test at once."""
    for name in ("nlvr2", "nlvr_v1"):
        change = f"data={{name: {name}, images: i, annotations: a}}"
        told = f"data.annotations must name a file for each split (train, validation, test), got one for {name}"
        assert faults(write(GOOD), change) == [f"--set {change}: {told}"]
