"""Key layouts: every tensor of every layout comes back bit by bit, and what changes shape is what it should be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from madtp_cli.errors import SourceError
from madtp_cli.models.blip.layouts import TIED, twin_attention, with_constants
from madtp_cli.models.layouts import PRETRAINED, Layout, from_hf, recognise, resize_positions, to_hf
from tests.models.released_states import POSITIONS, RELEASED, WIDTH, released


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


@pytest.mark.parametrize("madtp", [True, False])
@pytest.mark.parametrize("kind", [*RELEASED, PRETRAINED])
def test_a_round_trip_loses_no_bit(kind: str, madtp: bool) -> None:
    """Every key, type and value after to_hf and from_hf, with and without what released MADTP adds."""
    state = released(kind, madtp=madtp)
    layout: Layout = "openai" if kind == "clip" else "salesforce"
    converted, extras = to_hf(state)
    assert _same(from_hf(converted, extras, layout), state)
    # A second conversion finds nothing more to rename: these are HF's names.
    again, none = to_hf(converted)
    assert _same(again, converted)
    assert none == {}
    assert ("alignment.tokens" in converted) == madtp


@pytest.mark.parametrize("kind", [*RELEASED, PRETRAINED])
def test_layout_family_and_task_are_recognised(kind: str) -> None:
    """From the keys alone, before and after conversion."""
    state = released(kind)
    expected = ("clip", "retrieval") if kind == "clip" else ("blip", kind)
    found = recognise(state, "x")
    assert (found.family, found.task) == expected
    assert found.layout == ("openai" if kind == "clip" else "salesforce")
    converted = recognise(to_hf(state)[0], "x")
    assert (converted.layout, converted.family, converted.task) == ("hf", *expected)


def test_what_only_training_used_is_told_apart() -> None:
    """Momentum copies, queues and position ids are extras; the temperature of the contrast is not."""
    converted, extras = to_hf(released("retrieval"))
    assert "temp" in converted
    assert not [key for key in converted if "_m." in key or "queue" in key]
    assert {key.partition(".")[0] for key in extras} == {
        "image_queue", "text_queue", "idx_queue", "ptr_queue", "visual_encoder_m", "text_encoder_m", "vision_proj_m",
        "text_proj_m", "text_encoder",
    }  # fmt: skip
    assert [key for key in extras if key.startswith("text_encoder.")] == ["text_encoder.embeddings.position_ids"]


def test_constants_of_a_clip_archive_are_extras() -> None:
    """The numbers that OpenAI's archives hold beside the weights go and come back."""
    state = released("clip") | {"input_resolution": torch.tensor(32), "context_length": torch.tensor(20)}
    converted, extras = to_hf(state)
    assert {"input_resolution", "context_length"} <= set(extras)
    assert _same(from_hf(converted, extras, "openai"), state)


