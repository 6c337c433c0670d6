"""Annotation files: both JSON forms are read, and every fault names file, entry, what was got and what to try."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from madtp_cli.data.annotations import Entry, read_entries
from madtp_cli.errors import SourceError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_list_lines_and_a_list_inside_an_object_hold_the_same(tmp_path: Path) -> None:
    rows = [{"a": 1}, {"a": 2}]
    forms = {
        json.dumps(rows): None,
        json.dumps(rows, indent=2): None,
        "\n".join(map(json.dumps, rows)) + "\n\n": None,
        json.dumps({"info": {}, "rows": rows}): "rows",
        json.dumps({"info": {}, "rows": rows}, indent=1): "rows",
    }
    for text, inside in forms.items():
        entries = read_entries(write(tmp_path, text), inside)
        assert [entry.values for entry in entries] == rows


def test_lines_are_counted_from_one_and_entries_from_zero(tmp_path: Path) -> None:
    path = write(tmp_path, '{"a": 1}\n\n{"a": 2}')
    assert [entry.where for entry in read_entries(path)] == [f"{path}:1", f"{path}:3"]
    path = write(tmp_path, '[{"a": 1}]')
    assert read_entries(path)[0].where == f"{path}: entry 0"


@pytest.mark.parametrize(
    ("text", "inside", "message"),
    [
        ("", None, "is not JSON"),
        ("[]", None, "holds no entries"),
        ('{"a": 1}\n{"a": ', None, ":2: is not JSON"),
        ("3", None, "must be a list or one object a line, got 3"),
        ('{"info": 1}', "rows", "no key 'rows', got the keys info"),
        ('{"rows": 1}', "rows", "must be a list, or an object with 'rows', got 1"),
        ("[1]", None, "entry 0: must be an object with keys, got 1"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str, inside: str | None, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        read_entries(write(tmp_path, text), inside)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "a.json"))
    assert caught.value.exit_code == 4


def test_a_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"dev\.json: no such file; docs/data\.md says where to get it"):
        read_entries(tmp_path / "dev.json")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="cannot be read as annotations"):
        read_entries(path)


def test_values_are_checked_and_named() -> None:
    entry = Entry({"s": "x", "l": ["a", "b"], "n": "12", "d": [{"k": 1}], "t": "False", "bad": None}, "f:3")
    assert entry.text("s") == "x"
    assert entry.texts("s") == ("x",)
    assert entry.texts("l") == ("a", "b")
    assert entry.number("n") == 12
    assert entry.truth("t") == 0
    assert entry.entries("d")[0].where == "f:3: d[0]"
    for read, message in [
        (lambda: entry.text("gone"), "f:3: no key 'gone', got the keys s, l, n, d, t, bad"),
        (lambda: entry.text("l"), "f:3: l must be a text, got a list of 2"),
        (lambda: entry.texts("bad"), "f:3: bad must be a text or a list of texts, got None"),
        (lambda: entry.texts("d"), "got a list of 1"),
        (lambda: entry.number("s"), "f:3: s must be a whole number, got 'x'"),
        (lambda: entry.truth("s"), "f:3: s must be true or false, got 'x'"),
        (lambda: entry.entries("l"), "f:3: l must be a list of entries"),
    ]:
        with pytest.raises(SourceError) as caught:
            read()
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "truth"), [("True", 1), ("true", 1), (True, 1), (1, 1), ("False", 0), (False, 0), (0, 0)]
)
def test_labels_of_every_format_are_read(value: object, truth: int) -> None:
    assert Entry({"label": value}, "f").truth("label") == truth
