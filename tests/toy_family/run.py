"""Run commands of madtp with the toy family in its table: `python run.py COMMANDS`, a JSON list of argument lists.

A process of its own, because recipes are made of the table when they are imported. Prints a JSON list with the exit
code and the output of every command.
"""

from __future__ import annotations

import json
import sys

from madtp_cli.families import FAMILIES, Entry

SITES = {"vision": None, "bridge": None, "text": "the toy's decoder never prunes"}
FAMILIES["toy"] = Entry("tests.toy_family", {"caption": SITES})

if __name__ == "__main__":
    from typer.testing import CliRunner

    from madtp_cli.cli import app
    from madtp_cli.engine.finishing import finish

    finish.compare_latency = lambda *_models, **_options: {}  # type: ignore  # seconds that tell nothing
    ran = [CliRunner().invoke(app, arguments) for arguments in json.loads(sys.argv[1])]
    print(json.dumps([[each.exit_code, each.stdout, each.stderr] for each in ran]))
