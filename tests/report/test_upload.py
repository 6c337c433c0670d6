"""The report of an upload: every file with its size, the card's header, what is in the way, and what next."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import yaml
from rich.console import Console

from madtp_cli.report.terminal import show
from madtp_cli.results import HubFile, HubResult, HubUpload

CARD = {"license": "apache-2.0", "tags": ["madtp", "nlvr2"]}
PLAN = HubUpload(
    repository="me/tiny",
    url="https://huggingface.co/me/tiny",
    private=False,
    files=(HubFile(path="README.md", bytes=2000), HubFile(path="onnx/model.onnx", bytes=8 * 2**20)),
    card=CARD,
    token_found=False,
)


def printed(upload: HubUpload, width: int = 80, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    console = Console(file=file, width=width, color_system=None, highlight=False, markup=False)
    show(HubResult(command="export", checkpoint="runs/my run", hub=upload), console)
    file.seek(0)
    return file.read()


def test_a_dry_run_says_what_would_go_and_what_is_missing() -> None:
    text = printed(PLAN)
    assert "Dry run: nothing was uploaded. 2 files (8.00 MiB) would go to me/tiny.\n" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "README.md 1.95 KiB",
        "onnx/model.onnx 8.00 MiB",
        "repository https://huggingface.co/me/tiny",
        "visibility public, unless its owner's settings say private",
        "token none: log in with hf auth login, or set HF_TOKEN",
        "next madtp export 'runs/my run' --hub me/tiny",
    ):
        assert line in lines
    header = text.partition("header of the model card\n")[2].partition("\n\n")[0]
    assert yaml.safe_load(header) == CARD


def test_an_upload_says_where_it_is_and_how_it_loads() -> None:
    text = printed(replace(PLAN, uploaded=True, token_found=True, private=True))
    assert "Uploaded 2 files (8.00 MiB) to me/tiny." in text
    assert 'load it     madtp_cli.load("me/tiny")' in text
    assert "visibility  private\n" in text
    assert "next" not in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_nothing_that_is_copied_is_wrapped(width: int) -> None:
    url = f"https://huggingface.co/me/{'long-' * 12}name"
    assert url in printed(replace(PLAN, url=url), width)


def test_a_console_of_few_letters_is_enough() -> None:
    assert "caf\\xe9" in printed(replace(PLAN, card={"name": "café"}), encoding="ascii")
