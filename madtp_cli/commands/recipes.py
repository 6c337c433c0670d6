"""`madtp recipes`: list, show, copy and check recipes, without starting torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from madtp_cli.commands import options
from madtp_cli.commands.options import recipe_changes
from madtp_cli.errors import RecipeError, UsageError
from madtp_cli.recipe import load_recipe, read_recipe, recipe_schema, resolve_recipe, shipped_recipes
from madtp_cli.results import RecipeEntry, RecipeListResult, RecipeResult

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a shipped recipe, or a file.")]


def ls(json_output: options.Json = False, debug: options.Debug = False) -> None:
    """List the recipes that come with madtp."""
    entries = tuple(RecipeEntry(name=path.stem, path=str(path), summary=_summary(path)) for path in shipped_recipes())
    if json_output:
        typer.echo(RecipeListResult(command="recipes ls", recipes=entries).to_json())
        return
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        typer.echo(f"{entry.name:<{width}}  {entry.summary}")


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
    file: Annotated[str, typer.Argument(metavar="FILE", help="A recipe file, or the name of a shipped one.")],
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


def _summary(path: Path) -> str:
    return read_recipe(path).partition("\n")[0].removeprefix("#").strip()
