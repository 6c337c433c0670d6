"""From rows of a user's table to samples: which column plays which role, and which rows are about one image."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from madtp_cli.data.annotations import Entry
from madtp_cli.data.custom_source import stored_images
from madtp_cli.data.holdout import Part
from madtp_cli.data.images import Embedded
from madtp_cli.data.packing import CaptionSample, PairSample, QuestionSample, Sample
from madtp_cli.data.words import (
    MAX_CAPTION_WORDS,
    MAX_SENTENCE_WORDS,
    answer_weights,
    clean_caption,
    clean_question,
)
from madtp_cli.errors import SourceError

# What each task needs, and what it can use.
ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "nlvr2": (("left", "right", "text", "label"), ("id", "group")),
    "vqa": (("image", "question"), ("answers", "id", "group")),
    "caption": (("image", "captions"), ("id",)),
    "retrieval": (("image", "captions"), ("id",)),
}
_IMAGES = ("image", "left", "right")
_NAMED = 5  # ids that a message names
Row = Mapping[str, Any]
Numbered = tuple[int, Row]
"""A row and its number in the source."""
Found = tuple[Sample, dict[str, Any]]
"""A sample, and the sources of its images by name."""


@dataclass(frozen=True)
class Reading:
    """How rows become samples."""

    task: str
    where: str
    columns: Mapping[str, str]
    """Column of each role."""
    base: Path
    """Where paths of images start."""
    training: bool = False
    part: Part | None = None

    @property
    def every_caption(self) -> bool:
        """Whether each caption is a sample: retrieval ranks every one, and training learns every one."""
        return self.task == "retrieval" or self.training

    @property
    def grouped(self) -> bool:
        """Whether rows about one image are one entry: where images are scored against all their captions."""
        return "captions" in self.columns and not self.training

    @property
    def counts_rows(self) -> bool:
        """Whether there are as many samples as rows."""
        return "captions" not in self.columns and self.part is None

    def stream(self, rows: Iterable[Row]) -> Iterator[Found]:
        """Yield the samples of rows in order, for evaluation.

        Raises SourceError for an id that two samples have, and for an image that comes back after others.
        """
        numbered = self.kept(enumerate(rows))
        if not self.grouped:
            groups: Iterable[tuple[str, Iterable[Numbered]]] = (("", [each]) for each in numbered)
        else:
            groups = groupby(numbered, lambda each: self._name(*each))
        names: set[str] = set()
        ids: set[str] = set()
        for name, group in groups:
            if self.grouped and name in names:
                text = f"image {name} comes back after others; in a stream, rows of one image must follow each other"
                raise SourceError(f"{self.where}: {text}")
            names.add(name)
            for sample, images in self.samples(list(group)):
                if sample.id in ids:
                    raise self._repeated([sample.id])
                ids.add(sample.id)
                yield sample, images

    def kept(self, rows: Iterable[Numbered]) -> Iterator[Numbered]:
        """Yield the rows of this part of the data."""
        return (each for each in rows if self.part is None or self.part.has(self._unit(each[1])))

    def groups(self, rows: Any) -> list[tuple[int, ...]]:
        """Return the numbers of a table's rows that are read together, one entry for each image that is scored.

        Raises SourceError for ids that several entries have.
        """
        chosen = self._chosen(rows)
        found: list[tuple[int, ...]]
        found = self._by_image(rows, chosen) if self.grouped else [(number,) for number in chosen]
        # In training, where several rows may carry the id of their image, nothing is looked up by it.
        if "id" in self.columns and not self.training:
            ids = list(rows[self.columns["id"]])
            counts = Counter(str(ids[group[0]]) for group in found)
            if repeated := [name for name, count in counts.items() if count > 1]:
                raise self._repeated(repeated)
        return found

    def places(self, rows: Any, groups: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
        """Return group and number of each sample; a group with several captions may have several."""
        if "captions" not in self.columns or not self.every_caption:
            return [(group, 0) for group in range(len(groups))]
        counts = [1 if isinstance(given, str) else len(given or ()) for given in rows[self.columns["captions"]]]
        return [
            (place, number) for place, group in enumerate(groups) for number in range(sum(counts[row] for row in group))
        ]

    def missing(self, rows: Any, groups: Sequence[tuple[int, ...]]) -> dict[int, list[str]]:
        """Return groups whose images are files that are not there, with their paths."""
        found: dict[int, list[str]] = {}
        known: dict[str, bool] = {}
        for role in _IMAGES:
            if role not in self.columns:
                continue
            stored = stored_images(rows, self.columns[role])
            for place, group in enumerate(groups):
                path, embedded = stored[group[0]]
                if path is None or embedded:
                    continue
                if path not in known:
                    known[path] = (self.base / path).is_file()
                if not known[path]:
                    found.setdefault(place, []).append(path)
        return found

    def samples(self, rows: Sequence[Numbered]) -> list[Found]:
        """Return the samples of rows about one image, or of one row, with the sources of their images by name."""
        number, first = rows[0]
        values = {role: first[column] for role, column in self.columns.items()}
        where = f"{self.where}: row {number}"
        if len(rows) > 1:
            values["captions"] = [text for each in rows for text in self._captions(each)]
        images = [self._source(values[role], number, role) for role in _IMAGES if role in values]
        names = tuple(name for name, _ in images)
        entry = Entry(values, where)
        samples = _ROW[self.task](entry, str(values.get("id", number)), names, self.every_caption)
        if self.training and self.task == "vqa" and not samples[0].answers:
            raise entry.error("has no answers to learn; leave it out")
        return [(sample, dict(images)) for sample in samples]

    def answers(self, row: Row, number: int) -> tuple[str, ...]:
        """Return the answers of a row, none where there is no column of them."""
        column = self.columns.get("answers")
        return () if column is None else _answers(Entry({"answers": row[column]}, f"{self.where}: row {number}"))

    def _chosen(self, rows: Any) -> Sequence[int]:
        """Return the numbers of the rows in this part of the data."""
        if self.part is None:
            return range(len(rows))
        column = self.columns[self._first()]
        stored = stored_images(rows, column)
        # Bytes are read only where images have no paths.
        alone = [number for number, (path, _) in enumerate(stored) if path is None]
        units = {number: path for number, (path, _) in enumerate(stored) if path is not None}
        units |= {number: self._unit(rows[number]) for number in alone}
        chosen = [number for number in range(len(rows)) if self.part.has(units[number])]
        if not chosen:
            text = "change the share, or name a validation split of its own"
            raise SourceError(f"{self.where}: has no samples in {self.part.describe()}; {text}")
        return chosen

    def _by_image(self, rows: Any, chosen: Iterable[int]) -> list[tuple[int, ...]]:
        column = self.columns[self._first()]
        stored = stored_images(rows, column)
        if any(embedded for _, embedded in stored):
            names = [self._name(number, row) for number, row in enumerate(rows.select_columns([column]))]
        else:
            names = [f"row {number}" if path is None else path for number, (path, _) in enumerate(stored)]
        groups: dict[str, list[int]] = {}
        for number in chosen:
            groups.setdefault(names[number], []).append(number)
        return [tuple(group) for group in groups.values()]

    def _captions(self, numbered: Numbered) -> tuple[str, ...]:
        number, row = numbered
        return Entry({"captions": row[self.columns["captions"]]}, f"{self.where}: row {number}").texts("captions")

    def _first(self) -> str:
        return next(role for role in _IMAGES if role in self.columns)

    def _name(self, number: int, row: Row) -> str:
        return image_name(row[self.columns[self._first()]]) or f"row {number}"

    def _unit(self, row: Row) -> str:
        """Return what tells the (left) image of a row: its path, also where its bytes are there, or else these."""
        value = row[self.columns[self._first()]]
        path = value.get("path") if isinstance(value, dict) else value
        return path if isinstance(path, str) else image_name(value) or ""

    def _source(self, value: Any, number: int, role: str) -> tuple[str, Any]:
        """Return the name of an image and where its pixels come from."""
        path = path_of(value)
        if path is not None:
            return path, self.base / path
        where = f"row {number}, {self.columns[role]}"
        return image_name(value) or where, Embedded(value.get("bytes") if isinstance(value, dict) else value, where)

    def _repeated(self, ids: Sequence[str]) -> SourceError:
        named = ", ".join(ids[:_NAMED]) + (f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else "")
        return SourceError(
            f"{self.where}: several samples have the id {named}; ids must be unique, leave data.columns.id out for "
            "numbers of rows"
        )


def path_of(value: Any) -> str | None:
    """Return the path of an image that is one: a text, or an undecoded image without bytes of its own."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else None
    return value if isinstance(value, str) else None


