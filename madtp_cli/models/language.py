"""What written text is worth to a decoder: losses of captions and answers, end to end without padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from madtp_cli.tokens import Spans

LABEL_SMOOTHING = 0.1  # BLIP's decoder computes its loss with it, in training and to rank answers


def answer_losses(logits: Tensor, answers: Tensor, lengths: Sequence[int], *, label_smoothing: float = 0.0) -> Tensor:
    """Return every answer's -log-probability, summed over its tokens: [A].

    logits as in VqaOutput, answers and lengths as given to `forward`.
    """
    targets = torch.cat([part[1:] for part in answers.split(list(lengths))])
    losses = cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    return Spans.of([length - 1 for length in lengths]).sum(losses)


def caption_loss(
    logits: Tensor, text: Tensor, text_lengths: Sequence[int], prompt_length: int, *, label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean -log-probability of the tokens after the prompt, over all captions.

    logits [T, V], text [T] and text_lengths as given to `forward`; prompt_length counts [DEC].
    """
    spans = Spans.of(text_lengths)
    learned = (spans.place(text.device) >= prompt_length).nonzero().squeeze(1)
    return cross_entropy(logits[learned - 1], text[learned], label_smoothing=label_smoothing)
