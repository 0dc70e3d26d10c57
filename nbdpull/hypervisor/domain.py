"""A libvirt domain: its disks and checkpoints, and the life of one pull backup job.

Owns: the calls of libvirt for them. Who leaves `Domain.backup` early, by whatever exception, leaves no job, no
checkpoint and no file of this run behind. What another client made (job, checkpoint) is looked at and never touched.

Must not know: NBD, extents, the store, or why a disk is pulled in full. XML is domain_xml's.
"""

import contextlib
import json
import os
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, NamedTuple, Optional

from ..core import errors
from ..core.process import Process
from ..definitions import definition, domain_xml
from ..definitions.domain_xml import Backup, Checkpoint, Disk, Listen
from ..images import guest_files
from . import domain_freeze, domain_link, domain_mark, domain_start, domain_state, qemu_process
from .bindings import libvirt
from .connection import dotted, linked, look_up
from .handle import Handle
from .libvirt_error import (
    CHECKPOINT_INCONSISTENT,
    NO_BACKUP,
    NO_CHECKPOINT,
    code_of,
    is_unanswered,
    unless,
)

# QEMU's user must be able to enter it, which a home directory or a private folder seldom allows; and it is on a disk,
# while /tmp is a tmpfs in many places: scratch grows with what the guest overwrites and would eat the host's memory.
SCRATCH_DIR = "/var/tmp"
AUTO, REQUIRE, NEVER = domain_freeze.AUTO, domain_freeze.REQUIRE, domain_freeze.NEVER  # of Plan.quiesce
FROZEN, FREEZE_TIMEOUT = domain_freeze.FROZEN, domain_freeze.TIMEOUT
SOCKET_PATH_MAX = 107  # bytes, sun_path less its NUL
# An abort may wait 30 s in the daemon for another call on the same domain, and is then tried again.
END_TIMEOUT = 120  # seconds
ASK_AGAIN = 2  # seconds: a daemon that restarts just then forgets that the end was asked for; a second time is no harm
NEVER_RAN = 0.05  # seconds of its CPUs, which are threads that have to start; less than any firmware takes
OLDEST_WITH_CHECKPOINTS = 7_006_000

_BACKUP = 9  # job operation
_OPERATIONS = ("unknown job", "start", "save", "restore", "incoming migration", "outgoing migration", "snapshot",
               "snapshot revert", "dump", "backup", "snapshot deletion")  # fmt: skip
_COMPLETED, _KEEP_COMPLETED, _TYPE_COMPLETED = 1, 2, 3
_REDEFINE_VALIDATE = 4
_PRESERVE_SHUTDOWN, OLDEST_WITH_PRESERVE = 2, 11_010_000

# A call on the same domain was in the way; or nothing to end any more.
_TRY_AGAIN = (libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_OPERATION_INVALID)


@dataclass(frozen=True)
class Plan:
    """What one backup is to be.

    run_id: unique text of this run, of letters, digits, dots and dashes, put into every name that we give; disks:
    target -> base checkpoint, None = full; checkpoint: name of the one to make, over checkpoint_disks; socket: None =
    Domain.socket_path; scratch_dir: a directory of the hypervisor that QEMU's user can enter;
    quiesce, freeze_timeout: see domain_freeze.
    """

    run_id: str
    disks: Mapping[str, Optional[str]]
    checkpoint: Optional[str] = None
    checkpoint_disks: Sequence[str] = ()
    description: str = ""
    socket: Optional[str] = None
    scratch_dir: str = SCRATCH_DIR
    tcp: Optional[Listen] = None
    tls: bool = False
    quiesce: str = domain_freeze.NEVER
    freeze_timeout: float = domain_freeze.TIMEOUT


class Export(NamedTuple):
    """NBD export of a disk; bitmap: of its context qemu:dirty-bitmap:…, None = full."""

    name: str
    bitmap: Optional[str]


@contextlib.contextmanager
def open(
    name: str, uri: Optional[str] = None, stall_timeout: float = 60.0, check: Callable = lambda: None
) -> Iterator["Domain"]:
    """The domain `name`; uri None is libvirt's own default. NoSuchDomain, AccessDenied, HypervisorError.

    The connection is made anew where the daemon restarts; no call waits longer than stall_timeout and what the daemon
    waits by itself, and what check() raises ends that, too.
    """
    with linked(uri, stall_timeout, check) as link:
        connection = link.connection()
        yield Domain(connection, look_up(connection, name), link)


