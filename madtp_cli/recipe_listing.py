"""What a list of recipes says of each: what it is for, and what it takes to run, as the file itself says it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madtp_cli.recipe import read_recipe
from madtp_cli.recipe_yaml import parse_yaml

GROUPS = ("quickstart", "built-in tasks", "full-size", "pretraining")
"""In the order of a list: where to begin, small models on generated data, published models, how the small were made."""
_BUILTIN = "builtin:"
_MINUTES = re.compile(r"about (\d+) minutes")


@dataclass(frozen=True)
class Listed:
    """One recipe of a list; `minutes` are those its header gives for `device`, None where nobody has measured it."""

    name: str
    group: str
    device: str
    minutes: int | None
    summary: str

    @property
    def takes(self) -> str:
        """Word what it takes: `5 min, CPU`."""
        return self.device if self.minutes is None else f"{self.minutes} min, {self.device}"


def listed(path: Path) -> Listed:
    """Read a recipe's header, whose first line is a summary and whose line `# Needs:` says device and time."""
    text = read_recipe(path)
    needs = _part(text, "Needs")
    minutes = _MINUTES.search(needs)
    return Listed(
        name=path.stem,
        group=_group(path.stem, parse_yaml(text).data),
        device="GPU" if needs.startswith("a GPU") else "CPU",
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
        return GROUPS[0]
    checkpoint = recipe["model"].get("checkpoint")
    if checkpoint is None:
        return GROUPS[3]
    return GROUPS[1] if checkpoint.startswith(_BUILTIN) else GROUPS[2]
