"""Recipes: what is read, from where, and how it is changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from madtp_cli.errors import RecipeError, UsageError
from madtp_cli.recipe import Recipe, find_recipe, load_recipe, recipe_schema, resolve_layers, shipped_recipes
from madtp_cli.recipe_yaml import Override
from tests import recipe_samples
from tests.recipe_samples import GOOD, changed, faults

Write = Callable[[str], Path]
SHIPPED = [path.stem for path in shipped_recipes()]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(recipe_samples.write, tmp_path)


# What is read ------------------------------------------------------------------------------------------------


def test_defaults_are_the_documented_ones(write: Write) -> None:
    recipe = load_recipe(write(GOOD))
    assert recipe.output == "runs/mine"
    assert recipe.name == "mine"
    assert recipe.budget is not None
    assert (recipe.budget.reduction, recipe.budget.gmacs, recipe.budget.tolerance) == (0.5, None, 0.01)
    assert (recipe.data.image_size, recipe.data.train_samples, recipe.data.test_samples) == (None, 200_000, 4_000)
    assert (recipe.pruning.method, recipe.pruning.variant, recipe.pruning.tokens) == ("madtp", "normalised", "adaptive")
    assert (recipe.pruning.layers.of("vision"), recipe.pruning.layers.of("text")) == ("all", "all")
    assert recipe.pruning.strength is None
    assert (recipe.alignment.tokens, recipe.alignment.dim, recipe.alignment.projection) == (100, 768, "shared")
    assert (recipe.distillation.logits, recipe.distillation.guidance) == (1.0, 1.0)
    training = recipe.training
    assert (training.steps, training.epochs, training.batch_size, training.seed) == (100, None, 16, 42)
    assert (training.learning_rate, training.betas, training.precision) == (3e-6, (0.9, 0.98), "auto")
    assert (training.teacher, training.auxiliary.patches) == (True, 0.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-6", 3e-6), ("3.0e-6", 3e-6), ("1E+2", 100.0), (".5", 0.5), ("1.", 1.0), ("1", 1.0), ("+2", 2.0)],
)
def test_numbers_follow_yaml_1_2(write: Write, text: str, value: float) -> None:
    recipe = load_recipe(write(GOOD + f"  learning_rate: {text}\n"))
    assert recipe.training.learning_rate == value
    assert type(recipe.training.learning_rate) is float


@pytest.mark.parametrize("text", ["NO", "no", "on", "off", "yes", "Y", "1_000", "12:30:00", "2024-01-01", "0b11", "="])
def test_what_yaml_1_1_would_guess_is_text(write: Write, text: str) -> None:
    assert load_recipe(write(GOOD + f"output: {text}\n")).output == text


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("TRUE", True)])
def test_booleans_are_true_and_false(write: Write, text: str, value: bool) -> None:
    assert load_recipe(write(GOOD + f"  teacher: {text}\n")).training.teacher is value


@pytest.mark.parametrize(("text", "value"), [("0x10", 16), ("0o10", 8), ("007", 7), ("0", 0)])
def test_whole_numbers(write: Write, text: str, value: int) -> None:
    assert load_recipe(write(GOOD + f"  seed: {text}\n")).training.seed == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("all", "all"),
        ("none", "none"),
        ("[10, 4, 7, 4]", (4, 7, 10)),
        ("3-6", (3, 4, 5, 6)),
        ("'2 - 3'", (2, 3)),
        ("0-0", (0,)),
    ],
)
def test_layers(write: Write, text: str, value: object) -> None:
    assert load_recipe(write(changed("vision: all", f"vision: {text}"))).pruning.layers.of("vision") == value


def test_layers_resolve_against_a_tower() -> None:
    assert resolve_layers("all", 3) == (0, 1, 2)
    assert resolve_layers("none", 3) == ()
    assert resolve_layers((1, 2), 3) == (1, 2)
    with pytest.raises(RecipeError) as error:
        resolve_layers((1, 3), 3, "pruning.layers.text")
    assert str(error.value) == "pruning.layers.text names layer 3, but the model has layers 0 to 2"


def test_a_recipe_does_not_change(write: Write) -> None:
    recipe = load_recipe(write(GOOD))
    with pytest.raises(ValidationError):
        recipe.training.steps = 3  # type: ignore[misc]


def test_a_byte_order_mark_is_no_fault(write: Write) -> None:
    assert load_recipe(write("\ufeff" + GOOD)).training.steps == 100


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_a_written_recipe_is_read_back_equal(path: Path, write: Write) -> None:
    recipe = load_recipe(path, ["output=NO", "training.learning_rate=3e-6", "pruning.layers.vision=0-1"])
    text = recipe.to_yaml()
    assert load_recipe(write(text)) == recipe
    # Other readers speak YAML 1.1: they must see the same values.
    assert yaml.safe_load(text) == recipe.model_dump(mode="json")


@pytest.mark.parametrize("output", ["3e-6", "0o17", "1", "null", "~", "on", "a: b", "a #b", "é", "'x'", " x", "x\ty"])
def test_any_text_survives_writing(output: str, write: Write) -> None:
    recipe = load_recipe(write(GOOD), [Override("--output", ("output",), output)])
    assert load_recipe(write(recipe.to_yaml())).output == output


def test_equal_settings_are_equal_wherever_they_were_read(write: Write, tmp_path: Path) -> None:
    first = load_recipe(write(GOOD + "output: x\n"))
    (tmp_path / "other.yaml").write_text("# moved\n" + GOOD + "output: x\n", encoding="utf-8")
    assert load_recipe(tmp_path / "other.yaml") == first


# Where it is read from ---------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "quickstart.yaml"
    assert faults(path) == ["quickstart.yaml: no such recipe file; did you mean the shipped recipe quickstart?"]
    assert faults(tmp_path / "x.yaml") == ["x.yaml: no such recipe file; see: madtp recipes ls"]


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "x.yaml"
    folder.mkdir()
    assert faults(folder) == ["x.yaml: is a folder; a recipe is a YAML file"]


def test_a_binary_file_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    assert faults(path) == ["x.yaml: is not text in UTF-8; a recipe is a YAML file"]


def test_a_checkpoint_is_not_read_as_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"a" * 2_000_000)
    assert faults(path) == ["model.safetensors: larger than a recipe can be (1 MB); is it a checkpoint?"]


def test_an_unreadable_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise PermissionError(13, "Permission denied")

    path = write(GOOD)
    monkeypatch.setattr(Path, "read_text", refuse)
    assert faults(path) == ["mine.yaml: cannot be read (Permission denied)"]


def test_a_shipped_recipe_is_found_by_name() -> None:
    assert find_recipe("quickstart").name == "quickstart.yaml"
    assert find_recipe("quickstart.yaml") == find_recipe("quickstart")
    assert load_recipe("quickstart").name == "quickstart"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quikstart", "did you mean quickstart?"),
        ("shapes_nlvr", "did you mean shapes_nlvr_p80 or "),
        ("blip", f"did you mean {' or '.join(name for name in SHIPPED if name.startswith('blip'))}?"),
        ("zzz", f"there are: {', '.join(SHIPPED)}"),
    ],
)
def test_an_unknown_name_lists_near_ones(name: str, hint: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(name)
    assert str(error.value).startswith(f"{name}: no such file and no shipped recipe of this name; {hint}")


def test_a_file_in_the_folder_wins_over_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text(GOOD, encoding="utf-8")
    assert load_recipe("quickstart").training.steps == 100


# Overrides ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.learning_rate=3e-6", 3e-6),
        ("training.precision=fp32", "fp32"),
        ("training.teacher=false", False),
        ("training.betas=[0.8, 0.9]", (0.8, 0.9)),
        ("training.auxiliary.patches=0.5", 0.5),
        ("training.save_every=null", None),
        ("training.save_every=", None),
        ("pruning.layers.vision=3-5", (3, 4, 5)),
        ("output=a=b", "a=b"),
        ("output=NO", "NO"),
        ("output='3'", "3"),
    ],
)
def test_an_override_is_read_as_yaml(write: Write, override: str, value: object) -> None:
    found: Any = load_recipe(write(GOOD), [override])
    for key in override.partition("=")[0].split("."):
        found = getattr(found, key)
    assert found == value
    assert type(found) is type(value)


def test_an_override_may_set_a_whole_section(write: Write) -> None:
    recipe = load_recipe(write(GOOD), ["alignment={tokens: 16, dim: 96}"])
    assert (recipe.alignment.tokens, recipe.alignment.dim, recipe.alignment.weight) == (16, 96, 0.1)


def test_the_last_override_of_a_key_wins(write: Write) -> None:
    assert load_recipe(write(GOOD), ["training.steps=3", "training.steps=4"]).training.steps == 4


def test_an_override_of_one_alternative_replaces_the_other(write: Write) -> None:
    path = write(GOOD)
    budget = load_recipe(path, ["budget.gmacs=3"]).budget
    assert budget is not None
    assert (budget.reduction, budget.gmacs) == (None, 3.0)
    training = load_recipe(path, ["training.epochs=2"]).training
    assert (training.epochs, training.steps) == (2.0, None)
    scratch = changed("checkpoint: some/folder", "architecture: {}") + "  teacher: false\n"
    assert load_recipe(write(scratch), ["model.checkpoint=x"]).model.architecture is None


def test_overrides_of_both_alternatives_contradict_each_other(write: Write) -> None:
    assert faults(write(GOOD), "budget.gmacs=3", "budget.reduction=0.2") == [
        "--set budget.gmacs=3: budget needs exactly one of reduction and gmacs, got both"
    ]


def test_an_override_makes_the_section_it_needs(write: Write) -> None:
    path = write(changed("budget:\n  reduction: 0.5\n", "budget: null\n"))
    assert load_recipe(path).budget is None
    recipe = load_recipe(path, ["budget.reduction=0.3"])
    assert recipe.budget is not None
    assert recipe.budget.reduction == 0.3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps=x", "--set training.steps=x: training.steps must be a whole number, got 'x' (text)"),
        ("bugdet.reduction=1", "--set bugdet.reduction=1: bugdet is not a key; did you mean budget?"),
        ("task.x=4", "--set task.x=4: task is 'nlvr2' (text), not a section of keys"),
        (
            "data={}",
            "--set data={}: data.name is missing (data set; shapes is generated, custom has columns of your own)",
        ),
        ("training.steps=null", "mine.yaml:13: training needs exactly one of epochs and steps, got neither"),
    ],
)
def test_a_fault_of_an_override_names_the_override(write: Write, override: str, message: str) -> None:
    assert faults(write(GOOD), override) == [message]


def test_a_fault_of_a_named_option_names_the_option(write: Write) -> None:
    option = Override("--output ''", ("output",), "")
    assert faults(write(GOOD), option) == ["--output '': output must not be empty"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "--set steps: expected key=value, such as --set training.seed=7"),
        ("=3", "--set =3: expected key=value, such as --set training.seed=7"),
        ("a..b=3", "--set a..b=3: expected key=value, such as --set training.seed=7"),
        (
            "output=[1",
            "--set output=[1: not valid YAML: while parsing a flow sequence expected ',' or ']', "
            "but got '<stream end>'",
        ),
    ],
)
def test_an_override_of_the_wrong_form_is_wrong_usage(write: Write, override: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        load_recipe(write(GOOD), [override])
    assert str(error.value) == message


def test_a_recipe_tells_where_a_setting_came_from(write: Write) -> None:
    path = write(GOOD)
    recipe = load_recipe(path, ["training.seed=7"])
    assert recipe.where("budget.reduction") == f"{path}:9"
    assert recipe.where("budget.gmacs") == f"{path}:8"  # absent: its section
    assert recipe.where("alignment") == f"{path}:1"  # absent: the recipe
    assert recipe.where("training.seed") == "--set training.seed=7"
    assert Recipe.model_validate(recipe.model_dump()).where("budget") == "recipe"


# The schema --------------------------------------------------------------------------------------------------


def test_the_schema_accepts_what_is_shipped_and_refuses_what_is_not_known(write: Write) -> None:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in shipped_recipes():
        data = load_recipe(path).model_dump(mode="json")
        validator.validate(data)
        assert not validator.is_valid({**data, "reduction": 0.5})
        assert not validator.is_valid({**data, "version": 2})


def test_every_setting_is_described_in_the_schema() -> None:
    schema = recipe_schema()
    for part in (schema, *schema["$defs"].values()):
        for name, setting in part["properties"].items():
            assert setting.get("description"), f"{part['title']}.{name}"