class Domain(Handle):
    """One domain through one connection; made by `open`."""

    reads_images = False  # whether its disks are read without QEMU: see offline_read
    image_warnings: Sequence[str] = ()  # what is to be told of them then

    @property
    def id(self) -> int:
        """Number of the running domain, -1 when off."""
        return self.dom.ID()

    @property
    def shown_uri(self) -> str:
        """The URI without a password that somebody wrote into it: for what is kept."""
        parts = urllib.parse.urlsplit(self.uri)
        user, at, host = parts.netloc.rpartition("@")
        return parts._replace(netloc=user.partition(":")[0] + at + host).geturl() if at else self.uri

    @property
    def host(self) -> str:
        """Name of the machine that the domain is on, as its URI has it."""
        return urllib.parse.urlsplit(self.uri).hostname or "localhost"

    @property
    def versions(self) -> dict[str, str]:
        """{"libvirt": the daemon's, "qemu": the emulator's}, each "9.0.0"."""
        with self.seam("read the versions"):
            daemon, emulator = self.connection.getLibVersion(), self.connection.getVersion()
        return {"libvirt": dotted(daemon), "qemu": dotted(emulator)}

    @property
    def running_version(self) -> Optional[tuple[int, ...]]:
        """(7, 2, 22) of the QEMU that runs it, None where that is not known."""
        if self.is_remote:
            return self._told_version()
        return qemu_process.version(self.name, urllib.parse.urlsplit(self.uri).path == "/session")

    def _told_version(self) -> Optional[tuple[int, ...]]:
        """What QEMU itself says: libvirt knows but the one that is installed by now."""
        try:
            with self.seam("ask QEMU for its version"):
                answer = json.loads(domain_link.ask_monitor(self.dom, '{"execute": "query-version"}'))
            return tuple(answer["return"]["qemu"][part] for part in ("major", "minor", "micro"))
        except (errors.HypervisorError, errors.DomainNotRunning, ValueError, KeyError):
            return None

    @property
    def seen_version(self) -> tuple[int, ...]:
        """The likely one, without a question to QEMU that libvirt would note: on another host the one installed."""
        return tuple(map(int, self.versions["qemu"].split("."))) if self.is_remote else self.likely_version

    @property
    def likely_version(self) -> tuple[int, ...]:
        """The same; where that is not known, of the one installed."""
        return self.running_version or tuple(map(int, self.versions["qemu"].split(".")))

    @property
    def agent_state(self) -> Optional[str]:
        """Of the guest agent: "connected", "disconnected", None without a channel for it."""
        with self.seam("read the definition"):
            return domain_xml.agent_state(self.dom.XMLDesc(0))

    @property
    def supports_checkpoints(self) -> bool:
        """Whether the daemon and the domain's emulator can make checkpoints and pull since them.

        A domain that was started before an upgrade may still lack it: then the backup raises Unsupported.
        """
        with self.seam("read the capabilities"):
            if self.connection.getLibVersion() < OLDEST_WITH_CHECKPOINTS:
                return False
            platform = domain_xml.platform(self.dom.XMLDesc(0))
            return domain_xml.supports_backup(self.connection.getDomainCapabilities(*platform))

    @property
    def has_host_devices(self) -> bool:
        """Whether a start takes devices from the host."""
        with self.seam("read the definition"):
            return domain_xml.has_host_devices(self.dom.XMLDesc(0))

    @contextlib.contextmanager
    def awake(self, start: bool, hold: Any = None) -> Iterator[bool]:
        """Inside, QEMU runs the domain. One that is off is started with its CPUs paused, and ended gracefully after.

        hold: the journal.Hold of the domain, where the start is written down as long as there is no mark of it. Gives
        True if it was started so, by us or by a run of ours that was killed. Raises DomainNotRunning where it is off
        and `start` is False. A domain that somebody has resumed meanwhile is theirs, and left running.
        """
        owner = self._started_by() if self.active else None
        unmarked = self._is_unmarked(hold)
        if self.active and not (owner and self._is_paused()) and not unmarked:
            yield False
            return
        if owner and domain_mark.is_alive(owner):
            raise errors.Busy(f"domain '{self.name}' stands paused for a pull of process {owner.pid} on {owner.host}: "
                              "try again when that has ended; if it never will, virsh destroy --graceful")  # fmt: skip
        if not (owner or unmarked or start):
            raise errors.DomainNotRunning(f"domain '{self.name}' is not running: start it first, or do not refuse "
                                          "one that is off (--offline=auto)")  # fmt: skip
        ours = self._started_paused(hold, is_up=owner or unmarked)
        try:
            yield True
        except BaseException as error:
            left: list[str] = getattr(error, "left_behind", [])
            _attempt(lambda: self._end_paused(ours), "the domain, which was started paused,", left)
            error.left_behind = left  # type: ignore[attr-defined]
            raise
        self._end_paused(ours)

    def left_paused(self, hold: Any = None) -> bool:
        """Whether it stands paused as a run started it that is dead by now: `awake` with that hold ends it."""
        if self._is_unmarked(hold):
            return True
        owner = self._started_by() if self.active and self._is_paused() else None
        return owner is not None and not domain_mark.is_alive(owner)

    @property
    def left_frozen(self) -> bool:
        """Whether a dead run began to freeze the guest, and the guard that was to thaw it is dead, too."""
        with self.seam("read its mark"):
            owner = domain_mark.owner(self.dom, domain_mark.FREEZING) if self.active else None
        return owner is not None and not domain_mark.is_alive(owner)

    def thaw_guest(self) -> None:
        """Of a guest that is left_frozen."""
        with self.live("thaw the guest"):
            domain_freeze.thaw(self.dom)

    def _is_unmarked(self, hold: Any) -> bool:
        """Whether it was started for a run that was killed before it could mark it: nobody has let it run yet."""
        if hold is None or not hold.starting or not self.active or self._started_by() or not self._is_paused():
            return False
        return self.vcpu_seconds() < NEVER_RAN

    def _started_paused(self, hold: Any, is_up: Any) -> Process:
        """Start it, unless it is up, and mark it; the mark's owner."""
        if not is_up:
            self._require_startable()
            self._start_paused(hold)
        with self.live("mark it as started for a pull"):
            owner = domain_mark.put(self.dom, domain_mark.STARTED_PAUSED)
        if hold:
            hold.clear_start()
        return owner

    def _start_paused(self, hold: Any) -> None:
        """The record of the start stays where it may happen yet, or has, and the domain has no mark."""
        if hold:
            hold.note_start()
        try:
            with self.seam("start it paused"):
                self._call_start()
        except errors.NbdpullError as error:
            if is_unanswered(error):
                error.left_behind = [  # type: ignore[attr-defined]
                    f"domain '{self.name}' may be started paused yet: the next pull of it, or nbdpull cleanup, ends it"
                ]
            elif hold:
                hold.clear_start()
            raise

    def _call_start(self) -> None:
        try:
            self.dom.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        except libvirt.libvirtError as error:
            disks = [] if self.is_remote else self.disks()
            images = [disk.source for disk in disks if disk.type in ("file", "block") and not disk.empty]
            raise domain_start.failed(self.name, error, images, self.link.timeout) from error

    def _require_startable(self) -> None:
        if self.other_session:
            raise errors.DomainNotRunning(f"domain '{self.name}' seems to be off: {self.other_session}")
        if self.has_saved_state:
            raise errors.Unsupported(f"domain '{self.name}' has a saved state, which a start would use up: start it "
                                     "yourself, or remove that with virsh managedsave-remove")  # fmt: skip

    def _is_paused(self) -> bool:
        return self.guest_state().paused

    def _started_by(self) -> Optional[Process]:
        """The process that started it for a pull, None where none did: its owner may have paused it."""
        with self.seam("read its mark"):
            return domain_mark.owner(self.dom, domain_mark.STARTED_PAUSED)

    def _end_paused(self, owner: Process) -> None:
        """Ends it, if it still stands as we started it. Gracefully: QEMU then stores its bitmaps."""
        with self.ignoring_check(), contextlib.suppress(errors.DomainNotRunning, errors.DomainStopped):
            if self.active and self._is_paused() and self._started_by() == owner and self._operation() is None:
                with self.live("end it again"):
                    self.dom.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
                self.was_active = False

    def require_idle(self) -> None:
        """Raises Busy if a job runs, naming it, at once; libvirt would wait for it 30 s and then tell nothing.

        A backup can be there without being the current job: while it ends, and where its begin failed half-way.
        """
        operation, backup = self._operation(), self.backup_job()
        if backup:
            raise errors.Busy(f"domain '{self.name}' already has a backup job, {_owner(backup)}: "
                              f"{_way_out(self.name, backup)}")  # fmt: skip
        if operation is not None:
            job = _OPERATIONS[operation] if operation < len(_OPERATIONS) else _OPERATIONS[0]
            raise errors.Busy(f"domain '{self.name}' is busy with a job ({job}): try again when it has ended")

    def require_no_lost_job(self) -> None:
        """Raises JobStuck where libvirt holds the domain for a job that it knows nothing of."""
        if self.active:
            self._operation()

    def require_no_foreign_job(self) -> None:
        """Raises Busy as require_idle does, yet not for a backup of nbdpull, which may be a dead run's."""
        backup = self.backup_job()
        if backup is None or not backup.run_id:
            self.require_idle()

    def require_there(self) -> None:
        """Raises DomainStopped where it ended, NoAnswer where libvirt's daemon is gone or hangs; nothing else."""
        try:
            state = self.guest_state()
        except errors.DomainStopped:
            raise
        except errors.NbdpullError:
            if self.link.gone:
                raise
        else:
            if state.off:
                raise domain_state.ended(self.name, state)

    def heed(self, check: Callable = lambda: None) -> None:
        """From now on, what this check() raises ends a wait for libvirt."""
        self.link.check = check

    def resume_guest(self) -> None:
        with self.ignoring_check(), self.live("resume the guest"):
            self.dom.resume()

    def _require_no_block_job(self, targets: Iterable[str]) -> None:
        with self.live("look for block jobs"):
            for target in targets:
                if self.dom.blockJobInfo(target):
                    raise errors.Busy(f"disk {target} of domain '{self.name}' has a block job: see virsh blockjob, "
                                      "try again when it has ended")  # fmt: skip

    def disks(self) -> list[Disk]:
        """All disks, cdroms and floppies, as the definition tells them; of a running domain as they are now."""
        with self.seam("read the definition"):
            return domain_xml.parse_disks(self.dom.XMLDesc(0))

    def looked_at(self, disks: Iterable[Disk]) -> list[Disk]:
        """The same with what their images tell. For those that are wanted: another's storage may hang or be gone."""
        return [self._with_facts(disk) for disk in disks]

    def _with_facts(self, disk: Disk) -> Disk:
        with self.seam(f"look at disk {disk.target}"):
            size, allocation, _ = self.dom.blockInfo(disk.target)
        return replace(disk, size=size, allocation=allocation, bitmaps=self._holds_bitmaps(disk))

    def _holds_bitmaps(self, disk: Disk) -> Optional[bool]:
        """qcow2 can from its version 3 (compat 1.1) on. None where its header cannot be read from here."""
        if disk.format != "qcow2":
            return False
        if self.is_remote or disk.type not in ("file", "block"):
            return None
        try:
            head = guest_files.read(disk.source, self.link.timeout, 8, self.link.check)
        except TimeoutError as error:
            raise errors.NoAnswer(
                f"domain '{self.name}': disk {disk.target} cannot be looked at ({disk.source}: {error.strerror}): "
                f"leave it out with --exclude {disk.target}, or mend its storage"
            ) from error
        except OSError:
            return None
        return int.from_bytes(head[4:], "big") >= 3

    @property
    def has_internal_snapshots(self) -> bool:
        with self.seam("look for snapshots"):
            return bool(self.dom.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL))

    def checkpoints(self) -> list[str]:
        """Names of all checkpoints, oldest first; of one second parents first."""
        return [each.name for each in self.known_checkpoints()]

    def known_checkpoints(self) -> list[Checkpoint]:
        """The same as Checkpoints, whose bitmaps are not looked at.

        Parentage alone does not tell their order: one that was redefined, or made after a failed begin, is nobody's
        child.
        """
        with self.seam("list the checkpoints"):
            found = self.dom.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
            xmls = [each.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN) for each in found]
        parsed = [domain_xml.parse_checkpoint(xml, with_size=False) for xml in xmls]
        return sorted(parsed, key=lambda each: each.creation_time)

    def checkpoint(self, name: str) -> Checkpoint:
        """Raises NoSuchCheckpoint, naming those that exist. On a running domain each bitmap is looked at."""
        active = self.active
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE if active else 0
        with self.seam(f"read checkpoint '{name}'"):
            found = self._find_checkpoint(name)
            if found is None:
                raise self._no_checkpoint(name)
            xml = unless((libvirt.VIR_ERR_INTERNAL_ERROR,), lambda: found.getXMLDesc(flags))
            if xml is not None:
                return domain_xml.parse_checkpoint(xml, with_size=active)
            whole = domain_xml.parse_checkpoint(found.getXMLDesc(), with_size=False)
            return replace(whole, disks=self._unlike(whole.disks))

    def _unlike(self, targets: Iterable[str]) -> dict[str, Optional[bool]]:
        """Of a checkpoint whose bitmaps QEMU cannot put together, which libvirt tells of all disks at once: whether
        each can be a base. Where a disk was resized after a snapshot, the bitmap of the lower layer kept its size."""
        backing = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING
        ((_, stats),) = self.connection.domainListGetStats([self.dom], libvirt.VIR_DOMAIN_STATS_BLOCK, backing)
        sizes: dict[str, set[int]] = {}
        for number in range(stats.get("block.count", 0)):
            layers = sizes.setdefault(stats[f"block.{number}.name"], set())
            layers.add(stats.get(f"block.{number}.capacity", -1))
        unequal = [target for target in targets if len(sizes.get(target, ())) != 1]
        return {target: bool(unequal) and target not in unequal for target in targets}  # in doubt none

    def delete_checkpoint(self, name: str) -> bool:
        """Deletes it with its bitmaps; False if there is none of that name. DomainNotRunning: it needs QEMU."""
        with self.live(f"delete checkpoint '{name}'"):
            found = self._find_checkpoint(name)
            if found is None:
                return False
            if unless((libvirt.VIR_ERR_INTERNAL_ERROR,), found.delete) is None:
                self._delete_disk_by_disk(domain_xml.parse_checkpoint(found.getXMLDesc(), with_size=False))
            return True

    def _delete_disk_by_disk(self, checkpoint: Checkpoint) -> None:
        """libvirt deletes nothing where one disk lacks its bitmap, and forgetting it would strand the other bitmaps,
        which cost the guest time at every write. So it is made a checkpoint of each disk in turn."""
        for target in checkpoint.disks:
            one = self._redefine(replace(checkpoint, disks={target: None}))
            unless((libvirt.VIR_ERR_INTERNAL_ERROR,), one.delete)
        rest = self._find_checkpoint(checkpoint.name)
        if rest is not None:
            rest.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)

    def delete_bitmaps(self, name: str, run_id: str, targets: Sequence[str]) -> None:
        """Removes bitmaps of a run that no checkpoint owns, whole or broken: they are made one first."""
        with self.live(f"remove bitmap '{name}'"):
            self._redefine(Checkpoint(name, 0, domain_xml.description(run_id, ""), dict.fromkeys(targets), ""))
        self.delete_checkpoint(name)

    def redefine_checkpoint(self, xml: str) -> bool:
        """Gives libvirt back a checkpoint whose metadata it lost, from its own XML of then; False = no disk can use it.

        libvirt looks at each bitmap; one that is missing or broken is told by `checkpoint` afterwards.
        """
        saved = domain_xml.parse_checkpoint(xml, with_size=False)
        with self.live(f"define checkpoint '{saved.name}' again"):
            present = {disk.target for disk in domain_xml.parse_disks(self.dom.XMLDesc(0))}
            covered = [target for target in saved.disks if target in present]
            if self._validated(saved, covered):
                return True
            if len(covered) < 2 or not any([self._validated(saved, [target]) for target in covered]):
                return False
            # All of them, so that a later deletion finds the broken bitmaps, too.
            self._redefine(replace(saved, disks=dict.fromkeys(covered)))
            return True

    def forget_checkpoint(self, name: str) -> None:
        """Takes back what `redefine_checkpoint` did: the bitmaps stay."""
        with self.ignoring_check(), self.seam(f"forget checkpoint '{name}'"):
            found = self._find_checkpoint(name)
            if found is not None:
                found.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)

    def _validated(self, checkpoint: Checkpoint, targets: Sequence[str]) -> bool:
        """Whether it could be defined over these disks."""
        wanted = replace(checkpoint, disks=dict.fromkeys(targets))
        codes = (CHECKPOINT_INCONSISTENT, libvirt.VIR_ERR_CONFIG_UNSUPPORTED)
        return bool(targets) and unless(codes, lambda: self._redefine(wanted, _REDEFINE_VALIDATE)) is not None

    def _redefine(self, checkpoint: Checkpoint, flags: int = 0) -> Any:
        flags |= libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
        return self.dom.checkpointCreateXML(domain_xml.redefinition_xml(checkpoint), flags)

    def _has_checkpoint(self, name: str) -> bool:
        with self.seam(f"look up checkpoint '{name}'"):
            return self._find_checkpoint(name) is not None

    def _find_checkpoint(self, name: str) -> Any:
        return unless((NO_CHECKPOINT,), lambda: self.dom.checkpointLookupByName(name, 0))

    def domain_xml(self) -> str:
        """The persistent definition, of a transient domain the one that would be; it lists what the next start uses.

        Without its passwords (graphics, for one): what a store keeps must be no secret.
        """
        with self.seam("read the definition"):
            return self.dom.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)

    def live_xml(self) -> Optional[str]:
        """The definition of the domain as it runs, without its passwords; None where it is off."""
        with self.seam("read the live definition"):
            return self.dom.XMLDesc(0) if self.active else None

    def passwords(self) -> list[str]:
        """Types of the graphics devices that have a password now, or at the next start. AccessDenied: who may read the
        rest may not read secrets."""
        with self.seam("tell whether its displays have passwords"):
            secure = libvirt.VIR_DOMAIN_XML_SECURE
            xmls = [self.dom.XMLDesc(secure), self.dom.XMLDesc(secure | libvirt.VIR_DOMAIN_XML_INACTIVE)]
        return sorted(set().union(*map(domain_xml.passwords, xmls)))

    def socket_path(self, run_id: str) -> str:
        """Where our socket goes by default.

        AppArmor lets a system QEMU make a socket in its domain's own directory and hardly anywhere else. That name is
        libvirt's, which cuts it at 20 characters. Where it is not there (session, embedded daemon) nothing confines
        QEMU so, and the socket itself is closed to others. Where the domain's name has a tab, libvirt would tell of
        another path than it was given: it writes that into XML as it is, where it reads as a space.
        """
        name = socket_name(run_id)
        own = os.path.join("/var/lib/libvirt/qemu", f"domain-{self.id}-{self.name[:20]}")
        usable = urllib.parse.urlsplit(self.uri).path == "/system" and (self.is_remote or os.path.isdir(own))
        path = os.path.join(own, name)
        usable = usable and definition.can_name(path) and len(os.fsencode(path)) <= SOCKET_PATH_MAX
        return path if usable else os.path.join("/var/tmp", name)

    def backup_job(self) -> Optional[Backup]:
        """The backup that runs, whoever began it (Backup.run_id tells), or None."""
        with self.seam("look for a backup job"):
            xml = unless((NO_BACKUP,), lambda: self.dom.backupGetXMLDesc(0))
        return domain_xml.parse_backup(xml) if xml else None

    @contextlib.contextmanager
    def backup(self, plan: Plan) -> Iterator["Job"]:
        """Begins the backup; leave the block by Job.finish(), with all NBD connections closed before.

        Left without it, the job is ended, and left by an exception, even after finish(), the new checkpoint is deleted
        as well. What could not be cleaned is told by the texts in the exception's attribute `left_behind`.
        Raises DomainNotRunning, Busy, NoSuchCheckpoint, CheckpointUnusable, CheckpointExists, Unsupported, UsageError,
        OutputExists, AccessDenied, HypervisorError.
        """
        asked = self._asked(plan)
        self._require_usable(plan, asked)
        self.require_running()
        self.require_idle()
        self._require_no_block_job(plan.disks)
        job = Job(self, plan, asked)
        with job._ending():
            job._begin()
            yield job

    def is_under_way(self, plan: Plan) -> bool:
        """Whether the domain's backup job is the very one that this plan would begin, its checkpoint included."""
        job = Job(self, plan, self._asked(plan))
        return self._operation() == _BACKUP and self.backup_job() == job._asked and job._has_checkpoint()

    def scratch_files(self, plan: Plan) -> list[str]:
        """Of the backup job that this plan would begin: paths on the hypervisor's machine."""
        return Job(self, plan, self._asked(plan)).scratch_files

    @contextlib.contextmanager
    def resumed_backup(self, plan: Plan, consistency: str, reason: str) -> Iterator["Job"]:
        """The same with the job of a dead run, which is under way; what became of its freeze is told by that run."""
        job = Job(self, plan, self._asked(plan))
        with job._ending():
            job._take_over(consistency, reason)
            yield job

    def _asked(self, plan: Plan) -> Backup:
        disks = {
            target: domain_xml.disk_backup(plan.run_id, target, base, plan.scratch_dir)
            for target, base in plan.disks.items()
        }
        if plan.tcp:
            return Backup("pull", None, disks, plan.tcp, plan.tls)
        return Backup("pull", plan.socket or self.socket_path(plan.run_id), disks)

    def _require_usable(self, plan: Plan, asked: Backup) -> None:
        if plan.tcp and plan.socket:
            raise errors.UsageError("a socket and TCP: give one")
        if plan.tls and not plan.tcp:
            raise errors.UsageError("TLS is for TCP: name an address and a port by --nbd")
        for path in filter(None, (asked.socket, plan.scratch_dir)):
            if not definition.can_name(path):
                raise errors.UsageError(f"{path!r} cannot be written into libvirt's XML: name another path")
        if asked.socket:
            self._require_free_socket(asked.socket)
        name = plan.checkpoint
        if name is not None and not domain_xml.CHECKPOINT_NAME.fullmatch(name):
            raise errors.UsageError(f"checkpoint name '{name}': use letters, digits, '_', '-', and '.' but not first")

    def _require_free_socket(self, path: str) -> None:
        if not os.path.isabs(path) or len(os.fsencode(path)) > SOCKET_PATH_MAX:
            raise errors.UsageError(f"socket {path}: give an absolute path of at most {SOCKET_PATH_MAX} bytes")
        if not self.is_remote and os.path.lexists(path):
            # QEMU would remove whatever is there, be it another VM's socket.
            raise errors.OutputExists(f"socket {path} exists: remove it or name another")

    def remains(self, plan: Plan) -> list[str]:
        """What there is of the run of a plan: its job, checkpoint and files, one text each."""
        return Job(self, plan, self._asked(plan))._remains()

    def clear(self, plan: Plan) -> list[str]:
        """Removes what remains of a dead run; tells what could not be removed, one text each."""
        return Job(self, plan, self._asked(plan))._clear()

    def _operation(self) -> Optional[int]:
        """Number of the operation of the domain's current job, None without a job. JobStuck."""
        with self.live("look for a job"):
            try:
                stats = self.dom.jobStats(0)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR and self._has_lost_job():
                    raise errors.JobStuck(
                        f"domain '{self.name}': libvirt has lost a backup job, as its daemon was killed while that "
                        "began, and takes no other: shut the domain down, restart the daemon, then start the domain"
                    ) from error
                raise
        return stats.get("operation", 0) if stats.get("type") else None

    def _has_lost_job(self) -> bool:
        """Of a running domain of whose job there are no data: it cannot be ended, a restart of the daemon alone does
        not forget it, and without one the domain cannot be started any more (libvirt 9.0)."""
        return bool(self.dom.isActive()) and unless((NO_BACKUP,), lambda: self.dom.backupGetXMLDesc(0)) is None

    def _no_checkpoint(self, name: str) -> errors.NbdpullError:
        has = _listing(self.checkpoints())
        return errors.NoSuchCheckpoint(f"domain '{self.name}' has no checkpoint '{name}'; it has {has}")


