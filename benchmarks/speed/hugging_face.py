"""Transformers' own modules with our weights: CLIP as it is, and the NLVR2 model that it does not have.

Shapes: P pairs, I = 2 P images, N tokens of an image, L words of a sentence, C width.
"""

from __future__ import annotations

from typing import Any

from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import CLIPModel
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import (
    BlipTextAttention,
    BlipTextEmbeddings,
    BlipTextIntermediate,
    BlipTextOutput,
    BlipTextSelfAttention,
)

from madtp_cli.models.base import PrunedModel
from madtp_cli.models.blip.configs import MERGE_FROM
from madtp_cli.models.blip.text import TwinOutput


class _TwinCrossAttention(nn.Module):
    """Transformers' cross-attention once per image, joined as BLIP's NLVR2 model joins them."""

    def __init__(self, config: Any, *, merge: bool) -> None:
        super().__init__()
        self.self0 = BlipTextSelfAttention(config, is_cross_attention=True)
        self.self1 = BlipTextSelfAttention(config, is_cross_attention=True)
        self.output = TwinOutput(config, merge=merge)

    def forward(self, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Read both images: [P, L, C] and twice [P, N, C] -> [P, L, C]."""
        first, _ = self.self0(x, encoder_hidden_states=left)
        second, _ = self.self1(x, encoder_hidden_states=right)
        joined: Tensor = self.output(first, second, x)
        return joined


class _TwinLayer(nn.Module):
    """A text layer that reads two images."""

    def __init__(self, config: Any, *, merge: bool) -> None:
        super().__init__()
        self.attention = BlipTextAttention(config)
        self.crossattention = _TwinCrossAttention(config, merge=merge)
        self.intermediate = BlipTextIntermediate(config)
        self.output = BlipTextOutput(config)

    def forward(self, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Map [P, L, C] -> [P, L, C]."""
        x = self.crossattention(self.attention(x)[0], left, right)
        out: Tensor = self.output(self.intermediate(x), x)
        return out


class _TwinEncoder(nn.Module):
    """Only the list of layers; it gives the parameters their names."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        merge_from = getattr(config, "merge_from", MERGE_FROM)
        self.layer = nn.ModuleList(
            _TwinLayer(config, merge=index >= merge_from) for index in range(config.num_hidden_layers)
        )


class _TwinText(nn.Module):
    """Transformers' word embeddings and the layers above."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embeddings = BlipTextEmbeddings(config)
        self.encoder = _TwinEncoder(config)


class HuggingFaceNlvr(nn.Module):
    """BLIP for NLVR2 of transformers' modules, whose attention is eager: all that its BLIP has."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = _TwinText(config.text_config)
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Judge sentences [P, L] of one length over images [2 P, 3, H, W], left and right in turn: logits [P, 2]."""
        seen = self.vision_model(images).last_hidden_state  # [I, N, C]
        left, right = seen[0::2], seen[1::2]
        x = self.text_encoder.embeddings(input_ids=ids)  # [P, L, C]
        for layer in self.text_encoder.encoder.layer:
            x = layer(x, left, right)
        logits: Tensor = self.cls_head(x[:, 0])
        return logits


class HuggingFaceClip(nn.Module):
    """Transformers' CLIPModel; `attention` is eager or sdpa."""

    def __init__(self, config: Any, attention: str) -> None:
        super().__init__()
        config._attn_implementation = attention
        self.clip = CLIPModel(config)

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Compare texts [S, L] with images [I, 3, H, W]: logits [S, I]."""
        logits: Tensor = self.clip(input_ids=ids, pixel_values=images).logits_per_text
        return logits


def share_weights(theirs: nn.Module, ours: PrunedModel) -> nn.Module:
    """Let transformers' model use our parameters, all of them; raises RuntimeError for any that does not fit."""
    state = {key: value for key, value in ours.state_dict().items() if not key.startswith("alignment.")}
    theirs.load_state_dict(state, strict=True, assign=True)
    return theirs.eval()


def build(ours: PrunedModel, attention: str) -> nn.Module:
    """Build transformers' twin of our model, with its weights; only CLIP has another attention than eager."""
    config = type(ours.config).from_dict(ours.config.to_dict())
    with init_empty_weights():  # ours take their place
        twin: Any = HuggingFaceClip(config, attention) if ours.family == "clip" else HuggingFaceNlvr(config)
    if ours.family == "clip":
        share_weights(twin.clip, ours)
    else:
        share_weights(twin, ours)
    return twin.eval()
