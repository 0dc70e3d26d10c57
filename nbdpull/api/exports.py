"""The exports of a backup, for programs that read NBD themselves.

Owns: the names of exports for them, and the check that the job still exists. Must not know: which program it is.
"""

from __future__ import annotations

import os
import urllib.parse
from typing import NamedTuple, Optional

from ..core import errors
from ..nbd.address import Kept, Tcp
from ..pulling.live_disk import Server
from . import callers
from .job import Job

_OURS = "/proc/self/"


class Export(NamedTuple):
    """uri: of NBD; bitmap: of what may have changed, "" if everything has to be read; context: its name for the
    protocol."""

    uri: str
    name: str
    bitmap: str

    @property
    def context(self) -> str:
        return f"qemu:dirty-bitmap:{self.bitmap}" if self.bitmap else ""


def of(job: Job) -> dict[str, Export]:
    """Return the exports by name of the disk; valid until the job is finished."""
    server, found = job._server, job._inside.job.exports
    return {
        disk.name: Export(_uri(server, found[disk.name].name), found[disk.name].name, found[disk.name].bitmap or "")
        for disk in job.disks
    }


def check(job: Job) -> None:
    """Call the checks that may end the backup, except for those that ask libvirt."""
    with callers.unwrapped():
        job._inside.lookout.check()


def require_active(job: Job) -> None:
    """Raise JobLost, or a similar error, if the exports no longer show the backup; raise what the backup's check
    raises."""
    check(job)
    job._inside.job.require_alive()


def _uri(server: Optional[Server], export: str) -> str:
    if isinstance(server, Kept):  # open_for_others has refused it
        raise errors.Unsupported("connections that must be kept open cannot be shared")
    name = urllib.parse.quote(export, safe="")
    if server is None:
        raise errors.UsageError("the backup has ended, and its exports with it")
    if not isinstance(server, Tcp):
        path = server.replace(_OURS, f"/proc/{os.getpid()}/", 1) if server.startswith(_OURS) else server
        return f"nbd+unix:///{name}?socket={urllib.parse.quote(path)}"
    host = f"[{server.host}]" if ":" in server.host else server.host
    if server.certificates is None:
        return f"nbd://{host}:{server.port}/{name}"
    certificates = urllib.parse.quote(os.path.abspath(server.certificates))  # the reader may be in another directory
    return f"nbds://{host}:{server.port}/{name}?tls-certificates={certificates}"
