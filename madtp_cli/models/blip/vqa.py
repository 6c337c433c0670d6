"""BLIP for visual question answering: a question read over its image, and a decoder that writes or ranks answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.models.blip.configuration_blip import BlipConfig

from madtp_cli.costs import analytic
from madtp_cli.models.base import Inputs, Output, Probe
from madtp_cli.models.blip.generation import decode, generate
from madtp_cli.models.blip.layouts import TIED
from madtp_cli.models.blip.text import LanguageModel, Side, TextContext, TextModel
from madtp_cli.models.blip.vision import VisionModel
from madtp_cli.models.configs import special_id
from madtp_cli.models.image_text import TEXT, ImageTextModel, passed
from madtp_cli.models.language import LABEL_SMOOTHING, answer_losses
from madtp_cli.tokens import Spans, Tokens

# Numbers in the widest tensor of answers that are compared at a time (64 MiB in fp32): a batch's logits would not fit.
COMPARED_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class VqaInputs(Inputs):
    """Questions, each opening with [ENC], over images; and answers to read over their questions, in training.

    answers [sum of answer_lengths], end to end, from [DEC] to [SEP]; answer_index names every answer's question.
    """

    answers: Tensor | None = field(default=None, kw_only=True)
    answer_lengths: Sequence[int] = field(default=(), kw_only=True)
    answer_index: Sequence[int] = field(default=(), kw_only=True)


@dataclass(frozen=True, kw_only=True)
class VqaOutput(Output):
    """What a pass over S questions gives: logits [sum of (answer length - 1), V] are next-token logits of answers.

    questions: the kept tokens of every question, which the decoder reads.
    """

    questions: Tokens


class BlipForVqa(ImageTextModel):
    """The image encoder, the question encoder and the answer decoder, which prunes nothing itself."""

    family = "blip"
    task = "vqa"
    takes = VqaInputs
    tied = TIED

    def __init__(self, config: BlipConfig, **pruning: Any) -> None:
        super().__init__(config, **pruning)
        text = config.text_config
        self.vision_model = VisionModel(config.vision_config)
        self.text_encoder = TextModel(text, config.vision_config.hidden_size)
        self.text_decoder = LanguageModel(text, text.hidden_size)

    def run(self, inputs: VqaInputs) -> VqaOutput:
        """Read questions over images, and the given answers over their questions; probes are the attention of [ENC]."""
        seen, vision = self.encode_images(inputs.images, learn=inputs.learn)
        context = TextContext((Side.of(seen, inputs.image_index),), [] if inputs.probe else None)
        embedded = self.text_encoder.embeddings(inputs.text, Spans.of(inputs.text_lengths), seen.x.dtype)
        words = self.run_tower(TEXT, self.text_encoder.encoder.layer, embedded, context, learn=inputs.learn)
        if inputs.answers is None:
            logits = words.tokens.x.new_zeros(0, self.config.text_config.vocab_size, dtype=torch.float32)
        else:
            logits = self._answer_logits(words.tokens, inputs.answers, inputs.answer_lengths, inputs.answer_index)
        rows = torch.tensor(inputs.image_index, device=seen.x.device)
        return VqaOutput(
            logits=logits,
            encoded=words.tokens.first(),
            **passed(seen, vision, words, inputs),
            probes=tuple(Probe(probability, rows) for (probability,) in context.probe or ()),
            questions=words.tokens,
        )

    @torch.no_grad()
    def rank(
        self,
        output: VqaOutput,
        candidates: Tensor,
        lengths: Sequence[int],
        k: int,
        *,
        label_smoothing: float = LABEL_SMOOTHING,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose among A candidate answers, end to end as in `forward`, as BLIP does.

        The k whose first word is likeliest are compared by the log-probability of all their tokens (smoothed, as BLIP's
        decoder is in training). Returns the best candidate of every question [S], the log-probabilities and the ids of
        those compared [S, k].
        """
        spans, parts = Spans.of(lengths), candidates.split(list(lengths))
        questions = len(output.questions.spans)
        opening = self._decode(output.questions, candidates[:1].repeat(questions), [1] * questions, range(questions))
        first_words = candidates[spans.start_index(candidates.device) + 1]  # [A]
        # In float32 the probabilities tie as BLIP's do, and ties are broken by topk alone.
        ids = opening.softmax(-1)[:, first_words].topk(min(k, len(lengths)), 1).indices  # [S, k]
        rows = ids.tolist()
        text, compared = self.config.text_config, []
        most = COMPARED_ELEMENTS // max(text.vocab_size, text.intermediate_size)  # tokens
        for some in Spans.of([sum(lengths[c] for c in row) for row in rows]).parts(most):
            chosen = [c for row in rows[some] for c in row]
            index = [question for question in range(questions)[some] for _ in rows[question]]
            answers, sizes = torch.cat([parts[c] for c in chosen]), [lengths[c] for c in chosen]
            logits = self._answer_logits(output.questions, answers, sizes, index)
            compared.append(-answer_losses(logits, answers, sizes, label_smoothing=label_smoothing))
        scores = torch.cat(compared).unflatten(0, ids.shape)  # [S, k]
        return ids.gather(1, scores.argmax(1, keepdim=True)).squeeze(1), scores, ids

    def generate(
        self, output: VqaOutput, *, beams: int = 3, min_length: int = 1, max_length: int = 10
    ) -> list[list[int]]:
        """Write an answer to every question: its ids without [DEC] and [SEP]; lengths count [DEC]."""
        text = self.config.text_config
        start = special_id(text, "bos_token_id")
        return generate(
            self.text_decoder,
            text,
            output.questions,
            [start],
            beams=beams,
            min_length=min_length,
            max_length=max_length,
        )

    def decoder_macs(self, question_tokens: Sequence[int], tokens: Sequence[int]) -> analytic.Macs:
        """Return what decoding costs, `tokens` at once over a question's kept tokens, by module path: int64 [A] each.

        An answer of n tokens takes n - 1: nothing follows its last.
        """
        text = self.config.text_config
        layers = [analytic.layer_counts(tokens, tokens)] * text.num_hidden_layers
        shape = analytic.TowerShape("text_decoder.bert.encoder.layer", text.hidden_size, text.intermediate_size)
        read = [torch.tensor(question_tokens)]
        macs = analytic.text_layers(shape, layers, read, image_width=text.hidden_size, alignment_tokens=0)
        return macs | analytic.language_head(
            "text_decoder.cls", torch.tensor(tokens), text.hidden_size, text.vocab_size
        )

    def _answer_logits(
        self, questions: Tokens, answers: Tensor, lengths: Sequence[int], index: Sequence[int]
    ) -> Tensor:
        """Return logits of what follows every token but an answer's last: [sum of (length - 1), V]."""
        # Nothing follows the last token, and no token looks at it: it need not be decoded.
        opened = torch.cat([part[:-1] for part in answers.split(list(lengths))])
        return self._decode(questions, opened, [length - 1 for length in lengths], index)

    def _decode(self, questions: Tokens, ids: Tensor, lengths: Sequence[int], index: Sequence[int]) -> Tensor:
        """Return logits of what follows every token: [T, V]."""
        context = TextContext((Side.of(questions, index),))
        return self.text_decoder.predict(decode(self.text_decoder, ids, lengths, context).x)

    def _text_macs(
        self, counts: Sequence[analytic.LayerCounts], image_tokens: Tensor, text_lengths: Tensor
    ) -> analytic.Macs:
        text = self.config.text_config
        return analytic.text_layers(
            analytic.TowerShape("text_encoder.encoder.layer", text.hidden_size, text.intermediate_size),
            counts,
            image_tokens.unbind(1),
            image_width=self.config.vision_config.hidden_size,
            alignment_tokens=self.alignment_tokens,
        )
