"""What a run writes down before it begins a job: enough to find and remove all that it leaves if it dies.

Owns: the form of a journal. Must not know: where it is kept (journal_files.py), or how what is left is removed
(reclaim.py).

A journal is one JSON object a line: first the run, then what became of it. A file that is only appended to needs no
overwriting, and a torn last line says nothing false.
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
    """A chunk file of a disk that became durable. path: relative to the series; read_bytes: read for it."""

    path: str
    size: int
    sha256: str
    read_bytes: int


@dataclass(frozen=True)
class Run:
    """One run of a pull, as names: everything it makes bears its id.

    disks: target -> base checkpoint or None; parent: [id, SHA-256 of the manifest] of the point that it builds on;
    guest_runs: whether the guest's CPUs ran before the job; store: absolute path or URL, None where no point is to be
    made; server: of an object store, where that is known; folder: of the point, relative to the store.
    What became of it: freeze, (consistency, reason) of the point, from when the job was there and as long as it was to
    stay; sealed: by disk, in order; committed: whether what was read of it is somebody's
    backup now; withdrawn: whether it never will be.
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
        """How a message names the store."""
        return f"{self.store} at {self.server}" if self.server else self.store

    @property
    def is_alive(self) -> Optional[bool]:
        """Whether its process runs; None where that cannot be told from here."""
        return self.process.is_alive

    def announced(self) -> Announcement:
        """What the directory of its point says of it."""
        assert self.store is not None
        return Announcement(self.id, self.domain, self.uuid, self.store, self.folder, self.process, self.begun)


def of_this_process(**values: Any) -> Run:
    """A Run of this process, from the other members."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Run(**values, process=process.of(), begun=now)


_BECAME = ("freeze", "sealed", "committed", "withdrawn")  # members of a Run that the first line does not have
_Files = dict[str, dict[Optional[str], Sealed]]  # by disk, and path of the run's own chunk file


def encode(run: Run) -> bytes:
    """The first line."""
    left_out = {*_BECAME, *(() if run.server else ("server",))}
    return line({name: value for name, value in asdict(run).items() if name not in left_out})


def line(values: layout.Document) -> bytes:
    return json.dumps(values).encode() + b"\n"


def begun(consistency: str, reason: str) -> bytes:
    """The line of a job that is there as it was asked for: from now on another process can resume the run."""
    return line({"event": "begun", "consistency": consistency, "reason": reason})


def sealed(disk: str, chunk: Sealed) -> bytes:
    return line({"event": "sealed", "disk": disk, **chunk._asdict()})


def ending() -> bytes:
    """The job is about to be ended: nobody can resume the run."""
    return line({"event": "ending"})


def committed() -> bytes:
    """What was read is somebody's backup now, and the checkpoint its base."""
    return line({"event": "committed"})


def withdrawn() -> bytes:
    """The point will not be committed."""
    return line({"event": "withdrawn"})


def resumed() -> bytes:
    """This process resumes the run. The line before may be torn."""
    return b"\n" + line({"event": "resumed", "process": asdict(process.of())})


def decode(data: bytes) -> Optional[Run]:
    """The Run in the bytes of a journal, None where they say nothing: torn, or of a later form."""
    lines = list(_objects(data))
    became: dict[str, Any] = {}
    files: _Files = {}
    try:
        run = _run(lines[0])
        for each in lines[1:]:
            with suppress(KeyError, ValueError):  # it says less than it should, or what cannot be
                _follow(became, files, each, f"{run.id}/")
        return replace(run, sealed={disk: list(found.values()) for disk, found in files.items()}, **became)
    except (IndexError, ValueError):
        return None


def _run(first: layout.Document) -> Run:
    """The Run of a first line; ValueError where it is none."""
    if not set(first) <= {*Run.__dataclass_fields__} - {*_BECAME}:
        raise ValueError("of a later form")
    run = members.build(Run, first)
    if not (layout.POINT_ID.match(run.id) and layout.is_time(run.begun) and len(run.parent or "12") == 2):
        raise ValueError("no run")
    return run


def _objects(data: bytes) -> Iterator[layout.Document]:
    """The lines that are whole."""
    for each in data.splitlines():
        with suppress(ValueError):
            yield layout.parse_object(each)


def _follow(became: dict[str, Any], files: _Files, each: layout.Document, own: str) -> None:
    """Note what one more line says of the run; of an event that is not known, nothing.

    files: by disk, {path of the run's own file: Sealed}; own: how such a path begins.
    """
    event = each["event"]
    if event == "begun":
        became["freeze"] = (_member(str, each, "consistency"), _member(str, each, "reason"))
    elif event == "sealed":
        chunk = _sealed(each)
        known = files.setdefault(_member(str, each, "disk"), {})
        if chunk.path in known:  # made again, as it was not what it had been; so was all that came after
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
    """Of an event; ValueError where it is of no chunk file."""
    path, digest = _member(str, each, "path"), _member(str, each, "sha256")
    if not (layout.CHUNK_PATH.match(path) and layout.SHA256.match(digest)):
        raise ValueError("no chunk file")
    return Sealed(path, _member(int, each, "size"), digest, _member(int, each, "read_bytes"))