class Job:
    """One running pull backup; made by Domain.backup.

    socket: path of QEMU's NBD socket; exports: target -> Export; checkpoint: the one made with it, or
    None; freeze: what became of the guest's freeze.
    """

    def __init__(self, vm: Domain, plan: Plan, asked: Backup):
        self._vm = vm
        self._plan = plan
        self._asked = asked
        self._completed: dict[str, Any] = {}
        self._failed_with: Optional[int] = None  # libvirt's code for the begin
        self._asked_to_begin = self._may_begin_yet = False
        self.socket: str = asked.socket or ""
        self.exports = {target: Export(disk.export, disk.bitmap) for target, disk in asked.disks.items()}
        self.checkpoint: Optional[Checkpoint] = None
        self.finished = False
        self.freeze = domain_freeze.Freeze(vm.dom, vm.uri, plan.quiesce, plan.freeze_timeout)

    @property
    def scratch_files(self) -> list[str]:
        """Paths on the hypervisor's machine."""
        return [disk.scratch for disk in self._asked.disks.values() if disk.scratch]

    def require_alive(self) -> None:
        """Raises JobLost unless the job still runs and is ours.

        To be asked after the last read: QEMU lets go of the frozen state before the export, and a read in between
        returns what the guest has just written, with no error.
        """
        if not self._is_ours() or self._vm._operation() != _BACKUP:
            raise self._vm.ended() or self._lost("it ended before all was read")

    def finish(self) -> None:
        """Ends the job and waits until it is gone. JobLost: it was not whole until now, what was read is void."""
        self.require_alive()
        self._end()
        with self._vm.live("read the result of the backup job"):
            self._completed = self._vm.dom.jobStats(_COMPLETED | _KEEP_COMPLETED)
        result = (self._completed.get("operation"), self._completed.get("type"), self._completed.get("success"))
        if result != (_BACKUP, _TYPE_COMPLETED, True):
            raise self._vm.ended() or self._lost(self._completed.get("errmsg") or "libvirt tells no success")
        self.finished = True

    def stats(self) -> dict[str, int]:
        """{"scratch_bytes": what the guest's writes have made QEMU copy to scratch, all disks}."""
        stats = self._completed
        if not self.finished:
            with self._vm.live("read the job's statistics"):
                stats = self._vm.dom.jobStats(0)
        return {"scratch_bytes": stats.get("disk_temp_used", 0)}

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """Whatever happens inside, the job is ended after it."""
        try:
            yield
        except BaseException as error:
            with self._vm.ignoring_check():
                left_behind = self._undo()
            # A connection that breaks may be the first that is heard of the domain's end.
            ended = self._vm.ended() if isinstance(error, (errors.SourceError, errors.JobLost)) else None
            (ended or error).left_behind = left_behind  # type: ignore[union-attr,attr-defined]
            if ended:
                raise ended from error
            raise
        left_behind = [] if self.finished else self._undo()
        if left_behind:
            raise errors.HypervisorError("; ".join(left_behind))

    def _take_over(self, consistency: str, reason: str) -> None:
        if not self._vm.is_under_way(self._plan):
            raise self._lost("it is not the one that the dead run began")
        self.freeze.consistency, self.freeze.reason = consistency, reason
        if self._plan.checkpoint is not None:
            self.checkpoint = self._vm.checkpoint(self._plan.checkpoint)

    def _has_checkpoint(self) -> bool:
        """Whether the checkpoint of the plan, if there is to be one, is there and ours."""
        name = self._plan.checkpoint
        return name is None or (
            self._vm._has_checkpoint(name) and self._vm.checkpoint(name).run_id == self._plan.run_id
        )

    def _begin(self) -> None:
        place = f"make the socket {self.socket}" if self.socket else "listen at {}:{}".format(*self._plan.tcp or ())
        advice = f"see that QEMU's user can {place} and files in {self._plan.scratch_dir}"
        advice += ", and that qemu.conf names certificates (backup_tls_x509_cert_dir)" if self._plan.tls else ""
        try:
            with self._vm.live("begin a backup", (errors.HypervisorError, advice)), self.freeze:
                self._call_begin(domain_xml.backup_xml(self._asked), self._checkpoint_xml())
        except errors.NbdpullError as error:
            self._failed_with = code_of(error)
            self._may_begin_yet = self._asked_to_begin and is_unanswered(error)
            raise self._explained(error) from error.__cause__
        if self._vm.backup_job() != self._asked:
            raise self._vm.ended() or errors.HypervisorError(
                f"domain '{self._vm.name}': libvirt began another backup than asked for"
            )
        if self._plan.checkpoint is not None:
            self.checkpoint = self._vm.checkpoint(self._plan.checkpoint)

    def _call_begin(self, *xmls: Optional[str]) -> None:
        """A guest that shuts down during the job is kept paused until its end, where libvirt can do that."""
        begin = self._vm.dom.backupBegin
        known = self._vm.connection.getLibVersion() >= OLDEST_WITH_PRESERVE
        self._asked_to_begin = True
        # A daemon that says no to the flag may have another reason: what it says without it counts.
        if not known or unless((libvirt.VIR_ERR_INVALID_ARG,), lambda: begin(*xmls, _PRESERVE_SHUTDOWN)) is None:
            begin(*xmls, 0)

    def _checkpoint_xml(self) -> Optional[str]:
        plan = self._plan
        if plan.checkpoint is None:
            return None
        description = domain_xml.description(plan.run_id, plan.description)
        return domain_xml.checkpoint_xml(plan.checkpoint, description, plan.checkpoint_disks)

    def _explained(self, error: errors.NbdpullError) -> errors.NbdpullError:
        """The begin's error, with what libvirt leaves open: which name is missing, which one exists."""
        code, name = self._failed_with, self._plan.checkpoint
        if code == NO_CHECKPOINT:
            missing = [base for base in self._plan.disks.values() if base and not self._vm._has_checkpoint(base)]
            return self._vm._no_checkpoint(missing[0]) if missing else error
        if code == libvirt.VIR_ERR_OPERATION_FAILED and name and self._vm._has_checkpoint(name):
            return errors.CheckpointExists(f"domain '{self._vm.name}' already has a checkpoint '{name}': name another")
        return error

    def _is_ours(self) -> bool:
        backup = self._vm.backup_job()
        return backup is not None and backup.run_id == self._plan.run_id

    def _lost(self, why: str) -> errors.NbdpullError:
        return errors.JobLost(f"the backup job of '{self._vm.name}' is lost: {why}; nothing that this run read can be "
                              "used, pull again")  # fmt: skip

    def _end(self) -> None:
        """Ends our job, if it is there, and waits until it is gone: abortJob only asks for it."""
        deadline, pause, ask_at = time.monotonic() + END_TIMEOUT, 0.005, 0.0
        while self._is_ours():
            if time.monotonic() > deadline:
                raise errors.HypervisorError(f"domain '{self._vm.name}': the backup job did not end in "
                                             f"{END_TIMEOUT} s: end it with virsh domjobabort")  # fmt: skip
            if time.monotonic() >= ask_at and self._abort():
                ask_at = time.monotonic() + ASK_AGAIN
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _abort(self) -> bool:
        """Asks for the end of our job, and of no other; False = nothing done, look again."""
        try:
            operation = self._vm._operation()
            with self._vm.live("end the backup job"):
                if operation == _BACKUP:
                    return unless(_TRY_AGAIN, self._vm.dom.abortJob) is not None
                # A begin that failed late leaves a backup that is no job any more, only its block jobs can be ended.
                return operation is None and self._abort_block_jobs()
        except (errors.DomainNotRunning, errors.DomainStopped):
            return False

    def _abort_block_jobs(self) -> bool:
        dom = self._vm.dom
        for target in self.exports:
            if dom.blockJobInfo(target).get("type") == libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP:
                unless(_TRY_AGAIN, lambda: dom.blockJobAbort(target))  # noqa: B023
        return True

    def _undo(self) -> list[str]:
        """Removes what this run made; tells what it could not remove, one text each."""
        left: list[str] = ["the backup job may begin yet, libvirt did not answer"] if self._may_begin_yet else []
        job = f"the backup job, with its scratch in {self._plan.scratch_dir},"
        ended = self.finished or _attempt(self._end, job, left)
        _attempt(self._delete_checkpoint, f"checkpoint '{self._plan.checkpoint}'", left)
        if ended:  # else QEMU still uses them
            left += [f"file {path} is left behind" for path in self._files() if not _removed(path)]
        return left

    def _remains(self) -> list[str]:
        found = ["backup job"] if self._is_ours() else []
        if self._plan.checkpoint and self._has_checkpoint():
            found.append(f"checkpoint {self._plan.checkpoint}")
        return found + [f"file {path}" for path in self._files() if os.path.lexists(path)]

    def _clear(self) -> list[str]:
        name = self._plan.checkpoint
        if name and self._vm.active and not self._vm._has_checkpoint(name):
            self._failed_with = libvirt.VIR_ERR_INTERNAL_ERROR  # bitmaps without a checkpoint may be there
        return self._undo()

    def _delete_checkpoint(self) -> None:
        """Only if it is ours: a begin fails, too, because another one has the name."""
        name = self._plan.checkpoint
        if name is None:
            return
        if self._failed_with == libvirt.VIR_ERR_INTERNAL_ERROR and self._plan.run_id in name:
            self._adopt_bitmaps(name)
        if self._has_checkpoint():
            self._vm.delete_checkpoint(name)

    def _adopt_bitmaps(self, name: str) -> None:
        """Where libvirt could not store a new checkpoint it forgets it, with the bitmaps made, and no later one could
        have its name. Only for a name that nobody else can have given."""
        targets = dict.fromkeys(self._plan.checkpoint_disks)
        lost = Checkpoint(name, 0, domain_xml.description(self._plan.run_id, ""), targets, "")
        with self._vm.live("remove the bitmaps that libvirt lost sight of"):
            # Validation fails where there are none.
            unless((CHECKPOINT_INCONSISTENT,), lambda: self._vm._redefine(lost, _REDEFINE_VALIDATE))

    def _files(self) -> list[str]:
        """Ours on this machine; libvirt and QEMU remove them, unless they were killed."""
        if self._vm.is_remote:
            return []
        return [self.socket] * bool(self.socket) + [disk.scratch for disk in self._asked.disks.values() if disk.scratch]


