"""Every kind of model there is, as (family, task): what tests of all of them run through."""

from __future__ import annotations

from madtp_cli.families import FAMILIES


def kinds() -> list[tuple[str, str]]:
    """List them in the order of the table of families."""
    return [(family, task) for family, entry in FAMILIES.items() for task in entry.sites]
