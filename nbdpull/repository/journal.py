"""What a run writes down before it begins a job: enough to find and remove all that it leaves if it dies.

Owns: job.json in a point's folder, and the record of the domain's holder on this machine. Must not know: libvirt, or
how what is left is removed (reclaim.py does).

job.json is one JSON object a line: first the run, then what became of it. A file that is only appended to needs no
overwriting, and a torn last line says nothing false.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, BinaryIO, NamedTuple, Optional, TypeVar

from ..core import errors, members, process
from ..format import layout
from ..storage.directory import DirectoryStore

JOURNAL = "job.json"

_T = TypeVar("_T")


class Sealed(NamedTuple):
    """A chunk file of a disk that became durable. chunks: [[path, size, sha256], …] of those that the disk's list got
    since the one before: itself, and those of older points that it refers to; read_bytes: read for it."""

    chunks: list[list[Any]]
    read_bytes: int


@dataclass(frozen=True)
class Run:
    """One run of a pull, as names: everything it makes bears its id.

    disks: target -> base checkpoint or None; parent: [id, SHA-256 of the manifest] of the point that it builds on;
    guest_runs: whether the guest's CPUs ran before the job; store: absolute path; folder: of the point, relative to the
    store; inode: of the job.json that was made there; pid to host: the process.Process that it is of.
    What became of it: freeze, (consistency, reason) of the point, from when the job was there and as long as it was to
    stay; sealed: by disk, in order.
    """

    id: str
    domain: str
    uuid: str
    uri: str
    checkpoint: Optional[str]
    checkpoint_disks: list[str]
    disks: dict[str, Optional[str]]
    socket: Optional[str]
    scratch_dir: str
    guest_runs: bool
    store: str
    folder: str
    pid: int = 0
    started: int = 0
    boot: str = ""
    machine: str = ""
    host: str = ""
    begun: str = ""
    parent: Optional[list[str]] = None
    inode: Optional[int] = None
    freeze: Optional[tuple[str, str]] = None
    sealed: dict[str, list[Sealed]] = field(default_factory=dict)

    @property
    def whose(self) -> str:
        return f"run {self.id} (process {self.pid} on {self.host}, since {self.begun}, into {self.store})"

    @property
    def is_alive(self) -> Optional[bool]:
        """Whether its process runs; None where that cannot be told from here."""
        return process.Process(*(getattr(self, name) for name in process.Process._fields)).is_alive


def of_this_process(**values: Any) -> Run:
    """A Run of this process, from the other members."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Run(**values, **process.of()._asdict(), begun=now)


# job.json

_BECAME = ("freeze", "sealed")  # members of a Run that the first line does not have
_OWNERS = process.Process._fields  # those that another process takes over
_Files = dict[str, dict[Optional[str], Sealed]]  # by disk, and path of the run's own chunk file


def encode(run: Run) -> bytes:
    return _line_of({name: value for name, value in asdict(run).items() if name not in _BECAME})


def _line_of(values: layout.Document) -> bytes:
    return json.dumps(values).encode() + b"\n"


def decode(data: bytes) -> Optional[Run]:
    """The Run in the bytes of a job.json, None if it says nothing: torn, of a later form, or made up.

    Anybody who can write to the store can have written it, and by it things are removed: see reclaim.py.
    """
    lines = list(_objects(data))
    became: dict[str, Any] = {}
    sealed: _Files = {}
    try:
        run = _run(lines[0])
        for line in lines[1:]:
            with suppress(KeyError, ValueError):  # it says less than it should, or what cannot be
                _follow(became, sealed, line, f"{run.id}/")
        return replace(run, sealed={disk: list(files.values()) for disk, files in sealed.items()}, **became)
    except (IndexError, ValueError):
        return None


def _run(line: layout.Document) -> Run:
    """The Run of a first line; ValueError where it is none."""
    if not set(line) <= {*Run.__dataclass_fields__} - {*_BECAME}:
        raise ValueError("of a later form")
    run = members.build(Run, line)
    names = [*run.disks, *run.checkpoint_disks]
    if not (layout.POINT_ID.match(run.id) and layout.is_time(run.begun) and len(run.parent or "12") == 2):
        raise ValueError("no run")
    if any("/" in name for name in names) or not all(map(os.path.isabs, [run.store, run.scratch_dir])):
        raise ValueError("its files are none of a run")
    return run


def _objects(data: bytes) -> Iterator[layout.Document]:
    """The lines that are whole."""
    for line in data.splitlines():
        with suppress(ValueError):
            yield layout.parse_object(line)


def _follow(became: dict[str, Any], sealed: _Files, line: layout.Document, own: str) -> None:
    """Note what one more line tells of the run; of an event that is not known, nothing.

    sealed: by disk, {path of the run's own file: Sealed}; own: how such a path begins.
    """
    event = line["event"]
    if event == "begun":
        became["freeze"] = (_member(str, line, "consistency"), _member(str, line, "reason"))
    elif event == "sealed":
        chunks, read_bytes = _chunks(line), _member(int, line, "read_bytes")
        files = sealed.setdefault(_member(str, line, "disk"), {})
        path = next((chunk[0] for chunk in chunks if chunk[0].startswith(own)), None)
        if path in files:  # made again, as it was not what it had been; so was all that came after
            while files.popitem()[0] != path:
                pass
        files[path] = Sealed(chunks, read_bytes)
    elif event == "ending":
        became["freeze"] = None
    elif event == "resumed":
        became.update({name: _member(type(getattr(Run, name)), line, name) for name in _OWNERS})


