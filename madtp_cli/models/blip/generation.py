"""Writing text with BLIP's decoder: a pass over packed texts, and HF's own search around it.

The search's first pass reads the prompt, every other one only the newest token of each beam: keys and values of what
came before stay in transformers' cache, whose rows follow the beams. What is read is projected once per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from madtp_cli.attention import Statistics, attend
from madtp_cli.models.blip.text import LanguageModel, Side, TextBlock, TextContext
from madtp_cli.models.configs import special_id
from madtp_cli.models.tower import run_tower
from madtp_cli.tokens import Spans, Tokens


def decode(
    decoder: LanguageModel, ids: Tensor, lengths: Sequence[int], context: TextContext, past: Any = None
) -> Tokens:
    """Run the decoder over packed texts, ids [T], that read the context's one side.

    With a `past`, transformers' cache of the same texts, ids go on where it ends and are added to it. Texts are then
    equally long; where the cache is not empty, one id of each is new. Raises ValueError for others.
    """
    spans, before = Spans.of(lengths), 0
    blocks: Any = decoder.bert.encoder.layer
    if past is not None:
        before = past.get_seq_length()
        if not spans.equal or (before and spans.longest > 1):
            raise ValueError(f"a past of {before} tokens goes on with texts of one length, 1 behind a past: {lengths}")
        seen = Spans.of([before + spans.longest] * len(spans))
        blocks = [Recalling(block, layer, past, seen) for layer, block in enumerate(blocks)]
    # A single new token sees all of its text.
    tokens = decoder.bert.embeddings(ids, spans, context.sides[0].x.dtype, causal=before == 0, first=before)
    return run_tower("decoder", blocks, tokens, context).tokens


@dataclass(frozen=True)
class Recalling:
    """A decoder's block whose new tokens also see the older ones of their text.

    past: transformers' cache; keys and values of B texts of L tokens lie there as those of one wide head, [B, 1, L, C],
    which flattened are the spans `seen`, end to end.
    """

    block: TextBlock
    layer: int
    past: Any
    seen: Spans

    def attend(self, tokens: Tokens, *, statistics: bool) -> tuple[Tokens, Statistics | None]:
        """Run the self-attention; the decoder does not prune, so that nobody asks for statistics."""
        assert not statistics
        part, texts = self.block.attention.self, len(tokens.spans)
        new = (linear(tokens.x).unflatten(0, (texts, 1, -1)) for linear in (part.key, part.value))  # [B, 1, n, C]
        k, v = self.past.update(*new, self.layer)  # [B, 1, L, C]
        q, k, v = (part.split(t) for t in (part.query(tokens.x), k.flatten(0, 2), v.flatten(0, 2)))
        out = attend(q, k, v, tokens.spans, self.seen, causal=tokens.causal).flatten(1)
        return tokens.with_x(self.block.attention.output(out, tokens.x)), None

    def finish(self, tokens: Tokens, context: TextContext) -> Tokens:
        """Run cross-attention and feed-forward."""
        return self.block.finish(tokens, context)


def generate(
    decoder: LanguageModel,
    config: Any,
    read: Tokens,
    prompt: Sequence[int],
    *,
    beams: int,
    min_length: int,
    max_length: int,
) -> list[list[int]]:
    """Write a text about each of S samples read, greedily (one beam) or by beam search, as HF's `generate` does.

    config is the text configuration; lengths count the prompt. Returns what follows the prompt, without [SEP].
    """
    from transformers import DynamicCache, GenerationConfig

    end, filler = special_id(config, "sep_token_id"), special_id(config, "pad_token_id")
    search = GenerationConfig(
        num_beams=beams,
        min_length=min_length,
        max_length=max_length,
        do_sample=False,
        use_cache=True,
        eos_token_id=end,
        pad_token_id=filler,
    )
    samples = torch.arange(len(read.spans), device=read.x.device)
    writer = _writer()(config, decoder, read)
    prompts = torch.tensor(prompt, device=read.x.device).expand(len(samples), -1)
    # Handed over, because what transformers makes by itself depends on its version.
    ids = writer.generate(prompts, generation_config=search, rows=samples, past_key_values=DynamicCache())
    written = [row[len(prompt) :] for row in ids.tolist()]
    return [row[: row.index(end)] if end in row else row for row in written]


@cache
def _writer() -> type[Any]:
    """Define the class that HF's search drives; transformers takes seconds to import, so only here."""
    from transformers import GenerationMixin, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutputWithPast

    class Writer(PreTrainedModel, GenerationMixin):
        """Our decoder with the interface of HF's: ids [B, L] and the sample `rows` [B] that each of them reads."""

        def __init__(self, config: Any, decoder: LanguageModel, read: Tokens) -> None:
            super().__init__(config)
            self.decoder = decoder
            self.read = read
            self.memory: dict[Any, tuple[Tensor, Tensor]] = {}

        def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
            """Say what the next pass is about: the ids that are not in the cache yet."""
            past = kwargs["past_key_values"]
            return {"input_ids": input_ids[:, past.get_seq_length() :], "rows": kwargs["rows"], "past_key_values": past}

        def forward(self, input_ids: Tensor, rows: Tensor, past_key_values: Any, return_dict: bool = True) -> Any:
            """Return the logits that follow each text, [B, 1, V]; input_ids [B, n] are what is new of it."""
            context = TextContext((Side(self.read.x, self.read.spans, rows.tolist()),), memory=self.memory)
            lengths = [input_ids.shape[1]] * len(input_ids)
            tokens = decode(self.decoder, input_ids.flatten(), lengths, context, past_key_values)
            logits = self.decoder.predict(tokens.last())[:, None]
            return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    return Writer
