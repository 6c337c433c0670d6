"""Writing text: what the search needs to know. What it writes is compared with HF's in test_vqa and test_caption."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from madtp_cli.errors import SourceError
from madtp_cli.models.blip import small_config
from madtp_cli.models.blip_text import LanguageModel
from madtp_cli.models.generation import generate, special_id
from madtp_cli.tokens import Spans, Tokens
from tests.models.blip_tiny import CONFIG, DEC, SEP


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
    read = Tokens.pack(torch.randn(10, 32), Spans.of([6, 4]))

    def write(least: int, most: int) -> list[list[int]]:
        return generate(decoder, CONFIG.text_config, read, [DEC, 5], beams=2, min_length=least, max_length=most)

    with torch.no_grad():
        decoder.cls.predictions.bias[SEP] = 1e4
        assert write(2, 8) == [[], []]
        assert [len(text) for text in write(5, 8)] == [3, 3]
        decoder.cls.predictions.bias[SEP] = -1e4
        assert [len(text) for text in write(2, 8)] == [6, 6]


def test_importing_models_imports_no_modelling_code() -> None:
    """transformers' search takes seconds to import: only writing needs it."""
    program = (
        "import sys; import madtp_cli.models.vqa, madtp_cli.models.caption, madtp_cli.models.retrieval; "
        "print('transformers.generation.utils' in sys.modules, 'transformers.modeling_utils' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
