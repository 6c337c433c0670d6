"""How CLIP's tensors are called in files: OpenAI's names (`visual.*`), where query, key and value are one tensor.

The released MADTP code adds `space_dict` and a map per layer to them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from madtp_cli.errors import SourceError
from madtp_cli.models.layouts import HF, Found, Fused, KeyTable, State

OPENAI = "openai"
_BLOCK = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_TOWERS = {
    "visual.transformer.resblocks.{n}.": ("vision_model.encoder.layers.{n}.", "alignment.maps.vision.{n}."),
    "transformer.resblocks.{n}.": ("text_model.encoder.layers.{n}.", "alignment.maps.text.{n}."),
}
_NAMES = {
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
for _theirs, (_ours, _map) in _TOWERS.items():
    _NAMES |= {_theirs + key: _ours + value for key, value in _BLOCK.items()}
    _NAMES[f"{_theirs}query_model.q_map.0."] = _map
_FUSED = Fused(
    theirs=re.compile(r"^((?:visual\.)?transformer\.resblocks\.\d+\.)attn\.in_proj_(weight|bias)$"),
    ours=re.compile(r"^((?:vision|text)_model\.encoder\.layers\.\d+\.)self_attn\.([qkv])_proj\.(weight|bias)$"),
    name="attn.in_proj_",
    names="self_attn.{}_proj",
    beside=("ln_1.", "layer_norm1."),
)


def recognise(state: State, where: str) -> Found | None:
    """Recognise a CLIP by its keys; raises SourceError for one with a ResNet."""
    if any(key.startswith("visual.layer1.") for key in state):
        raise SourceError(f"{where}: is a CLIP with a ResNet, which has no tokens to prune; try a ViT, as ViT-B/16")
    if "visual.conv1.weight" in state:
        return Found(OPENAI, "clip", "retrieval")
    if "vision_model.pre_layrnorm.weight" in state and not any(key.startswith("visual_encoder.") for key in state):
        return Found(HF, "clip", "retrieval")
    return None


LAYOUTS: Mapping[str, KeyTable] = {
    OPENAI: KeyTable(_NAMES, transposed=frozenset({"visual.proj", "text_projection"}), fused=_FUSED)
}
