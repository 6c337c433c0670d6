"""Analytic costs: hand arithmetic, and the published size of the dense models."""

from __future__ import annotations

import torch

from madtp_cli.costs.analytic import (
    TowerShape,
    language_head,
    layer_counts,
    patch_embedding,
    text_layers,
    total,
    twin_text_layers,
    vision_layers,
)

BLIP_B = TowerShape("vision", 768, 3072)


def test_a_vision_layer_by_hand() -> None:
    """Two images of 5 tokens in width 2 and MLP 8: one keeps all, one keeps 3 and pays for a merge of three."""
    layer = layer_counts([5, 5], [5, 3], prunes=True, guided=True)
    macs = vision_layers(TowerShape("v", 2, 8), [layer], alignment_tokens=7)
    attention = 4 * 5 * 2 * 2 + 2 * 5 * 5 * 2  # query, key, value, output; scores and sums
    guidance = 5 * 2 * 7
    assert {path: cost.tolist() for path, cost in macs.items()} == {
        "v.0.self_attn": [attention, attention],
        "v.0.pruning": [guidance, guidance + 3 * 2],  # 5 - 3 + 1 tokens merged
        "v.0.mlp": [2 * 5 * 2 * 8, 2 * 3 * 2 * 8],
    }
    assert total(macs).tolist() == [180 + 70 + 160, 180 + 76 + 96]
    assert total(macs).dtype == torch.int64


def test_a_text_layer_by_hand() -> None:
    """Three tokens of width 2 leave as two, reading images of 4 and 6 tokens of width 3; the second layer merges."""
    layers = [layer_counts([3], [2], prunes=True), layer_counts([2], [2])]
    images = (torch.tensor([4]), torch.tensor([6]))
    macs = twin_text_layers(
        TowerShape("t", 2, 8), layers, images, image_width=3, merge_from=1, alignment_tokens=7
    )  # fmt: skip
    cross = sum(
        2 * 2 * 2 * 2  # query and output map of two tokens
        + 2 * n * 3 * 2  # key and value of n image tokens
        + 2 * 2 * n * 2  # scores and sums
        for n in (4, 6)
    )
    assert {path: cost.tolist() for path, cost in macs.items()} == {
        "t.0.attention": [4 * 3 * 4 + 2 * 9 * 2],
        "t.0.pruning": [2 * 2],
        "t.0.crossattention": [cross],
        "t.0.intermediate": [2 * 2 * 8],
        "t.0.output": [2 * 2 * 8],
        "t.1.attention": [4 * 2 * 4 + 2 * 4 * 2],
        "t.1.crossattention": [cross + 2 * (2 * 2) * 2],  # and a map from twice the width
        "t.1.intermediate": [2 * 2 * 8],
        "t.1.output": [2 * 2 * 8],
    }


def test_a_text_layer_over_one_image_or_none_by_hand() -> None:
    """Two texts of 3 and 4 tokens of width 2, of which the first leaves as two, over images of 4 and 6 of width 3."""
    layer = layer_counts([3, 4], [2, 4], prunes=True, guided=True)
    shape = TowerShape("t", 2, 8)
    alone = text_layers(shape, [layer], [], image_width=3, alignment_tokens=7)
    assert {path: cost.tolist() for path, cost in alone.items()} == {
        "t.0.attention": [4 * 3 * 4 + 2 * 9 * 2, 4 * 4 * 4 + 2 * 16 * 2],
        "t.0.pruning": [3 * 2 * 7 + 2 * 2, 4 * 2 * 7],
        "t.0.intermediate": [2 * 2 * 8, 4 * 2 * 8],
        "t.0.output": [2 * 2 * 8, 4 * 2 * 8],
    }
    seeing = text_layers(shape, [layer], [torch.tensor([4, 6])], image_width=3, alignment_tokens=7)
    # query and output map, key and value, scores and sums
    cross = [2 * 2 * 4 + 2 * 4 * 6 + 2 * 2 * 4 * 2, 2 * 4 * 4 + 2 * 6 * 6 + 2 * 4 * 6 * 2]
    assert seeing.pop("t.0.crossattention").tolist() == cross
    assert {path: cost.tolist() for path, cost in seeing.items()} == {p: c.tolist() for p, c in alone.items()}


def test_a_language_head_by_hand() -> None:
    """A map of width 2 and one to 9 words, for 3 and 5 tokens."""
    assert language_head("head", torch.tensor([3, 5]), 2, 9)["head"].tolist() == [3 * (4 + 18), 5 * (4 + 18)]


def test_a_layer_that_may_prune_has_its_row_even_if_nothing_went() -> None:
    """Batches of one model have the same rows, whatever their samples lost."""
    idle, dense = layer_counts([4], [4], prunes=True), layer_counts([4], [4])
    assert vision_layers(BLIP_B, [idle], 0)["vision.0.pruning"].tolist() == [0]
    assert "vision.0.pruning" not in vision_layers(BLIP_B, [dense], 0)


def test_patch_embedding_by_hand() -> None:
    """Nine patches of 2 x 2 pixels in three colours to width 5, for two images."""
    assert patch_embedding(9, 2, 5, 2).tolist() == [9 * 12 * 5] * 2


def test_the_dense_vision_tower_of_blip_base_costs_what_is_published() -> None:
    """55.5 gmacs for one image of 384 x 384 (method.md section 7 counts norms as well: 55.54)."""
    image = layer_counts([577], [577])
    macs = total(vision_layers(BLIP_B, [image] * 12, 0)) + patch_embedding(576, 16, 768, 1)
    assert abs(macs.item() / 1e9 - 55.5) < 0.05


def test_the_dense_nlvr2_pair_of_blip_base_costs_what_is_published() -> None:
    """132.5 gmacs for two images and 36 wordpieces, to 0.2 %: norms and the unused pooler are not ours to count."""
    image, words = layer_counts([577], [577]), layer_counts([36], [36])
    vision = total(vision_layers(BLIP_B, [image] * 12, 0)) + patch_embedding(576, 16, 768, 1)
    seen = torch.tensor([577])
    text = total(
        twin_text_layers(
            TowerShape("text", 768, 3072), [words] * 12, (seen, seen), image_width=768, merge_from=6, alignment_tokens=0
        )
    )
    assert abs(text.item() / 1e9 - 21.46) < 0.05
    assert abs((2 * vision + text).item() / 132.54e9 - 1) < 0.002
