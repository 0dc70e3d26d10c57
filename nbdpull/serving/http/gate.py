"""Volumes that can be read only between two moments.

Owns: that a read starts only between the two, that whoever ends it waits for reads in progress, the error of the
first read that failed, and which volumes nobody has read. Must not know: HTTP, why it ends.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Optional

from ...core import errors
from . import data
from .message import Refused
from .volume import Extent, Live, Volume


class Gate(Mapping[str, Volume]):
    """The volumes that can be read now, by name: none before `open` and after `close`.

    failed: the error of the first read that failed; it closes the gate.
    """

    def __init__(self) -> None:
        self.failed: Optional[errors.NbdpullError] = None
        self._volumes: dict[str, _Gated] = {}
        self._state = "there is nothing to read yet"  # empty: it is open
        self._inside = 0
        self._changed = threading.Condition()

    def open(self, volumes: Mapping[str, Live]) -> None:
        self._volumes = {name: _Gated(volume, self) for name, volume in volumes.items()}
        self._state = ""

    def close(self) -> None:
        """Refuse reads from now on, and wait for those in progress. Further calls have no effect."""
        self._shut("the backup has ended, or is being ended")
        with self._changed:
            self._changed.wait_for(lambda: not self._inside)

    def _shut(self, why: str) -> None:
        with self._changed:
            self._state = self._state or why

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Count a read while the block lasts. Refused if the gate is closed."""
        with self._changed:
            self.require_open()
            self._inside += 1
        try:
            yield
        except errors.UsageError:
            raise
        except errors.NbdpullError as error:
            self.failed = self.failed or error
            self._shut(f"the backup has failed: {error}")
            raise
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def unread(self) -> list[str]:
        """Return the names of the volumes of which nobody has asked for data or extents."""
        return [name for name, volume in self._volumes.items() if not volume.is_read]

    def probe(self) -> None:
        """Read from a volume to notice that its source is lost even if nobody else is reading."""
        with suppress(Refused):
            for volume in list(self._volumes.values())[:1]:
                volume.probe()

    def require_open(self) -> None:
        if self._state:
            raise Refused(503, "not-ready", self._state)

    def __getitem__(self, name: str) -> Volume:
        self.require_open()
        return self._volumes[name]

    def __iter__(self) -> Iterator[str]:
        return iter([] if self._state else self._volumes)

    def __len__(self) -> int:
        return 0 if self._state else len(self._volumes)


class _Gated:
    """A Volume behind a gate.

    Reading it means waiting for QEMU, which one thread does best, in two steps: with two threads that read ahead of the
    client, 1 GiB took 0.8 s of CPU instead of 0.6 s.
    """

    def __init__(self, volume: Live, gate: Gate) -> None:
        self.name, self.size, self.mode = volume.name, volume.size, volume.mode
        self.is_read = False
        self._volume, self._gate = volume, gate

    def probe(self) -> None:
        with self._gate.passing():
            self._volume.read_into(0, memoryview(bytearray(min(512, self.size))))

    def extents(self, start: int = 0) -> Iterator[Extent]:
        self.is_read = True
        found = self._volume.extents(start)
        while True:
            with self._gate.passing():
                each = next(found, None)
            if each is None:
                return
            yield each

    def pieces(self, begin: int, end: int) -> Iterator[memoryview]:
        self.is_read = True
        yield from data.in_two_steps(self._filling, begin, end)

    def _filling(self, offset: int, buffer: memoryview) -> Generator[bool, None, None]:
        """Read in two steps. In between, a closing gate does not wait for the client, which may be slow."""
        with closing(self._volume.filling(offset, buffer)) as steps:
            with self._gate.passing():
                is_requested = next(steps)
            yield is_requested
            with self._gate.passing():
                next(steps, None)
