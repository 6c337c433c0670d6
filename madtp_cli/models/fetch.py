"""From the name of a checkpoint to local files: a path, an id of the Hugging Face hub, or an https address.

What was fetched is kept: hub models where huggingface_hub keeps them, other files under $MADTP_CACHE (~/.cache/madtp).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urldefrag, urlsplit
from urllib.request import Request, urlopen

from madtp_cli.errors import SourceError

CACHE = "MADTP_CACHE"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_HUB_ID = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?$")
_BESIDE = ("*.json", "vocab.txt", "merges.txt", "recipe.yaml")  # the last lies in folders of ours
_SAFE, _PICKLED = "model*.safetensors", "pytorch_model*.bin"
_CHUNK = 2**20
_TIMEOUT_SECONDS = 30
_TRIES = 3  # connections that break off are taken up again this often


@dataclass(frozen=True)
class Fetched:
    """A local folder or file, and what to tell the user about where it came from."""

    path: Path
    notes: tuple[str, ...] = ()


def fetch(source: str) -> Fetched:
    """Find a checkpoint by path, hub id (`owner/name`, `owner/name@revision`) or https address.

    Raises SourceError for what is not there, and for what is only online while offline, with what to fetch by hand.
    """
    if "://" in source:
        if not source.startswith("https://"):
            raise SourceError(f"{source}: only https addresses are fetched; download the file and give its path")
        return download(source)
    path = Path(source).expanduser()
    if path.exists():
        return Fetched(path)
    if (found := hub_id(source)) is not None:
        return Fetched(_from_hub(*found))
    if path.suffix in SUFFIXES:
        raise SourceError(f"{source}: no such file; give a checkpoint's file or folder")
    raise SourceError(
        f"{source}: no such checkpoint folder; give a folder that holds config.json and model.safetensors"
    )


def hub_id(source: str) -> tuple[str, str | None] | None:
    """Take a source for a hub id and return its name and revision; None if it is, or looks like, something local."""
    path = Path(source).expanduser()
    match = _HUB_ID.match(source)
    # out/run where out is a folder here is a path mistyped, not a model of the hub.
    if not match or path.exists() or path.parent.is_dir() or path.suffix in SUFFIXES:
        return None
    return match["name"], match["revision"]


def _from_hub(name: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    def snapshot(*weights: str) -> Path:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=[*_BESIDE, *weights]))

    asked = f"{name}@{revision}" if revision else name
    try:
        # Many models are stored in both formats; the second is fetched only where the first is missing.
        folder = snapshot(_SAFE)
        return folder if any(folder.glob(_SAFE)) else snapshot(_PICKLED)
    except GatedRepoError as error:
        raise SourceError(
            f"{asked}: is gated; ask for access at https://huggingface.co/{name} and log in with: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise SourceError(f"{asked}: the Hugging Face hub has no revision {revision} of it") from error
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"{asked}: no such folder, and no such model on the Hugging Face hub; a private one needs: hf auth login"
        ) from error
    except Exception as error:  # no network, offline mode, a broken cache: errors of several libraries
        raise SourceError(
            f"{asked}: no such folder, and it cannot be fetched from the Hugging Face hub ({why(error)}); where there "
            f"is a network, run: hf download {asked.replace('@', ' --revision ')} --local-dir FOLDER, copy FOLDER here "
            f"(config.json, {_SAFE} or {_PICKLED}, tokenizer files) and give its path instead of {asked}"
        ) from error


def cache_folder() -> Path:
    """Return where downloads are kept."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "madtp")


