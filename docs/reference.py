"""Write docs/reference.md from the command line's own help and the recipe's schema: `python -m docs.reference`.

`--check` writes nothing and ends with 1 if the page is not what it should be.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from typer.main import get_command

from madtp_cli.cli import EXIT_CODES, app
from madtp_cli.recipe import recipe_schema

PAGE = Path(__file__).with_name("reference.md")
HEAD = """\
# Reference

Made by `python -m docs.reference` from what the commands and the recipe say of themselves: change it there.

- [Commands](#commands), as `--help` shows them
- [Exit codes](#exit-codes)
- [Environment](#environment)
- [Recipes](#recipes), as `madtp recipes schema` has them for editors
"""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1: nothing is fetched; what is in a cache is used",
    "HF_HOME": "where models and data of the Hugging Face hub are kept",
    "HF_TOKEN": "who you are there, for private repositories and uploads",
    "MADTP_CACHE": "where files from https addresses are kept; `~/.cache/madtp` by default",
    "NO_COLOR": "set: no colours",
    "OMP_NUM_THREADS": "CPU threads of torch",
}


def page() -> str:
    """Return the page."""
    parts = [HEAD, "## Commands\n", *_commands(), "## Exit codes\n", *_exit_codes(), "## Environment\n"]
    parts += [_table(("variable", "meaning"), [(f"`{name}`", text) for name, text in ENVIRONMENT.items()])]
    return "\n".join([*parts, "## Recipes\n", *_recipe()])


def _commands() -> Iterator[str]:
    root: Any = get_command(app)
    yield _command("madtp", root, "###")
    for name, command in root.commands.items():
        if inner := getattr(command, "commands", None):
            yield f"### madtp {name}\n\n{command.help}\n"
            for own, each in inner.items():
                yield _command(f"madtp {name} {own}", each, "####")
        else:
            yield _command(f"madtp {name}", command, "###")


def _command(name: str, command: Any, level: str) -> str:
    context = command.context_class(command, info_name=name)
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in parameter.opts:
            # Versions of the command line's library bracket a choice differently.
            spelled = record[0].replace("[", "<").replace("]", ">")
            rows.append((f"`{spelled}`", _text(record[1])))
    about = "\n".join(line.strip() for line in (command.help or "").splitlines())
    return f"{level} {name}\n\n{about}\n\n{_table(('option', 'meaning'), rows)}"


def _exit_codes() -> Iterator[str]:
    stated = EXIT_CODES.partition(": ")[2].rstrip(".")
    rows = [code.partition(" ") for code in stated.split(", ")]
    yield _table(("code", "meaning"), [(code, meaning) for code, _, meaning in rows])


def _recipe() -> Iterator[str]:
    schema = recipe_schema()
    yield "A recipe is YAML. A key that is not here is an error. Bold keys are required.\n"
    yield _section(schema, schema, "")
    for name, prop in schema["properties"].items():
        if (section := _refers(prop, schema)) is not None:
            yield from _sections(section, schema, name)


def _sections(section: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    yield f"### {path}\n\n{section.get('description', '')}\n\n{_section(section, schema, f'{path}.')}"
    for name, prop in section["properties"].items():
        if (inner := _refers(prop, schema)) is not None:
            yield from _sections(inner, schema, f"{path}.{name}")


def _section(section: Mapping[str, Any], schema: Mapping[str, Any], prefix: str) -> str:
    required = section.get("required", ())
    rows = []
    for name, prop in section["properties"].items():
        mark = "**" if name in required else ""
        inner = _refers(prop, schema)
        link = f"[section](#{f'{prefix}{name}'.replace('.', '')})" if inner is not None else ""
        kinds = sorted((kind for kind in (*_kinds(prop), link) if kind), key="`null`".__eq__)
        default = "" if inner is not None or "default" not in prop else f"`{json.dumps(prop['default'])}`"
        rows.append((f"{mark}`{name}`{mark}", ", ".join(kinds), default, _text(prop.get("description", ""))))
    return _table(("key", "value", "default", "meaning"), rows)


def _refers(prop: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the section that a key holds, or may hold."""
    for option in (prop, *prop.get("anyOf", ())):
        if "$ref" in option:
            found: Mapping[str, Any] = schema["$defs"][option["$ref"].rpartition("/")[2]]
            return found
    return None


def _kinds(prop: Mapping[str, Any]) -> list[str]:
    return [_kind(option) for option in prop.get("anyOf", [prop])]


def _kind(prop: Mapping[str, Any]) -> str:
    """Word what a key takes: type and bounds."""
    if "enum" in prop:
        return ", ".join(f"`{value}`" for value in prop["enum"])
    if "const" in prop:
        return f"`{prop['const']}`"
    if "pattern" in prop:
        return "a range such as `0-2`"
    if prop.get("type") == "array":
        return f"list of {prop['items']['type']}s" if "items" in prop else f"list of {len(prop['prefixItems'])} numbers"
    names = {"string": "text", "object": "mapping", "boolean": "`true`, `false`", "null": "`null`"}
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {prop[key]:g}" for key, sign in bounds.items() if key in prop]
    return " ".join(part for part in (names.get(prop.get("type", ""), prop.get("type", "")), " ".join(limits)) if part)


def _text(words: str) -> str:
    """Write prose in one line, its angle brackets as such."""
    return " ".join(words.split()).replace("<", "&lt;")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> int:
    """Write the page, or with `--check` compare it; return the exit code."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE}: is not what the code says; run python -m docs.reference", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
