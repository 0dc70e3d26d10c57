"""How long each phase of a run took. Must not know: what the phases are."""

from __future__ import annotations

import time


class Laps:
    """seconds: by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def end(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[phase] = round(now - self._began, 3)
        self._began = now
