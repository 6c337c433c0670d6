"""Costs and kept tokens summed over batches: by hand on a model of cardboard, and on a real one."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from madtp_cli.data.shapes_single import ShapesRetrieval
from madtp_cli.engine.evaluation.meter import CostMeter, layer_tokens, tokens_kept
from madtp_cli.engine.tasks.retrieval import Retrieval
from madtp_cli.results import LayerTokens
from tests.engine.tasks.tiny_shapes import CPU, PRUNED, make_model


class Cardboard:
    """A model whose samples cost what the output says: two modules, a dense cost of 10 for each token of text."""

    sites = (SimpleNamespace(name="vision"), SimpleNamespace(name="text"))

    def macs(self, output: Any) -> dict[str, torch.Tensor]:
        return {"vision": torch.tensor(output.vision_macs), "text": torch.tensor(output.text_macs)}

    def dense_macs(self, text_lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        return {"all": 10 * torch.tensor(text_lengths)}


def output(vision_macs: list[int], text_macs: list[int], lengths: list[int], **leaving: list[list[int]]) -> Any:
    """Make an output with the tokens leaving each layer of each tower; each was entered by one more of each."""
    traces = {
        tower: tuple(
            SimpleNamespace(
                site=tower, layer=row, leaving=kept, spans=SimpleNamespace(lengths=[tokens + 1 for tokens in kept])
            )
            for row, kept in enumerate(layers)
        )
        for tower, layers in {"vision": [], "text": [], **leaving}.items()
    }
    return SimpleNamespace(vision_macs=vision_macs, text_macs=text_macs, text_lengths=lengths, traces=traces)


def test_batches_add_up() -> None:
    """Three samples in two batches: 3 + 1, 4 + 2 and 5 + 3 of 20, 30 and 50; 10 and 5 tokens entered at most."""
    meter, model = CostMeter(), Cardboard()
    first = output([3, 4], [1, 2], [2, 3], vision=[[9, 7], [5, 3]], text=[[2, 3]])
    assert meter.add(model, first) == [4, 6]  # type: ignore[arg-type]
    assert meter.add(model, output([5], [3], [5], vision=[[8], [1]], text=[[4]])) == [8]  # type: ignore[arg-type]
    assert (meter.macs, meter.dense_macs) == ([4, 6, 8], [20, 30, 50])
    assert meter.modules == {"vision": 12, "text": 6}
    assert meter.gmacs == pytest.approx(6e-9)
    assert meter.dense_gmacs == pytest.approx(100e-9 / 3)
    assert meter.reduction == pytest.approx(0.82)
    assert meter.layers == (
        LayerTokens(tower="vision", layer=0, tokens_mean=8.0, tokens_min=7, tokens_max=9, tokens_entered=10),
        LayerTokens(tower="vision", layer=1, tokens_mean=3.0, tokens_min=1, tokens_max=5, tokens_entered=10),
        LayerTokens(tower="text", layer=0, tokens_mean=3.0, tokens_min=2, tokens_max=4, tokens_entered=5),
    )


def test_no_layers_leave_nothing_to_summarise() -> None:
    assert layer_tokens({}) == ()


@pytest.mark.parametrize("kind", [("blip", "retrieval"), ("clip", "retrieval")], ids=["blip", "clip"])
def test_a_text_pays_for_its_image_and_its_words(kind: tuple[str, str]) -> None:
    """Whatever the batches are; the modules' sums are the samples' sum, in whole numbers."""
    model, task, data = make_model(*kind, spec=PRUNED), Retrieval(lambda *scores: {}), ShapesRetrieval("test", 24)
    whole, parts = CostMeter(), CostMeter()
    with torch.inference_mode():
        whole.add(model, task.forward(model, data.batch(0, 9), CPU))
        for start, size in ((0, 1), (1, 5), (6, 3)):
            parts.add(model, task.forward(model, data.batch(start, size), CPU))
    assert (whole.macs, whole.dense_macs, whole.modules) == (parts.macs, parts.dense_macs, parts.modules)
    assert sum(whole.modules.values()) == sum(whole.macs)
    assert all(0 < cost < dense for cost, dense in zip(whole.macs, whole.dense_macs, strict=True))
    assert len({(layer.tower, layer.layer) for layer in whole.layers}) == 4


def test_tokens_kept_are_shares_of_what_the_dense_model_keeps() -> None:
    """By hand: 8 and 4 of 10 tokens leave two layers, 12 of 20; of a tower that prunes nothing all of them."""
    kept = layer_tokens({("vision", 0): [10, 6], ("vision", 1): [4, 4], ("text", 0): [5, 7]})
    dense = layer_tokens({("vision", 0): [10, 10], ("vision", 1): [10, 10], ("text", 0): [5, 7]})
    assert tokens_kept(kept, dense) == {"vision": 0.6, "text": 1.0}
