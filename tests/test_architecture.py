"""The shape of the code: who may import whom, and how long anything may get."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from madtp_cli.families import FAMILIES

PACKAGE = Path(__file__).parents[1] / "madtp_cli"
# A file imports from rows below its own only. A unit is a module or a package of madtp_cli, and of those that are
# divided, each part: the wings of `engine`, whose own files are the drivers of commands, and the families of `models`,
# which only the table of families leads to. `recipe` and `results` are in several files, which may import each other.
ROWS: tuple[tuple[str, ...], ...] = (
    ("__main__", "__init__"),
    ("cli",),
    ("commands",),
    ("engine",),
    ("engine/finishing", "engine/exporting"),
    ("engine/profiling",),
    ("engine/building",),
    ("engine/training",),
    ("engine/evaluation",),
    ("engine/tasks",),
    tuple(f"models/{entry.package.rpartition('.')[2]}" for entry in FAMILIES.values()),
    ("report", "export"),
    ("models", "data"),
    ("pruning", "costs"),
    ("alignment", "attention"),
    ("tokens",),
    ("recipe", "results", "budget"),
    ("families",),
    ("errors",),
)
UNITS = {
    **dict.fromkeys(
        ("recipe_sections", "recipe_types", "recipe_usage", "recipe_faults", "recipe_yaml", "recipe_listing"), "recipe"
    ),
    "results_export": "results",
}
LIGHT = {"cli", "commands", "recipe", "results", "budget", "families", "errors", "__main__", "__init__"}
HEAVY = {"torch", "transformers", "numpy", "accelerate", "datasets", "safetensors", "PIL", "fvcore"}
ATTICS = {"util", "utils", "helper", "helpers", "common", "misc"}
MAX_FILE, MAX_FUNCTION = 400, 60

FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def unit_of(parts: tuple[str, ...]) -> str:
    """Name the unit of a module, given its path in the package: the longest that has a row."""
    inner = "/".join(parts[:2])
    return inner if any(inner in row for row in ROWS) else UNITS.get(parts[0], parts[0])


def row_of(unit: str) -> int:
    rows = [index for index, row in enumerate(ROWS) if unit in row]
    assert rows, f"madtp_cli/{unit} has no place in the import order"
    return rows[0]


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and full name of everything imported, also inside functions and under `if TYPE_CHECKING`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def wrong_imports(unit: str, source: str) -> list[str]:
    """Return the imports of a file of `unit` that the order does not allow."""
    wrong = []
    for line, name in imports(ast.parse(source)):
        first, *rest = name.split(".")
        if first != "madtp_cli" or not rest or rest[0] in ("__version__", "*"):
            continue
        target = unit_of(tuple(rest))
        if target != unit and row_of(target) <= row_of(unit):
            wrong.append(f"line {line}: {name}")
    return wrong


def file_unit(path: Path) -> str:
    return unit_of(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_from_rows_below_only(path: Path) -> None:
    assert wrong_imports(file_unit(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("unit", "source", "wrong"),
    [
        ("models", "from madtp_cli.tokens import Tokens", []),
        ("models", "from madtp_cli.models.tower import run", []),
        ("models", "from madtp_cli import __version__", []),
        ("recipe", "from madtp_cli.recipe_yaml import parse", []),
        ("models", "from madtp_cli.data.shapes import x", ["line 1: madtp_cli.data.shapes.x"]),
        ("models", "from madtp_cli import engine", ["line 1: madtp_cli.engine"]),
        ("tokens", "def f():\n    import madtp_cli.alignment", ["line 2: madtp_cli.alignment"]),
        ("budget", "from madtp_cli.recipe_yaml import x", ["line 1: madtp_cli.recipe_yaml.x"]),
        ("engine/profiling", "from madtp_cli.engine.building.data import x", []),
        ("engine/profiling", "from madtp_cli.engine.profiling.costs import x", []),
        (
            "engine/building",
            "from madtp_cli.engine.profiling.costs import x",
            ["line 1: madtp_cli.engine.profiling.costs.x"],
        ),
        ("engine/training", "from madtp_cli.engine import run", ["line 1: madtp_cli.engine.run"]),
        ("models/blip", "from madtp_cli.models.base import x", []),
        ("models", "from madtp_cli.models.blip.vqa import x", ["line 1: madtp_cli.models.blip.vqa.x"]),
        ("models/clip", "from madtp_cli.models.blip.vqa import x", ["line 1: madtp_cli.models.blip.vqa.x"]),
    ],
)
def test_the_rule_finds_what_it_forbids(unit: str, source: str, wrong: list[str]) -> None:
    assert wrong_imports(unit, source) == wrong


# Wings and families ------------------------------------------------------------------------------------------


def test_engine_holds_drivers_and_faces_only() -> None:
    """Everything else is in a wing, whose face is one sentence."""
    drivers = {path.stem for path in (PACKAGE / "engine").glob("*.py")} - {"__init__"}
    assert drivers == {"run", "evaluate", "profile", "export"}
    wings = {unit.partition("/")[2] for row in ROWS for unit in row if unit.startswith("engine/")}
    assert {path.parent.name for path in (PACKAGE / "engine").glob("*/__init__.py")} == wings
    for face in (PACKAGE / "engine").rglob("__init__.py"):
        (sentence,) = ast.parse(face.read_text(encoding="utf-8")).body
        assert isinstance(sentence, ast.Expr)


def family_names(source: str) -> list[str]:
    """Return what in a source names a family: a string that is its name or package, or a name in its classes' style."""
    found = []
    titled = re.compile(rf"({'|'.join(name.capitalize() for name in FAMILIES)})[A-Z]")
    packages = tuple(entry.package for entry in FAMILIES.values())
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value in FAMILIES or node.value.startswith(packages):
                found.append(node.value)
        elif isinstance(node, ast.Name | ast.Attribute | ast.ClassDef | ast.FunctionDef):
            name = (
                node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else node.name
            )
            if titled.match(name):
                found.append(name)
    return found + [name for _, name in imports(ast.parse(source)) if name.startswith(packages)]


