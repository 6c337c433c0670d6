"""What commands print: text as it is, whatever rich would make of it."""

from __future__ import annotations

import pytest

from madtp_cli.commands.output import open_console


@pytest.mark.parametrize("text", ["pip install 'madtp[caption]'", "runs/[bold]/x", "runs/[/x]", "runs/a:smile:b"])
def test_brackets_and_colons_are_printed_as_they_are(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets are no markup, and colons no emoji."""
    with open_console(False, 0) as console:
        console.print(text)
    assert capsys.readouterr().out == f"{text}\n"
