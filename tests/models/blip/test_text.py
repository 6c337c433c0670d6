"""BLIP's text blocks: the names and the numbers of HF transformers' own; who reads what."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.blip.configuration_blip import BlipConfig

from madtp_cli.attention import attend
from madtp_cli.models import tower
from madtp_cli.models.blip import text as blip_text
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.blip.generation import decode
from madtp_cli.models.blip.nlvr import BlipForNlvr
from madtp_cli.models.blip.text import LanguageModel, Side, TextBlock, TextContext
from madtp_cli.models.spec import PruningSpec
from madtp_cli.tokens import Spans, Tokens
from tests.models.blip_tiny import CONFIG

Make = Callable[[PruningSpec], BlipForNlvr]


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


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
        assert isinstance(block, TextBlock)
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
    images = Tokens.pack(torch.arange(10.0)[:, None], Spans.of([2, 3, 1, 4]), prefix=1)
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
        assert model(**inputs).probes == ()
        probed = model(**inputs, probe=True).probes
    assert len(probed) == 2 * 3
    for place, probe in enumerate(probed):
        assert probe.image.tolist() == [pair[place % 2] for pair in inputs["image_index"]]
        assert probe.probability.shape[:2] == (5, 4)
        torch.testing.assert_close(probe.probability.sum(-1), torch.ones(5, 4))


def _decoder() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(CONFIG.text_config, 32).eval()


def test_the_language_head_is_tied_to_the_words() -> None:
    """HF's names, all of them; the last map and its bias are the words' and the head's own parameter."""
    from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

    decoder = _decoder()
    theirs = BlipTextLMHeadModel(CONFIG.text_config)
    assert set(decoder.state_dict()) == set(theirs.state_dict())
    assert {name for name, _ in decoder.named_parameters()} == {name for name, _ in theirs.named_parameters()}
    predictions = decoder.cls.predictions
    assert predictions.decoder.weight is decoder.bert.embeddings.word_embeddings.weight
    assert predictions.decoder.bias is predictions.bias
    moved = copy.deepcopy(decoder).double()
    assert moved.cls.predictions.decoder.weight is moved.bert.embeddings.word_embeddings.weight


@torch.no_grad()
def test_a_decoder_sees_nothing_that_comes_later() -> None:
    """Other tokens behind a prefix leave its states as they were."""
    decoder, read = _decoder(), Tokens.pack(torch.randn(10, 32), Spans.of([6, 4]), prefix=1)
    ids = torch.tensor([28, 3, 4, 5, 28, 6, 7])
    context = TextContext((Side.of(read, [0, 1]),))
    before = decode(decoder, ids, [4, 3], context).x
    after = decode(decoder, ids.index_fill(0, torch.tensor([3, 6]), 9), [4, 3], context).x
    same = torch.tensor([0, 1, 2, 4, 5])
    torch.testing.assert_close(before[same], after[same])
    assert (before[3] - after[3]).abs().max() > 0.01


@torch.no_grad()
def test_ragged_images_are_read_to_their_end_and_no_further() -> None:
    """A sentence over the short one of two images equals the sentence over that image alone; so do all its probes."""
    decoder = _decoder()
    first, second = torch.randn(7, 32), torch.randn(3, 32)
    ids = torch.tensor([28, 3, 4, 28, 5])
    probes: list[tuple[Tensor, ...]] = []
    alone: list[tuple[Tensor, ...]] = []
    both = Side.of(Tokens.pack(torch.cat([first, second]), Spans.of([7, 3]), prefix=1), [0, 1])
    states = decode(decoder, ids, [3, 2], TextContext((both,), probes, probe_all=True)).x
    own = Side.of(Tokens.pack(second, Spans.of([3]), prefix=1), [0])
    torch.testing.assert_close(states[3:], decode(decoder, ids[3:], [2], TextContext((own,), alone, probe_all=True)).x)
    for (together,), (single,) in zip(probes, alone, strict=True):
        assert together.shape == (5, 2, 7)
        assert not together[3:, :, 3:].any()
        torch.testing.assert_close(together[3:, :, :3], single)


@torch.no_grad()
def test_memory_changes_nothing() -> None:
    """Keys and values kept from a first pass serve a second of other rows."""
    decoder, read = _decoder(), Tokens.pack(torch.randn(10, 32), Spans.of([6, 4]), prefix=1)
    ids = torch.tensor([28, 3, 28, 4, 28, 5])
    memory: dict[Any, tuple[Tensor, Tensor]] = {}
    for rows in ([0, 0, 1], [0, 1, 1]):
        side = Side(read.x, read.spans, rows)
        kept = decode(decoder, ids, [2, 2, 2], TextContext((side,), memory=memory)).x
        torch.testing.assert_close(kept, decode(decoder, ids, [2, 2, 2], TextContext((side,))).x)
    assert len(memory) == 3


@pytest.mark.parametrize("rows", [[0, 0, 1, 2], [2, 0, 1, 0]], ids=["in order", "in any order"])
def test_images_read_in_parts_are_read_whole(rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same cross-attention in one piece, to rounding; only images that are read in order are cut."""
    block = next(iter(LanguageModel(CONFIG.text_config, CONFIG.vision_config.hidden_size).bert.encoder.layer))
    assert isinstance(block, TextBlock)
    width = CONFIG.vision_config.hidden_size
    generator = torch.Generator().manual_seed(0)
    images = Tokens.pack(torch.randn(12, width, generator=generator), Spans.of([5, 3, 4]), prefix=1)
    words = Spans.of([2, 3, 1, 4])
    tokens = Tokens.pack(torch.randn(10, CONFIG.text_config.hidden_size, generator=generator), words, prefix=1)
    context = TextContext((Side.of(images, rows),))
    with torch.no_grad():
        whole = block.finish(tokens, context)
        monkeypatch.setattr(tower, "PART_ELEMENTS", 8 * width)
        lengths: list[tuple[int, ...]] = []

        def noted(q: Tensor, k: Tensor, v: Tensor, queries: Spans, keys: Spans) -> Tensor:
            lengths.append(keys.lengths)
            return attend(q, k, v, queries, keys)

        monkeypatch.setattr(blip_text, "attend", noted)
        parts = block.finish(tokens, context)
    assert lengths == ([(5, 3), (4,)] if rows[0] == 0 else [(4, 5, 3, 5)])
    torch.testing.assert_close(parts.x, whole.x)
