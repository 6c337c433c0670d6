"""Writing text: what the search needs to know. What it writes is compared with HF's in test_vqa and test_caption."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from madtp_cli.errors import SourceError
from madtp_cli.models.blip import generation
from madtp_cli.models.blip.caption import BlipForCaption
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.blip.generation import decode, generate
from madtp_cli.models.blip.text import LanguageModel, Side, TextContext
from madtp_cli.models.configs import special_id
from madtp_cli.tokens import Spans, Tokens
from tests.models.blip_tiny import CONFIG, DEC, SEP, build

PROMPTS = pytest.mark.parametrize("prompt", [[DEC], [DEC, 5, 7]], ids=["one token", "several"])


@pytest.mark.parametrize(
    ("name", "key"), [("sep_token_id", "sep_token_id"), ("bos_token_id", "dec_token_id"), ("enc_token_id",) * 2]
)
def test_a_special_token_that_is_not_known_is_asked_for(name: str, key: str) -> None:
    """What, where, got and what to write into the recipe."""
    text = small_config(image_size=16, vocab_size=5).text_config
    with pytest.raises(SourceError) as error:
        special_id(text, name)
    assert str(error.value) == (
        f"the checkpoint's text configuration: {name} is None; try model.config: {{{key}: the token's id}}"
    )
    assert special_id(CONFIG.text_config, "bos_token_id") == DEC


def test_texts_end_before_sep_and_after_the_prompt() -> None:
    """A head that prefers [SEP] writes no more than the least length asks; one that never ends writes to the last."""
    torch.manual_seed(0)
    decoder = LanguageModel(CONFIG.text_config, 32).eval()
    read = Tokens.pack(torch.randn(10, 32), Spans.of([6, 4]), prefix=1)

    def write(least: int, most: int) -> list[list[int]]:
        return generate(decoder, CONFIG.text_config, read, [DEC, 5], beams=2, min_length=least, max_length=most)

    with torch.no_grad():
        decoder.cls.predictions.bias[SEP] = 1e4
        assert write(2, 8) == [[], []]
        assert [len(text) for text in write(5, 8)] == [3, 3]
        decoder.cls.predictions.bias[SEP] = -1e4
        assert [len(text) for text in write(2, 8)] == [6, 6]


def _decoder_and_read(lengths: Sequence[int] = (6, 4, 9)) -> tuple[LanguageModel, Tokens]:
    """Take a decoder of which no part is idle, and samples of unequal lengths to write about."""
    read = torch.randn(sum(lengths), 32, generator=torch.Generator().manual_seed(0))
    return build(BlipForCaption).text_decoder, Tokens.pack(read, Spans.of(lengths), prefix=1)


def _whole_texts(self: Any, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
    """Stand in for what gives the decoder only new tokens: it reads all that is written at every step."""
    return {"input_ids": input_ids, "rows": kwargs["rows"], "past_key_values": None}


@PROMPTS
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("least", [1, 9])
@torch.no_grad()
def test_what_is_written_is_what_whole_texts_give(
    prompt: list[int], samples: int, beams: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same search, its decoder without a memory; texts end early, late and not at all."""
    decoder, read = _decoder_and_read((6, 4, 9)[:samples])

    def write() -> list[list[int]]:
        return generate(decoder, CONFIG.text_config, read, prompt, beams=beams, min_length=least, max_length=14)

    written = write()
    monkeypatch.setattr(generation._writer(), "prepare_inputs_for_generation", _whole_texts)
    assert written == write()
    if samples > 1:
        assert len({tuple(text) for text in written}) > 1


@PROMPTS
@torch.no_grad()
def test_greedy_writing_is_the_likeliest_word_after_word(prompt: list[int]) -> None:
    """By hand: the likeliest word that follows the whole text, each sample alone, to [SEP] or the most tokens."""
    decoder, read = _decoder_and_read()
    written = generate(decoder, CONFIG.text_config, read, prompt, beams=1, min_length=0, max_length=14)
    for row, text in enumerate(written):
        ids = list(prompt)
        while len(ids) < 14 and SEP not in ids:
            states = decode(decoder, torch.tensor(ids), [len(ids)], TextContext((Side.of(read, [row]),)))
            ids.append(int(decoder.predict(states.last()).argmax()))
        assert text == [word for word in ids[len(prompt) :] if word != SEP]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@torch.no_grad()
def test_a_decoder_goes_on_where_its_past_ends(dtype: torch.dtype, tolerance: float) -> None:
    """The states of new tokens are those of whole texts, also where rows of the past were moved as beams are."""
    decoder, read = _decoder_and_read()
    read, past = read.with_x(read.x.to(dtype)), DynamicCache()
    decoder = decoder.to(dtype)
    context = TextContext((Side(read.x, read.spans, [0, 0, 2, 1]),))
    texts = torch.randint(3, 28, (4, 3), generator=torch.Generator().manual_seed(1))
    found = decode(decoder, texts.flatten(), [3] * 4, context, past).last()
    for moved in ([0, 1, 2, 3], [1, 1, 2, 3], [1, 0, 2, 3]):
        whole = decode(decoder, texts.flatten(), [texts.shape[1]] * 4, context)
        torch.testing.assert_close(found, whole.last(), atol=tolerance, rtol=0)
        past.reorder_cache(torch.tensor(moved))
        new = torch.arange(5, 9)
        texts = torch.cat([texts[moved], new[:, None]], 1)
        found = decode(decoder, new, [1] * 4, context, past).x
    assert past.get_seq_length() == 6
    for refused in ([6] * 4, [1, 2, 1, 1]):
        with pytest.raises(ValueError, match="a past of 6 tokens goes on with texts of one length, 1 behind a past"):
            decode(decoder, torch.ones(sum(refused), dtype=torch.long), refused, context, past)
    assert past.get_seq_length() == 6


@torch.no_grad()
def test_a_step_computes_one_token_a_beam_and_reads_what_it_has_read() -> None:
    """Counted at the embeddings: the prompts of 3 x 2 beams, then 6 tokens a step; keys of 19 tokens a layer, once."""
    decoder, read = _decoder_and_read()
    decoder.cls.predictions.bias[SEP] = -1e4
    words: list[int] = []
    keys: list[int] = []
    decoder.bert.embeddings.register_forward_pre_hook(lambda _, args: words.append(len(args[0])))
    blocks: Any = decoder.bert.encoder.layer
    for block in blocks:
        block.crossattention.self.key.register_forward_pre_hook(lambda _, args: keys.append(len(args[0])))
    generate(decoder, CONFIG.text_config, read, [DEC, 5, 7, 9], beams=2, min_length=5, max_length=10)
    assert words == [3 * 2 * 4] + [3 * 2] * 5
    assert keys == [6 + 4 + 9] * 3


def test_importing_models_imports_no_modelling_code() -> None:
    """transformers' search takes seconds to import: only writing needs it."""
    program = (
        "import sys; import madtp_cli.models.blip.vqa, madtp_cli.models.blip.caption, madtp_cli.models.blip.retrieval; "
        "print('transformers.generation.utils' in sys.modules, 'transformers.modeling_utils' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
