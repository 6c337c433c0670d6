"""Key layouts of real checkpoints: recognise them, and rename their tensors to ours and back, losing no bit.

Ours are the names of HF transformers (`hf`). `salesforce` is what BLIP's own code saves (`visual_encoder.*`), `openai`
what CLIP's own code saves (`visual.*`); the released MADTP code adds `space_dict`, and for CLIP a map per layer, to
either. Everything here is a function of dictionaries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from madtp_cli.errors import SourceError

Layout = Literal["hf", "salesforce", "openai"]
State = Mapping[str, Tensor]
PRETRAINED = "pretrained"
"""Instead of a task: BLIP before any finetuning, which holds the parts of several tasks."""

# Theirs -> ours. A name that ends with a dot stands for all that begins so; {n} is a layer's number.
_SALESFORCE = {
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
_OPENAI_BLOCK = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_OPENAI_TOWERS = {
    "visual.transformer.resblocks.{n}.": ("vision_model.encoder.layers.{n}.", "alignment.maps.vision.{n}."),
    "transformer.resblocks.{n}.": ("text_model.encoder.layers.{n}.", "alignment.maps.text.{n}."),
}
_OPENAI = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    "space_dict": "alignment.tokens",
}
for _theirs, (_ours, _map) in _OPENAI_TOWERS.items():
    _OPENAI |= {_theirs + key: _ours + value for key, value in _OPENAI_BLOCK.items()}
    _OPENAI[f"{_theirs}query_model.q_map.0."] = _map
_TABLES: Mapping[Layout, Mapping[str, str]] = {"hf": {}, "salesforce": _SALESFORCE, "openai": _OPENAI}
# CLIP multiplies by its projections from the right, HF by linear maps.
_TRANSPOSED = {"visual.proj", "text_projection"}
_FUSED = re.compile(r"^((?:visual\.)?transformer\.resblocks\.\d+\.)attn\.in_proj_(weight|bias)$")
_SPLIT = re.compile(r"^((?:vision|text)_model\.encoder\.layers\.\d+\.)self_attn\.([qkv])_proj\.(weight|bias)$")

# State of a training that is over (momentum copies, queues of negatives), and constants that files carry along.
_TRAINING = re.compile(r"^\w+_m(\.|$)|^(image|text|idx|ptr)_queue$|^queue_ptr$")
_CONSTANT = re.compile(r"\.position_ids$|^(input_resolution|context_length|vocab_size)$")

TIED = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}
"""Tensors of BLIP's language head that are copies of others: HF's files leave them out, Salesforce's hold both."""


@dataclass(frozen=True)
class Found:
    """What the keys of a state dict say: its layout, its family (blip or clip) and its task, or PRETRAINED."""

    layout: Layout
    family: str
    task: str


def recognise(state: State, where: str) -> Found:
    """Recognise a state dict by its keys; raises SourceError for one that is neither BLIP nor CLIP."""

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in state)

    if has("visual.layer1."):
        raise SourceError(f"{where}: is a CLIP with a ResNet, which has no tokens to prune; try a ViT, as ViT-B/16")
    if "visual.conv1.weight" in state:
        return Found("openai", "clip", "retrieval")
    layout: Layout | None = "salesforce" if has("visual_encoder.") else "hf" if has("vision_model.") else None
    if layout == "hf" and "vision_model.pre_layrnorm.weight" in state:
        return Found("hf", "clip", "retrieval")
    task = _blip_task(
        {key.partition(".")[0] for key in state}, twin=any("crossattention.self0." in key for key in state)
    )
    if layout is None or task is None:
        some = ", ".join(list(state)[:4]) or "none"
        raise SourceError(
            f"{where}: its tensors are those of no BLIP or CLIP with an image and a text side, the first are {some}; "
            "try a checkpoint for nlvr2, vqa, caption or retrieval"
        )
    return Found(layout, "blip", task)


def _blip_task(parts: set[str], *, twin: bool) -> str | None:
    encoder, decoder, match = ("text_encoder" in parts, "text_decoder" in parts, "itm_head" in parts)
    if twin or "cls_head" in parts:
        return "nlvr2"
    if encoder and decoder:
        return PRETRAINED if match else "vqa"
    if encoder:
        return "retrieval" if match else PRETRAINED
    return "caption" if decoder else None


