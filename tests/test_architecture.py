"""The shape of the code: who may import whom, and how long anything may get."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "madtp_cli"
# A file imports from rows below its own only. A unit is a module or a package of madtp_cli; `recipe` and `results`
# are in several files, which may import each other.
ROWS: tuple[tuple[str, ...], ...] = (
    ("__main__", "__init__"),
    ("cli",),
    ("commands",),
    ("engine",),
    ("report", "export"),
    ("models", "data"),
    ("pruning", "costs"),
    ("alignment", "attention"),
    ("tokens",),
    ("recipe", "results", "budget"),
    ("errors",),
)
UNITS = {
    **dict.fromkeys(("recipe_sections", "recipe_usage", "recipe_faults", "recipe_yaml"), "recipe"),
    "results_export": "results",
}
LIGHT = {"cli", "commands", "recipe", "results", "budget", "errors", "__main__", "__init__"}
HEAVY = {"torch", "transformers", "numpy", "accelerate", "datasets", "safetensors", "PIL", "fvcore"}
ATTICS = {"util", "utils", "helper", "helpers", "common", "misc"}
MAX_FILE, MAX_FUNCTION = 400, 60

FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def unit_of(parts: tuple[str, ...]) -> str:
    return UNITS.get(parts[0], parts[0])


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
    ],
)
def test_the_rule_finds_what_it_forbids(unit: str, source: str, wrong: list[str]) -> None:
    assert wrong_imports(unit, source) == wrong


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
