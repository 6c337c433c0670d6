"""`madtp schema`: published schemas are those of the records, and what commands print keeps to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from madtp_cli import results
from madtp_cli.cli import app
from madtp_cli.commands.schema import DIALECT, DOCUMENTS, document_schema
from tests.test_results import RESULTS

PUBLISHED = Path(__file__).parents[2] / "docs" / "schema"


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def check(document: Any, name: str) -> None:
    """Validate with the published file, as a CI script would."""
    schema = json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
    jsonschema.validate(document, schema, cls=jsonschema.Draft202012Validator)


def kinds(record: type[results.Result]) -> set[type[results.Result]]:
    """Find a record's descendants."""
    return {record for child in record.__subclasses__() for record in (child, *kinds(child))}


def test_every_document_has_a_schema() -> None:
    """Whatever records results.py defines for commands, and one published file for each, no more."""
    assert kinds(results.Result) <= set(DOCUMENTS.values())
    assert {path.stem for path in PUBLISHED.iterdir()} == set(DOCUMENTS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_published_schema_is_what_the_command_prints(name: str) -> None:
    """After a change: madtp schema NAME > docs/schema/NAME.json."""
    printed = run("schema", name)
    assert printed.exit_code == 0
    assert (PUBLISHED / f"{name}.json").read_text(encoding="utf-8") == printed.stdout
    schema = json.loads(printed.stdout)
    assert schema["$schema"] == DIALECT
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: f"{type(result).__name__}-{result.command}")
def test_records_keep_to_their_schema(result: results.Result) -> None:
    """Each example of a record, by each name it goes by."""
    names = [name for name, record in DOCUMENTS.items() if record is type(result)]
    assert names
    for name in names:
        check(json.loads(result.to_json()), name)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"params": "many"}, "'many' is not of type 'integer'"),
        ({"schema_version": 2}, "1 was expected"),
        ({"gmacs": {"dense": 1.0}}, "'pruned' is a required property"),
        ({"latency_ms": {"1": None}}, "None is not of type 'number'"),
    ],
)
def test_something_else_does_not(change: dict[str, Any], fault: str) -> None:
    """A wrong type, another version, a missing name; and a name of a newer version is nothing wrong."""
    profile = next(result for result in RESULTS if isinstance(result, results.ProfileResult)).to_dict()
    check({**json.loads(json.dumps(profile)), "energy_joules": 3}, "profile")
    with pytest.raises(jsonschema.ValidationError) as error:
        check({**json.loads(json.dumps(profile)), **change}, "profile")
    assert fault in error.value.message


def test_no_name_may_be_missing() -> None:
    """A document is written whole, so that a script may rely on every name, at every depth."""
    schema = document_schema("profile")
    for record in (schema, *schema["$defs"].values()):
        assert set(record["required"]) == set(record["properties"])


def test_what_commands_print_keeps_to_the_schema(pruned: Path, tmp_path: Path) -> None:
    """Real documents of a real checkpoint: a run's, an evaluation's with its lines, a profile's with all it holds."""
    check(json.loads((pruned / "profile.json").read_text(encoding="utf-8")), "prune")
    lines = tmp_path / "p.jsonl"
    evaluated = run("evaluate", str(pruned), "--limit", "8", "--predictions", str(lines), "--json")
    check(json.loads(evaluated.stdout), "evaluate")
    for line in lines.read_text(encoding="utf-8").splitlines():
        check(json.loads(line), "predictions")
    pictures = ("--visualize", str(tmp_path / "pictures"))
    quick = ("--seconds", "0.01", "--batch-size", "2", "--fail-if", "gmacs>9", "--baseline", str(pruned), "--json")
    one = run("profile", str(pruned), *quick, *pictures)
    two = run("profile", str(pruned), "builtin:shapes_nlvr", "--no-latency", "--json")
    for result in (one, two):
        assert result.exit_code == 0, result.stderr
        check(json.loads(result.stdout), "profile")
    document = json.loads(one.stdout)
    assert all(document[name] for name in ("modules", "layers", "samples", "pictures", "thresholds", "baseline"))
    assert len(json.loads(two.stdout)["others"]) == 1


def test_what_recipes_print_keeps_to_the_schema() -> None:
    check(json.loads(run("recipes", "ls", "--json").stdout), "recipes-ls")
    check(json.loads(run("recipes", "show", "quickstart", "--json").stdout), "recipes-show")
    check(json.loads(run("recipes", "validate", "quickstart", "--json").stdout), "recipes-validate")


def test_without_a_name_the_documents_are_listed() -> None:
    """One line each for people, an object for scripts."""
    assert [line.split()[0] for line in run("schema").stdout.splitlines()] == list(DOCUMENTS)
    assert list(json.loads(run("schema", "--json").stdout)) == list(DOCUMENTS)


def test_another_name_is_wrong_usage() -> None:
    result = run("schema", "profil")
    assert result.exit_code == 2
    assert result.stderr == "madtp: error: profil: no such document; did you mean profile?\n"
