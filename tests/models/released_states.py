"""State dicts as real checkpoints have them, tiny and random, generated from the rules of each code's modules."""

from __future__ import annotations

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
WIDTH, PATCH, VOCABULARY, POSITIONS, JOINT, QUEUE = 32, 8, 50, 20, 16, 12
PATCHES = 16  # 4 x 4 patches of 8 pixels
TOKENS = 5  # alignment tokens

RELEASED = ("nlvr2", "vqa", "caption", "retrieval", "clip")


def released(kind: str, *, madtp: bool = True) -> dict[str, Tensor]:
    """Make a state dict of Salesforce's BLIP for a task, of `pretrained` BLIP, or of OpenAI's CLIP (`clip`)."""
    shapes = clip(madtp=madtp) if kind == "clip" else blip(kind, madtp=madtp)
    generator = torch.Generator().manual_seed(len(shapes))
    state = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    for key in state:
        if key.endswith("position_ids"):
            state[key] = torch.arange(POSITIONS)[None]
        elif key in ("idx_queue", "ptr_queue", "queue_ptr"):
            state[key] = state[key].long()
        elif key.endswith("predictions.decoder.weight"):
            state[key] = state[key.replace("cls.predictions.decoder", "bert.embeddings.word_embeddings")]
        elif key.endswith("predictions.decoder.bias"):
            state[key] = state[key.replace("decoder.bias", "bias")]
    return state


def blip(kind: str, *, madtp: bool) -> Shapes:
    """List the keys of a BLIP."""
    match = kind in ("retrieval", "pretrained")
    shapes = {**_vit("visual_encoder"), **({"space_dict": (TOKENS, WIDTH)} if madtp else {})}
    if kind != "caption":
        shapes |= _bert("text_encoder.", twin=kind == "nlvr2")
    if kind in ("vqa", "caption", "pretrained"):
        shapes |= _bert("text_decoder.bert.") | _head("text_decoder.cls.predictions.")
    if kind == "nlvr2":
        shapes |= _linear("cls_head.0", WIDTH, WIDTH) | _linear("cls_head.2", 2, WIDTH)
    if match:
        shapes |= _linear("vision_proj", JOINT, WIDTH) | _linear("text_proj", JOINT, WIDTH)
        shapes |= _linear("itm_head", 2, WIDTH) | {
            "temp": (),
            "image_queue": (JOINT, QUEUE),
            "text_queue": (JOINT, QUEUE),
        }
        shapes |= {"queue_ptr": (1,)} if kind == "pretrained" else {"idx_queue": (1, QUEUE), "ptr_queue": (1,)}
        shapes |= _vit("visual_encoder_m") | _bert("text_encoder_m.")
        shapes |= _linear("vision_proj_m", JOINT, WIDTH) | _linear("text_proj_m", JOINT, WIDTH)
    return shapes


def clip(*, madtp: bool, width: int = 48) -> Shapes:
    """List the keys of a CLIP whose image tower is wider than its text tower."""
    shapes: Shapes = {"logit_scale": (), "image_queue": (JOINT, QUEUE), "text_queue": (JOINT, QUEUE)}
    shapes |= {"idx_queue": (1, QUEUE), "ptr_queue": (1,)}
    for m in ("", "_m"):
        vision, text = f"visual{m}", f"transformer{m}"
        shapes |= {f"text_projection{m}": (WIDTH, JOINT), f"positional_embedding{m}": (POSITIONS, WIDTH)}
        shapes |= {f"token_embedding{m}.weight": (VOCABULARY, WIDTH), f"{vision}.class_embedding": (width,)}
        shapes |= {f"{vision}.positional_embedding": (PATCHES + 1, width), f"{vision}.proj": (width, JOINT)}
        shapes |= {f"{vision}.conv1.weight": (width, 3, PATCH, PATCH)}
        for norm, size in ((f"{vision}.ln_pre", width), (f"{vision}.ln_post", width), (f"ln_final{m}", WIDTH)):
            shapes |= _norm(norm, size)
        for tower, size, layers in ((f"{vision}.transformer", width, 2), (text, WIDTH, 3)):
            for block in (f"{tower}.resblocks.{layer}" for layer in range(layers)):
                shapes |= {f"{block}.attn.in_proj_weight": (3 * size, size), f"{block}.attn.in_proj_bias": (3 * size,)}
                shapes |= _linear(f"{block}.attn.out_proj", size, size)
                shapes |= _norm(f"{block}.ln_1", size) | _norm(f"{block}.ln_2", size)
                shapes |= _linear(f"{block}.mlp.c_fc", 4 * size, size) | _linear(f"{block}.mlp.c_proj", size, 4 * size)
                if madtp:
                    shapes |= _linear(f"{block}.query_model.q_map.0", 24, size)
    return shapes | ({"space_dict": (TOKENS, 24)} if madtp else {})


def _vit(prefix: str) -> Shapes:
    shapes: Shapes = {f"{prefix}.cls_token": (1, 1, WIDTH), f"{prefix}.pos_embed": (1, PATCHES + 1, WIDTH)}
    shapes |= {
        f"{prefix}.patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        f"{prefix}.patch_embed.proj.bias": (WIDTH,),
    }
    for block in (f"{prefix}.blocks.{layer}" for layer in range(2)):
        shapes |= _norm(f"{block}.norm1") | _norm(f"{block}.norm2")
        shapes |= _linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH) | _linear(f"{block}.attn.proj", WIDTH, WIDTH)
        shapes |= _linear(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH) | _linear(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
    return shapes | _norm(f"{prefix}.norm")


def _bert(prefix: str, *, twin: bool = False, layers: int = 3, merge_from: int = 1) -> Shapes:
    shapes: Shapes = {f"{prefix}embeddings.position_ids": (1, POSITIONS)}
    shapes |= {f"{prefix}embeddings.word_embeddings.weight": (VOCABULARY, WIDTH)}
    shapes |= {f"{prefix}embeddings.position_embeddings.weight": (POSITIONS, WIDTH)}
    shapes |= _norm(f"{prefix}embeddings.LayerNorm")
    for layer in range(layers):
        block = f"{prefix}encoder.layer.{layer}"
        for attention in ("attention", "crossattention"):
            both = twin and attention == "crossattention"
            for side in ("0", "1") if both else ("",):
                for part in ("query", "key", "value"):
                    shapes |= _linear(f"{block}.{attention}.self{side}.{part}", WIDTH, WIDTH)
                shapes |= _linear(f"{block}.{attention}.output.dense{side}", WIDTH, WIDTH)
            if both and layer >= merge_from:
                shapes |= _linear(f"{block}.{attention}.output.merge_layer", WIDTH, 2 * WIDTH)
            shapes |= _norm(f"{block}.{attention}.output.LayerNorm")
        shapes |= _linear(f"{block}.intermediate.dense", 4 * WIDTH, WIDTH)
        shapes |= _linear(f"{block}.output.dense", WIDTH, 4 * WIDTH) | _norm(f"{block}.output.LayerNorm")
    return shapes


def _head(prefix: str) -> Shapes:
    return {
        f"{prefix}bias": (VOCABULARY,),
        **_linear(f"{prefix}transform.dense", WIDTH, WIDTH),
        **_norm(f"{prefix}transform.LayerNorm"),
        **_linear(f"{prefix}decoder", VOCABULARY, WIDTH),
    }


def _linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, width: int = WIDTH) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
