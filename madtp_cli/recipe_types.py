"""What the settings of a recipe are made of: kinds of values, and the strictness that all its sections share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from madtp_cli.families import FAMILIES
from madtp_cli.recipe_yaml import KeyPath

MAX_LAYER = 999

Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]


def _layers(value: Any) -> Any:
    """Read `all`, `none`, a list of layers or a range such as `3-11` (both ends in)."""
    chosen: Sequence[Any] = ()
    if value in ("all", "none"):
        return value
    if isinstance(value, str) and (ends := re.fullmatch(r"(\d{1,4})\s*-\s*(\d{1,4})", value)):
        chosen = range(int(ends[1]), int(ends[2]) + 1)
    elif isinstance(value, (list, tuple)):
        chosen = value
    if not chosen or not all(type(layer) is int and 0 <= layer <= MAX_LAYER for layer in chosen):
        raise PydanticCustomError(
            "recipe_value", "must be all, none, a list such as [4, 7, 10] or a range such as 3-11"
        )
    return tuple(sorted(set(chosen)))


def _version(value: Any) -> Any:
    # Not a plain Literal: true and 1.0 equal 1.
    if type(value) is not int or value != 1:
        raise PydanticCustomError("recipe_value", "must be 1, the one version that this madtp reads")
    return value


def _family(value: Any) -> Any:
    # Not a plain Literal: the table of families is longer than what this file was written with.
    if not isinstance(value, str) or value not in FAMILIES:
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": " or ".join(FAMILIES)})
    return value


FamilyName = Annotated[str, PlainValidator(_family), WithJsonSchema({"enum": list(FAMILIES), "type": "string"})]
Version = Annotated[int, PlainValidator(_version), WithJsonSchema({"const": 1})]
Layers = Annotated[
    Literal["all", "none"] | tuple[int, ...],
    PlainValidator(_layers),
    PlainSerializer(lambda chosen: chosen if isinstance(chosen, str) else list(chosen), when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["all", "none"]},
                {"type": "string", "pattern": "^[0-9]{1,4} *- *[0-9]{1,4}$"},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
            ]
        }
    ),
]


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no guessing of types, never changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def refuse(faults: Sequence[tuple[KeyPath, str]]) -> None:
    """Report what is wrong between settings that are each fine alone."""
    if faults:
        message = "; ".join(text for _, text in faults)
        raise PydanticCustomError("recipe_faults", "{message}", {"message": message, "faults": list(faults)})
