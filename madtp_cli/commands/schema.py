"""`madtp schema`: what the JSON documents of the commands hold, as JSON Schema."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from madtp_cli import results
from madtp_cli.commands import options
from madtp_cli.errors import UsageError
from madtp_cli.recipe_faults import near
from madtp_cli.results_export import ExportResult

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DOCUMENTS: Mapping[str, type[Any]] = {
    "prune": results.PruneResult,
    "finetune": results.PruneResult,
    "evaluate": results.EvaluateResult,
    "predictions": results.Prediction,
    "profile": results.ProfileResult,
    "export": ExportResult,
    "export-hub": results.HubResult,
    "recipes-ls": results.RecipeListResult,
    "recipes-show": results.RecipeResult,
    "recipes-cp": results.RecipeResult,
    "recipes-validate": results.RecipeResult,
}
"""Which record each document is; `predictions` are the lines of `evaluate --predictions`."""


def schema(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Document, such as profile; none lists them.")
    ] = None,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Print the JSON schema of what a command prints with --json."""
    if name is None:
        width = max(map(len, DOCUMENTS))
        about = {document: _summary(record) for document, record in DOCUMENTS.items()}
        lines = [f"{document:<{width}}  {text}" for document, text in about.items()]
        typer.echo(json.dumps(about, indent=2) if json_output else "\n".join(lines))
        return
    if name not in DOCUMENTS:
        close = near(name, list(DOCUMENTS))
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(DOCUMENTS)}"
        raise UsageError(f"{name}: no such document; {hint}")
    typer.echo(json.dumps(document_schema(name), indent=2))


def document_schema(name: str) -> dict[str, Any]:
    """Return the JSON schema of a document: what this version writes is required, what a newer one adds is allowed."""
    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema

    class Written(GenerateJsonSchema):
        """Documents are written whole: no field is ever left out, whatever its default."""

        def field_is_required(self, field: Any, total: bool) -> bool:
            return True

        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

        def default_schema(self, schema: Any) -> Any:
            return self.generate_inner(schema["schema"])

    made = TypeAdapter(DOCUMENTS[name]).json_schema(mode="serialization", schema_generator=Written)
    if "schema_version" in made["properties"]:
        made["properties"]["schema_version"]["const"] = results.SCHEMA_VERSION
    about = " ".join(inspect.cleandoc(made.pop("description")).split())
    return {"$schema": DIALECT, "title": f"madtp {name.replace('-', ' ')}", "description": about, **_named(made)}


def _named(schema: dict[str, Any]) -> dict[str, Any]:
    """Put the records that a document is made of last, each described on one line."""
    records = schema.pop("$defs", {})
    for record in records.values():
        record["description"] = " ".join(record["description"].split())
    schema.pop("title", None)
    return {**schema, "$defs": records} if records else schema


def _summary(record: type[Any]) -> str:
    """Return the first sentence of what a record says of itself."""
    return inspect.getdoc(record).split(".")[0].split(";")[0].replace("\n", " ") + "."  # type: ignore[union-attr]
