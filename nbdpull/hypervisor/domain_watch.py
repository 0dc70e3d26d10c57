"""Whether a domain is still there while a job of it runs: asked once a second, in a thread.

What is read does not pass libvirt, so nothing else would tell that its daemon is gone before all was read, and the last
state that was seen would be that of the begin. Owns: the thread. Must not know: libvirt, what the job is for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable, Optional

from ..core import errors

LOOK_INTERVAL = 1.0  # seconds


class DomainWatch:
    """look() raises what ends the run; `check` raises it again in whatever thread asks."""

    def __init__(self, look: Callable[[], None]):
        self._look = look
        self._stop = threading.Event()
        self._error: Optional[errors.NbdpullError] = None

    def check(self) -> None:
        if self._error:
            raise self._error

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While this is entered the thread looks. It is not waited for, as it may hang in a call."""
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
