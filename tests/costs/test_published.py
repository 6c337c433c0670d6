"""How published costs are put together: hand arithmetic on small numbers."""

from __future__ import annotations

from madtp_cli.costs.published import Call, Pass, block_norms, compose, memory, similarities, without


def test_a_call_adds_up_its_passes_and_their_norms() -> None:
    """Twice 10 + 3 of an image and three times 7 of a text that shares a module with it, and norms."""
    call = Call(1.0, 9, {"image": 2, "text": 3}, 9)
    passes = {"image": Pass({"a": 10.0, "b": 3.0}, 4.0), "text": Pass({"b": 7.0})}
    assert compose(call, passes) == {"a": 20.0, "b": 6.0 + 21.0, "layer norms": 5 * 2 * 4.0}
    assert passes["image"].published_macs == 10 + 3 + 5 * 4
    total = sum(times * passes[name].published_macs for name, times in call.passes.items())
    assert sum(compose(call, passes).values()) == total


def test_what_is_read_is_projected_once() -> None:
    """Keys and values of 3 tokens of width 5 for two layers of width 7, taken out of a pass that counts them too."""
    shared = memory("t", 2, 3, 5, 7)
    assert shared == {"t.0.crossattention": 2 * 3 * 5 * 7, "t.1.crossattention": 2 * 3 * 5 * 7}
    assert without({"t.0.crossattention": 1000.0, "t.0.output": 4.0}, shared) == {
        "t.0.crossattention": 1000 - 210,
        "t.0.output": 4,
    }


def test_norms_of_blocks_by_hand() -> None:
    """Two layers that are entered by 6 and 4 tokens and left by 4 and 3, width 2: one norm before pruning, one or two
    behind it.
    """
    assert block_norms([6, 4, 3], 2) == 2 * (6 + 4 + 4 + 3)
    assert block_norms([6, 4, 3], 2, reads=True) == 2 * (6 + 2 * 4 + 4 + 2 * 3)


def test_a_feature_is_compared_with_a_queue_and_its_partner() -> None:
    """57,600 of the queue and one of the batch."""
    assert similarities(256).macs == {"queue": 256 * 57_601}