def test_clip_in_two_layouts_computes_the_same() -> None:
    """x @ proj is HF's linear map; the fused projection's thirds are query, key and value; maps go by layer."""
    state = released("clip")
    converted, _ = to_hf(state)
    x = torch.randn(3, 48)
    assert torch.allclose(linear(x, converted["visual_projection.weight"]), x @ state["visual.proj"], atol=1e-5)
    fused = linear(x, state["visual.transformer.resblocks.1.attn.in_proj_weight"])
    layer = "vision_model.encoder.layers.1.self_attn"
    parts = [linear(x, converted[f"{layer}.{name}_proj.weight"]) for name in "qkv"]
    assert torch.allclose(torch.cat(parts, 1), fused, atol=1e-5)
    for theirs, ours in (("visual.transformer", "vision"), ("transformer", "text")):
        key = f"{theirs}.resblocks.1.query_model.q_map.0.weight"
        assert torch.equal(converted[f"alignment.maps.{ours}.1.weight"], state[key])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("visual.layer1.0.conv1.weight", "is a CLIP with a ResNet, which has no tokens to prune"),
        ("encoder.layer.0.weight", "its tensors are those of no BLIP or CLIP"),
        ("vision_model.embeddings.class_embedding", "are encoder.x, vision_model.embeddings.class_embedding; try"),
    ],
)
def test_what_is_neither_blip_nor_clip_is_refused(key: str, message: str) -> None:
    """The message names the file and the first keys."""
    with pytest.raises(SourceError) as caught:
        recognise({"encoder.x": torch.zeros(1), key: torch.zeros(1)}, "file.pth")
    assert str(caught.value).startswith("file.pth: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(("kind", "layout"), [("clip", "salesforce"), ("vqa", "openai")])
def test_a_layout_without_a_place_for_a_tensor_is_refused(kind: str, layout: Layout) -> None:
    """The message names the first tensors and how many more there are."""
    converted, _ = to_hf(released(kind))
    with pytest.raises(SourceError, match=rf"^layout {layout}: has no place for \S+, .* and \d+ more; try"):
        from_hf(converted, {}, layout)


def test_shared_alignment_maps_have_no_place_in_salesforces_layout() -> None:
    """Nothing of a model is dropped silently."""
    converted, _ = to_hf(released("vqa"))
    converted["alignment.maps.vision.0.weight"] = torch.zeros(1)
    with pytest.raises(SourceError, match=r"no place for alignment\.maps\.vision\.0\.weight; "):
        from_hf(converted, {}, "salesforce")


def test_constants_are_what_salesforces_code_saved() -> None:
    """The model's own tensors and the constants are the whole file again."""
    state = released("vqa")
    converted, _ = to_hf(state)
    own = {key: value for key, value in converted.items() if key not in TIED}
    assert _same(with_constants(from_hf(own, {}, "salesforce")), state)
    assert state["text_encoder.embeddings.position_ids"].shape == (1, POSITIONS)


def test_two_images_start_from_one_cross_attention() -> None:
    """Both copies are the one there was, and a merge layer gives the mean of its two halves."""
    state, _ = to_hf(released("retrieval", madtp=False))
    twins, made = twin_attention(state, merge_from=2)
    layer = "text_encoder.encoder.layer.{}.crossattention."
    for number in range(3):
        for part in ("self{}.query.weight", "self{}.value.bias", "output.dense{}.weight", "output.dense{}.bias"):
            once = state[layer.format(number) + part.format("")]
            for side in "01":
                assert torch.equal(twins[layer.format(number) + part.format(side)], once)
    assert made == [layer.format(2) + f"output.merge_layer.{name}" for name in ("weight", "bias")]
    left, right = torch.randn(2, 4, WIDTH)
    merged = linear(torch.cat([left, right], 1), *(twins[key] for key in made))
    assert torch.allclose(merged, (left + right) / 2, atol=1e-6)
    # The other keys are those of a real NLVR2 checkpoint, whose merge layers begin a layer earlier, and the old heads.
    nlvr2 = {key for key in to_hf(released("nlvr2", madtp=False))[0] if not key.startswith("cls_head")}
    earlier = {layer.format(1) + f"output.merge_layer.{name}" for name in ("weight", "bias")}
    heads = {key for key in state if key.startswith(("vision_proj", "text_proj", "itm_head", "temp"))}
    assert set(twins) == (nlvr2 - earlier) | heads


@pytest.mark.parametrize("kind", ["nlvr2", "clip"])
def test_positions_are_interpolated_as_blip_does(kind: str) -> None:
    """The class token keeps its own, the same size changes nothing, a constant grid stays constant."""
    state, _ = to_hf(released(kind))
    key = "vision_model.embeddings.position_embedding" + ".weight" * (kind == "clip")
    old = state[key]
    assert torch.allclose(resize_positions(state, 4)[key], old, atol=1e-6)
    new = resize_positions(state, 6)[key]
    assert new.shape == (*old.shape[:-2], 37, old.shape[-1])
    assert torch.equal(new[..., 0, :], old[..., 0, :])
    # As written in BLIP's interpolate_pos_embed.
    tokens = old.view(1, -1, old.shape[-1])[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    tokens = torch.nn.functional.interpolate(tokens, size=(6, 6), mode="bicubic", align_corners=False)
    expected = tokens.permute(0, 2, 3, 1).flatten(1, 2)
    assert torch.allclose(new.view(1, 37, -1)[:, 1:], expected, atol=1e-6)
    flat = resize_positions({key: torch.ones_like(old)}, 7)[key]
    assert torch.allclose(flat, torch.ones_like(flat), atol=1e-6)
