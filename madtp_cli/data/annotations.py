"""Reading annotation files: JSON lists and JSON lines, with errors that name the file and the entry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madtp_cli.errors import SourceError

DOCS = "docs/data.md says where to get it"
_TRUTH = {"true": 1, "1": 1, "yes": 1, "false": 0, "0": 0, "no": 0}


@dataclass(frozen=True, slots=True)
class Entry:
    """Hold one entry of a file and where it stands."""

    values: Mapping[str, Any]
    where: str

    def get(self, key: str) -> Any:
        """Return a value; raises SourceError if the entry has no such key."""
        try:
            return self.values[key]
        except KeyError:
            raise self.error(f"no key {key!r}, got {_names(self.values)}; {DOCS}") from None

    def text(self, key: str) -> str:
        """Return a text; raises SourceError if the value is none."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self.error(f"{key} must be a text, got {_shown(value)}; {DOCS}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return texts, also where the file has a single one."""
        value = self.get(key)
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
            raise self.error(f"{key} must be a text or a list of texts, got {_shown(value)}; {DOCS}")
        return tuple(found)

    def entries(self, key: str) -> list[Entry]:
        """Return the entries of a list inside this entry."""
        value = self.get(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.error(f"{key} must be a list of entries, got {_shown(value)}; {DOCS}")
        return [Entry(item, f"{self.where}: {key}[{index}]") for index, item in enumerate(value)]

    def number(self, key: str) -> int:
        """Return a whole number, also where it is written as a text."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).isdigit():
            raise self.error(f"{key} must be a whole number, got {_shown(value)}; {DOCS}")
        return int(value)

    def truth(self, key: str) -> int:
        """Return 1 for true and 0 for false, however they are written."""
        value = self.get(key)
        found = _TRUTH.get(str(value).lower())
        if found is None:
            raise self.error(f"{key} must be true or false, got {_shown(value)}")
        return found

    def error(self, message: str) -> SourceError:
        """Make the error that a message about this entry is."""
        return SourceError(f"{self.where}: {message}")


def read_entries(path: Path, inside: str | None = None) -> list[Entry]:
    """Read a JSON list, JSON lines, or the list that a JSON object holds under the key `inside`.

    Raises SourceError for a file that is missing, is not JSON, holds nothing, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file; {DOCS}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as annotations: {error}") from error
    lines = inside is None and text.lstrip().startswith("{")
    entries = _parse_lines(path, text) if lines else _parse_whole(path, text, inside)
    if not entries:
        raise SourceError(f"{path}: holds no entries; {DOCS}")
    return entries


def _parse_lines(path: Path, text: str) -> list[Entry]:
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            value = _parse(f"{path}:{number}", line)
            entries.append(_entry(value, f"{path}:{number}"))
    return entries


def _parse_whole(path: Path, text: str, inside: str | None) -> list[Entry]:
    value = _parse(str(path), text)
    if inside is not None and isinstance(value, dict):
        value = Entry(value, str(path)).get(inside)
    if not isinstance(value, list):
        form = f"a list, or an object with {inside!r}" if inside else "a list or one object a line"
        raise SourceError(f"{path}: must be {form}, got {_shown(value)}; {DOCS}")
    return [_entry(item, f"{path}: entry {index}") for index, item in enumerate(value)]


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SourceError(f"{where}: is not JSON ({error}); fetch the file again, {DOCS}") from error


def _entry(value: Any, where: str) -> Entry:
    if not isinstance(value, dict):
        raise SourceError(f"{where}: must be an object with keys, got {_shown(value)}; {DOCS}")
    return Entry(value, where)


def _names(values: Mapping[str, Any]) -> str:
    return "the keys " + ", ".join(map(str, values)) if values else "no keys"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with {_names(value)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list of {len(value)}"
    return repr(value)[:60]
