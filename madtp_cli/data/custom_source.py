"""Opening a user's data with `datasets`: a hub id, a folder, or a parquet, JSON, CSV or Arrow file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from madtp_cli.data.slices import ONLY, check_only, rows_of
from madtp_cli.errors import SourceError

FILES = {
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
}

_USING = re.compile(r"was generating data using (?P<file>[^\s,]+)")


def open_source(source: str, split: str, *, config: str | None = None, streaming: bool = False) -> Any:
    """Return the rows of a split, images not decoded; raises SourceError if they cannot be had.

    A file holds one split, `train`: `train[:90%]` of it is the first nine tenths.
    """
    import datasets

    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() not in FILES:
        raise SourceError(f"{source}: unknown kind of file {path.suffix!r}; try one of {', '.join(FILES)}")
    if not path.exists() and (path.is_absolute() or source.startswith(".") or path.suffix.lower() in FILES):
        raise SourceError(f"{source}: no such file or folder; give a path or a Hugging Face data set id in data.source")
    if path.is_file() or (path / "state.json").is_file():
        check_only(source, split, streaming=streaming)
    try:
        with _quiet(datasets):
            rows = _load(datasets, source, path, split, config, streaming)
    except Exception as error:  # datasets and the hub raise many kinds
        raise SourceError(_explain(source, split, error, is_local=path.exists())) from error
    return _undecoded(datasets, rows)


def _load(datasets: Any, source: str, path: Path, split: str, config: str | None, streaming: bool) -> Any:
    if path.is_file():
        kind = FILES[path.suffix.lower()]
        options = {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
        files = {ONLY: str(path)}
        return datasets.load_dataset(kind, data_files=files, split=split, streaming=streaming, **options)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = datasets.load_from_disk(str(path))
        rows = _sliced(datasets, saved if isinstance(saved, datasets.DatasetDict) else {ONLY: saved}, split)
        return rows.to_iterable_dataset() if streaming else rows
    name = str(path) if path.is_dir() else source
    return datasets.load_dataset(name, config, split=split, streaming=streaming)


def _sliced(datasets: Any, saved: Mapping[str, Any], split: str) -> Any:
    """Return a split of saved data, or slices of some."""
    if split in saved:
        return saved[split]
    try:
        spans = rows_of(split, {name: len(rows) for name, rows in saved.items()})
    except (ValueError, AssertionError) as error:
        raise ValueError(f"it has the splits {', '.join(saved)}") from error
    parts = [saved[name].select(range(start, end)) for name, start, end in spans if start < end]
    if not parts:
        raise ValueError("it has no rows there")
    return datasets.concatenate_datasets(parts)


def sizes_of(rows: Any) -> dict[str, int] | None:
    """Return the sizes of all splits of a source whose rows were opened, if it says them."""
    known = {name: split.num_examples for name, split in (rows.info.splits or {}).items()}
    return known if known and all(known.values()) else None


def _undecoded(datasets: Any, rows: Any) -> Any:
    """Leave images as bytes or paths: a broken one then spoils its own sample, not the whole batch."""
    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def stored_images(rows: Any, column: str) -> list[tuple[str | None, bool]]:
    """Return the path of each image of a table, None for none, and whether its bytes are there too, unread."""
    table = rows.select_columns([column]).with_format("arrow")[:]
    if str(table.column(column).type) in ("string", "large_string"):
        return [(path, False) for path in table.column(column).to_pylist()]
    flat = table.flatten()  # Image columns are pairs of bytes and path
    fields = [f"{column}.{name}" for name in ("path", "bytes")]
    if not set(fields) & set(flat.column_names):
        return [(None, True)] * len(table)
    paths, data = (flat.column(name) if name in flat.column_names else None for name in fields)
    return list(
        zip(
            [None] * len(table) if paths is None else paths.to_pylist(),
            [False] * len(table) if data is None else data.is_valid().to_pylist(),
            strict=True,
        )
    )


def _explain(source: str, split: str, error: Exception, *, is_local: bool) -> str:
    cause = error.__cause__ or error.__context__
    # `datasets` reads all files of a source for any of its splits, so the fault may be another split's.
    got, wanted = (getattr(cause, f"{side}_column_names", None) for side in ("table", "requested"))
    message = " ".join(str(error).split())
    if got and wanted:
        named = _USING.search(message)
        return (
            f"{source}: its split {split!r} cannot be read, because all files there must have the same columns and "
            f"{named['file'] if named else 'one'} has {', '.join(got)}, not {', '.join(wanted)}; rename its columns, "
            "or move it away"
        )
    if cause is not None and message.endswith("while generating the dataset"):
        message = " ".join(str(cause).split())  # what happened, not only when
    message = message[:300]
    offline = bool(os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE"))
    if is_local:
        return f"{source}: its split {split!r} cannot be read: {message}; see data.splits and docs/data.md"
    if offline or "Couldn't reach" in message or isinstance(error, (ConnectionError, TimeoutError)):
        return (
            f"{source}: cannot be fetched while offline ({message}); run `hf download {source} --repo-type dataset` "
            "where there is a network, or give a local folder in data.source"
        )
    return f"{source}: its split {split!r} cannot be loaded: {message}; check data.source and data.splits"


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Show no progress bars of `datasets` meanwhile."""
    enabled = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()
