"""The journal that a run writes before it begins a job: enough to find and remove everything that it leaves if it dies.

Owns: the form of a journal. Must not know: where journals are kept (journal_files.py), or how the remains of a run are
removed (reclaim.py).

A journal has one JSON object per line: first the run, then the events of the run. A file that is only appended to needs
no overwriting, and a torn last line states nothing false.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, NamedTuple, Optional, TypeVar

from ..core import members, process
from ..core.process import Process
from ..format import layout
from ..repository import announcement
from ..repository.announcement import Announcement

_T = TypeVar("_T")


class Sealed(NamedTuple):
    """A durable chunk file of a disk. path: relative to the series; read_bytes: bytes of the disk read for it."""

    path: str
    size: int
    sha256: str
    read_bytes: int


@dataclass(frozen=True)
class Run:
    """One run of a pull: the names of everything that it makes, all of which contain its id.

    disks: target -> base checkpoint or None; parent: [id, SHA-256 of the manifest] of the point that it builds on;
    guest_runs: whether the guest's CPUs ran before the job; store: absolute path or URL, None if no point is made;
    server: of an object store, None if unknown; folder: of the point, relative to the store.

    From the events: freeze: (consistency, reason) of the point while the run can be resumed, else None; sealed: chunk
    files by disk, in order; committed: whether the backup is committed; withdrawn: whether it never will be.
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
    store: Optional[str]
    folder: str
    process: Process
    begun: str
    parent: Optional[list[str]] = None
    server: Optional[str] = None
    freeze: Optional[tuple[str, str]] = None
    sealed: dict[str, list[Sealed]] = field(default_factory=dict)
    committed: bool = False
    withdrawn: bool = False

    @property
    def whose(self) -> str:
        return announcement.whose(self.id, self.process, self.begun, self.where)

    @property
    def where(self) -> Optional[str]:
        """The name of the store in messages."""
        return f"{self.store} at {self.server}" if self.server else self.store

    @property
    def is_alive(self) -> Optional[bool]:
        """Whether its process runs; None if that cannot be determined from here."""
        return self.process.is_alive

    def announced(self) -> Announcement:
        """Return the announcement for the directory of its point."""
        assert self.store is not None
        return Announcement(self.id, self.domain, self.uuid, self.store, self.folder, self.process, self.begun)


def of_this_process(**values: Any) -> Run:
    """Return a Run of this process that begins now. values: its other members."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Run(**values, process=process.of(), begun=now)


_BECAME = ("freeze", "sealed", "committed", "withdrawn")  # members of a Run that are not in the first line
_Files = dict[str, dict[Optional[str], Sealed]]  # by disk, and path of the run's own chunk file


def encode(run: Run) -> bytes:
    """Return the first line of a journal."""
    left_out = {*_BECAME, *(() if run.server else ("server",))}
    return line({name: value for name, value in asdict(run).items() if name not in left_out})


def line(values: layout.Document) -> bytes:
    return json.dumps(values).encode() + b"\n"


def begun(consistency: str, reason: str) -> bytes:
    """Return the line for a job that was begun as requested: from now on another process can resume the run."""
    return line({"event": "begun", "consistency": consistency, "reason": reason})


def sealed(disk: str, chunk: Sealed) -> bytes:
    return line({"event": "sealed", "disk": disk, **chunk._asdict()})


def ending() -> bytes:
    """Return the line for a job that is about to be ended: from now on the run cannot be resumed."""
    return line({"event": "ending"})


def committed() -> bytes:
    """Return the line for a backup that its owner has committed: the next one may start from its checkpoint."""
    return line({"event": "committed"})


def withdrawn() -> bytes:
    """Return the line for a point that will not be committed."""
    return line({"event": "withdrawn"})


def resumed() -> bytes:
    """Return the line for a run that this process resumes. It starts with a newline, as the line before may be torn."""
    return b"\n" + line({"event": "resumed", "process": asdict(process.of())})


def decode(data: bytes) -> Optional[Run]:
    """Return the Run in the bytes of a journal; None if its first line is torn or of a later form."""
    lines = list(_objects(data))
    became: dict[str, Any] = {}
    files: _Files = {}
    try:
        run = _run(lines[0])
        for each in lines[1:]:
            with suppress(KeyError, ValueError):  # a member is missing or invalid
                _follow(became, files, each, f"{run.id}/")
        return replace(run, sealed={disk: list(found.values()) for disk, found in files.items()}, **became)
    except (IndexError, ValueError):
        return None


def _run(first: layout.Document) -> Run:
    """Return the Run in a first line; ValueError if it is not valid."""
    if not set(first) <= {*Run.__dataclass_fields__} - {*_BECAME}:
        raise ValueError("of a later form")
    run = members.build(Run, first)
    if not (layout.POINT_ID.match(run.id) and layout.is_time(run.begun) and len(run.parent or "12") == 2):
        raise ValueError("no run")
    return run


def _objects(data: bytes) -> Iterator[layout.Document]:
    """Yield the objects of the lines that are complete."""
    for each in data.splitlines():
        with suppress(ValueError):
            yield layout.parse_object(each)


def _follow(became: dict[str, Any], files: _Files, each: layout.Document, own: str) -> None:
    """Apply the event in one line; ignore unknown events. KeyError or ValueError if the line is not valid.

    files: by disk, {path of the run's own file: Sealed}; own: the beginning of such a path.
    """
    event = each["event"]
    if event == "begun":
        became["freeze"] = (_member(str, each, "consistency"), _member(str, each, "reason"))
    elif event == "sealed":
        chunk = _sealed(each)
        known = files.setdefault(_member(str, each, "disk"), {})
        if chunk.path in known:  # made again, as its content had changed; so was everything after it
            while known.popitem()[0] != chunk.path:
                pass
        known[chunk.path] = chunk
    elif event == "ending":
        became["freeze"] = None
    elif event == "committed":
        became["committed"] = True
    elif event == "withdrawn":
        became["withdrawn"] = True
    elif event == "resumed":
        became["process"] = _member(Process, each, "process")


def _member(hint: type[_T], each: layout.Document, name: str) -> _T:
    found: _T = members.typed(hint, each[name], name)
    return found


def _sealed(each: layout.Document) -> Sealed:
    """Return the Sealed of an event; ValueError if it is not one of a chunk file."""
    path, digest = _member(str, each, "path"), _member(str, each, "sha256")
    if not (layout.CHUNK_PATH.match(path) and layout.SHA256.match(digest)):
        raise ValueError("no chunk file")
    return Sealed(path, _member(int, each, "size"), digest, _member(int, each, "read_bytes"))
