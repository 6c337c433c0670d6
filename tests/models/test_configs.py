"""Configurations: sizes come from shapes, the rest from overrides, and every impossible one is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from madtp_cli.errors import SourceError
from madtp_cli.models.configs import adjust, check_config, default_config, read_config
from madtp_cli.models.family import family_of
from madtp_cli.models.layouts import recognise, to_hf
from tests.models.released_states import RELEASED, released


def _read(kind: str, overrides: dict[str, Any] | None = None, state: dict[str, Tensor] | None = None) -> Any:
    state = released(kind) if state is None else state
    found = recognise(state, "x.pth")
    return read_config(to_hf(state)[0], found, found.task, overrides or {}, "x.pth")


@pytest.mark.parametrize("kind", RELEASED)
def test_sizes_are_read_off_the_shapes(kind: str) -> None:
    """As the tiny state dicts are made: see released_states."""
    config = _read(kind)
    vision, text = config.vision_config, config.text_config
    width = 48 if kind == "clip" else 32
    assert (vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size) == (2, width, 4 * width)
    assert (vision.patch_size, vision.image_size, vision.num_attention_heads) == (8, 32, 1)
    assert (text.num_hidden_layers, text.hidden_size, text.intermediate_size) == (3, 32, 128)
    assert (text.vocab_size, text.max_position_embeddings, text.num_attention_heads) == (50, 20, 1)
    if kind == "clip":
        assert config.projection_dim == 16
        assert (vision.hidden_act, text.hidden_act) == ("quick_gelu", "quick_gelu")
        assert (vision.layer_norm_eps, text.layer_norm_eps) == (1e-5, 1e-5)
        assert (text.bos_token_id, text.eos_token_id) == (48, 49)
    else:
        assert text.encoder_hidden_size == 32
        assert (vision.hidden_act, text.hidden_act) == ("gelu", "gelu")
        assert (vision.layer_norm_eps, text.layer_norm_eps) == (1e-6, 1e-12)
        # [DEC], [ENC], [CLS] and [SEP] of bert-base-uncased are not in this vocabulary.
        assert (text.pad_token_id, text.bos_token_id, text.enc_token_id, text.sep_token_id) == (0, None, None, None)
    if kind == "retrieval":
        assert config.image_text_hidden_size == 16
    if kind == "nlvr2":
        assert text.merge_from == 1


def test_heads_are_one_per_64_channels() -> None:
    """A tower 128 wide has two."""
    state = {key: torch.zeros([4 * size if size in (32, 96, 128) else size for size in value.shape])
             for key, value in released("caption").items()}  # fmt: skip
    config = _read("caption", state=state)
    assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == (2, 2)


def test_no_merge_layer_means_the_mean_in_every_layer() -> None:
    """merge_from is then the number of layers."""
    state = {key: value for key, value in released("nlvr2").items() if "merge_layer" not in key}
    assert _read("nlvr2", state=state).text_config.merge_from == 3


@pytest.mark.parametrize("kind", ["vqa", "clip"])
def test_every_override_lands_where_hf_keeps_it(kind: str) -> None:
    """Each value given is found again, also when a configuration that was read is adjusted."""
    family = "clip" if kind == "clip" else "blip"
    values: dict[str, Any] = {
        name: 3 for name in family_of(family).configuration.settings if name.endswith("_id") or name == "merge_from"
    }
    values |= {"vision_heads": 4, "text_heads": 8, "image_size": 64, "activation": "gelu"}
    values |= {"vision_layer_norm_eps": 1e-3, "text_layer_norm_eps": 1e-4}
    assert set(values) == set(family_of(family).configuration.settings)
    for config in (_read(kind, values), adjust(_read(kind), family, values, "x")):
        for name, value in values.items():
            for section, key in family_of(family).configuration.settings[name]:
                assert getattr(getattr(config, section), key) == value


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"vision_head": 4}, "model.config.vision_head is no setting of a blip model; did you mean vision_heads?"),
        ({"nucleus": 4}, "model.config.nucleus is no setting of a blip model; there are vision_heads, text_heads, "),
        ({"text_heads": "4"}, "model.config.text_heads is '4'; give an integer of at least 1"),
        ({"text_heads": True}, "model.config.text_heads is True; give an integer of at least 1"),
        ({"pad_token_id": -1}, "model.config.pad_token_id is -1; give an integer of at least 0"),
        ({"vision_layer_norm_eps": 2}, "model.config.vision_layer_norm_eps is 2; give a number between 0 and 1"),
        (
            {"activation": "quick_gelu"},
            "model.config.activation is 'quick_gelu'; give gelu, which is what blip models here compute",
        ),
        (
            {"vision_heads": 5},
            "its vision tower is 32 wide, which 5 heads do not divide; give model.config.vision_heads",
        ),
        ({"image_size": 33}, "data.image_size 33 is not a multiple of the patch size 8; try 32 or 40"),
        ({"image_size": 5}, "data.image_size 5 is not a multiple of the patch size 8; try 8"),
        (
            {"dec_token_id": 50},
            "model.config.dec_token_id is 50, and the model's vocabulary has 50 words; give an id below 50, or is "
            "model.tokenizer another model's?",
        ),
        ({"pad_token_id": 999}, "model.config.pad_token_id is 999, and the model's vocabulary has 50 words; "),
        ({"eos_token_id": 1}, "model.config.eos_token_id is no setting of a blip model"),
    ],
)
def test_a_bad_override_is_named(overrides: dict[str, Any], message: str) -> None:
    """The message opens with the checkpoint."""
    with pytest.raises(SourceError) as caught:
        _read("vqa", overrides)
    assert str(caught.value).startswith(f"x.pth: {message}")


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("visual_encoder.pos_embed", (1, 18, 32), "has 18 positions, expected a class token and a square of patches"),
        ("visual_encoder.pos_embed", (17, 32), "has shape [17, 32], expected 3 dimensions"),
        (
            "visual_encoder.patch_embed.proj.weight",
            None,
            "has no tensor vision_model.embeddings.patch_embedding.",
        ),
        (
            "text_decoder.bert.embeddings.word_embeddings.weight",
            None,
            "has no tensor text_decoder.bert.embeddings.",
        ),
    ],
)
def test_sizes_that_cannot_be_read_are_named(key: str, shape: tuple[int, ...] | None, message: str) -> None:
    """The message names the tensor under HF's name."""
    state = released("caption")
    state.pop(key)
    if shape:
        state[key] = torch.zeros(shape)
    with pytest.raises(SourceError) as caught:
        _read("caption", state=state)
    assert str(caught.value).startswith("x.pth: ")
    assert message in str(caught.value)


