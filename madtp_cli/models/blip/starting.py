"""How BLIP for one task starts from BLIP for another: which parts go along, and which start anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from madtp_cli.models.blip.configs import MERGE_FROM
from madtp_cli.models.blip.layouts import twin_attention
from madtp_cli.models.family import Starting, State
from madtp_cli.models.layouts import PRETRAINED

# The parts of a BLIP for each task; a part stands for every key that begins so.
PARTS: Mapping[str, tuple[str, ...]] = {
    "nlvr2": ("vision_model.", "text_encoder."),
    "vqa": ("vision_model.", "text_encoder.", "text_decoder."),
    "caption": ("vision_model.", "text_decoder."),
    "retrieval": ("vision_model.", "text_encoder."),
}
# Heads: taken along where there are any, else as in a new model: drawn at random (the temperature is a constant).
HEADS: Mapping[str, tuple[str, ...]] = {
    "nlvr2": ("cls_head.0.weight", "cls_head.0.bias", "cls_head.2.weight", "cls_head.2.bias"),
    "vqa": (),
    "caption": (),
    "retrieval": (
        "vision_proj.weight",
        "vision_proj.bias",
        "text_proj.weight",
        "text_proj.bias",
        "itm_head.weight",
        "itm_head.bias",
        "temp",
    ),
}
STARTS: Mapping[str, tuple[str, ...]] = {
    PRETRAINED: ("nlvr2", "vqa", "caption", "retrieval"),
    "retrieval": ("nlvr2",),
    "vqa": ("nlvr2", "caption", "retrieval"),
}
"""From what the tensors are for to what else may start from them."""


def adapt(task: str, state: State, known: Mapping[str, Any]) -> tuple[State, list[str], list[str]]:
    """Give NLVR2 a cross-attention for each of its two images: tensors, the keys made up, and notes."""
    if task != "nlvr2":
        return state, [], []
    twins, made = twin_attention(state, known.get("merge_from", MERGE_FROM))
    return twins, made, ["both images start from the one cross-attention; merge layers start as the mean of the two"]


STARTING = Starting(PARTS, HEADS, STARTS, adapt)
