"""The exports of a backup, for programs that read NBD themselves.

Owns: how an export is named for them, and that its job still stands. Must not know: which program it is.
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
    """uri: of NBD; bitmap: of what may have changed, "" where all is to be read; context: its name for the protocol."""

    uri: str
    name: str
    bitmap: str

    @property
    def context(self) -> str:
        return f"qemu:dirty-bitmap:{self.bitmap}" if self.bitmap else ""


def of(job: Job) -> dict[str, Export]:
    """By the name of the disk; good until the job is finished."""
    server, found = job._server, job._inside.job.exports
    return {
        disk.name: Export(_uri(server, found[disk.name].name), found[disk.name].name, found[disk.name].bitmap or "")
        for disk in job.disks
    }


def check(job: Job) -> None:
    """What may end the backup is asked, but for libvirt."""
    with callers.unwrapped():
        job._inside.lookout.check()


def require_standing(job: Job) -> None:
    """JobLost, and the like, where its exports show the backup no more; and what the backup's check raises."""
    check(job)
    job._inside.job.require_alive()


def _uri(server: Optional[Server], export: str) -> str:
    if isinstance(server, Kept):  # open_for_others has refused it
        raise errors.Unsupported("connections that have to be kept are for nobody else")
    name = urllib.parse.quote(export, safe="")
    if server is None:
        raise errors.UsageError("the backup has ended, and its exports with it")
    if not isinstance(server, Tcp):
        path = server.replace(_OURS, f"/proc/{os.getpid()}/", 1) if server.startswith(_OURS) else server
        return f"nbd+unix:///{name}?socket={urllib.parse.quote(path)}"
    host = f"[{server.host}]" if ":" in server.host else server.host
    if server.certificates is None:
        return f"nbd://{host}:{server.port}/{name}"
    certificates = urllib.parse.quote(os.path.abspath(server.certificates))  # whoever reads may be in another folder
    return f"nbds://{host}:{server.port}/{name}?tls-certificates={certificates}"