def _member(hint: type[_T], line: layout.Document, name: str) -> _T:
    found: _T = members.typed(hint, line[name], name)
    return found


def _chunks(line: layout.Document) -> list[list[Any]]:
    """[[path, size, sha256], …] of an event; ValueError where one of them is no chunk file."""
    chunks = _member(list[list[Any]], line, "chunks")
    for path, size, digest in chunks:
        members.typed(int, size, "size")
        if not (layout.CHUNK_PATH.match(_text(path)) and layout.SHA256.match(_text(digest))):
            raise ValueError("no chunk file")
    return chunks


def _text(value: object) -> str:
    found: str = members.typed(str, value, "chunks")
    return found


class Journal:
    """The job.json being written; to be used by several threads at once."""

    def __init__(self, store: DirectoryStore, path: str, run: Run) -> None:
        self._lock = threading.Lock()
        self._file = store.create(path)
        self._append(encode(replace(run, inode=store.inode(path))))
        self._file.sync()
        store.sync_folder(os.path.dirname(path))

    @classmethod
    def resumed(cls, store: DirectoryStore, path: str) -> Journal:
        """That of a dead run, which is this process's from now on."""
        journal = cls.__new__(cls)
        journal._lock = threading.Lock()
        journal._file = store.reopen(path)
        journal._append(b"\n" + _line_of({"event": "resumed", **process.of()._asdict()}))  # its last line may be torn
        return journal

    def begun(self, consistency: str, reason: str) -> None:
        """The job is there, as it was asked for: from now on another process can go on with it."""
        self._append(_line_of({"event": "begun", "consistency": consistency, "reason": reason}))

    def sealed(self, disk: str, chunks: list[list[Any]], read_bytes: int) -> None:
        """See Sealed."""
        self._append(_line_of({"event": "sealed", "disk": disk, "chunks": chunks, "read_bytes": read_bytes}))

    def ending(self) -> None:
        """The job is about to be ended: nobody can go on with it."""
        self._append(_line_of({"event": "ending"}))

    def _append(self, data: bytes) -> None:
        """Not durably: these lines are for a job that still is there, so for a host that has not gone down since."""
        with self._lock:
            self._file.write(data)

    def close(self) -> None:
        self._file.close()


# Who holds a domain on this machine


_STARTING = _line_of({"event": "starting"})


class Hold:
    """The holder's record of a domain. What an earlier holder, now dead, left in it: previous, a Run or None; starting,
    whether it was about to start the domain, which then has no mark yet."""

    def __init__(self, file: Optional[BinaryIO] = None) -> None:
        self._file = file
        record = file.read() if file else b""
        self.starting = record.endswith(_STARTING)
        self._record = record[: -len(_STARTING)] if self.starting else record
        self.previous = decode(self._record)

    def note_start(self) -> None:
        """Write down that the domain is about to be started, beside what is there."""
        self._replace(self._record + _STARTING)

    def clear_start(self) -> None:
        """It has its mark, or was not started."""
        self._replace(self._record)

    def note(self, run: Run) -> None:
        """Write down the run that holds the domain now."""
        self._replace(encode(run))

    def clear(self) -> None:
        """Nothing of the run is left: no later one has to look for it."""
        self._replace(b"")

    def _replace(self, data: bytes) -> None:
        if self._file:
            with suppress(OSError):
                self._file.seek(0)
                self._file.truncate()
                self._file.write(data)
                self._file.flush()


def look(uuid: str) -> Optional[Hold]:
    """The Hold that a dead holder left; None where there is none, or one that lives. It must not be written to."""
    with suppress(OSError), open(os.path.join(_folder(), f"{uuid}.run"), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return Hold(file)
    return None


@contextmanager
def holding(uuid: str, name: str) -> Iterator[Hold]:
    """Give the Hold of a domain; Busy, saying who it is, if another process of this machine pulls it.

    The lock ends with the process, however it dies. What is on other machines or of other users is told by the backup
    job alone.
    """
    file = _open_record(uuid)
    try:
        if file:
            _lock(file, name)
        yield Hold(file)
    finally:
        if file:
            file.close()


def _open_record(uuid: str) -> Optional[BinaryIO]:
    folder = _folder()
    with suppress(OSError):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.stat(folder).st_uid == os.geteuid():  # in /tmp anybody can make a folder of this name
            return os.fdopen(os.open(os.path.join(folder, f"{uuid}.run"), os.O_RDWR | os.O_CREAT, 0o600), "rb+")
    return None


def _folder() -> str:
    if os.geteuid() == 0:
        return "/run/nbdpull"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(runtime, "nbdpull") if runtime else f"/tmp/nbdpull-{os.geteuid()}"


def _lock(file: BinaryIO, name: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        run = decode(file.read())
        who = f"nbdpull {run.whose}" if run and run.is_alive else "another nbdpull"
        raise errors.Busy(f"domain '{name}' is held by {who}: try again when it has ended") from None
