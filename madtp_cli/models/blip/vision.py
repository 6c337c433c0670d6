"""BLIP's vision blocks over packed tokens, with the parameter names of HF transformers, and a BLIP of any size.

The modules hold parameters only; `models/tower.py` runs them. They are ours rather than subclasses of HF's because HF's
BLIP has eager attention only, no NLVR2 model and a cross-attention that ignores its mask, and takes seconds to import.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.blip.configuration_blip import BlipVisionConfig

from madtp_cli.attention import Statistics, attend, attend_with_statistics
from madtp_cli.models.activations import gelu
from madtp_cli.tokens import Spans, Tokens


class VisionEmbeddings(nn.Module):
    """Patches, class token and positions."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch)
        self.position_embedding = nn.Parameter(torch.randn(1, (config.image_size // patch) ** 2 + 1, width) * 0.02)

    def forward(self, images: Tensor) -> Tokens:
        """Embed normalised images [I, 3, H, W] as I samples of N + 1 tokens."""
        patches = (
            self.patch_embedding(images.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        )  # [I, N, C]
        x = torch.cat([self.class_embedding.expand(len(images), -1, -1), patches], 1) + self.position_embedding
        # The residual stream runs in the compute type, so that autocast casts weights only, never activations.
        return Tokens.pack(x.to(patches.dtype).flatten(0, 1), Spans.of([x.shape[1]] * len(images)), prefix=1)


class VisionAttention(nn.Module):
    """Fused query, key, value and the output projection."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, spans: Spans, *, statistics: bool) -> tuple[Tensor, Statistics | None]:
        """Self-attend inside spans: [T, C] -> [T, C]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(1)  # [T, H, D] each
        found: Statistics | None = None
        if statistics:
            out, found = attend_with_statistics(q, k, v, spans)
        else:
            out = attend(q, k, v, spans, spans)
        return self.projection(out.flatten(1)), found


class Mlp(nn.Module):
    """The vision block's MLP."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map [T, C] -> [T, C]."""
        return self.fc2(gelu(self.fc1(x)))


class VisionBlock(nn.Module):
    """A pre-norm ViT block."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.self_attn = VisionAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def attend(self, tokens: Tokens, *, statistics: bool) -> tuple[Tokens, Statistics | None]:
        """Run x + attention(norm(x))."""
        out, found = self.self_attn(self.layer_norm1(tokens.x), tokens.spans, statistics=statistics)
        return tokens.with_x(tokens.x + out), found

    def finish(self, tokens: Tokens, context: None) -> Tokens:
        """Run x + mlp(norm(x))."""
        return tokens.with_x(tokens.x + self.mlp(self.layer_norm2(tokens.x)))


class VisionEncoder(nn.Module):
    """Only the list of blocks; it gives the parameters their names."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionBlock(config) for _ in range(config.num_hidden_layers))


class VisionModel(nn.Module):
    """BLIP's image encoder (parameters; models/tower.py runs the blocks)."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