def test_an_activation_that_is_not_computed_is_refused() -> None:
    """A configuration that says so, as a folder of HF may."""
    config = _read("vqa")
    config.text_config.hidden_act = "gelu_new"
    with pytest.raises(SourceError, match=r"^x: the text tower's activation is gelu_new; blip models here compute"):
        adjust(config, "blip", {}, "x")
    with pytest.raises(SourceError, match=r"^x: the text tower's activation is gelu_new; blip models here compute"):
        check_config(config, "blip", "x")


@pytest.mark.parametrize(("task", "size"), [("nlvr2", 384), ("caption", 384), ("retrieval", 384), ("vqa", 480)])
def test_the_published_blip(task: str, size: int) -> None:
    """BLIP with ViT-B/16 and BERT-base, by the numbers of its paper and code."""
    config = default_config("blip", task)
    vision, text = config.vision_config, config.text_config
    assert (vision.num_hidden_layers, vision.hidden_size, vision.num_attention_heads) == (12, 768, 12)
    assert (vision.intermediate_size, vision.patch_size, vision.image_size) == (3072, 16, size)
    assert (text.num_hidden_layers, text.hidden_size, text.num_attention_heads, text.vocab_size) == (12, 768, 12, 30524)
    assert (text.bos_token_id, text.enc_token_id, text.pad_token_id) == (30522, 30523, 0)
    assert (text.cls_token_id, text.sep_token_id) == (101, 102)
    assert (vision.layer_norm_eps, text.layer_norm_eps) == (1e-6, 1e-12)
    assert config.image_text_hidden_size == 256
    assert getattr(text, "merge_from", None) == (6 if task == "nlvr2" else None)
    other = default_config("blip", task, {"text_heads": 6}, image_size=224)
    assert (other.vision_config.image_size, other.text_config.num_attention_heads) == (224, 6)


def test_the_published_clip() -> None:
    """CLIP ViT-L/14@336, by the numbers of its paper."""
    config = default_config("clip", "retrieval")
    vision, text = config.vision_config, config.text_config
    assert (vision.num_hidden_layers, vision.hidden_size, vision.num_attention_heads) == (24, 1024, 16)
    assert (vision.intermediate_size, vision.patch_size, vision.image_size) == (4096, 14, 336)
    assert (text.num_hidden_layers, text.hidden_size, text.num_attention_heads) == (12, 768, 12)
    assert (text.vocab_size, text.max_position_embeddings, text.eos_token_id) == (49408, 77, 49407)
    assert config.projection_dim == 768


@pytest.mark.parametrize(("family", "last"), [("blip", 30523), ("clip", 49407)])
def test_an_id_is_one_of_the_vocabulary(family: str, last: int) -> None:
    """The last is the last of the published one; every id of a family is looked at."""
    task = "retrieval"
    keys = [key for key in family_of(family).configuration.settings if key.endswith("_token_id")]
    assert keys
    for key in keys:
        ((section, name),) = family_of(family).configuration.settings[key]
        config = default_config(family, task, {key: last})
        assert getattr(getattr(config, section), name) == last
        message = (
            rf"^{family} retrieval: model\.config\.{key} is {last + 1}, and the model's vocabulary has {last + 1} "
        )
        with pytest.raises(SourceError, match=message):
            default_config(family, task, {key: last + 1})
        with pytest.raises(SourceError, match=rf"^x: model\.config\.{key} is {last + 1}, "):
            adjust(config, family, {key: last + 1}, "x")


def test_a_size_of_a_configuration_that_patches_do_not_fill_is_named() -> None:
    """With the key of a recipe that mends it."""
    config = _read("vqa")
    config.vision_config.image_size = 33
    with pytest.raises(SourceError) as caught:
        check_config(config, "blip", "x/config.json")
    assert str(caught.value) == (
        "x/config.json: images of 33 pixels cannot be cut into patches of 8; give data.image_size, 32 or 40"
    )
    assert adjust(config, "blip", {"image_size": 40}, "x").vision_config.image_size == 40
