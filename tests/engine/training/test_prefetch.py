"""Prefetching changes when a value is made and nothing else: the oracle is the plain loop."""

from __future__ import annotations

import threading

import pytest

from madtp_cli.engine.training.prefetch import Prefetch

PATIENCE = 60  # seconds until a thread that does not come counts as dead; nothing here waits that long


@pytest.mark.parametrize("indices", [range(5), range(3, 5), range(5, 6), range(5, 5)], ids=str)
def test_the_values_are_those_of_a_loop(indices: range) -> None:
    made: list[int] = []

    def make(index: int) -> int:
        made.append(index)
        return index**2

    with Prefetch(make, indices) as values:
        assert list(values) == [index**2 for index in indices]
        assert list(values) == []
    assert made == list(indices)


def test_the_next_value_is_made_while_this_one_is_used_and_no_other() -> None:
    """The user of value 0 sees value 1 begun and, once that is made, value 2 not yet."""
    began = [threading.Event() for _ in range(3)]
    made: list[int] = []

    def make(index: int) -> int:
        began[index].set()
        made.append(index)
        return index

    with Prefetch(make, range(3)) as values:
        assert next(values) == 0
        assert began[1].wait(PATIENCE)
        values.rest()
        assert made == [0, 1]
        assert not began[2].is_set()
        assert next(values) == 1
        assert began[2].wait(PATIENCE)


def test_values_are_made_in_a_thread_of_their_own_which_ends() -> None:
    threads: list[threading.Thread] = []
    with Prefetch(lambda index: threads.append(threading.current_thread()), range(4)) as values:
        next(values)
        values.rest()
    assert len(threads) == 2
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()
    assert not threads[0].is_alive()


def test_an_error_is_raised_for_the_value_it_is_about() -> None:
    """Value 1 fails while value 0 is in use: that one is not disturbed, nor is waiting for the other."""
    error = ValueError("no such value")

    def make(index: int) -> int:
        if index == 1:
            raise error
        return index

    with Prefetch(make, range(3)) as values:
        assert next(values) == 0
        values.rest()
        with pytest.raises(ValueError, match="no such value") as caught:
            next(values)
    assert caught.value is error


def test_leaving_early_waits_for_the_call_that_runs_and_makes_no_more() -> None:
    """The user leaves by an error of its own while value 1 is half made."""
    began, go = threading.Event(), threading.Event()
    made: list[int] = []

    def make(index: int) -> int:
        if index == 1:
            began.set()
            assert go.wait(PATIENCE)
        made.append(index)
        return index

    def leave() -> None:
        with Prefetch(make, range(9)) as values:
            next(values)
            assert began.wait(PATIENCE)
            threading.Timer(0.01, go.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert made == [0, 1]