@pytest.mark.parametrize(
    "path", [path for path in FILES if file_unit(path) != "families" and "/" not in file_unit(path)], ids=name_of
)
def test_a_family_is_named_in_its_folder_and_the_table_only(path: Path) -> None:
    assert family_names(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [path for path in FILES if file_unit(path).startswith("engine/")], ids=name_of)
def test_no_wing_names_a_family(path: Path) -> None:
    assert family_names(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = 'clip'", ["clip"]),
        ("import_module('madtp_cli.models.blip.vqa')", ["madtp_cli.models.blip.vqa"]),
        ("isinstance(model, BlipForVqa)", ["BlipForVqa"]),
        ("def f():\n    from madtp_cli.models.clip import model", ["madtp_cli.models.clip.model"]),
        ("values.clip(0, 1)", []),
        ("clip_norm = 1.0  # not the family", []),
        ("'what BLIP and CLIP call it'", []),
    ],
)
def test_the_rule_about_families_finds_what_it_forbids(source: str, found: list[str]) -> None:
    assert family_names(source) == found


# Weight and size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in FILES if file_unit(path) in LIGHT], ids=name_of)
def test_light_files_import_nothing_heavy(path: Path) -> None:
    named = {name.partition(".")[0] for _, name in imports(ast.parse(path.read_text(encoding="utf-8")))}
    assert not named & HEAVY


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a file opens with a docstring"
    assert "from __future__ import annotations" in text or len(tree.body) == 1
    assert len(text.splitlines()) <= MAX_FILE
    assert not ATTICS & set(path.relative_to(PACKAGE).with_suffix("").parts), "a name that says what is inside"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"line {node.lineno}: {node.name} has {length} lines"


def test_every_row_is_one_that_exists_or_is_planned() -> None:
    there = {file_unit(path) for path in FILES}
    known = {unit for row in ROWS for unit in row}
    assert there <= known
