"""Recipes that are refused: every message names its line, what was got and what to try."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from madtp_cli.recipe_sections import DataSection
from tests import recipe_samples
from tests.recipe_samples import GOOD, changed, faults

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(recipe_samples.write, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  reduction", "  reducton", "9: budget.reducton is not a key; did you mean reduction?"),
        ("  steps", "  Steps", "14: training.Steps is not a key; did you mean steps?"),
        (
            "training:",
            "learning-rate: 1\ntraining:",
            "13: learning-rate is not a key; did you mean alignment.learning_rate or training.learning_rate?",
        ),
        (
            "  name: shapes",
            "  name: shapes\n  qqq: 3",
            f"8: data.qqq is not a key; the keys here are {', '.join(DataSection.model_fields)}",
        ),
        ("steps: 100", "steps: ten", "14: training.steps must be a whole number, got 'ten' (text)"),
        (
            "steps: 100",
            "steps: 1e3",
            "14: training.steps must be a whole number, got 1000.0 (a number); try 1000",
        ),
        (
            "steps: 100",
            "steps: 1_000",
            "14: training.steps must be a whole number, got '1_000' (text); try 1000",
        ),
        ("steps: 100", "steps: -1", "14: training.steps must be at least 0, got -1"),
        ("steps: 100", "steps: true", "14: training.steps must be a whole number, got true"),
        ("reduction: 0.5", "reduction: 80%", "9: budget.reduction must be a number, got '80%' (text); try 0.8"),
        (
            "reduction: 0.5",
            "reduction: 80",
            "9: budget.reduction must be below 1, got 80; it is a share of 1, try 0.8",
        ),
        ("reduction: 0.5", "reduction: 0", "9: budget.reduction must be above 0, got 0"),
        ("reduction: 0.5", "reduction: .nan", "9: budget.reduction must be a finite number, got nan (a number)"),
        ("reduction: 0.5", "reduction: [1]", "9: budget.reduction must be a number, got [1] (a list)"),
        (
            "steps: 100",
            "steps: 1\n  decay_from: 1.5",
            "15: training.decay_from must be at most 1, got 1.5",
        ),
        (
            "steps: 100",
            "steps: 1\n  teacher: yes",
            "15: training.teacher must be true or false, got 'yes' (text); try true",
        ),
        (
            "steps: 100",
            "steps: 1\n  teacher: off",
            "15: training.teacher must be true or false, got 'off' (text); try false",
        ),
        ("steps: 100", "steps: 1\n  betas: [0.9]", "15: training.betas must be a list of 2 numbers"),
        (
            "steps: 100",
            "steps: 1\n  betas: 0.9",
            "15: training.betas must be a list of 2 numbers, got 0.9 (a number)",
        ),
        (
            "steps: 100",
            "steps: 1\n  betas:\n  - 0.9\n  - 1.5",
            "17: training.betas[1] must be below 1, got 1.5",
        ),
        (
            "task: nlvr2",
            "task: nlvr",
            "2: task must be nlvr2, vqa, caption or retrieval, got 'nlvr' (text); did you mean nlvr2?",
        ),
        (
            "  layers:",
            "  method: madpt\n  layers:",
            "11: pruning.method must be madtp, random or none, got 'madpt' (text); did you mean madtp?",
        ),
        (
            "  layers:",
            "  method: 3\n  layers:",
            "11: pruning.method must be madtp, random or none, got 3 (a whole number)",
        ),
        (
            "version: 1",
            "version: 2",
            "1: version must be 1, the one version that this madtp reads, got 2 (a whole number)",
        ),
        ("version: 1", "version: true", "1: version must be 1, the one version that this madtp reads, got true"),
        ("version: 1\n", "", "1: version is missing (version of the recipe format, 1)"),
        (
            "family: blip",
            "family: clpi",
            "4: model.family must be blip or clip, got 'clpi' (text); did you mean clip?",
        ),
        ("family: blip", "family: [blip]", "4: model.family must be blip or clip, got ['blip'] (a list)"),
        ("family: blip", "family: 3", "4: model.family must be blip or clip, got 3 (a whole number)"),
        ("  family: blip\n", "", "3: model.family is missing (family of the model, blip or clip)"),
        ("data:\n  name: shapes\n", "", "1: data is missing (a section with the name of a data set)"),
        ("data:\n  name: shapes\n", "data:\n", "6: data is empty; give it keys or remove it"),
        ("data:\n  name: shapes\n", "data: shapes\n", "6: data must be a section of keys, got 'shapes' (text)"),
        (
            "checkpoint: some/folder",
            "checkpoint: 3",
            "5: model.checkpoint must be text, got 3 (a whole number); put it in quotes",
        ),
        ("checkpoint: some/folder", "checkpoint: ''", "5: model.checkpoint must not be empty"),
        (
            "  checkpoint: some/folder\n",
            "",
            "3: model.checkpoint is missing; name a checkpoint, or give model.architecture to train from scratch",
        ),
        (
            "  checkpoint: some/folder\n",
            "  checkpoint: some/folder\n  architecture: {}\n",
            "6: model.architecture is for training from scratch, the checkpoint brings its own; remove one",
        ),
        (
            "reduction: 0.5",
            "reduction: 0.5\n  gmacs: 3",
            "10: budget needs exactly one of reduction and gmacs, got both",
        ),
        ("reduction: 0.5", "tolerance: 0.5", "8: budget needs exactly one of reduction and gmacs, got neither"),
        ("steps: 100", "batch_size: 3", "13: training needs exactly one of epochs and steps, got neither"),
        (
            "  layers:",
            "  method: none\n  layers:",
            "8: budget cannot be met by pruning.method none; remove the budget or choose a method",
        ),
        (
            "  layers:",
            "  temperature: 0\n  layers:",
            "11: pruning.temperature 0 prunes nothing, so no budget can be met; try 1.0",
        ),
        (
            "vision: all",
            "vision: none\n    text: none",
            "11: pruning.layers names no layer, so no budget can be met",
        ),
    ],
)
def test_one_fault_is_one_line_with_its_place(write: Write, old: str, new: str, message: str) -> None:
    assert faults(write(changed(old, new))) == [f"mine.yaml:{message}"]


@pytest.mark.parametrize(
    "layers", ["3-", "6-3", "4", "[]", "[-1]", "[1000]", "[a]", "some", "[true]", "0-9999", "null"]
)
def test_layers_that_are_none(write: Write, layers: str) -> None:
    (fault,) = faults(write(changed("vision: all", f"vision: {layers}")))
    start = (
        "mine.yaml:12: pruning.layers.vision must be all, none, a list such as [4, 7, 10] or a range such as 3-11, got "
    )
    assert fault.startswith(start)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("{vision_heads: 5}", "mine.yaml:5: model.architecture.vision_width 96 is not a multiple of vision_heads 5"),
        ("{text_heads: 7}", "mine.yaml:5: model.architecture.text_width 96 is not a multiple of text_heads 7"),
        ("{patch_size: 7}", "mine.yaml:8: data.image_size 96 is not a multiple of patch_size 7"),
        ("{layers: 3}", "mine.yaml:5: model.architecture.layers is not a key; did you mean text_layers?"),
    ],
)
def test_an_architecture_that_cannot_be_built(write: Write, architecture: str, message: str) -> None:
    text = changed("checkpoint: some/folder", f"architecture: {architecture}").replace(
        "budget:\n  reduction: 0.5\n", "  image_size: 96\n"
    )
    assert faults(write(text + "  teacher: false\n")) == [message]


def test_from_scratch_there_is_no_teacher(write: Write) -> None:
    assert faults(write(changed("checkpoint: some/folder", "architecture: {}") + "  teacher: true\n")) == [
        "mine.yaml:15: training.teacher needs a dense model.checkpoint to learn from; set it to false"
    ]


def test_all_faults_come_together_in_the_order_of_the_file(write: Write) -> None:
    text = GOOD.replace("nlvr2", "zqx").replace("family", "famly").replace("0.5", "5").replace("steps: 100", "steps: x")
    path = write(text + "  steps: 3\noutput: 3\n")
    assert faults(path, "pruning.tokens=x", "alignment.dim=0", "model.checkpint=x") == [
        "mine.yaml:2: task must be nlvr2, vqa, caption or retrieval, got 'zqx' (text)",
        "mine.yaml:4: model.famly is not a key; did you mean family?",
        "mine.yaml:9: budget.reduction must be below 1, got 5; it is a share of 1, try 0.05",
        "mine.yaml:14: training.steps must be a whole number, got 'x' (text)",
        "mine.yaml:15: training.steps is given twice, first on line 14; keep one",
        "mine.yaml:16: output must be text, got 3 (a whole number); put it in quotes",
        "--set model.checkpint=x: model.checkpint is not a key; did you mean checkpoint?",
        "--set pruning.tokens=x: pruning.tokens must be adaptive or scheduled, got 'x' (text)",
        "--set alignment.dim=0: alignment.dim must be at least 1, got 0",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1: the recipe is empty; start from one of: madtp recipes ls"),
        ("# nothing\n", "1: the recipe is empty; start from one of: madtp recipes ls"),
        ("- a\n- b\n", "1: a recipe is a mapping of keys, got ['a', 'b'] (a list)"),
        ("just words\n", "1: a recipe is a mapping of keys, got 'just words' (text)"),
        (
            "a: 1\n\tb: 2\n",
            "2: not valid YAML: while scanning for the next token found character '\\t' that cannot start any "
            "token; indent with spaces, not tabs",
        ),
        ("a: b: c\n", "1: not valid YAML: mapping values are not allowed here"),
        ("a: 1\nb: [1, 2\nc: 3\n", "3: not valid YAML: while parsing a flow sequence expected ',' or ']', but got ':'"),
        ("a: 1\n---\nb: 2\n", "2: not valid YAML: expected one document, found a second one after ---"),
        ("a: 1\nb: \x07\n", "2: not valid YAML: character #x0007 is not allowed"),
        ("a: &x [1]\nb: *x\n", "2: alias *x is not supported; write the value out"),
        ("[" * 5000, "1: not valid YAML: nested too deeply"),
    ],
)
def test_text_that_is_no_recipe(write: Write, text: str, message: str) -> None:
    assert faults(write(text)) == [f"mine.yaml:{message}"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3: x", "mine.yaml:15: a key must be text, got 3; put it in quotes"),
        ("[1]: x", "mine.yaml:15: a key must be text, got a list or a section; put it in quotes"),
        (
            "output: !!python/name:os.system x",
            "mine.yaml:15: cannot read 'x' (text) as !!python/name:os.system; remove the tag",
        ),
        ("output: !!int x", "mine.yaml:15: cannot read 'x' (text) as !!int; remove the tag"),
        ("task: nlvr2", "mine.yaml:15: task is given twice, first on line 2; keep one"),
    ],
)
def test_keys_and_tags_that_yaml_allows_and_a_recipe_does_not(write: Write, line: str, message: str) -> None:
    assert message in faults(write(GOOD + line + "\n"))
