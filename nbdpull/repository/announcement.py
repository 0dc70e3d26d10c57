"""The record in the directory of an uncommitted point: which run is making the point, and on which machine.

A program that finds such a directory must know whether a run is still working in it. Owns: run.json, and how to
distinguish the directory that a run made from a copy of it, in which no run works. Must not know: what else the run
made, which its journal on that machine records.
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
    """What run.json records of a run.

    id: of the run and of its point; store: absolute path; folder: of the point, relative to the store; inode: of that
    folder, None if the store has no such number; process: the one that works in the folder; begun: ISO 8601.
    """

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
        """Whether the run's process is running; None if that cannot be determined from here."""
        return self.process.is_alive

    @property
    def whose(self) -> str:
        return whose(self.id, self.process, self.begun, self.store)


def whose(run_id: str, process: Process, begun: str, store: Optional[str]) -> str:
    """Return how a message names a run. store: None for a run that makes no point."""
    into = f", into {store}" if store else ""
    return f"run {run_id} (process {process.pid} on {process.host}, since {begun}{into})"


def encode(announced: Announcement) -> bytes:
    return json.dumps(asdict(announced)).encode() + b"\n"


def decode(data: bytes) -> Optional[Announcement]:
    """Return the announcement; None if the data are no valid one: anybody who can write to the store can have written
    them."""
    with suppress(ValueError):
        found = members.build(Announcement, layout.parse_object(data))
        if layout.POINT_ID.match(found.id) and layout.is_time(found.begun):
            return found
    return None
