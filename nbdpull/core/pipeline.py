"""Work on many items at once, in threads, with results in order and memory bounded in bytes.

Owns: how many items are in progress, and that the first error stops the others and is raised in the caller's thread.
Must not know: what an item is.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError, wait
from contextlib import contextmanager, suppress
from queue import Empty, Queue
from typing import Callable, Optional, TypeVar

from .errors import Check

LOOK_INTERVAL = 0.2  # seconds between checks of the stop flag during a wait for a result

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def synchronous(
    work: Callable[[_Item], _Result], items: Iterable[_Item], **_: object
) -> Generator[_Result, None, None]:
    """Do the same as `ordered` in a plain loop: the reference for it, and simplest to debug."""
    for item in items:
        yield work(item)


def ordered(
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    threads: int,
    budget: int,
    weight: Callable[[_Item], int],
    check: Check = lambda: None,
) -> Generator[_Result, None, None]:
    """Yield work(item) for each item, in order.

    threads: number of items worked on at once. budget: items are taken in advance until their weight(item), in bytes,
    adds up to this. check: called often; an exception from it ends the run. Items are drawn in the caller's thread.
    """
    with Threads(threads) as own:
        yield from own.ordered(work, items, budget=budget, weight=weight, check=check)


class Threads:
    """Threads that are kept for more work. They end with the block, or with the object.

    Working on a few items a thousand times would take less time than starting and ending threads.
    """

    def __init__(self, count: int) -> None:
        self._count, self._pool = count, ThreadPoolExecutor(count)

    def ordered(
        self,
        work: Callable[[_Item], _Result],
        items: Iterable[_Item],
        *,
        budget: int,
        weight: Callable[[_Item], int],
        check: Check = lambda: None,
    ) -> Generator[_Result, None, None]:
        """See `ordered`. When it ends, no item is in progress."""
        under_way: deque[tuple[Future[_Result], int]] = deque()
        try:
            taken = 0
            for item in items:
                check()
                under_way.append((self._pool.submit(work, item), weight(item)))
                taken += weight(item)
                while taken > budget or len(under_way) > 8 * self._count:
                    result, size = _oldest(under_way, check)
                    taken -= size
                    yield result
            while under_way:
                yield _oldest(under_way, check)[0]
        finally:
            wait([future for future, _ in under_way if not future.cancel()])

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown()


@contextmanager
def meanwhile(work: Callable[[], _Result]) -> Iterator[Callable[[], _Result]]:
    """Do the work in a thread while the block goes on. What is yielded waits for the work, and returns its result or
    raises its error. When the block ends, the work has ended, too."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work).result


def ahead(items: Iterable[_Item], count: int) -> Iterator[_Item]:
    """Yield the same items, at most `count` of them drawn in advance in a separate thread."""
    queue: Queue[Optional[Future[_Item]]] = Queue(count)
    stopped = threading.Event()
    thread = threading.Thread(target=_draw, args=(items, queue, stopped), daemon=True)
    thread.start()
    try:
        while (drawn := queue.get()) is not None:
            yield drawn.result()
    finally:
        stopped.set()
        while thread.is_alive():  # it may wait for space in the queue
            with suppress(Empty):
                queue.get(timeout=LOOK_INTERVAL)


def _draw(items: Iterable[_Item], queue: Queue[Optional[Future[_Item]]], stopped: threading.Event) -> None:
    drawn: Future[_Item] = Future()
    try:
        for item in items:
            drawn.set_result(item)
            queue.put(drawn)
            drawn = Future()
            if stopped.is_set():
                return
    except BaseException as error:  # any error is raised where the item is taken
        drawn.set_exception(error)
        queue.put(drawn)
    queue.put(None)


def _oldest(under_way: deque[tuple[Future[_Result], int]], check: Check) -> tuple[_Result, int]:
    future, size = under_way.popleft()
    while True:
        try:
            return future.result(timeout=LOOK_INTERVAL), size
        except TimeoutError:
            if future.done():  # the work itself may raise a TimeoutError
                return future.result(), size
            check()
