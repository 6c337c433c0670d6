"""How BLIP's tensors are called in files: Salesforce's names (`visual_encoder.*`), and what its code expects there.

The released MADTP code adds `space_dict` to them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from madtp_cli.models.layouts import HF, PRETRAINED, Found, KeyTable, State

SALESFORCE = "salesforce"
_NAMES = {
    "visual_encoder.cls_token": "vision_model.embeddings.class_embedding",
    "visual_encoder.pos_embed": "vision_model.embeddings.position_embedding",
    "visual_encoder.patch_embed.proj.": "vision_model.embeddings.patch_embedding.",
    "visual_encoder.norm.": "vision_model.post_layernorm.",
    "visual_encoder.blocks.{n}.norm1.": "vision_model.encoder.layers.{n}.layer_norm1.",
    "visual_encoder.blocks.{n}.norm2.": "vision_model.encoder.layers.{n}.layer_norm2.",
    "visual_encoder.blocks.{n}.attn.qkv.": "vision_model.encoder.layers.{n}.self_attn.qkv.",
    "visual_encoder.blocks.{n}.attn.proj.": "vision_model.encoder.layers.{n}.self_attn.projection.",
    "visual_encoder.blocks.{n}.mlp.": "vision_model.encoder.layers.{n}.mlp.",
    "space_dict": "alignment.tokens",
}

TIED = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}
"""Tensors of BLIP's language head that are copies of others: HF's files leave them out, Salesforce's hold both."""


def recognise(state: State, where: str) -> Found | None:
    """Recognise a BLIP by its keys."""
    parts = {key.partition(".")[0] for key in state}
    layout = SALESFORCE if "visual_encoder" in parts else HF if "vision_model" in parts else None
    task = _task(parts, twin=any("crossattention.self0." in key for key in state))
    return Found(layout, "blip", task) if layout and task else None


def _task(parts: set[str], *, twin: bool) -> str | None:
    encoder, decoder, match = ("text_encoder" in parts, "text_decoder" in parts, "itm_head" in parts)
    if twin or "cls_head" in parts:
        return "nlvr2"
    if encoder and decoder:
        return PRETRAINED if match else "vqa"
    if encoder:
        return "retrieval" if match else PRETRAINED
    return "caption" if decoder else None


def with_constants(state: State) -> dict[str, Tensor]:
    """Add what Salesforce's BLIP expects beside a model's own tensors: tied copies and position ids."""
    full = dict(state)
    for copy, original in TIED.items():
        if original in full:
            full.setdefault(copy, full[original].clone())
    for key, value in state.items():
        if key.endswith(".embeddings.position_embeddings.weight"):
            full.setdefault(key.replace("position_embeddings.weight", "position_ids"), torch.arange(len(value))[None])
    return full


def twin_attention(state: State, merge_from: int) -> tuple[dict[str, Tensor], list[str]]:
    """Turn a text encoder that reads one image into NLVR2's that reads two: the state, and the keys made up.

    Both images start from the one cross-attention, as BLIP does; the merge layers of layer `merge_from` and deeper
    start as the mean of the two, which is what the layers before do (BLIP draws them at random).
    """
    twins: dict[str, Tensor] = {}
    made: list[str] = []
    pattern = re.compile(r"^(text_encoder\.encoder\.layer\.(\d+)\.crossattention\.)(self|output\.dense)\.(.+)$")
    for key, value in state.items():
        if not (match := pattern.match(key)):
            twins[key] = value
            continue
        prefix, layer, part, rest = match[1], int(match[2]), match[3], match[4]
        twins[f"{prefix}{part}0.{rest}"] = twins[f"{prefix}{part}1.{rest}"] = value
        if part == "output.dense" and rest == "weight" and layer >= merge_from:
            width = len(value)
            half = 0.5 * torch.eye(width, dtype=value.dtype, device=value.device)
            made += [f"{prefix}output.merge_layer.weight", f"{prefix}output.merge_layer.bias"]
            twins[made[-2]] = torch.cat([half, half], 1)  # [C, 2 C]
            twins[made[-1]] = torch.zeros(width, dtype=value.dtype, device=value.device)
    return twins, made


LAYOUTS: Mapping[str, KeyTable] = {SALESFORCE: KeyTable(_NAMES, finish=with_constants)}
