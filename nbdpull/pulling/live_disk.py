"""A disk of a running backup job, ready to be read: its export, what is known beforehand, the number of connections.

Owns: the parameters of a Source, which are the same whether a disk is pulled or only estimated. Must not know: what is
done with the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Protocol, Union

from ..core import errors, extents
from ..core.choices import STALL_TIMEOUT
from ..core.errors import Check
from ..definitions.domain_xml import Disk
from ..format.directory import Directory
from ..hypervisor.backup_spec import Export
from ..nbd import address, source
from . import copies
from .base import Choice

if TYPE_CHECKING:
    from ..core.extents import Ranges

Server = Union[str, address.Tcp, address.Kept]
Held = Callable[[int, int], Any]


class Job(Protocol):
    """The part of a job that is needed here. exports: by target."""

    exports: dict[str, Export]

    def require_alive(self) -> None: ...


@dataclass(frozen=True)
class Reading:
    """How disks are read. max_in_flight: reads in progress at the same time in all threads, None: as many as possible;
    stall_timeout: seconds that the server may be silent; readers: connections to a disk at most, besides the map's."""

    threads: int
    max_in_flight: Optional[int] = None
    stall_timeout: float = STALL_TIMEOUT
    readers: int = source.READERS

    def reads_at_once(self) -> int:
        """Return how many reads each connection may have in progress, so that all together stay within the limit."""
        if self.max_in_flight is None:
            return source.MAX_BATCH_READS
        return min(max(self.max_in_flight // self.threads, 1), source.MAX_BATCH_READS)

    def connections(self, disks: int) -> int:
        """Return the number of connections for the readers and the map of a disk. If the server does not allow that
        many for all disks, the readers share them."""
        wanted = min(self.threads, self.readers) + 1
        return max(1, min(wanted, source.MAX_CONNECTIONS // disks))


class Live(NamedTuple):
    """The server and the job from which all disks of a run are read, and how."""

    server: Server
    job: Job
    reading: Reading


class Known(NamedTuple):
    """What is known of a disk before its server is asked. dirty_from, held, again: see Source."""

    dirty_from: int
    held: Optional[Held] = None
    again: Ranges = extents.of([])


def known(disk: Disk, choice: Choice, base: Optional[Directory], check: Check) -> Known:
    """Return what is known of a disk. base: from copies.base_of."""
    held = copies.held(base, choice, disk.target, check)
    return Known(choice.dirty_from(disk), held, base.again if base else extents.of([]))


@contextmanager
def opened(disk: Disk, live: Live, known: Known, check: Check) -> Iterator[source.Source]:
    """Yield the Source of a disk; SourceError if its export has another size."""
    job, export = live.job, live.job.exports[disk.target]
    with source.Source(
        live.server,
        export.name,
        export.bitmap,
        live.reading.reads_at_once(),
        live.reading.stall_timeout,
        check,
        job.require_alive,
        dirty_from=known.dirty_from,
        held=known.held,
        again=known.again,
        layered=disk.layered,
        connections=live.reading.connections(len(job.exports)),
    ) as found:
        if found.size != disk.size:
            raise errors.SourceError(f"disk {disk.target} is {disk.size} bytes, its export {found.size}")
        yield found
