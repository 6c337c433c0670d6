"""`madtp recipes`: list, show, copy and check recipes, without starting torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from madtp_cli.commands import options
from madtp_cli.commands.options import recipe_changes, recipe_names
from madtp_cli.commands.output import open_console
from madtp_cli.errors import RecipeError, UsageError
from madtp_cli.recipe import load_recipe, read_recipe, recipe_schema, resolve_recipe, shipped_recipes
from madtp_cli.recipe_listing import GROUPS, Listed, listed, summary
from madtp_cli.results import RecipeEntry, RecipeListResult, RecipeResult

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a shipped recipe, or a file.", autocompletion=recipe_names)
]

_LEAST_SUMMARY = 20  # columns beside a name and what it takes, below which a summary is a ladder of single words


def ls(json_output: options.Json = False, debug: options.Debug = False) -> None:
    """List the recipes that come with madtp, and what each takes to run."""
    paths = shipped_recipes()
    if json_output:
        entries = [RecipeEntry(name=path.stem, path=str(path), summary=summary(read_recipe(path))) for path in paths]
        typer.echo(RecipeListResult(command="recipes ls", recipes=tuple(entries)).to_json())
        return
    found = sorted(map(listed, paths), key=lambda each: list(GROUPS).index(each.group))
    with open_console(json_output=False, verbosity=0) as console:
        if console.is_terminal and console.width >= _width(found, "name") + _width(found, "takes") + _LEAST_SUMMARY:
            _print_groups(console, found)
        else:
            _print_lines(console, found)


def _width(found: Sequence[Listed], field: str) -> int:
    return max(len(getattr(each, field)) for each in found)


def _print_lines(console: Console, found: Sequence[Listed]) -> None:
    """Print a line for each, whatever its length, for a pipe and for a terminal too narrow for a table."""
    widths = [_width(found, field) for field in ("name", "group", "takes")]
    for each in found:
        cells = (f"{cell:<{width}}" for cell, width in zip((each.name, each.group, each.takes), widths, strict=True))
        console.print("  ".join((*cells, each.summary)), soft_wrap=True)


def _print_groups(console: Console, found: Sequence[Listed]) -> None:
    """Print a table for each group; names are whole, summaries are broken between words."""
    for group, members in groupby(found, key=lambda each: each.group):
        table = Table(
            box=None,
            show_header=False,
            pad_edge=False,
            title=f"{group.capitalize()}: {GROUPS[group]}",
            title_justify="left",
            title_style="bold",
        )
        table.add_column(no_wrap=True, min_width=_width(found, "name"))
        table.add_column(no_wrap=True, min_width=_width(found, "takes"), justify="right", style="dim")
        table.add_column(overflow="fold")
        for each in members:
            table.add_row(each.name, each.takes, each.summary)
        console.print(table)
        console.print()


def show(name: Name, json_output: options.Json = False, debug: options.Debug = False) -> None:
    """Print a recipe; with --json, every setting of it spelled out."""
    path = resolve_recipe(name)
    if json_output:
        _print_recipe("recipes show", path)
        return
    typer.echo(read_recipe(path), nl=False)


def cp(
    name: Name,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="File or folder to copy it to.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DEST if it exists.")] = False,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Copy a recipe, to make it your own."""
    path = resolve_recipe(name)
    target = destination / path.name if destination.is_dir() else destination
    text = read_recipe(path)
    try:
        with target.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{target} exists; name another file or add --overwrite") from None
    except FileNotFoundError:
        raise UsageError(f"{target}: there is no folder {target.parent}; make it first") from None
    except OSError as error:
        raise UsageError(f"{target} cannot be written ({error.strerror})") from None
    if json_output:
        _print_recipe("recipes cp", target)
        return
    typer.echo(f"{target}: copied; after your changes, check it with: madtp recipes validate {target}")


def validate(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A recipe file, or the name of a shipped one.", autocompletion=recipe_names
        ),
    ],
    settings: options.Settings = None,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Check a recipe and list everything that is wrong with it."""
    try:
        recipe = load_recipe(file, recipe_changes(settings))
    except RecipeError as error:
        if json_output:
            result = RecipeResult(command="recipes validate", path=file, valid=False, faults=error.faults)
            typer.echo(result.to_json())
        raise
    if json_output:
        data = recipe.model_dump(mode="json")
        typer.echo(RecipeResult(command="recipes validate", path=file, valid=True, recipe=data).to_json())
        return
    typer.echo(f"{file}: valid")


def schema(json_output: options.Json = False, debug: options.Debug = False) -> None:
    """Print the JSON schema of recipes, for editors and CI."""
    typer.echo(json.dumps(recipe_schema(), indent=2))


def _print_recipe(command: str, path: Path) -> None:
    recipe = load_recipe(path).model_dump(mode="json")
    typer.echo(RecipeResult(command=command, path=str(path), valid=True, recipe=recipe).to_json())
