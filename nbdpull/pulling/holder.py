"""The lock of a domain on this machine: one nbdpull at a time holds it, from before its first call to after its last.

Owns: the lock, and the note of a start with which the domain is not marked yet. Neither may survive a reboot, so
they are below /run. Must not know: what the holder does; its journal records that.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Optional

from ..core import errors
from . import journal_files

_STARTING = b"starting\n"


class Hold:
    """The lock, held. starting: whether an earlier holder, now dead, was about to start the domain, and may have done
    so without marking it."""

    def __init__(self, file: Optional[BinaryIO]) -> None:
        self._file = file
        self.starting = bool(file) and file.read() == _STARTING  # type: ignore[union-attr]

    def note_start(self) -> None:
        """Record that the domain is about to be started."""
        self._replace(_STARTING)

    def clear_start(self) -> None:
        """Remove that record: the domain is marked, or was not started."""
        self._replace(b"")

    def _replace(self, data: bytes) -> None:
        if self._file:
            with suppress(OSError):  # counts only if we are killed before the domain is marked, a moment later
                self._file.seek(0)
                self._file.truncate()
                self._file.write(data)
                self._file.flush()


def look(uuid: str) -> Optional[Hold]:
    """Return the Hold that a dead holder left, only for reading; None if there is none, or if its holder is alive."""
    with suppress(OSError), open(_path(uuid), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return Hold(file)
    return None


@contextmanager
def holding(uuid: str, name: str) -> Iterator[Hold]:
    """Yield the Hold of a domain; Busy, with the name of the holder, if another process on this machine holds it.

    The lock ends with the process, however it dies. A run on another machine or of another user is recognized only by
    its backup job.
    """
    file = _opened(uuid)
    try:
        if file:
            _lock(file, uuid, name)
        yield Hold(file)
    finally:
        if file:
            with suppress(OSError):  # a child that was forked meanwhile has the descriptor, and with it the lock
                fcntl.flock(file, fcntl.LOCK_UN)
            file.close()


def _opened(uuid: str) -> Optional[BinaryIO]:
    """Return the file of the lock; None if there can be none here. Then a second run is kept out later, by the backup
    job of the first one, and by its journal, which shows that it is alive."""
    folder = _folder()
    with suppress(OSError):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.stat(folder).st_uid == os.geteuid():  # in /tmp, anybody can make a folder of this name
            return os.fdopen(os.open(_path(uuid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb+")
    return None


def _path(uuid: str) -> str:
    return os.path.join(_folder(), f"{uuid}.lock")


def _folder() -> str:
    if os.geteuid() == 0:
        return "/run/nbdpull"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(runtime, "nbdpull") if runtime else f"/tmp/nbdpull-{os.geteuid()}"


def _lock(file: BinaryIO, uuid: str, name: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        alive = [run for run in journal_files.runs(uuid) if run.is_alive]
        who = f"nbdpull {alive[-1].whose}" if alive else "another nbdpull"
        raise errors.Busy(f"domain '{name}' is held by {who}: try again when it has ended") from None
