"""What comes next is made in a thread while what came last is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Yield make(index) for the indices of a range, in their order, at most one of them made ahead.

    `make` runs in one thread, never twice at a time. What it raises is raised by the `next` that its value was for.
    Leaving the context waits for a call that runs and drops its value.
    """

    def __init__(self, make: Callable[[int], T], indices: range) -> None:
        self._make = make
        self._indices = iter(indices)
        self._coming: Future[T] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")

    def __enter__(self) -> Prefetch[T]:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._coming is None:
            raise StopIteration
        value = self._coming.result()
        self._begin()
        return value

    def rest(self) -> None:
        """Wait until nothing is being made, so that what `make` uses can be used elsewhere; raises nothing."""
        if self._coming is not None:
            wait([self._coming])

    def _begin(self) -> None:
        index = next(self._indices, None)
        self._coming = None if index is None else self._thread.submit(self._make, index)
