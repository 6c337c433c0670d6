"""`export --hub`: put a checkpoint folder, and what was exported from it, on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from rich.console import Console

from madtp_cli import results
from madtp_cli.engine.building.model import processor_of
from madtp_cli.errors import SourceError
from madtp_cli.models.checkpoints import CONFIG, open_checkpoint
from madtp_cli.models.fetch import why
from madtp_cli.models.weights import read_json

CARD = "README.md"
TEXTS = (".yaml", ".json", ".jsonl", ".html", ".md")
_LOG_IN = "log in with: hf auth login, or set HF_TOKEN"


def check_upload(checkpoint: str, repository: str, *, dry_run: bool) -> Path:
    """Check, without a network, that a checkpoint can go to a repository, and return its folder; raises SourceError."""
    _check_id(repository)
    folder = _loadable(checkpoint)
    _header(folder / CARD)
    if not dry_run and huggingface_hub.get_token() is None:
        raise SourceError(f"{repository}: cannot be written without a token of the Hugging Face hub; {_LOG_IN}")
    return folder


def upload(
    checkpoint: str,
    repository: str,
    *,
    private: bool,
    dry_run: bool,
    console: Console,
    exported: Mapping[str, Path] | None = None,
) -> results.HubUpload:
    """Put a checkpoint folder into a repository of the hub, which is made if there is none, as one commit.

    `exported` are more folders, by the name they get in the repository. A dry run checks and lists the same, and asks
    nothing of the network. Raises SourceError for what cannot be uploaded, is refused, or is not reached.
    """
    folder = check_upload(checkpoint, repository, dry_run=dry_run)
    header = _header(folder / CARD)
    if "license" not in header:
        console.print(f"{folder / CARD}: names no licence; the hub shows what its header says as license: NAME")
    found = _files(folder, exported or {})
    if telling := _telling(found, folder):
        console.print(f"{', '.join(telling)}: say where files lie on this machine; whoever may read them will see that")
    plan = results.HubUpload(
        repository=repository,
        url=f"{huggingface_hub.constants.ENDPOINT}/{repository}",
        private=private,
        files=tuple(results.HubFile(path=name, bytes=path.stat().st_size) for name, path in found.items()),
        card=header,
        token_found=huggingface_hub.get_token() is not None,
    )
    if dry_run:
        return plan
    return replace(plan, url=_push(repository, found, private=private), uploaded=True)


def _check_id(repository: str) -> None:
    """Refuse what the hub would: owner and name, each of its letters; raises SourceError."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise SourceError(f"--hub {repository}: is no id of a repository: {why(error)}; give owner/name") from None
    if "/" not in repository:
        raise SourceError(f"--hub {repository}: names no owner; give owner/name, as in me/{repository}")


def _loadable(checkpoint: str) -> Path:
    """Return the folder of a checkpoint that somebody who fetches it can load; raises SourceError for any other."""
    opened = open_checkpoint(checkpoint)
    if opened.folder is None or "madtp" not in read_json(opened.folder / CONFIG):
        raise SourceError(
            f"{checkpoint}: was not written by madtp; only the folders of madtp prune and madtp finetune are uploaded"
        )
    opened.build()
    processor_of(opened)
    return opened.folder


def _header(card: Path) -> Mapping[str, Any]:
    """Read what the hub reads of a model card; raises SourceError where it would refuse it."""
    if not card.is_file():
        raise SourceError(f"{card}: no such file; a repository needs a model card, which madtp prune writes")
    try:
        read = huggingface_hub.ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=False)
        header: Mapping[str, Any] = read.data.to_dict()
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise SourceError(f"{card}: its header is none that the hub reads: {why(error)}; see hf.co/docs/hub") from None
    if not header:
        raise SourceError(f"{card}: has no header (YAML between two lines of ---); the hub finds nothing to show")
    return header


def _files(folder: Path, exported: Mapping[str, Path]) -> dict[str, Path]:
    """List what is uploaded, by its name in the repository: files of the checkpoint folder, and of all below others."""
    found = {path.name: path for path in sorted(folder.iterdir()) if _wanted(path, folder)}
    for name, other in exported.items():
        inside = {path.relative_to(other).as_posix(): path for path in sorted(other.rglob("*")) if _wanted(path, other)}
        found |= {f"{name}/{path}": file for path, file in inside.items()}
    return found


def _wanted(path: Path, folder: Path) -> bool:
    """Tell whether it is a file, neither hidden nor left by Python where an example was run."""
    return path.is_file() and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)


def _telling(files: Mapping[str, Path], folder: Path) -> list[str]:
    """Name the files of text that hold the user's home folder, or the one that the checkpoint lies in."""
    places = [str(place).encode() for place in (Path.home(), folder.resolve().parent) if place != Path(place.anchor)]
    texts = {name: path for name, path in files.items() if path.suffix in TEXTS}
    return [name for name, path in texts.items() if any(place in path.read_bytes() for place in places)]


def _push(repository: str, files: Mapping[str, Path], *, private: bool) -> str:
    """Make the repository if there is none, and add the files as one commit: all of them are there, or none."""
    hub = huggingface_hub.HfApi(library_name="madtp")
    with _told(repository):
        # None leaves the choice to the owner's settings.
        url = hub.create_repo(repository, private=private or None, exist_ok=True)
        if private and not hub.repo_info(repository).private:
            raise SourceError(f"{repository}: is public already; make it private on its page first, or leave --private")
        hub.create_commit(
            repository,
            [huggingface_hub.CommitOperationAdd(name, path) for name, path in files.items()],
            commit_message="Upload a checkpoint of madtp",
        )
    return str(url)


@contextmanager
def _told(repository: str) -> Iterator[None]:
    """Turn what the hub and the network say into one line; raises SourceError."""
    try:
        yield
    except SourceError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == HTTPStatus.UNAUTHORIZED:
            raise SourceError(f"{repository}: the hub does not know the token; {_LOG_IN}") from error
        if status == HTTPStatus.FORBIDDEN:
            raise SourceError(
                f"{repository}: the token may not write there ({why(error)}); take one with write access to "
                f"{repository.partition('/')[0]}, or another owner"
            ) from error
        raise SourceError(f"{repository}: the hub refused it ({why(error)}); nothing was uploaded") from error
    except Exception as error:  # no network, offline mode: errors of several libraries
        raise SourceError(
            f"{repository}: the Hugging Face hub cannot be reached ({why(error)}); nothing was uploaded, try again "
            "where there is a network, without HF_HUB_OFFLINE"
        ) from error