def image_name(value: Any) -> str | None:
    """Name an image by its path, or by its bytes: what rows share has one name, and nothing else has it.

    Returns None where there is no image.
    """
    path = path_of(value)
    if path is not None:
        return path
    stored = value.get("path") if isinstance(value, dict) else None
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None:
        return None
    if not isinstance(data, (bytes, bytearray)):
        data = repr(data).encode()
    return f"{stored or 'image'}@{hashlib.blake2b(data, digest_size=8).hexdigest()}"


def columns_of(task: str, columns: Mapping[str, str], rows: Any, where: str) -> dict[str, str]:
    """Return the column of each role that the data can fill; raises SourceError where a needed one is missing."""
    needed, optional = ROLES[task]
    there = list(rows.column_names or ())
    if unknown := sorted(set(columns) - {*needed, *optional}):
        raise SourceError(
            f"{where}: data.columns.{unknown[0]}: the task {task} has no such role; try one of "
            f"{', '.join((*needed, *optional))}"
        )
    chosen = {role: columns.get(role, role) for role in (*needed, *optional)}
    for role, column in chosen.items():
        if column not in there and (role in needed or role in columns):
            raise SourceError(
                f"{where}: no column {column!r} for {role}, got {', '.join(there) or 'none'}; "
                f"name it in data.columns.{role}"
            )
    return {role: column for role, column in chosen.items() if column in there}


