"""What a list of recipes says of each: what it is for, and what it takes to run, as the file itself says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madtp_cli.recipe import read_recipe
from madtp_cli.recipe_yaml import parse_yaml

GROUPS: Mapping[str, str] = {
    "quickstart": "where to begin",
    "built-in tasks": "small models on generated data",
    "full-size": "published models on real data",
    "pretraining": "how the small dense models were made",
}
"""In the order of a list, each with what its recipes are."""
_BUILTIN = "builtin:"
_MINUTES = re.compile(r"about (\d+) minutes")
_DEVICE = re.compile(r"\ba (GPU)\b|\b\d+ (CPU) cores?\b")


@dataclass(frozen=True)
class Listed:
    """One recipe of a list; `minutes` are those its header gives for `device`, each None where it gives none."""

    name: str
    group: str
    device: str | None
    minutes: int | None
    summary: str

    @property
    def takes(self) -> str:
        """Word what it takes: `5 min, CPU`, or `-` if it does not say."""
        minutes = None if self.minutes is None else f"{self.minutes} min"
        return ", ".join(part for part in (minutes, self.device) if part is not None) or "-"


def listed(path: Path) -> Listed:
    """Read a recipe's header, whose first line is a summary and whose line `# Needs:` says device and time."""
    text = read_recipe(path)
    needs = _part(text, "Needs")
    minutes, device = _MINUTES.search(needs), _DEVICE.search(needs)
    return Listed(
        name=path.stem,
        group=_group(path.stem, parse_yaml(text).data),
        device=device[1] or device[2] if device else None,
        minutes=int(minutes[1]) if minutes else None,
        summary=summary(text),
    )


def summary(text: str) -> str:
    """Return the first line of a recipe's header."""
    return text.partition("\n")[0].removeprefix("#").strip()


def _part(text: str, name: str) -> str:
    """Return a part of the header, `# Name: ...` and the lines that are indented under it, as one line."""
    found = re.search(rf"^# {name}: +(.+(?:\n#  +\S.*)*)", text, re.MULTILINE)
    return "" if found is None else re.sub(r"\n#\s+", " ", found[1])


def _group(name: str, recipe: Any) -> str:
    """Tell what a recipe is for by what it starts from."""
    if name == "quickstart":
        return "quickstart"
    checkpoint = recipe["model"].get("checkpoint")
    if checkpoint is None:
        return "pretraining"
    return "built-in tasks" if checkpoint.startswith(_BUILTIN) else "full-size"
