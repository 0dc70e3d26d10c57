"""Decompressed frames in memory: those used last, and those read ahead.

Owns: the memory budget, the threads that read ahead, and that a frame wanted by several threads is read only once. Must
not know: how a frame is read, or which frames are wanted.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Callable, Optional, cast

Place = dict[str, Any]  # a run of data, with the members of layout.RECORD
_Key = tuple[int, int, bytes]  # of a frame


class FrameCache:
    """A cache of at most `budget` bytes of frames, but always of at least one frame. Several threads may use it at
    once.

    read(place): returns the verified bytes of a whole frame; ahead: number of threads that read ahead. No frame is read
    ahead while this many frames are being read.
    """

    def __init__(self, read: Callable[[Place], bytes], budget: int, ahead: int) -> None:
        self._read, self._budget, self._ahead = read, budget, ahead
        self._lock = threading.Lock()
        self._held: OrderedDict[_Key, bytes] = OrderedDict()
        self._size = 0
        self._under_way: dict[_Key, _Pending] = {}
        self._threads: list[threading.Thread] = []
        self._queue: SimpleQueue[Optional[tuple[_Key, Place, _Pending]]] = SimpleQueue()

    def get(self, place: Place) -> bytes:
        """Return the frame of a run of data. Raises what `read` raises."""
        key = _key(place)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            waiting = self._under_way.get(key)
            if waiting is None:
                mine = self._under_way[key] = _Pending()
        return waiting.wait() if waiting is not None else self._fill(key, place, mine)

    def begin(self, place: Place) -> bool:
        """Let another thread read the frame of a run of data, unless it is cached; return False if enough frames are
        being read. Errors are not raised here: `get` reads the frame again."""
        key = _key(place)
        with self._lock:
            if key in self._held or key in self._under_way:
                return True
            if len(self._under_way) >= self._ahead or not self._has_threads():
                return False
            mine = self._under_way[key] = _Pending()
        self._queue.put((key, place, mine))
        return True

    def _has_threads(self) -> bool:
        """Start the threads; return False if the system allows none."""
        with suppress(RuntimeError):
            while len(self._threads) < self._ahead:
                thread = threading.Thread(target=self._work, daemon=True)
                thread.start()
                self._threads.append(thread)
        return bool(self._threads)

    def _work(self) -> None:
        while (wanted := self._queue.get()) is not None:
            with suppress(BaseException):
                self._fill(*wanted)

    def _fill(self, key: _Key, place: Place, mine: _Pending) -> bytes:
        try:
            mine.frame = self._read(place)
        except BaseException as error:
            mine.error = error
            raise
        finally:
            with self._lock:
                del self._under_way[key]
                if mine.frame is not None:
                    self._hold(key, mine.frame)
            mine.done.set()
        return mine.frame

    def _hold(self, key: _Key, frame: bytes) -> None:
        self._held[key] = frame
        self._size += len(frame)
        while self._size > self._budget and len(self._held) > 1:
            self._size -= len(self._held.popitem(last=False)[1])

    def close(self) -> None:
        """End the threads. After this, no frame is being read ahead."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()


def _key(place: Place) -> _Key:
    return place["chunk"], place["position"], place["digest"].tobytes()


class _Pending:
    """A frame that a thread is reading. A Future would do, but its module takes longer to load than all of ours."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.frame: Optional[bytes] = None
        self.error: Optional[BaseException] = None

    def wait(self) -> bytes:
        self.done.wait()
        if self.error is not None:
            raise self.error
        return cast(bytes, self.frame)  # either a frame or an error is set
