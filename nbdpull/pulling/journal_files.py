"""The journals that this machine keeps: one file per run, until nothing of the run is left.

A run's job is on this machine, but its store may be anywhere; so its journal is here. Owns: where journals are, and
that a journal is durable before its run begins anything. Must not know: the content of a journal (journal.py).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Optional

from ..core import errors, process
from ..format.manifest import FileEntry
from ..storage import access, folders
from ..storage.directory import DirectoryStore
from ..storage.directory_file import DirectoryWriter
from . import journal
from .journal import Run

log = logging.getLogger("nbdpull.pull")
VARIABLE = "NBDPULL_STATE_DIR"
_UNDER_WAY: set[str] = set()  # ids of the runs in progress in this process


def folder() -> str:
    """Return the folder for files that must outlive a run; root and each other user have their own."""
    named = os.environ.get(VARIABLE)
    if named:
        return named
    if os.geteuid() == 0:
        return "/var/lib/nbdpull"
    return os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "nbdpull")


class Journal:
    """A journal that is being written; several threads may use it at once. While it is open, its run is in progress."""

    def __init__(self, file: DirectoryWriter, run: Run) -> None:
        self._lock = threading.Lock()
        self._file, self._run = file, run
        _UNDER_WAY.add(run.id)

    def begun(self, consistency: str, reason: str) -> None:
        """Record that the job was begun as requested: from now on another process can resume the run."""
        self._append(journal.begun(consistency, reason))

    def sealed(self, disk: str, entry: FileEntry, read_bytes: int) -> None:
        """Record that a chunk file of a disk is durable."""
        self._append(journal.sealed(disk, journal.Sealed(entry.path, entry.size, entry.sha256, read_bytes)))

    @contextmanager
    def reading(self, consistency: str, reason: str) -> Iterator[None]:
        """Inside the block, the job is read from: if this process dies there, another one can resume the run."""
        self.begun(consistency, reason)
        try:
            yield
        finally:
            self._append(journal.ending())

    def committed(self) -> None:
        """Record durably that the backup is committed, with its checkpoint as a base; OutputError if that is not
        possible. Without this record, the next run would delete the checkpoint."""
        with _explained():
            _add(self._run, journal.committed())  # not to the open file: an earlier write may have failed half-way

    def withdrawn(self) -> None:
        """Record that the point will not be committed: its directory is removed or useless."""
        self._append(journal.withdrawn())

    def _append(self, data: bytes) -> None:
        """Append lines, not durably: they are only needed while the job exists, so on a host that has not gone down
        since. If a line cannot be written, the backup does not fail: less of this run can be resumed. That is only
        logged: it matters only if this run is killed, and the next one could not even begin its journal."""
        try:
            with self._lock:
                self._file.write(data)
        except errors.OutputError as error:
            log.info("less of this run could be resumed: %s", error)

    def close(self) -> None:
        self._file.close()
        _UNDER_WAY.discard(self._run.id)


def begin(run: Run) -> Journal:
    """Create the journal of a run, durably; OutputError if that is not possible."""
    with _explained():
        found = _opened(make=True)
        found.make_folder(run.uuid)
        file = found.create(_path(run.uuid, run.id))
        try:
            file.write(journal.encode(run))
            file.sync()
            found.sync_folder(run.uuid)
        except BaseException:
            file.close()
            remove(run)  # nothing was begun: else each run with a full disk would leave a file
            raise
    return Journal(file, run)


def resume(run: Run) -> Journal:
    """Take over the Journal of a dead run; OutputError if it cannot be written."""
    with _explained():
        file = _opened().reopen(_path(run.uuid, run.id))
        try:
            file.write(journal.resumed())
        except BaseException:
            file.close()
            raise
    return Journal(file, run)


def runs(uuid: str) -> list[Run]:
    """Return the runs of a domain that have a journal on this machine, in the order in which they began. If another
    process holds the domain, one of them may be alive."""
    kept, found = _opened(), []
    for name in _names(kept, uuid):
        with suppress(errors.Damaged, errors.StoreError):
            run = journal.decode(kept.read(f"{uuid}/{name}"))
            if run and _path(uuid, run.id) == f"{uuid}/{name}" and run.uuid == uuid:
                found.append(run)
    return found


def _names(kept: DirectoryStore, uuid: str) -> list[str]:
    try:
        return kept.files(uuid)
    except errors.StoreError as error:
        raise errors.OutputError(
            f"the journals of this host cannot be read: {error} ({VARIABLE} names another place)"
        ) from error


def is_alive(run: Run) -> Optional[bool]:
    """Return whether a process is working on a run; None if that cannot be determined from here. A process may outlive
    its runs."""
    return run.id in _UNDER_WAY if run.process == process.of() else run.is_alive


def remove(run: Run) -> None:
    """Remove the journal of a run of which nothing is left."""
    _opened().remove_file(_path(run.uuid, run.id))


def withdraw(run: Run) -> None:
    """Record of a dead run that its point will never be committed."""
    with suppress(errors.OutputError):  # the next run finds out again
        _add(run, journal.withdrawn())


def _add(run: Run, line: bytes) -> None:
    """Append a line durably, after one that may be torn."""
    with _opened().reopen(_path(run.uuid, run.id)) as file:
        file.write(b"\n" + line)


def _path(uuid: str, run_id: str) -> str:
    return f"{uuid}/{run_id}.json"


def _opened(make: bool = False) -> DirectoryStore:
    if make:
        folders.make(folder(), access.OWNER)
    return DirectoryStore(folder())


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except errors.OutputError as error:
        raise type(error)(f"no journal of this run can be kept: {error} ({VARIABLE} names another place)") from error
