"""The records of what is kept, and what is said of them."""

from __future__ import annotations

from typing import Literal

import pytest

from madtp_cli.report.kept_tokens import KeptTokens, SiteView, spread


def test_patches_are_counted_without_the_class_token() -> None:
    """Of 17 tokens, 16 are patches, four a side; positions 0, 1 and 16 are the class token, the first and the last."""
    view = SiteView(17, (KeptTokens(0, (0, 1, 16), 1),))
    assert view.side == 4
    assert view.patches(view.layers[0]) == [0, 15]


@pytest.mark.parametrize(
    ("kept", "tokens", "reads", "text"),
    [
        (KeptTokens(2, (0, 1, 16), 1), 17, "image", "2 of 16 patches, the others in 1 merged token"),
        (KeptTokens(2, (0, 1), 2), 6, "text", "2 of 6 words, the others in 2 merged tokens"),
        (KeptTokens(2, (0, 1), 0), 6, "text", "2 of 6 words, the others dropped"),
        (KeptTokens(2, (0, 1, 2, 3, 4), 0), 5, "image", "all 4 patches"),
    ],
    ids=["merged", "merged twice", "dropped", "untouched"],
)
def test_what_is_left_is_said(kept: KeptTokens, tokens: int, reads: Literal["image", "text"], text: str) -> None:
    assert SiteView(tokens, (kept,), reads).described(kept) == text


def test_an_image_without_a_class_token_is_all_patches() -> None:
    """Four patches, the first and the last of which are kept."""
    view = SiteView(4, (KeptTokens(0, (0, 3), 1),), prefix=0)
    assert (view.side, view.patches(view.layers[0])) == (2, [0, 3])
    assert view.described(view.layers[0]) == "2 of 4 patches, the others in 1 merged token"


def test_a_few_of_many_keep_both_ends() -> None:
    """Every fourth of 13 for four of them; few items stay all."""
    assert spread(range(13), 4) == [0, 4, 8, 12]
    assert spread("abc", 4) == ["a", "b", "c"]
