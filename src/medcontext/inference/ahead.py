"""Reading the next scan and writing the last while the network is at work, and no more than that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def one_ahead(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Future[Result]]]:
    """Each item with what ``work`` makes of it, in a thread that has begun with the next item by then.

    So there are two results at most: the one that was given out, and the one that is being made.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    before: tuple[Item, Future[Result]] | None = None
    try:
        for item in items:
            waiting = item, pool.submit(work, item)
            if before is not None:
                yield before
            before = waiting
        if before is not None:
            yield before
    finally:
        pool.shutdown(cancel_futures=True)


class OneBehind:
    """Does one thing at a time in a thread; whoever comes with the next one waits for the last.

    What goes wrong with one is raised at the next call, or at the end.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._last: Future[None] | None = None

    def __call__(self, work: Callable[..., None], *arguments: Any) -> None:
        self.wait()
        self._last = self._pool.submit(work, *arguments)

    def wait(self) -> None:
        """Until the last is done."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> OneBehind:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown()
