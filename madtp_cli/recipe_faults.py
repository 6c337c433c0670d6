"""Turn pydantic's validation errors into messages that say what, where, got, and what to try."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from madtp_cli.recipe_yaml import Fault, KeyPath, dotted, shown

_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "finite_number": "a finite number",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
    "dict_type": "a section of keys",
    "tuple_type": "a list of 2 numbers",
    "too_long": "a list of 2 numbers",
    "too_short": "a list of 2 numbers",
}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def faults_of(error: ValidationError, root: type[BaseModel]) -> list[Fault]:
    """Return one fault per validation error, with paths from the root of the recipe."""
    faults: list[Fault] = []
    items = list(_of_meant_members(error.errors(include_url=False), root))
    misspelt = {_meant(tuple(item["loc"]), root) for item in items if item["type"] == "extra_forbidden"}
    for item in items:
        path: KeyPath = tuple(item["loc"])
        context = item.get("ctx", {})
        if item["type"] == "recipe_faults":
            faults += [Fault((*path, *inner), message) for inner, message in context["faults"]]
        elif item["type"] == "missing" and path and isinstance(path[-1], int):
            # A pair with one item: pydantic calls the second one missing.
            faults.append(Fault(path[:-1], f"{dotted(path[:-1])} must be a list of 2 numbers"))
        elif item["type"] == "missing":
            if path in misspelt:
                continue  # the unknown key next to it says so already
            faults.append(Fault(path, _missing(path, root)))
        elif item["type"] == "extra_forbidden":
            faults.append(Fault(path, unknown_key(path, root)))
        else:
            faults.append(Fault(path, _message(item["type"], path, item["input"], context, item["msg"])))
    return faults


def _of_meant_members(items: Sequence[Any], root: type[BaseModel]) -> Iterator[dict[str, Any]]:
    """Tell what is wrong with a value of several possible kinds as the kind that it was meant for.

    pydantic reports the faults of every member of a union, with the member's name in the path.
    """
    cuts = [_member_names(tuple(item["loc"]), root) for item in items]
    # A member that only says that the value is of another kind was not meant.
    refused = [bool(at) and at[-1] == len(item["loc"]) - 1 for item, at in zip(items, cuts, strict=True)]
    refused = [no and item["type"].endswith("_type") for item, no in zip(items, refused, strict=True)]
    meant = {item["loc"][:cut] for item, at, no in zip(items, cuts, refused, strict=True) for cut in at[: len(at) - no]}
    told: set[KeyPath] = set()
    for item, at, no in zip(items, cuts, refused, strict=True):
        union, kind, context = item["loc"][:-1], item["type"], item.get("ctx", {})
        if no and (union in meant or union in told):
            continue
        if no:
            told.add(union)
            members = [other for other, also in zip(items, refused, strict=True) if also and other["loc"][:-1] == union]
            kinds = ["a list" if each["type"] == "tuple_type" else _KINDS[each["type"]] for each in members]
            kind, context = "recipe_kinds", {"kinds": kinds}
        elif at and kind == "too_short":
            kind = "string_too_short"
        path = tuple(part for place, part in enumerate(item["loc"]) if place not in at)
        yield {**item, "loc": path, "type": kind, "ctx": context}


def _member_names(path: KeyPath, root: type[BaseModel]) -> list[int]:
    """Find the places of a path at which pydantic names the member of a union."""
    section: type[BaseModel] | None = root
    places: list[int] = []
    union = False
    for place, part in enumerate(path):
        if union:
            places.append(place)
            union = False
            continue
        info = section.model_fields.get(str(part)) if section else None
        section = _model_in(info.annotation) if info else None
        union = info is not None and sum(member is not type(None) for member in _members(info.annotation)) > 1
    return places


def near(name: str, names: Sequence[str], limit: int = 1) -> list[str]:
    """Return the names most like `name`; dashes, underscores and case are the same."""
    plain = {_plain(entry): entry for entry in names}
    close = difflib.get_close_matches(_plain(name), list(plain), n=limit, cutoff=0.6)
    return [plain[entry] for entry in close]


def unknown_key(path: KeyPath, root: type[BaseModel]) -> str:
    """Say that a key is unknown, and which one may have been meant, here or in another section."""
    if meant := _meant(path, root):
        return f"{dotted(path)} is not a key; did you mean {meant[-1]}?"
    name = _plain(str(path[-1]))
    elsewhere = [dotted(entry) for entry in _all_keys(root) if _plain(str(entry[-1])) == name]
    if elsewhere:
        return f"{dotted(path)} is not a key; did you mean {' or '.join(elsewhere)}?"
    section = _section(path[:-1], root)
    keys = ", ".join(section.model_fields) if section else "none"
    return f"{dotted(path)} is not a key; the keys here are {keys}"


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _meant(path: KeyPath, root: type[BaseModel]) -> KeyPath:
    """Return the path of the key of the same section that an unknown key is most like, or ()."""
    section = _section(path[:-1], root)
    close = near(str(path[-1]), list(section.model_fields)) if section else []
    return (*path[:-1], close[0]) if close else ()


def _missing(path: KeyPath, root: type[BaseModel]) -> str:
    section = _section(path[:-1], root)
    info = section.model_fields.get(str(path[-1])) if section else None
    about = f" ({info.description})" if info and info.description else ""
    return f"{dotted(path)} is missing{about}"


def _message(kind: str, path: KeyPath, value: Any, context: dict[str, Any], fallback: str) -> str:
    name = dotted(path)
    if kind in _KINDS:
        if value is None and _KINDS[kind] == "a section of keys":
            return f"{name} is empty; give it keys or remove it"
        return f"{name} must be {_KINDS[kind]}, got {shown(value)}{_hint(kind, value)}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = context[key]
        share = f"; it is a share of 1, try {value / 100:g}" if bound == 1 and 5 <= value <= 100 else ""
        return f"{name} must be {words} {bound:g}, got {value:g}{share}"
    if kind == "recipe_kinds":
        return f"{name} must be {' or '.join(context['kinds'])}, got {shown(value)}"
    if kind == "literal_error":
        return f"{name} must be {_choice(context['expected'])}, got {shown(value)}{_closest(value, context)}"
    if kind == "string_too_short":
        return f"{name} must not be empty"
    if kind == "recipe_value":
        return f"{name} {fallback}, got {shown(value)}"
    return f"{name}: {fallback[:1].lower()}{fallback[1:]}, got {shown(value)}"


def _choice(expected: str) -> str:
    return expected.replace("'", "")


def _closest(value: Any, context: dict[str, Any]) -> str:
    options = _choice(context["expected"]).replace(" or ", ", ").split(", ")
    close = near(value, options) if isinstance(value, str) else []
    return f"; did you mean {close[0]}?" if close else ""


def _hint(kind: str, value: Any) -> str:
    """Guess what was meant by a value of the wrong kind."""
    if kind == "string_type" and isinstance(value, (int, float)):
        return "; put it in quotes"
    if kind == "bool_type" and isinstance(value, str) and value.lower() in ("yes", "on", "y", "no", "off", "n"):
        return f"; try {'true' if value.lower() in ('yes', 'on', 'y') else 'false'}"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"; try {int(value)}"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        text = value.strip().replace("_", "").replace(",", "")
        divisor = 100.0 if text.endswith("%") else 1.0
        try:
            number = float(text.rstrip("%")) / divisor
        except ValueError:
            return ""
        return f"; try {number:.10g}"
    return ""


def _section(path: KeyPath, root: type[BaseModel]) -> type[BaseModel] | None:
    section: type[BaseModel] | None = root
    for part in path:
        info = section.model_fields.get(str(part)) if section else None
        section = _model_in(info.annotation) if info else None
    return section


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for option in _members(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _all_keys(section: type[BaseModel], prefix: KeyPath = ()) -> Iterator[KeyPath]:
    for name, info in section.model_fields.items():
        yield (*prefix, name)
        if inner := _model_in(info.annotation):
            yield from _all_keys(inner, (*prefix, name))
