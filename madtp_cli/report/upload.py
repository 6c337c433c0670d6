"""What goes to the Hugging Face hub, or would: its files, the header of its model card, and what is in the way."""

from __future__ import annotations

import shlex

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from madtp_cli.report import wording
from madtp_cli.results import HubUpload


def print_upload(console: Console, checkpoint: str, upload: HubUpload, *, exported: bool = False) -> None:
    """Print an upload that was made, or that a dry run only lists; `exported` says that a folder was written for it."""
    total = sum(file.bytes for file in upload.files)
    count = f"{len(upload.files)} files ({wording.size(total)})"
    done = f"Uploaded {count} to {upload.repository}."
    plan = f"Dry run: nothing was uploaded. {count} would go to {upload.repository}."
    console.print()
    _say(console, done if upload.uploaded else plan, "bold")
    console.print(_files(upload))
    _say(console, "header of the model card", "bold")
    _say(console, yaml.safe_dump(dict(upload.card), sort_keys=False, allow_unicode=True).rstrip(), indent=2)
    alone = f"madtp export {shlex.quote(checkpoint)} --hub {upload.repository}{' --private' * upload.private}"
    again = "the same command with --overwrite in place of --dry-run" if exported else alone
    facts = {
        "repository": upload.url,
        "visibility": "private" if upload.private else "public, unless its owner's settings say private",
        "token": "found" if upload.token_found else "none: log in with hf auth login, or set HF_TOKEN",
        "load it": f'madtp_cli.load("{upload.repository}")' if upload.uploaded else "",
        "next": "" if upload.uploaded else again,
    }
    console.print()
    for name, value in facts.items():
        if value:
            _say(console, f"{name:<12}{value}")


def _files(upload: HubUpload) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    for file in upload.files:
        table.add_row(Text(file.path), wording.size(file.bytes))
    return table


def _say(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    for line in text.splitlines():
        console.print(Text(" " * indent + wording.encodable(console, line), style=style), soft_wrap=True)
