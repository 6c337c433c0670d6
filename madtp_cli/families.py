"""The families of models: the one table. What else there is to know of a family is in its own package.

Nothing here imports torch: recipes are checked against this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """Where a family is, and what its recipes may say.

    package: its module `family` holds FAMILY, a `models.family.Family`. sites: by task, the places where tokens may go,
    in the order in which tokens meet them: None for one that prunes, else why it does not. settings: the keys of
    model.config that only some families read, and this one does. reranks: whether its retrieval compares the best
    partners once more.
    """

    package: str
    sites: Mapping[str, Mapping[str, str | None]]
    settings: tuple[str, ...] = ()
    reranks: bool = False


_BOTH: Mapping[str, str | None] = {"vision": None, "text": None}

FAMILIES: dict[str, Entry] = {
    "blip": Entry(
        "madtp_cli.models.blip",
        {
            "nlvr2": _BOTH,
            "vqa": _BOTH,
            "caption": {"vision": None, "text": "a caption's decoder never prunes"},
            "retrieval": _BOTH,
        },
        settings=("pad_token_id", "cls_token_id", "sep_token_id", "dec_token_id", "enc_token_id"),
        reranks=True,
    ),
    "clip": Entry("madtp_cli.models.clip", {"retrieval": _BOTH}, settings=("eos_token_id",)),
}
OLDEST = "blip"
"""The family of checkpoint folders that do not name theirs: they were written before there was another."""


def site_names() -> tuple[str, ...]:
    """Name every site of every family once, in the order of the table."""
    return tuple(dict.fromkeys(site for entry in FAMILIES.values() for sites in entry.sites.values() for site in sites))
