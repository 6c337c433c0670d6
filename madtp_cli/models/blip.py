"""BLIP's blocks over packed tokens, with the parameter names of HF transformers.

The modules hold parameters only; `models/tower.py` runs them. They are ours rather than subclasses of HF's because HF's
BLIP has eager attention only, no NLVR2 model and a cross-attention that ignores its mask, and takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig

from madtp_cli.attention import Statistics, attend, attend_with_statistics, attention_of_rows
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
        return Tokens.pack(x.to(patches.dtype).flatten(0, 1), Spans.of([x.shape[1]] * len(images)))


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


class TextEmbeddings(nn.Module):
    """Words and positions, normalised."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor, spans: Spans, dtype: torch.dtype) -> Tokens:
        """Embed packed ids [T]."""
        position = torch.arange(spans.total, device=ids.device) - spans.spread(spans.start_index(ids.device))
        x = self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings(position))
        return Tokens.pack(x.to(dtype), spans)


@dataclass(frozen=True)
class Side:
    """The images one cross-attention looks at: states x [T, C], their spans, and the row that each sentence reads."""

    x: Tensor
    spans: Spans
    rows: Sequence[int]

    @classmethod
    def of(cls, images: Tokens, chosen: Sequence[int]) -> Side:
        """Gather the images that sentences chose, each once and in order."""
        used = sorted(set(chosen))
        row_of = {image: row for row, image in enumerate(used)}
        picked = images.spans.pick(used)
        x = torch.cat(
            [images.x[start : start + length] for start, length in zip(picked.starts, picked.lengths, strict=True)]
        )
        return cls(x, Spans.of(picked.lengths), [row_of[image] for image in chosen])

    def queries(self, text: Spans) -> tuple[Spans, Spans]:
        """Pair text spans with image spans; neighbouring sentences that read one image become one long query span."""
        starts, lengths, rows = [], [], []
        sentence = 0
        for row, group in groupby(self.rows):
            count = len(list(group))
            starts.append(text.starts[sentence])
            lengths.append(sum(text.lengths[sentence : sentence + count]))
            rows.append(row)
            sentence += count
        return Spans(tuple(starts), tuple(lengths)), self.spans.pick(rows)


@dataclass(frozen=True)
class TextContext:
    """What text blocks read: left and right images; `probe` collects, per layer and side, the attention of [ENC]."""

    sides: tuple[Side, Side]
    probe: list[tuple[Tensor, Tensor]] | None = field(default=None)


class Projections(nn.Module):
    """Query, key and value of BERT's attention."""

    def __init__(self, config: BlipTextConfig, key_width: int) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(key_width, config.hidden_size)
        self.value = nn.Linear(key_width, config.hidden_size)

    def split(self, x: Tensor) -> Tensor:
        """Cut [T, C] into heads [T, H, D]."""
        return x.unflatten(-1, (self.heads, -1))


class Output(nn.Module):
    """A dense map, the residual and the norm."""

    def __init__(self, width: int, config: BlipTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Map [T, width] -> [T, C]."""
        return self.LayerNorm(self.dense(x) + residual)


class TextSelfAttention(nn.Module):
    """BERT's self-attention, post-norm."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.self = Projections(config, config.hidden_size)
        self.output = Output(config.hidden_size, config)

    def forward(self, x: Tensor, spans: Spans, *, statistics: bool) -> tuple[Tensor, Statistics | None]:
        """Self-attend inside spans: [T, C] -> [T, C]."""
        part = self.self
        q, k, v = (part.split(linear(x)) for linear in (part.query, part.key, part.value))
        found: Statistics | None = None
        if statistics:
            out, found = attend_with_statistics(q, k, v, spans)
        else:
            out = attend(q, k, v, spans, spans)
        return self.output(out.flatten(1), x), found


class TwinOutput(nn.Module):
    """Joins the two images' cross-attention: their mean, or a merge layer in the deeper blocks."""

    def __init__(self, config: BlipTextConfig, *, merge: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.dense0 = nn.Linear(width, width)
        self.dense1 = nn.Linear(width, width)
        self.merge_layer = nn.Linear(2 * width, width) if merge else None
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, left: Tensor, right: Tensor, residual: Tensor) -> Tensor:
        """Join two [T, C]."""
        left, right = self.dense0(left), self.dense1(right)
        joined = (left + right) / 2 if self.merge_layer is None else self.merge_layer(torch.cat([left, right], -1))
        return self.LayerNorm(joined + residual)


class TwinCrossAttention(nn.Module):
    """NLVR2's cross-attention: one set of projections per image of the pair."""

    def __init__(self, config: BlipTextConfig, *, merge: bool) -> None:
        super().__init__()
        self.self0 = Projections(config, config.encoder_hidden_size)
        self.self1 = Projections(config, config.encoder_hidden_size)
        self.output = TwinOutput(config, merge=merge)

    def forward(self, tokens: Tokens, context: TextContext) -> Tensor:
        """Read both images: [T, C] -> [T, C]."""
        outs, probes = [], []
        for part, side in zip((self.self0, self.self1), context.sides, strict=True):
            q = part.split(part.query(tokens.x))
            k, v = part.split(part.key(side.x)), part.split(part.value(side.x))
            queries, keys = side.queries(tokens.spans)
            outs.append(attend(q, k, v, queries, keys).flatten(1))
            if context.probe is not None:
                encoded = q[tokens.spans.start_index(q.device)]  # [S, H, D]
                probes.append(attention_of_rows(encoded, k, side.spans.pick(side.rows)))
        if context.probe is not None:
            context.probe.append((probes[0], probes[1]))
        return self.output(*outs, tokens.x)


class Intermediate(nn.Module):
    """The first half of BERT's feed-forward."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map [T, C] -> [T, M]."""
        return gelu(self.dense(x))


class TwinTextBlock(nn.Module):
    """A BERT block that reads two images."""

    def __init__(self, config: BlipTextConfig, *, merge: bool) -> None:
        super().__init__()
        self.attention = TextSelfAttention(config)
        self.crossattention = TwinCrossAttention(config, merge=merge)
        self.intermediate = Intermediate(config)
        self.output = Output(config.intermediate_size, config)

    def attend(self, tokens: Tokens, *, statistics: bool) -> tuple[Tokens, Statistics | None]:
        """Run the self-attention."""
        x, found = self.attention(tokens.x, tokens.spans, statistics=statistics)
        return tokens.with_x(x), found

    def finish(self, tokens: Tokens, context: TextContext) -> Tokens:
        """Run cross-attention and feed-forward."""
        x = self.crossattention(tokens, context)
        return tokens.with_x(self.output(self.intermediate(x), x))


class TwinTextEncoder(nn.Module):
    """Only the list of blocks; it gives the parameters their names."""

    def __init__(self, config: BlipTextConfig, merge_from: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            TwinTextBlock(config, merge=index >= merge_from) for index in range(config.num_hidden_layers)
        )


class TwinTextModel(nn.Module):
    """BLIP's image-grounded text encoder for NLVR2 (parameters; models/tower.py runs the blocks)."""

    def __init__(self, config: BlipTextConfig, merge_from: int) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = TwinTextEncoder(config, merge_from)
