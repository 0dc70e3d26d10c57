"""Turns the volumes of a backup into a committed point of their series.

Owns: which volume is read in full and which as an increment, and that the point counts only if the backup lasted until
the last byte. Must not know: where the backup comes from and what ends it, HTTP.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Callable, NamedTuple, Optional, Protocol

from ..core import process
from ..core.choices import BackupType, OnLostBase
from ..core.throttle import Throttle
from ..definitions.domain_xml import Disk
from ..format import writer
from ..format.manifest import FULL
from ..hypervisor.guest_load import Cores
from ..kubevirt import given
from ..kubevirt.endpoint import Endpoint
from ..kubevirt.volume import READ_DATA, Volume
from ..pulling import account, copies, fit
from ..pulling.account import Cut, Whose
from ..pulling.base import Choice
from ..pulling.disk_copy import DiskCopy, Storing
from ..pulling.level import Level
from ..repository import new_point
from ..repository.announcement import Announcement
from ..repository.new_point import NewPoint, Stored
from ..repository.series import Point
from .machine_run import Run
from .start import Start


class Wanted(Protocol):
    """The options of a pull that are used here; see KubevirtOptions."""

    @property
    def disks(self) -> Sequence[str]: ...
    @property
    def exclude(self) -> Sequence[str]: ...
    @property
    def on_lost_base(self) -> str: ...
    @property
    def space_check(self) -> bool: ...
    @property
    def dedupe(self) -> bool: ...
    @property
    def threads(self) -> int: ...
    @property
    def level(self) -> Optional[int]: ...
    @property
    def frame_size(self) -> int: ...
    @property
    def chunk_size(self) -> int: ...
    @property
    def max_rate(self) -> Optional[int]: ...
    @property
    def max_rate_file(self) -> Optional[str]: ...


@dataclass(frozen=True)
class Backup:
    """type: of BackupType; sources: the source of each volume, by name; files: of the VM, by name."""

    type: str
    cut: Cut
    sources: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


class Reading(NamedTuple):
    """volumes: those to pull, with their maps read."""

    endpoint: Endpoint
    volumes: Sequence[Volume]


def reading(
    endpoint: Endpoint, backup_type: str, wanted: Wanted, full: Collection[str] = (), absent: Collection[str] = ()
) -> Reading:
    """Read the maps. full: volumes that are in full in any case; absent: those that are not in the backup."""
    names = given.wanted(endpoint.volumes, wanted.disks, wanted.exclude, absent)
    types = {name: BackupType.FULL if name in full else backup_type for name in names}
    return Reading(endpoint, [Volume(endpoint, *each) for each in types.items()])


def made(
    run: Run,
    wanted: Wanted,
    backup: Backup,
    start: Start,
    read: Reading,
    point_id: str,
    require_alive: Callable[[], None] = lambda: None,
) -> Point:
    """Make a point of a backup. require_alive: raises if the backup did not last."""
    disks = [
        start.disk(run.machine, each.name, backup.sources.get(each.name), each.size, each.allocated)
        for each in read.volumes
    ]
    choice = _choice(run, wanted, start, disks, read.volumes)
    run.warnings.extend(_blind(choice, read.volumes))
    fit.require_readable(disks, run.held.sequence, run.series.store.path(run.series.folder))
    if wanted.space_check:
        in_full = [disk for disk in disks if choice.decisions[disk.target][0] == FULL]
        fit.require_store(run.series.store, in_full)
    announced = _announced(run, point_id)
    account.start(run.report, announced.id, choice, disks)
    run.laps.end("begin")
    with new_point.begun(run.series, announced.id, announced) as new:
        entries = _copied(run, wanted, choice, read, disks, new)
        run.laps.end("copy")
        for volume in read.volumes:
            volume.require_same()
        require_alive()
        run.laps.end("end")
        for name, data in backup.files.items():
            new.add_file(name, data, choice.parent)
        run.laps.end("files")
        whose = Whose(run.machine.domain, run.uuid)
        point = new.commit(account.members(run.held, whose, choice, backup.cut, run.laps), entries, run.held.points.ids)
    run.warnings.extend(run.held.found_since(point))
    run.healed[:], warnings = copies.mended((run.series, point), choice, run.healed, wanted.level, run.check)
    run.warnings.extend(warnings)
    return point


def _choice(run: Run, wanted: Wanted, start: Start, disks: list[Disk], volumes: Sequence[Volume]) -> Choice:
    choice = start.choice(disks, [each.name for each in volumes if each.type == BackupType.FULL])
    run.warnings.extend(choice.lost_warnings())
    if wanted.on_lost_base == OnLostBase.FAIL:
        choice.require_not_lost()
    return choice


def _blind(choice: Choice, volumes: Sequence[Volume]) -> list[str]:
    """Return a warning if a disk's map cannot show what the disk lost when it shrank: those ranges are clean, and only
    zeros would reveal them."""
    names = [each.name for each in volumes if choice.whole_parent(each.name) and not each.reports_zeros]
    if not names or not choice.parent:
        return []
    return [
        f"the map of {', '.join(names)} reports no zeros (KubeVirt 1.8 never does): if the disk was shrunk and grown "
        f"again since point {choice.parent.id}, the new point is wrong where it was cut off; then pull with --full"
    ]


def _announced(run: Run, point_id: str) -> Announcement:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    store, folder = run.series.store.root, f"{run.series.folder}/{point_id}"
    return Announcement(point_id, run.machine.domain, run.uuid, store, folder, process.of(), now)


class _Elsewhere:
    """A guest on another machine: it leaves all cores of this one free."""

    is_remote = True

    def vcpu_seconds(self) -> float:
        return 0.0


def _copied(run: Run, wanted: Wanted, choice: Choice, read: Reading, disks: list[Disk], new: NewPoint) -> list[Stored]:
    target, check = run.series, read.endpoint.ending(run.check)
    least = writer.least_chunk_size(disk.size for disk in disks)
    cores = Cores(_Elsewhere(), check=check)
    level = Level(wanted.level, lambda: min(wanted.threads, cores.allowed))
    storing = Storing(wanted.frame_size, writer.chunk_size(target.store, wanted.chunk_size, least), level)
    throttle = Throttle(wanted.max_rate, wanted.max_rate_file, check)
    with ExitStack() as opened:
        made = []
        for disk, volume in zip(disks, read.volumes):
            base = copies.base_of(target, choice, disk.target, check)
            if base and choice.whole_parent(disk.target):
                volume.changed(choice.dirty_from(disk), copies.held(base, choice, disk.target, check), base.again)
            run.healed.extend(copies.healed([base]))
            into = choice.decisions[disk.target], target, new.id, storing, throttle
            copy = DiskCopy(disk, volume, *into, base, wanted.dedupe, read_data=READ_DATA)
            made.append(opened.enter_context(copy))
        copies.copy_all(made, wanted.threads, cores, check, run.report)
        return copies.logged(made, copies.close_all(made, check))
