"""Which models can be exported: a line for each."""

from __future__ import annotations

from collections.abc import Mapping

from madtp_cli.errors import UsageError
from madtp_cli.export import caption, clip, nlvr, retrieval, vqa
from madtp_cli.export.graphs import TaskExport
from madtp_cli.models.base import PrunedModel

EXPORTS: Mapping[tuple[str, str], TaskExport] = {
    ("blip", "nlvr2"): nlvr.EXPORT,
    ("blip", "retrieval"): retrieval.EXPORT,
    ("blip", "vqa"): vqa.EXPORT,
    ("blip", "caption"): caption.EXPORT,
    ("clip", "retrieval"): clip.EXPORT,
}
"""By family and task."""


def export_of(model: PrunedModel) -> TaskExport:
    """Return how a model is exported; raises UsageError for one that cannot be."""
    found = EXPORTS.get((model.family, model.task))
    if found is None:
        known = ", ".join(f"{task} ({family})" for family, task in EXPORTS)
        raise UsageError(f"export has no graphs for {model.task} ({model.family}); it knows {known}")
    return found
