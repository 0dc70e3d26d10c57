"""What the directory of a point says until the point is committed: which run makes it, and on which machine.

Who finds such a directory has to know whether somebody still works in it. Owns: run.json, and how the directory that a
run made is told from a copy of it, in which nobody works. Must not know: what the run made elsewhere, which its journal
on that machine says.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Optional

from ..core import members
from ..core.process import Process
from ..format import layout

NAME = "run.json"


@dataclass(frozen=True)
class Announcement:
    """id: of the run, and of its point; store: absolute path; folder: of the point, relative to it; inode: of that
    folder, None where a store has no such number; process: that works in it; begun: ISO 8601."""

    id: str
    domain: str
    uuid: str
    store: str
    folder: str
    process: Process
    begun: str
    inode: Optional[int] = None

    @property
    def is_alive(self) -> Optional[bool]:
        """Whether its process runs; None where that cannot be told from here."""
        return self.process.is_alive

    @property
    def whose(self) -> str:
        return whose(self.id, self.process, self.begun, self.store)


def whose(run_id: str, process: Process, begun: str, store: Optional[str]) -> str:
    """How a message names a run. store: None of one that makes no point."""
    into = f", into {store}" if store else ""
    return f"run {run_id} (process {process.pid} on {process.host}, since {begun}{into})"


def encode(announced: Announcement) -> bytes:
    return json.dumps(asdict(announced)).encode() + b"\n"


def decode(data: bytes) -> Optional[Announcement]:
    """None where it says nothing: anybody who can write to the store can have written it."""
    with suppress(ValueError):
        found = members.build(Announcement, layout.parse_object(data))
        if layout.POINT_ID.match(found.id) and layout.is_time(found.begun):
            return found
    return None