def to_hf(state: State, where: str = "state dict") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename to HF's names (alignment tensors to ours): the tensors, and the extras that are no part of a model.

    Extras are momentum copies, queues and constants, under their own names. Raises SourceError as `recognise` does.
    """
    found = recognise(state, where)
    table = _TABLES[found.layout]
    converted: dict[str, Tensor] = {}
    extras: dict[str, Tensor] = {}
    for key, value in state.items():
        # HF's BLIP has carried CLIP's scale without ever using it.
        unused = found.family == "blip" and key == "logit_scale"
        if is_training_state(key) or _CONSTANT.search(key) or unused:
            extras[key] = value
        elif found.layout == "openai" and (fused := _FUSED.match(key)):
            block = _rename(f"{fused[1]}ln_1.", table).removesuffix("layer_norm1.")
            for name, part in zip("qkv", value.chunk(3), strict=True):
                converted[f"{block}self_attn.{name}_proj.{fused[2]}"] = part
        else:
            flip = found.layout == "openai" and key in _TRANSPOSED
            converted[_rename(key, table)] = value.T.contiguous() if flip else value
    return converted, extras


def is_training_state(key: str) -> bool:
    """Tell momentum copies and queues, which no model has, from other extras."""
    return _TRAINING.search(key) is not None


def from_hf(converted: State, extras: State, layout: Layout) -> dict[str, Tensor]:
    """Undo `to_hf`; raises SourceError naming tensors that the layout has no place for."""
    table = {ours: theirs for theirs, ours in _TABLES[layout].items()}
    state: dict[str, Tensor] = {}
    lost = []
    for key, value in converted.items():
        if layout == "openai" and (part := _SPLIT.match(key)):
            if part[2] == "q":
                names = [f"{part[1]}self_attn.{name}_proj.{part[3]}" for name in "qkv"]
                block = _rename(f"{part[1]}layer_norm1.", table).removesuffix("ln_1.")
                state[f"{block}attn.in_proj_{part[3]}"] = torch.cat([converted[name] for name in names])
            continue
        name = _rename(key, table)
        if layout != "hf" and name.startswith(("alignment.", "vision_model.", "text_model.")):
            lost.append(key)
        state[name] = value.T.contiguous() if layout == "openai" and name in _TRANSPOSED else value
    if lost:
        raise SourceError(
            f"layout {layout}: has no place for {', '.join(lost[:4])}{f' and {len(lost) - 4} more' * (len(lost) > 4)}; "
            "try the layout hf, or the one the checkpoint came in"
        )
    return state | dict(extras)


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


def position_key(state: State) -> str:
    """Name the vision tower's position embedding: [1, N + 1, C] in BLIP, [N + 1, C] in CLIP."""
    key = "vision_model.embeddings.position_embedding"
    return key if key in state else f"{key}.weight"


def resize_positions(state: State, patches: int) -> dict[str, Tensor]:
    """Interpolate the vision tower's positions to `patches` x `patches`, bicubically as BLIP does.

    The class token keeps its own.
    """
    key = position_key(state)
    old = state[key]
    table = old.view(-1, old.shape[-1])  # [1 + n * n, C]
    side = int((len(table) - 1) ** 0.5)
    grid = table[1:].float().unflatten(0, (side, side)).permute(2, 0, 1)[None]  # [1, C, n, n]
    grid = interpolate(grid, size=(patches, patches), mode="bicubic", align_corners=False)
    positions = grid[0].flatten(1).T.to(old.dtype)  # [patches * patches, C]
    return {**state, key: torch.cat([table[:1], positions]).view(*old.shape[:-2], -1, old.shape[-1])}


def _rename(key: str, table: Mapping[str, str]) -> str:
    """Rename one key by a table of names and prefixes; a key that stands in none keeps its name."""
    number = re.search(r"\.(\d+)\.", key)
    template = f"{key[: number.start(1)]}{{n}}{key[number.end(1) :]}" if number else key
    for old, new in table.items():
        if template == old or (old.endswith(".") and template.startswith(old)):
            renamed = new + template.removeprefix(old)
            return renamed.replace("{n}", number[1]) if number else renamed
    return key
