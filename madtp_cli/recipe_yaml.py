"""YAML for recipes: YAML 1.2 scalars, the line of every value, `--set` overrides, no silent surprises.

PyYAML speaks YAML 1.1, where `3e-6` is text, `NO` and `on` are booleans and the last of two equal keys
silently wins. Here numbers and booleans follow YAML 1.2 and equal keys are a fault naming both lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from madtp_cli.errors import UsageError

KeyPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
# The core schema of YAML 1.2 (section 10.3.2): tag, pattern, first characters. Integers before floats.
_CORE_SCALARS: tuple[tuple[str, str, str], ...] = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
)


@dataclass(frozen=True)
class Fault:
    """Say what is wrong at a path; `line` is set where the path alone does not tell the line."""

    path: KeyPath
    message: str
    line: int | None = None


@dataclass(frozen=True)
class Override:
    """Replace one value of a recipe; `label` is what the user typed, and is shown with its faults."""

    label: str
    path: KeyPath
    value: Any


@dataclass(frozen=True)
class Origin:
    """Remember where every value of a recipe came from.

    Never compared: two recipes with equal values are equal wherever they were read.
    """

    source: str = field(default="recipe", compare=False)
    lines: Mapping[KeyPath, int] = field(default_factory=dict, compare=False)
    labels: Mapping[KeyPath, str] = field(default_factory=dict, compare=False)

    def where(self, path: KeyPath, line: int | None = None) -> str:
        """Return `file:line` of a path, of its nearest section if it is absent, or the override that set it."""
        place = self._place(path) if line is None else line
        return place if isinstance(place, str) else f"{self.source}:{place}" if place else self.source

    def show(self, faults: Sequence[Fault]) -> list[str]:
        """Return one line per fault: those of the file in its order, then those of the overrides."""

        def order(fault: Fault) -> tuple[bool, int]:
            place = fault.line or self._place(fault.path)
            return (False, place) if isinstance(place, int) else (True, 0)

        return [f"{self.where(fault.path, fault.line)}: {fault.message}" for fault in sorted(faults, key=order)]

    def _place(self, path: KeyPath) -> str | int:
        for end in range(len(path), -1, -1):
            if path[:end] in self.labels:
                return self.labels[path[:end]]
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return 0


@dataclass
class Document:
    """A parsed recipe: plain data, the line of every path, and the faults met on the way."""

    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


class _Refused(Exception):
    """Stop composing at something recipes do not use."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.message, self.line = message, line


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute, filled below

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases: a small file could otherwise stand for a huge one, and no line would be its own."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise _Refused(f"alias *{event.anchor} is not supported; write the value out", event.start_mark.line + 1)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    # Quotes what YAML 1.1 or 1.2 would read as something else than text.
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first in _CORE_SCALARS:
    _starts = ["", *_first] if _name == "null" else list(_first)
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), _starts)

