"""The recipe: everything a run depends on, strict, and all that is wrong with it at once.

Unknown keys, wrong types and settings that contradict each other are refused, each with its file and line.
Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from madtp_cli.errors import RecipeError
from madtp_cli.families import FAMILIES
from madtp_cli.recipe_faults import faults_of, near
from madtp_cli.recipe_sections import (
    AlignmentSection,
    BudgetSection,
    DataSection,
    DistillationSection,
    InferenceSection,
    ModelSection,
    PruningSection,
    TrainingSection,
)
from madtp_cli.recipe_types import Section, Text, Version, refuse
from madtp_cli.recipe_usage import unread
from madtp_cli.recipe_yaml import KeyPath, Origin, Override, apply_overrides, dump_yaml, parse_override, parse_yaml

SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 1_000_000
ALL_TASKS = ("nlvr2", "vqa", "caption", "retrieval")
TASKS_OF_DATA: Mapping[str, tuple[str, ...]] = {
    "shapes": ALL_TASKS,
    "nlvr2": ("nlvr2",),
    "nlvr_v1": ("nlvr2",),
    "vqav2": ("vqa",),
    "coco": ("caption", "retrieval"),
    "flickr30k": ("caption", "retrieval"),
    "custom": ALL_TASKS,
}
# (section, key, other key): a recipe has one of the two, and overriding one replaces the other.
ALTERNATIVES = (
    ("budget", "reduction", "gmacs"),
    ("training", "epochs", "steps"),
    ("model", "checkpoint", "architecture"),
)


class Recipe(Section):
    """A whole run: model, data, budget, method and training."""

    version: Version = Field(description="version of the recipe format, 1")
    task: Literal["nlvr2", "vqa", "caption", "retrieval"] = Field(
        description="what the model does: nlvr2, vqa, caption or retrieval"
    )
    model: ModelSection = Field(description="a section with family and checkpoint")
    data: DataSection = Field(description="a section with the name of a data set")
    budget: BudgetSection | None = Field(None, description="what the pruned model may cost")
    pruning: PruningSection = Field(PruningSection(), description="how tokens are chosen")
    alignment: AlignmentSection = Field(AlignmentSection(), description="the alignment module")
    distillation: DistillationSection = Field(DistillationSection(), description="what is learned from the dense model")
    training: TrainingSection = Field(description="a section with steps or epochs")
    inference: InferenceSection = Field(InferenceSection(), description="how answers are found")
    output: Text = Field("runs/recipe", description="folder of the result; runs/<name of the recipe> by default")

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        faults: list[tuple[KeyPath, str]] = []
        shape = self.model.architecture
        if self.budget is not None and self.pruning.method == "none":
            text = "budget cannot be met by pruning.method none; remove the budget or choose a method"
            faults.append((("budget",), text))
        if self.budget is not None and self.pruning.temperature == 0:
            text = "pruning.temperature 0 prunes nothing, so no budget can be met; try 1.0"
            faults.append((("pruning", "temperature"), text))
        sites = FAMILIES[self.model.family].sites.get(self.task, {})
        if self.budget is not None and {self.pruning.layers.of(site) for site in sites} == {"none"}:
            faults.append((("pruning", "layers"), "pruning.layers names no layer, so no budget can be met"))
        if self.model.checkpoint is None and self.training.teacher:
            text = "training.teacher needs a dense model.checkpoint to learn from; set it to false"
            faults.append((("training", "teacher"), text))
        if self.distillation.cache and self.task == "retrieval":
            text = (
                "distillation.cache keeps what the dense model says of each sample alone, but in task retrieval it "
                "compares the samples of a batch with each other; set it to false"
            )
            faults.append((("distillation", "cache"), text))
        if shape is not None and self.data.image_size is not None and self.data.image_size % shape.patch_size:
            text = f"data.image_size {self.data.image_size} is not a multiple of patch_size {shape.patch_size}"
            faults.append((("data", "image_size"), text))
        if shape is not None and self.data.name != "shapes":
            text = "model.architecture needs the words of data.name shapes; for other data name a model.checkpoint"
            faults.append((("model", "architecture"), text))
        if self.task not in (tasks := FAMILIES[self.model.family].sites):
            known = f"the task{'s' * (len(tasks) > 1)} {', '.join(tasks)} only"
            text = f"model.family {self.model.family} knows {known}, got {self.task}"
            faults.append((("model", "family"), text))
        if self.task not in (offered := TASKS_OF_DATA[self.data.name]):
            text = f"data.name {self.data.name} has no samples for task {self.task}; its tasks: {', '.join(offered)}"
            faults.append((("data", "name"), text))
        refuse(faults or unread(self))
        return self

    @model_serializer(mode="wrap")
    def _own_sites(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the layers of sites that only other families have."""
        data: dict[str, Any] = serialise(self)
        layers = data.get("pruning", {}).get("layers", {})
        own = FAMILIES[self.model.family].sites[self.task]
        for site in [site for site in layers if site not in own]:
            del layers[site]
        return data

    def to_yaml(self) -> str:
        """Return the recipe with every default spelled out; `load_recipe` reads it back equal."""
        return dump_yaml(self.model_dump(mode="json"))

    def where(self, key: str) -> str:
        """Return where a key such as `budget.reduction` was set: `file:line`, or the option that did."""
        return self._origin.where(tuple(key.split(".")))

    @property
    def name(self) -> str:
        """The name of the file it was read from, without folder and suffix."""
        return Path(self._origin.source).stem