def _pair(entry: Entry, name: str, images: tuple[str, ...], _: bool) -> list[Sample]:
    text = clean_caption(entry.text("text"), MAX_SENTENCE_WORDS)
    group = str(entry.values.get("group", ""))
    return [PairSample(id=name, images=images, text=text, group=group, label=entry.truth("label"))]


def _question(entry: Entry, name: str, images: tuple[str, ...], _: bool) -> list[Sample]:
    given = _answers(entry)
    return [
        QuestionSample(
            id=name,
            images=images,
            text=clean_question(entry.text("question")),
            group=str(entry.values.get("group", "")),
            answers=answer_weights(given),
            references=given,
        )
    ]


def _answers(entry: Entry) -> tuple[str, ...]:
    """Return answers that are a text, a list of texts, or the official list of {answer: text}."""
    value = entry.values.get("answers")
    if value is None:
        return ()
    if isinstance(value, dict):
        value = value.get("answer")
    if isinstance(value, list):
        value = [item.get("answer") if isinstance(item, dict) else item for item in value]
    return Entry({"answers": value}, entry.where).texts("answers")


def _captioned(entry: Entry, name: str, images: tuple[str, ...], every: bool) -> list[Sample]:
    captions = entry.texts("captions")
    return [
        CaptionSample(
            id=f"{name}#{number}" if every else name,
            images=images,
            text=clean_caption(caption, MAX_CAPTION_WORDS),
            references=captions,
        )
        for number, caption in enumerate(captions if every else captions[:1])
    ]


_ROW: dict[str, Any] = {"nlvr2": _pair, "vqa": _question, "caption": _captioned, "retrieval": _captioned}
