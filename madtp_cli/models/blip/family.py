"""BLIP, as the table of families finds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from madtp_cli.models.blip.caption import BlipForCaption
from madtp_cli.models.blip.configs import CONFIGURATION
from madtp_cli.models.blip.layouts import LAYOUTS, recognise
from madtp_cli.models.blip.nlvr import BlipForNlvr
from madtp_cli.models.blip.processing import PROCESSING
from madtp_cli.models.blip.published import CALLS, passes
from madtp_cli.models.blip.retrieval import TEMPERATURE, BlipForRetrieval
from madtp_cli.models.blip.starting import STARTING
from madtp_cli.models.blip.vqa import BlipForVqa
from madtp_cli.models.family import Family
from madtp_cli.models.layouts import HF, Found


def _exports() -> Mapping[str, Any]:
    from madtp_cli.models.blip.export import EXPORTS

    return EXPORTS


def _complete(state: dict[str, Tensor], found: Found) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Add the temperature that HF's retrieval models do not store, and say so; any other layout must have it."""
    if (found.layout, found.task) != (HF, "retrieval") or "temp" in state:
        return state, ()
    note = (
        f"no temperature of the contrastive loss (temp) is stored, as in all of Hugging Face's: {TEMPERATURE} is taken"
    )
    return {**state, "temp": torch.tensor(TEMPERATURE)}, (note,)


FAMILY = Family(
    name="blip",
    title="BLIP",
    models={model.task: model for model in (BlipForNlvr, BlipForVqa, BlipForCaption, BlipForRetrieval)},
    architectures={
        "BlipForQuestionAnswering": "vqa",
        "BlipForConditionalGeneration": "caption",
        "BlipForImageTextRetrieval": "retrieval",
    },
    configuration=CONFIGURATION,
    processing=PROCESSING,
    recognise=recognise,
    layouts=LAYOUTS,
    starting=STARTING,
    unused=frozenset({"logit_scale"}),  # HF's BLIP has carried CLIP's scale without ever using it
    complete=_complete,
    calls=CALLS,
    passes=passes,
    cards={
        "nlvr2": ("visual-reasoning", None),
        "vqa": ("visual-question-answering", "visual-question-answering"),
        "caption": ("image-to-text", "image-to-text"),
        "retrieval": ("image-text-retrieval", None),
    },
    exports=_exports,
)
