"""Writing text with BLIP's decoder: one pass over packed prefixes, and HF's own search around it.

Every step runs the decoder over the whole prefix again; only what it reads is projected once. Answers and captions are
short, so that a cache of the prefix's own keys and values would save little.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from madtp_cli.errors import SourceError
from madtp_cli.models.blip_text import LanguageModel, Side, TextContext
from madtp_cli.models.tower import run_tower
from madtp_cli.tokens import Spans, Tokens


def decode(decoder: LanguageModel, ids: Tensor, lengths: Sequence[int], context: TextContext) -> Tokens:
    """Run the decoder over packed prefixes, ids [T], that read the context's one side."""
    spans = Spans.of(lengths)
    tokens = decoder.bert.embeddings(ids, spans, context.sides[0].x.dtype, causal=True)
    blocks: Any = decoder.bert.encoder.layer
    return run_tower("decoder", blocks, tokens, context).tokens


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
    from transformers import GenerationConfig

    end, filler = special_id(config, "sep_token_id"), special_id(config, "pad_token_id")
    search = GenerationConfig(
        num_beams=beams,
        min_length=min_length,
        max_length=max_length,
        do_sample=False,
        use_cache=False,
        eos_token_id=end,
        pad_token_id=filler,
    )
    samples = torch.arange(len(read.spans), device=read.x.device)
    writer = _writer()(config, decoder, read)
    ids = writer.generate(
        torch.tensor(prompt, device=read.x.device).expand(len(samples), -1), generation_config=search, rows=samples
    )
    written = [row[len(prompt) :] for row in ids.tolist()]
    return [row[: row.index(end)] if end in row else row for row in written]


def special_id(config: Any, name: str) -> int:
    """Return the id of a special token; raises SourceError if the text configuration does not say it."""
    found = getattr(config, name, None)
    if not isinstance(found, int):
        key = {"bos_token_id": "dec_token_id"}.get(name, name)
        raise SourceError(
            f"the checkpoint's text configuration: {name} is {found}; try model.config: {{{key}: the token's id}}"
        )
    return found


@cache
def _writer() -> type[Any]:
    """Define the class that HF's search drives; transformers takes seconds to import, so only here."""
    from transformers import GenerationMixin, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    class Writer(PreTrainedModel, GenerationMixin):
        """Our decoder with the interface of HF's: ids [B, L] and the sample `rows` [B] that each of them reads."""

        def __init__(self, config: Any, decoder: LanguageModel, read: Tokens) -> None:
            super().__init__(config)
            self.decoder = decoder
            self.read = Side.of(read, range(len(read.spans)))
            self.memory: dict[Any, tuple[Tensor, Tensor]] = {}

        def forward(self, input_ids: Tensor, rows: Tensor, use_cache: bool = False, return_dict: bool = True) -> Any:
            """Return the logits that follow each prefix, [B, 1, V]."""
            side = Side(self.read.x, self.read.spans, rows.tolist())
            lengths = [input_ids.shape[1]] * len(input_ids)
            tokens = decode(self.decoder, input_ids.flatten(), lengths, TextContext((side,), memory=self.memory))
            return CausalLMOutput(logits=self.decoder.predict(tokens.last())[:, None])

    return Writer
