"""BLIP's models as graphs, by task."""

from __future__ import annotations

from collections.abc import Mapping

from madtp_cli.export.graphs import TaskExport
from madtp_cli.models.blip.export import caption, nlvr, retrieval, vqa

EXPORTS: Mapping[str, TaskExport] = {
    "nlvr2": nlvr.EXPORT,
    "retrieval": retrieval.EXPORT,
    "vqa": vqa.EXPORT,
    "caption": caption.EXPORT,
}
