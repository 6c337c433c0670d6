"""BLIP's text blocks over packed tokens, with the parameter names of HF transformers: one image, two, or none.

The modules hold parameters only; `models/tower.py` runs them. A sentence reads the span of its own image, so that
nothing padded is ever read (HF's cross-attention ignores its mask), however ragged pruning leaves the images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn
from transformers.models.blip.configuration_blip import BlipTextConfig

from madtp_cli.attention import Statistics, attend, attend_with_statistics, probabilities
from madtp_cli.models.activations import gelu
from madtp_cli.models.tower import part_tokens
from madtp_cli.tokens import Spans, Tokens, gather


class TextEmbeddings(nn.Module):
    """Words and positions, normalised."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor, spans: Spans, dtype: torch.dtype, *, causal: bool = False, first: int = 0) -> Tokens:
        """Embed packed ids [T]; those that open a span are at the position `first`."""
        position = first + spans.place(ids.device)
        x = self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings(position))
        return Tokens.pack(x.to(dtype), spans, causal=causal, prefix=1)


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


@dataclass(frozen=True)
class TextContext:
    """What text blocks read: an image (or a question) per side; no side leaves cross-attention out.

    probe: where given, collects per layer the attention that each side gets from every sample's first token, or from
    all tokens. memory: where given, keeps each layer's keys and values of unchanging sides, for decoding step by step.
    """

    sides: tuple[Side, ...] = ()
    probe: list[tuple[Tensor, ...]] | None = field(default=None)
    probe_all: bool = False
    memory: dict[Projections, tuple[Tensor, Tensor]] | None = field(default=None)

    def read(self, part: Projections, side: Side, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """Attend from tokens [T, C] to a side: what was read [T, C], and the probabilities [Q, H, N] if probed."""
        q = part.split(part.query(tokens.x))
        queries, keys = side.queries(tokens.spans)
        once_in_order = keys == side.spans
        if once_in_order and self.probe is None and self.memory is None and len(side.x) > part_tokens(side.x):
            return torch.cat(list(_read_in_parts(part, side, q, queries))), None
        k, v = self._keys_and_values(part, side)
        out = attend(q, k, v, queries, keys).flatten(1)
        if self.probe is None:
            return out, None
        if self.probe_all:
            return out, probabilities(q, k, queries, keys)
        first = gather(q, tokens.spans.start_index(q.device))
        return out, probabilities(first, k, *side.queries(Spans.of([1] * len(first))))

    def _keys_and_values(self, part: Projections, side: Side) -> tuple[Tensor, Tensor]:
        if self.memory is not None and part in self.memory:
            return self.memory[part]
        found = part.split(part.key(side.x)), part.split(part.value(side.x))
        if self.memory is not None:
            self.memory[part] = found
        return found


def _read_in_parts(part: Projections, side: Side, q: Tensor, queries: Spans) -> Iterator[Tensor]:
    """Attend to as many images at a time as fit a CPU's caches, keys and values included: [t, C] each."""
    for rows in side.spans.parts(part_tokens(side.x)):
        mine, theirs = Spans.of(queries.lengths[rows]), Spans.of(side.spans.lengths[rows])
        start, begin = queries.starts[rows][0], side.spans.starts[rows][0]
        x = side.x[begin : begin + theirs.total]
        k, v = part.split(part.key(x)), part.split(part.value(x))
        yield attend(q[start : start + mine.total], k, v, mine, theirs).flatten(1)


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

    def forward(self, tokens: Tokens, *, statistics: bool) -> tuple[Tensor, Statistics | None]:
        """Self-attend inside spans: [T, C] -> [T, C]."""
        part, spans, causal = self.self, tokens.spans, tokens.causal
        q, k, v = (part.split(linear(tokens.x)) for linear in (part.query, part.key, part.value))
        found: Statistics | None = None
        if statistics:
            out, found = attend_with_statistics(q, k, v, spans, causal=causal)
        else:
            out = attend(q, k, v, spans, spans, causal=causal)
        return self.output(out.flatten(1), tokens.x), found


class CrossAttention(nn.Module):
    """Read one image, or leave the tokens as they are where there is none."""

    def __init__(self, config: BlipTextConfig, key_width: int) -> None:
        super().__init__()
        self.self = Projections(config, key_width)
        self.output = Output(config.hidden_size, config)

    def forward(self, tokens: Tokens, context: TextContext) -> Tensor:
        """Read the side: [T, C] -> [T, C]."""
        if not context.sides:
            return tokens.x
        out, probability = context.read(self.self, context.sides[0], tokens)
        if context.probe is not None and probability is not None:
            context.probe.append((probability,))
        return self.output(out, tokens.x)


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
        parts = (self.self0, self.self1)
        (left, seen), (right, seen_right) = (
            context.read(part, side, tokens) for part, side in zip(parts, context.sides, strict=True)
        )
        if context.probe is not None and seen is not None and seen_right is not None:
            context.probe.append((seen, seen_right))
        return self.output(left, right, tokens.x)


class Intermediate(nn.Module):
    """The first half of BERT's feed-forward."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map [T, C] -> [T, M]."""
        return gelu(self.dense(x))


class TextBlock(nn.Module):
    """A BERT block around any cross-attention."""

    def __init__(self, config: BlipTextConfig, crossattention: CrossAttention | TwinCrossAttention) -> None:
        super().__init__()
        self.attention = TextSelfAttention(config)
        self.crossattention = crossattention
        self.intermediate = Intermediate(config)
        self.output = Output(config.intermediate_size, config)

    def attend(self, tokens: Tokens, *, statistics: bool) -> tuple[Tokens, Statistics | None]:
        """Run the self-attention."""
        x, found = self.attention(tokens, statistics=statistics)
        return tokens.with_x(x), found

    def finish(self, tokens: Tokens, context: TextContext) -> Tokens:
        """Run cross-attention and feed-forward."""
        x = self.crossattention(tokens, context)
        return tokens.with_x(self.output(self.intermediate(x), x))


class TextEncoder(nn.Module):
    """Only the list of blocks; it gives the parameters their names."""

    def __init__(self, blocks: Iterable[TextBlock]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(blocks)


class TextModel(nn.Module):
    """BLIP's text encoder, whose tokens read one image (parameters; models/tower.py runs the blocks)."""

    def __init__(self, config: BlipTextConfig, key_width: int) -> None:
        """Build for sides `key_width` wide."""
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = TextEncoder(
            TextBlock(config, CrossAttention(config, key_width)) for _ in range(config.num_hidden_layers)
        )


class TwinTextModel(nn.Module):
    """BLIP's text encoder for NLVR2, whose tokens read two images (parameters; models/tower.py runs the blocks)."""

    def __init__(self, config: BlipTextConfig, merge_from: int) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = TextEncoder(
            TextBlock(config, TwinCrossAttention(config, merge=index >= merge_from))
            for index in range(config.num_hidden_layers)
        )


class Transform(nn.Module):
    """The language head's map, activation and norm."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map [T, C] -> [T, C]."""
        return self.LayerNorm(gelu(self.dense(x)))


class Predictions(nn.Module):
    """The language head; its last map is the word embeddings'."""

    def __init__(self, config: BlipTextConfig, words: nn.Embedding) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.transform = Transform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        # Tied as in HF's and BLIP's own: one parameter each, under two names in the state dict.
        self.decoder.weight = words.weight
        self.decoder.bias = self.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return next-token logits: [T, C] -> [T, V] float32."""
        return self.decoder(self.transform(x)).float()


class LanguageHead(nn.Module):
    """Only a name."""

    def __init__(self, config: BlipTextConfig, words: nn.Embedding) -> None:
        super().__init__()
        self.predictions = Predictions(config, words)


class LanguageModel(nn.Module):
    """BLIP's text decoder, which writes about what it reads (parameters; models/tower.py runs the blocks)."""

    def __init__(self, config: BlipTextConfig, key_width: int) -> None:
        super().__init__()
        self.bert = TextModel(config, key_width)
        self.cls = LanguageHead(config, self.bert.embeddings.word_embeddings)

    def predict(self, states: Tensor) -> Tensor:
        """Return next-token logits of states [T, C]: [T, V] float32."""
        return self.cls.predictions(states)
