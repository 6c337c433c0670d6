"""Training-only heads: each loss is the cross-entropy of its own labels."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from madtp_cli.engine.training.auxiliary import AuxiliaryHeads
from madtp_cli.models.base import Output
from madtp_cli.tokens import Spans, Tokens

WIDTH, TEXT_WIDTH, IMAGES, PATCHES, SENTENCES = 4, 6, 2, 3, 5
WEIGHTS = {"text_counts": 0.5, "patches": 2.0, "image_counts": 1.0}


def _output() -> Output:
    torch.manual_seed(0)
    count = PATCHES + 1
    return Output(
        logits=torch.zeros(SENTENCES, 2),
        encoded=torch.randn(SENTENCES, TEXT_WIDTH),
        images=Tokens.pack(torch.randn(IMAGES * count, WIDTH), Spans.of([count] * IMAGES), prefix=1),
        traces={},
        text_lengths=[1] * SENTENCES,
        image_index=[(0, 1)] * SENTENCES,
    )


def _labels() -> dict[str, torch.Tensor]:
    return {
        "text_counts": torch.tensor([[0, 6], [1, -1], [2, 3], [-1, -1], [5, 4]]),
        "patches": torch.tensor([[0, 18, 3], [7, 0, 1]]),
        "image_counts": torch.arange(18).view(2, 9) % 7,
    }


def test_a_weight_of_zero_builds_no_head() -> None:
    """Only the head asked for has parameters and a loss."""
    heads = AuxiliaryHeads(WIDTH, TEXT_WIDTH, {"text_counts": 1.0, "patches": 0.0, "image_counts": 0.0})
    assert {name.split(".")[1] for name, _ in heads.named_parameters()} == {"text_counts"}
    assert set(heads(_output(), _labels())) == {"text_counts"}


def test_undecided_heads_cost_the_log_of_their_classes() -> None:
    """Heads of zeros: weight times log 7, log 19 and log 7."""
    heads = AuxiliaryHeads(WIDTH, TEXT_WIDTH, WEIGHTS)
    for parameter in heads.parameters():
        nn.init.zeros_(parameter)
    losses = {name: loss.item() for name, loss in heads(_output(), _labels()).items()}
    expected = {"text_counts": 0.5 * math.log(7), "patches": 2 * math.log(19), "image_counts": math.log(7)}
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, atol=1e-5, rtol=0)


def test_each_head_reads_its_own_states() -> None:
    """Cross-entropy by plain loops over [ENC] states, patches and class tokens; labels of -1 do not count."""
    heads, output, labels = AuxiliaryHeads(WIDTH, TEXT_WIDTH, WEIGHTS), _output(), _labels()
    losses = heads(output, labels)
    x = output.images.x.view(IMAGES, PATCHES + 1, WIDTH)
    linear = {name: heads.get_submodule(f"heads.{name}") for name in WEIGHTS}
    text = [
        cross_entropy(linear["text_counts"](output.encoded[s])[7 * side : 7 * side + 7], labels["text_counts"][s, side])
        for s in range(SENTENCES)
        for side in (0, 1)
        if labels["text_counts"][s, side] >= 0
    ]
    patches = [
        cross_entropy(linear["patches"](x[i, p + 1]), labels["patches"][i, p])
        for i in range(IMAGES)
        for p in range(PATCHES)
    ]
    counts = [
        cross_entropy(linear["image_counts"](x[i, 0])[7 * c : 7 * c + 7], labels["image_counts"][i, c])
        for i in range(IMAGES)
        for c in range(9)
    ]
    for name, parts in (("text_counts", text), ("patches", patches), ("image_counts", counts)):
        torch.testing.assert_close(losses[name], WEIGHTS[name] * torch.stack(parts).mean())
