"""A limit on bytes per second, shared by all threads, that may be changed while they run.

Owns: the rate, and the file that it can be read from. Must not know: what the bytes are.
"""

from __future__ import annotations

import threading
import time
from typing import Optional

from . import errors, sizes

LOOK_INTERVAL = 0.2  # seconds between checks of the stop flag and of the file while a thread waits
BURST = 0.5  # seconds of the rate that may pass at once


class Throttle:
    """rate: bytes per second, None: no limit. path: a file that contains the rate, used as soon as it is written.

    An empty or missing file leaves the rate unchanged; "0" removes the limit.
    """

    def __init__(
        self, rate: Optional[int] = None, path: Optional[str] = None, check: errors.Check = lambda: None
    ) -> None:
        self._rate, self._path, self._check = rate, path, check
        self._lock = threading.Lock()
        self._free_at = 0.0  # when the bytes taken so far are paid for
        self._look_at = 0.0

    def take(self, count: int) -> None:
        """Wait until `count` bytes may pass. An exception from check() ends the wait."""
        due = self._book(count)
        while (wait := due - time.monotonic()) > 0:
            self._check()
            time.sleep(min(wait, LOOK_INTERVAL))

    def _book(self, count: int) -> float:
        with self._lock:
            now = time.monotonic()
            self._look(now)
            if not self._rate:
                return now
            self._free_at = max(self._free_at, now - BURST) + count / self._rate
            return self._free_at

    def _look(self, now: float) -> None:
        if self._path is None or now < self._look_at:
            return
        self._look_at = now + LOOK_INTERVAL
        try:
            with open(self._path) as file:
                text = file.read(64).strip()
        except FileNotFoundError:
            return
        except OSError as error:
            raise errors.UsageError(f"cannot read the rate limit from {self._path}: {error.strerror}") from error
        if text:
            self._rate = self._parsed(text)

    def _parsed(self, text: str) -> int:
        try:
            return sizes.parse(text)
        except ValueError as error:
            raise errors.UsageError(f"{self._path}: {error}") from error