def download(address: str) -> Fetched:
    """Download a file once, going on where an earlier try stopped; `#sha256=...` in the address is checked.

    Shows a progress bar on a terminal. Raises SourceError when offline, or for a file that is not what it should be.
    """
    url, fragment = urldefrag(address)
    wanted = _checksum(fragment, address)
    name = unquote(Path(urlsplit(url).path).name) or "checkpoint"
    path = cache_folder() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    record = path.with_name(f"{name}.json")
    by_hand = f"download {url} where there is a network, and give the file's path, or put it at {path}"
    if not path.is_file():
        if _offline():
            raise SourceError(f"{url}: cannot be fetched: HF_HUB_OFFLINE is set; {by_hand}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path):
                if not path.is_file():
                    _fill(url, path, record, wanted)
        except (OSError, HTTPException) as error:  # OSError is also what urllib raises
            raise SourceError(f"{url}: cannot be fetched ({why(error)}); {by_hand}") from error
    found = _known_checksum(path, record)
    if wanted and found != wanted:
        raise SourceError(
            f"{path}: has sha256 {found}, but {address} asks for another; delete it to download it again, or drop the "
            "checksum if the file has changed on purpose"
        )
    return Fetched(path, (f"{url}: kept at {path}, sha256 {found}",))


def _fill(url: str, path: Path, record: Path, wanted: str | None) -> None:
    """Download to `path`, by way of a partial file that outlives failures; a file that is wrong is not kept."""
    part = path.with_name(f"{path.name}.part")
    for left in reversed(range(_TRIES)):
        try:
            size, tag = _go_on(url, part)
            break
        except (OSError, HTTPException) as error:
            if not left or (isinstance(error, HTTPError) and error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
                raise
            if isinstance(error, HTTPError):
                part.unlink()
    digest = _digest(part)
    got = part.stat().st_size
    if (size is not None and got != size) or (wanted and digest != wanted):
        part.unlink()
        part.with_name(f"{part.name}.json").unlink(missing_ok=True)
        what = f"sha256 {digest}, expected {wanted}" if wanted and digest != wanted else f"{got} bytes, expected {size}"
        raise SourceError(f"{url}: what came has {what}; it was deleted, try again or check the address")
    record.write_text(json.dumps({"url": url, "etag": tag, "size": got, "sha256": digest}), encoding="utf-8")
    os.replace(part, path)
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)


def _go_on(url: str, part: Path) -> tuple[int | None, str | None]:
    """Append what is missing of a partial file, from the start if the file online has changed: its size and tag."""
    notes = part.with_name(f"{part.name}.json")
    known = _read(notes)
    start = part.stat().st_size if part.is_file() and known.get("etag") else 0
    if start and start == known.get("size"):
        return start, known["etag"]
    headers = {"User-Agent": "madtp", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": known["etag"]}
    with urlopen(Request(url, headers=headers), timeout=_TIMEOUT_SECONDS) as answer:
        if urlsplit(answer.url).scheme != urlsplit(url).scheme:
            raise SourceError(
                f"{url}: leads to {answer.url}, which is not https; download it by hand and give its path"
            )
        start = start if answer.status == 206 else 0
        length, tag = answer.headers.get("Content-Length"), answer.headers.get("ETag")
        size = None if length is None else start + int(length)
        # A weak tag does not promise equal bytes, so it cannot guard a resume.
        strong = tag if tag and not tag.startswith("W/") else None
        notes.write_text(json.dumps({"etag": strong, "size": size}), encoding="utf-8")
        with part.open("ab" if start else "wb") as file, _progress(part.name.removesuffix(".part"), start, size) as bar:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                bar(len(chunk))
    if size is not None and part.stat().st_size < size:
        raise ConnectionError(f"the connection broke off after {part.stat().st_size} of {size} bytes")
    return size, tag


@contextmanager
def _progress(name: str, done: int, size: int | None) -> Iterator[Any]:
    """Show a bar on standard error if that is a terminal; yields a function to call with the bytes that came."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=size, completed=done)
        yield lambda count: progress.advance(task, count)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time download a file: all those of a distributed run ask for it at once."""
    from filelock import FileLock  # torch depends on it

    with FileLock(path.with_name(f"{path.name}.lock")):
        yield


def _checksum(fragment: str, address: str) -> str | None:
    if not fragment:
        return None
    if not (match := re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)):
        raise SourceError(f"{address}: #{fragment} is no checksum; give #sha256= and 64 hexadecimal digits")
    return match[1].lower()


def _known_checksum(path: Path, record: Path) -> str:
    """Return a kept file's sha256; computed anew if it was put there by hand, or is not as long as noted."""
    known = _read(record)
    if known.get("size") == path.stat().st_size and isinstance(known.get("sha256"), str):
        return str(known["sha256"])
    return _digest(path)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def why(error: Exception) -> str:
    """Put what another library raised into one line that is not too long."""
    text = " ".join(str(error).split())
    return f"{text[:200]}..." if len(text) > 200 else text or type(error).__name__