def _attempt(step: Callable[[], None], what: str, left: list[str]) -> bool:
    try:
        step()
    except (errors.DomainNotRunning, errors.DomainStopped):
        left.append(f"{what} is left behind, as the domain is off: the next pull removes it when that runs again")
        return False
    except errors.NoAnswer:
        left.append(f"{what} is left behind, as libvirt does not answer: when it does, the next pull removes it, or "
                    "goes on with it, and nbdpull cleanup removes it")  # fmt: skip
        return False
    except errors.NbdpullError as error:
        left.append(f"{what} is left behind: {error}")
        return False
    return True


def socket_name(run_id: str) -> str:
    """What a run's socket is called where nobody named another one."""
    return f"nbdpull-{run_id}.sock"


def _removed(path: str) -> bool:
    with contextlib.suppress(OSError):
        os.unlink(path)
    return not os.path.lexists(path)


def _owner(backup: Backup) -> str:
    if backup.run_id:
        return f"of nbdpull run {backup.run_id}"
    where = backup.socket or (backup.tcp and "{}:{}".format(*backup.tcp))
    return f"not of nbdpull ({backup.mode}, NBD server at {where})" if where else "not of nbdpull"


def _way_out(name: str, backup: Backup) -> str:
    if backup.run_id:
        return (
            f"wait until it ends; if it was killed, the next pull resumes or removes it, or nbdpull cleanup {name} does"
        )
    return f"wait until it ends, or end it with virsh domjobabort {name}"


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
