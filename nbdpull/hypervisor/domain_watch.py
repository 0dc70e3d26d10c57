"""Whether a domain still exists while a job of it runs: a thread checks once a second.

Data is read without libvirt, so otherwise a dead daemon would not be noticed before the last read, and the last known
state would be that of the start. Owns: the thread. Must not know: libvirt, what the job is for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable, Optional

from ..core import errors

LOOK_INTERVAL = 1.0  # seconds


class DomainWatch:
    """A watch in a thread. look() raises the error that ends the run; `check` raises it again in any thread."""

    def __init__(self, look: Callable[[], None]):
        self._look = look
        self._stop = threading.Event()
        self._error: Optional[errors.NbdpullError] = None

    def check(self) -> None:
        if self._error:
            raise self._error

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the thread checking inside the block. The end does not wait for it, as it may hang in a call."""
        threading.Thread(target=self._run, daemon=True).start()
        try:
            yield
        finally:
            self._stop.set()

    def _run(self) -> None:
        while not self._error and not self._stop.wait(LOOK_INTERVAL):
            try:
                self._look()
            except errors.NbdpullError as error:
                self._error = error
