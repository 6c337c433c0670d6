"""BLIP's blocks: the names and the numbers of HF transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.blip.configuration_blip import BlipConfig

from madtp_cli.models.blip import Side, TwinTextBlock
from madtp_cli.models.nlvr import BlipForNlvr, small_config
from madtp_cli.models.spec import PruningSpec
from madtp_cli.tokens import Spans, Tokens

Make = Callable[[PruningSpec], BlipForNlvr]


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def test_the_vision_tower_is_transformers_own(
    make: Make, spec: PruningSpec, config: BlipConfig, state: dict[str, Tensor], inputs: dict[str, Any]
) -> None:
    """HF's BlipVisionModel takes our tensors by name, all of them, and gives the same states to 1e-5."""
    from transformers import BlipVisionModel

    theirs = BlipVisionModel(config.vision_config).eval()
    theirs.load_state_dict(_below(state, "vision_model."), strict=True)
    with torch.no_grad():
        expected = theirs(pixel_values=inputs["images"]).last_hidden_state
        output = make(replace(spec, strength=0.0))(**inputs)
    torch.testing.assert_close(output.images.x.unflatten(0, (4, -1)), expected, atol=1e-5, rtol=1e-5)


def test_text_parameters_are_named_as_in_transformers(config: BlipConfig, state: dict[str, Tensor]) -> None:
    """Names and shapes of HF's BlipTextModel but for cross-attention, which NLVR2 has twice, and unused buffers."""
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    theirs = {
        key: tuple(value.shape)
        for key, value in BlipTextModel(config.text_config, add_pooling_layer=False).named_parameters()
        if "crossattention" not in key
    }
    ours = {
        key: tuple(value.shape) for key, value in _below(state, "text_encoder.").items() if "crossattention" not in key
    }
    assert ours == theirs


def test_the_text_tower_without_images_is_transformers_own(
    make: Make, spec: PruningSpec, config: BlipConfig, state: dict[str, Tensor]
) -> None:
    """HF's text embeddings and self-attention on one sentence, with the same tensors, to 1e-5."""
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    theirs: Any = BlipTextModel(config.text_config, add_pooling_layer=False).eval()
    theirs.load_state_dict(_below(state, "text_encoder."), strict=False)
    ids = torch.tensor([3, 1, 4, 1, 5])
    text = make(spec).text_encoder
    with torch.no_grad():
        tokens = text.embeddings(ids, Spans.of([5]), torch.float32)
        expected = theirs.embeddings(input_ids=ids[None])
        torch.testing.assert_close(tokens.x, expected[0], atol=1e-5, rtol=1e-5)
        block = text.encoder.layer[0]
        assert isinstance(block, TwinTextBlock)
        attended, _ = block.attend(tokens, statistics=False)
        expected = theirs.encoder.layer[0].attention(expected)[0]
        torch.testing.assert_close(attended.x, expected.view(5, -1), atol=1e-5, rtol=1e-5)


def test_merge_layers_begin_where_the_configuration_says() -> None:
    """Layers 0 and 1 take the mean, 2 and 3 have a merge layer; by default those from 6 on have one."""
    for merge_from, expected in ((2, [False, False, True, True]), (6, [False] * 4)):
        config = small_config(
            image_size=16, vocab_size=5, vision_layers=1, vision_width=8, vision_heads=1, text_layers=4, text_width=8,
            text_heads=1, merge_from=merge_from,
        )  # fmt: skip
        state = BlipForNlvr(config).state_dict()
        found = [f"text_encoder.encoder.layer.{i}.crossattention.output.merge_layer.weight" in state for i in range(4)]
        assert found == expected


def test_a_side_holds_each_chosen_image_once() -> None:
    """By hand: images 3 and 1 of four, chosen in an order with repeats."""
    images = Tokens.pack(torch.arange(10.0)[:, None], Spans.of([2, 3, 1, 4]))
    side = Side.of(images, [3, 3, 1, 3])
    assert side.x.squeeze(1).tolist() == [2, 3, 4, 6, 7, 8, 9]
    assert side.spans == Spans.of([3, 4])
    assert list(side.rows) == [1, 1, 0, 1]


def test_neighbours_that_read_one_image_become_one_query_span() -> None:
    """By hand: sentences of 2, 5, 1 and 3 tokens, the first two about one image."""
    side = Side(torch.zeros(7, 1), Spans.of([3, 4]), [1, 1, 0, 1])
    queries, keys = side.queries(Spans.of([2, 5, 1, 3]))
    assert (queries.starts, queries.lengths) == ((0, 7, 8), (7, 1, 3))
    assert (keys.starts, keys.lengths) == ((3, 0, 3), (4, 3, 4))


def test_cross_attention_probes_only_when_asked(make: Make, spec: PruningSpec, inputs: dict[str, Any]) -> None:
    """No attention is kept without a list to keep it in; with one, a pair of distributions per layer."""
    model = make(spec)
    with torch.no_grad():
        assert model(**inputs).enc_attention == ()
        probed = model(**inputs, probe=True).enc_attention
    assert len(probed) == 3
    for left, right in probed:
        for probability in (left, right):
            assert probability.shape[:2] == (5, 4)
            torch.testing.assert_close(probability.sum(-1), torch.ones(5, 4))


def test_bf16_stays_close(make: Make, spec: PruningSpec, inputs: dict[str, Any]) -> None:
    """Dense logits under autocast within 0.1 of float32's, and the residual stream runs in the compute type."""
    model = make(replace(spec, strength=0.0))
    with torch.no_grad():
        expected = model(**inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            output = model(**inputs)
    assert output.logits.dtype == torch.float32
    assert output.images.x.dtype == output.encoded.dtype == torch.bfloat16
    torch.testing.assert_close(output.logits, expected, atol=0.1, rtol=0)