_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence(_TAG + "seq", items, flow_style=True))


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Write plain data so that `parse_yaml` reads the same values back."""
    return str(yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def parse_yaml(text: str) -> Document:
    """Read one YAML mapping; what is wrong with it is in `faults`, and the rest is still read."""
    document = Document()
    node = _compose(text, document)
    if node is None:
        if not document.faults:
            document.faults.append(Fault((), "the recipe is empty; start from one of: madtp recipes ls", 1))
        return document
    document.lines[()] = node.start_mark.line + 1
    data = _construct(node, (), document)
    if isinstance(data, dict):
        document.data = data
    else:
        document.faults.append(Fault((), f"a recipe is a mapping of keys, got {shown(data)}"))
    return document


def parse_override(text: str) -> Override:
    """Read `a.b=value`, the value as YAML; raises UsageError when it has no such form."""
    key, equals, value = text.partition("=")
    label = f"--set {text}"
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key.strip()):
        raise UsageError(f"{label}: expected key=value, such as --set training.seed=7")
    document = Document()
    node = _compose(value, document)
    data = None if node is None else _construct(node, (), document)
    if document.faults:
        raise UsageError(f"{label}: {document.faults[0].message}")
    return Override(label, tuple(key.strip().split(".")), data)


def apply_overrides(
    document: Document, overrides: Sequence[Override], alternatives: Sequence[tuple[str, str, str]]
) -> dict[KeyPath, str]:
    """Write overrides into a document and return the label of every path they set.

    `alternatives` lists (section, key, other key) of which a recipe has one: overriding one drops the
    other one of the file.
    """
    labels: dict[KeyPath, str] = {}
    for override in overrides:
        *parents, last = override.path
        section: Any = document.data
        for depth, key in enumerate(parents):
            inner = section.get(key)
            if inner is None:
                inner = section[key] = {}
                labels[override.path[: depth + 1]] = override.label
            if not isinstance(inner, dict):
                there = ".".join(map(str, override.path[: depth + 1]))
                document.faults.append(Fault(override.path, f"{there} is {shown(inner)}, not a section of keys"))
                labels[override.path] = override.label
                break
            section = inner
        else:
            section[last] = override.value
            for known in [path for path in document.lines if path[: len(override.path)] == override.path]:
                del document.lines[known]
            labels[override.path] = override.label
            if override.value is not None:
                _drop_alternative(override.path, section, labels, alternatives)
    return labels


def _drop_alternative(
    path: KeyPath, section: dict[str, Any], labels: Mapping[KeyPath, str], alternatives: Sequence[tuple[str, str, str]]
) -> None:
    for group, *keys in alternatives:
        if len(path) == 2 and path[0] == group and path[1] in keys:
            for other in keys:
                if other != path[1] and (group, other) not in labels:
                    section.pop(other, None)


def shown(value: Any) -> str:
    """Show a value of a recipe in a message, with its kind."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = {int: "a whole number", float: "a number", str: "text", dict: "a section"}
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kinds.get(type(value), 'a list')})"


def _compose(text: str, document: Document) -> yaml.Node | None:
    loader = None
    try:
        loader = _Loader(text)
        node: yaml.Node | None = loader.get_single_node()
        return node
    except _Refused as refused:
        document.faults.append(Fault((), refused.message, refused.line))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        if isinstance(error, yaml.composer.ComposerError):
            problem = "expected one document, found a second one after ---"
        elif "'\\t'" in problem:
            problem += "; indent with spaces, not tabs"
        line = mark.line + 1 if mark else 1
        document.faults.append(Fault((), f"not valid YAML: {problem}", line))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.faults.append(Fault((), f"not valid YAML: character #x{error.character:04x} is not allowed", line))
    except RecursionError:
        document.faults.append(Fault((), "not valid YAML: nested too deeply", 1))
    finally:
        if loader is not None:
            loader.dispose()
    return None


def _construct(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _construct_mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            document.lines[(*path, index)] = item.start_mark.line + 1
            items.append(_construct(item, (*path, index), document))
        return items
    try:
        return _scalar(node.tag.removeprefix(_TAG), node.value)
    except ValueError:
        line = node.start_mark.line + 1
        tag = node.tag.replace(_TAG, "!!")
        document.faults.append(Fault(path, f"cannot read {shown(node.value)} as {tag}; remove the tag", line))
        return None


def _construct_mapping(node: yaml.MappingNode, path: KeyPath, document: Document) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
            got = key if isinstance(key_node, yaml.ScalarNode) else "a list or a section"
            document.faults.append(Fault(path, f"a key must be text, got {got}; put it in quotes", line))
            continue
        here = (*path, key)
        if key in mapping:
            first = document.lines[here]
            message = f"{dotted(here)} is given twice, first on line {first}; keep one"
            document.faults.append(Fault(here, message, line))
            continue
        document.lines[here] = line
        mapping[key] = _construct(value_node, here, document)
    return mapping


def _scalar(kind: str, text: str) -> Any:
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ValueError(text)
    if kind == "int":
        return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
    if kind == "float":
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    raise ValueError(text)


def dotted(path: KeyPath) -> str:
    """Write a path as a user does: `training.betas[1]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