def load_recipe(source: str | Path, overrides: Sequence[str | Override] = ()) -> Recipe:
    """Read a recipe from a file, or a shipped one by its name, with `a.b=value` overrides.

    Raises RecipeError with every fault found, each with its file and line or its override; UsageError for an
    override that is no `key=value`.
    """
    changes = [parse_override(item) if isinstance(item, str) else item for item in overrides]
    path = resolve_recipe(source)
    document = parse_yaml(read_recipe(path))
    if document.faults and not document.data:
        raise RecipeError(Origin(str(path), document.lines).show(document.faults))
    labels = apply_overrides(document, changes, ALTERNATIVES)
    document.data.setdefault("output", f"runs/{path.stem}")
    origin = Origin(str(path), document.lines, labels)
    try:
        recipe = Recipe.model_validate(document.data)
    except ValidationError as error:
        raise RecipeError(origin.show([*document.faults, *faults_of(error, Recipe)])) from None
    if document.faults:
        raise RecipeError(origin.show(document.faults))
    recipe._origin = origin
    return recipe


def shipped_recipes() -> list[Path]:
    """Return the files of all recipes that come with the package, by name."""
    package = Path(__file__).parent
    installed = package / "_shipped" / "recipes"
    # A source tree keeps them at its top, where a reader looks for them; a wheel inside the package.
    folder = installed if installed.is_dir() else package.parent / "recipes"
    return sorted(folder.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Return the file of a shipped recipe; raises RecipeError with the names most like it."""
    recipes = {path.stem: path for path in shipped_recipes()}
    stem = name.removesuffix(".yaml").removesuffix(".yml")
    if stem in recipes:
        return recipes[stem]
    close = near(stem, list(recipes), limit=3) or [entry for entry in recipes if entry.startswith(stem)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(recipes)}"
    raise RecipeError(f"{name}: no such file and no shipped recipe of this name; {hint}")


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a recipe, for editors and CI."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "madtp recipe"}


def resolve_layers(choice: str | Sequence[int], count: int, key: str = "pruning.layers") -> tuple[int, ...]:
    """Return the layers of a tower of `count` layers that a choice names; raises RecipeError beyond the last."""
    if isinstance(choice, str):
        return tuple(range(count)) if choice == "all" else ()
    if beyond := [layer for layer in choice if layer >= count]:
        raise RecipeError(f"{key} names layer {beyond[0]}, but the model has layers 0 to {count - 1}")
    return tuple(choice)


def resolve_recipe(source: str | Path) -> Path:
    """Return the file of a recipe: a path as it is, a bare name among the shipped ones."""
    path = Path(source)
    bare = isinstance(source, str) and path.name == source and path.suffix not in SUFFIXES
    if bare and not path.is_file():
        return find_recipe(str(source))
    return path


def read_recipe(path: Path) -> str:
    """Return the text of a recipe file; raises RecipeError when it cannot be one."""
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: larger than a recipe can be (1 MB); is it a checkpoint?")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        shipped = [entry.stem for entry in shipped_recipes()]
        hint = f"did you mean the shipped recipe {path.stem}?" if path.stem in shipped else "see: madtp recipes ls"
        raise RecipeError(f"{path}: no such recipe file; {hint}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder; a recipe is a YAML file") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: is not text in UTF-8; a recipe is a YAML file") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
