"""CLIP, as the table of families finds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from madtp_cli.models.clip.configs import CONFIGURATION
from madtp_cli.models.clip.layouts import LAYOUTS, recognise
from madtp_cli.models.clip.model import ClipForRetrieval
from madtp_cli.models.clip.processing import PROCESSING
from madtp_cli.models.clip.published import CALLS, passes
from madtp_cli.models.family import Family


def _exports() -> Mapping[str, Any]:
    from madtp_cli.models.clip.export import EXPORTS

    return EXPORTS


FAMILY = Family(
    name="clip",
    title="CLIP",
    models={"retrieval": ClipForRetrieval},
    architectures={"CLIPModel": "retrieval"},
    configuration=CONFIGURATION,
    processing=PROCESSING,
    recognise=recognise,
    layouts=LAYOUTS,
    calls=CALLS,
    passes=passes,
    cards={"retrieval": ("image-text-retrieval", "zero-shot-image-classification")},
    exports=_exports,
)
