"""The journals that this machine keeps: one file a run, until nothing of the run is left.

A run's job is on this machine, its store may be anywhere; so its journal is here. Owns: where journals are, and that a
journal is durable before its run begins anything. Must not know: what a journal says (journal.py).
"""

from __future__ import annotations

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

VARIABLE = "NBDPULL_STATE_DIR"
_UNDER_WAY: set[str] = set()  # ids of runs of this process


def folder() -> str:
    """Where this machine keeps what has to outlive a run: of root's runs or of another user's."""
    named = os.environ.get(VARIABLE)
    if named:
        return named
    if os.geteuid() == 0:
        return "/var/lib/nbdpull"
    return os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "nbdpull")


class Journal:
    """A journal being written; to be used by several threads at once. As long as it is open, its run is under way."""

    def __init__(self, file: DirectoryWriter, run: Run) -> None:
        self._lock = threading.Lock()
        self._file, self._run = file, run
        _UNDER_WAY.add(run.id)

    def begun(self, consistency: str, reason: str) -> None:
        """The job is there, as it was asked for: from now on another process can resume the run."""
        self._append(journal.begun(consistency, reason))

    def sealed(self, disk: str, entry: FileEntry, read_bytes: int) -> None:
        """A chunk file of a disk is durable."""
        self._append(journal.sealed(disk, journal.Sealed(entry.path, entry.size, entry.sha256, read_bytes)))

    @contextmanager
    def reading(self, consistency: str, reason: str) -> Iterator[None]:
        """While the job is read from: if this process dies meanwhile, another one can resume the run."""
        self.begun(consistency, reason)
        try:
            yield
        finally:
            self._append(journal.ending())

    def committed(self) -> None:
        """The checkpoint is the base of somebody's backup from now on. Durably, or OutputError: else the next run would
        delete it."""
        with _explained():
            _add(self._run, journal.committed())  # not to the open file: an earlier line may have found no room in it

    def withdrawn(self) -> None:
        """The point will not be committed, and its directory is gone, or of no use."""
        self._append(journal.withdrawn())

    def _append(self, data: bytes) -> None:
        """Not durably: these lines are for a job that still is there, so for a host that has not gone down since. A
        line that cannot be written fails no backup, and nor can those after it: of this run less can be resumed."""
        with self._lock, suppress(errors.OutputError):
            self._file.write(data)

    def close(self) -> None:
        self._file.close()
        _UNDER_WAY.discard(self._run.id)


def begin(run: Run) -> Journal:
    """Write a run down, durably; OutputError where that cannot be done."""
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
            raise
    return Journal(file, run)


def resume(run: Run) -> Journal:
    """The Journal of a dead run, which is this process's from now on; OutputError where it cannot be written."""
    with _explained():
        file = _opened().reopen(_path(run.uuid, run.id))
        try:
            file.write(journal.resumed())
        except BaseException:
            file.close()
            raise
    return Journal(file, run)


def runs(uuid: str) -> list[Run]:
    """Those that this machine knows of a domain, in the order of their begins. Where another process holds the domain,
    one of them may be alive."""
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
        raise errors.OutputError(f"the journals of this host: {error} ({VARIABLE} names another place)") from error


def is_alive(run: Run) -> Optional[bool]:
    """Whether somebody works on a run; None where that cannot be told from here. A process may outlive its runs."""
    return run.id in _UNDER_WAY if run.process == process.of() else run.is_alive


def remove(run: Run) -> None:
    """Nothing of the run is left: no later one has to look for it."""
    _opened().remove_file(_path(run.uuid, run.id))


def withdraw(run: Run) -> None:
    """Note of a dead run that its point will never be committed."""
    with suppress(errors.OutputError):
        _add(run, journal.withdrawn())


def _add(run: Run, line: bytes) -> None:
    """Durably, behind a line that may be torn."""
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
