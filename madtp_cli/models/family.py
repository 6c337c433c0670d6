"""What a family of models brings along, and how it is found: by its name in the table of families."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor

from madtp_cli.costs.published import Call, Measured, Pass
from madtp_cli.errors import SourceError
from madtp_cli.families import FAMILIES
from madtp_cli.models.base import PrunedModel

if TYPE_CHECKING:
    from madtp_cli.models.configs import ShapeReader
    from madtp_cli.models.layouts import Found, KeyTable
    from madtp_cli.models.processor import Processor

State = Mapping[str, Tensor]
Sections = dict[str, Any]
"""A configuration of transformers as plain data: `vision_config`, `text_config`, and what is beside them."""


def _nothing_open(sections: Sections) -> None:
    """Leave sections as they are."""


def _as_they_are(task: str, state: State, known: Mapping[str, Any]) -> tuple[State, list[str], list[str]]:
    return state, [], []


def _complete(state: dict[str, Tensor], found: Found) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    return state, ()


def _no_passes(model: Any, found: Measured) -> dict[str, Pass]:
    return {}


@dataclass(frozen=True)
class Configuration:
    """How a family is configured.

    kind: transformers' class. settings: where each key of model.config has its place, (section, key). activations:
    those that its towers compute. read: from the shapes of tensors to sections. published: the sections of the
    published model for a task. complete: fills in what sections leave open. small: from plain numbers to a
    configuration of any size; `words` are the ids of the vocabulary.
    """

    kind: type[Any]
    settings: Mapping[str, tuple[tuple[str, str], ...]]
    activations: tuple[str, ...]
    read: Callable[[ShapeReader, Found, str], Sections]
    published: Callable[[str], Sections]
    small: Callable[[Mapping[str, Any], int, Mapping[str, int]], Any]
    complete: Callable[[Sections], None] = _nothing_open


@dataclass(frozen=True)
class Starting:
    """How one task starts from the tensors of another.

    parts: by task, what goes along, as the beginnings of keys. heads: by task, tensors that go along where there are
    any, else start anew. starts: by what the tensors are for, the tasks that may start from them. adapt: what else has
    to be made of the tensors for a task, given what is known of its configuration: them, the keys made up, and notes.
    """

    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    heads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    starts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    adapt: Callable[[str, State, Mapping[str, Any]], tuple[State, list[str], list[str]]] = _as_they_are


@dataclass(frozen=True)
class Processing:
    """How a family's images and texts are prepared.

    tokenizer: hub id of the published one. tokens: special ones that a tokenizer is given if it lacks them. openings:
    by task, the token that takes the place of the tokenizer's own first one. images: transformers' class; squared: its
    settings for square images of a size. special_ids: each special token that a task uses, as name, key of
    model.config, id in the tokenizer and id in the text configuration, if that says; `last` is the vocabulary's last
    id. settings: the ids of a tokenizer as keys of model.config. whole_captions: whether captions are cut where the
    model's text ends, not at the published number of tokens.
    """

    tokenizer: str
    images: Callable[[], type[Any]]
    squared: Callable[[int], dict[str, Any]]
    special_ids: Callable[[Processor, Any, int], Iterator[tuple[str, str, int | None, int | None]]]
    settings: Callable[[Processor], dict[str, int]]
    tokens: tuple[str, ...] = ()
    openings: Mapping[str, str] = field(default_factory=dict)
    whole_captions: bool = False


@dataclass(frozen=True)
class Family:
    """All that is particular to one family of models.

    title: its name in messages. models: by task. architectures: from transformers' classes to tasks. recognise: what
    a state dict is, if it is one of the family. layouts: by name, how files call its tensors. unused: tensors that
    files carry and no model has. complete: adds what files of a layout leave out, with notes. calls: by task, the call
    behind the published cost; passes: what was measured, split into the passes of that call. cards: by task, what the
    hub calls it, and its pipeline if there is one. exports: by task, how it is written as graphs; imported when asked.
    """

    name: str
    title: str
    models: Mapping[str, type[PrunedModel]]
    architectures: Mapping[str, str]
    configuration: Configuration
    processing: Processing
    recognise: Callable[[State, str], Found | None]
    layouts: Mapping[str, KeyTable]
    starting: Starting = Starting()
    unused: frozenset[str] = frozenset()
    complete: Callable[[dict[str, Tensor], Found], tuple[dict[str, Tensor], tuple[str, ...]]] = _complete
    calls: Mapping[str, Call] = field(default_factory=dict)
    passes: Callable[[Any, Measured], dict[str, Pass]] = _no_passes
    cards: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    exports: Callable[[], Mapping[str, Any]] = dict


def family_of(name: str) -> Family:
    """Return a family by its name in the table; raises SourceError for one that is not there."""
    if name not in FAMILIES:
        raise SourceError(f"{name}: is no family of models; there are {', '.join(FAMILIES)}")
    found: Family = import_module(f"{FAMILIES[name].package}.family").FAMILY
    return found


def families() -> Iterator[Family]:
    """Load every family in turn."""
    return map(family_of, FAMILIES)


def model_class(family: str, task: str) -> type[PrunedModel]:
    """Return the class of a family's models for a task that it has."""
    return family_of(family).models[task]
