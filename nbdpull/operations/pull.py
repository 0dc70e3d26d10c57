"""One pull: a running domain's blocks, all or those changed since a checkpoint, become a committed point.

Owns: the order of steps, and that a failed run leaves nothing. Must not know: why a disk starts from which base,
libvirt's XML, NBD handles, byte layouts, what is printed.
"""

from __future__ import annotations

import errno
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from typing import Callable, NamedTuple, Optional

from .. import __version__
from ..backup import base, offline, reclaim, resume, route, scratch_watch
from ..backup.disk_copy import DiskCopy
from ..core import errors, extents, members, pipeline
from ..core.throttle import Throttle
from ..definitions import disk_choice, domain_xml, hot_plug, omissions
from ..definitions.definition import LOOPBACK
from ..format import layout
from ..format.manifest import FULL, CheckpointEntry, ParentEntry
from ..hypervisor import domain, domain_files, qemu_faults, socket_keeper
from ..hypervisor.domain_watch import DomainWatch
from ..hypervisor.guest_load import Cores
from ..images import guest_files
from ..nbd import source
from ..repository import journal, known_frames, marker, series
from .options import PullOptions as Options

AHEAD_PER_THREAD = 8 << 20  # bytes of data under way for each thread
STORE_RESERVE = 16 << 20  # bytes free without which a pull does not begin
BEST_RATIO = 10  # a full pull that would have to be compressed more than so does not begin
_ENDS_WITH_ITS_RUN = "a disk is in an I/O thread, and a job of such a disk ends when its run dies"


class Resumed(NamedTuple):
    """What a run that died had done. begun: when, ISO 8601; kept_bytes: of its files, not read again."""

    begun: str
    kept_bytes: int


@dataclass(frozen=True)
class Result:
    """A committed point, and what else the operator should know. partial: its disks of which no whole image can be made
    by the store; omitted: what of the domain it does not have."""

    point: series.Point
    partial: frozenset[str]
    omitted: Optional[list[omissions.Omission]]
    warnings: list[str]
    dropped_checkpoints: list[str]
    reclaimed: list[reclaim.Leftover]
    scratch_bytes: int  # the most that was in use
    scratch_growth: list  # [[seconds, bytes], …]
    offline: Optional[str] = None  # how a domain that was off was pulled: offline.START_PAUSED or READ
    resumed: Optional[Resumed] = None


def pull(options: Options, report: Callable = lambda **event: None, check: Callable = lambda: None) -> Result:
    """Make one point. report(**event) is told of progress; check() is called often, what it raises ends the run.

    Raises an NbdpullError; then no job, no new checkpoint and no point are left, and the base is as it was. What could
    not be removed is told by its attribute `left_behind`, and removed by the next pull.
    """
    route.parse(options.nbd, options.tls)  # before anything is done
    check = _bounded(check, options.max_duration)
    opened = domain.open(options.domain, options.uri, options.stall_timeout, check)
    with ExitStack() as entered:
        vm = entered.enter_context(opened)
        hold = entered.enter_context(journal.holding(vm.uuid, vm.name))
        reached = entered.enter_context(offline.reached(vm, options.offline, hold, check, options.stall_timeout))
        vm = reached.vm
        way = route.to(vm, options.nbd, options.tls)
        disks, left_out = disk_choice.chosen(vm, options.disks, options.exclude)
        warnings = [*reached.warnings, *left_out, *vm.image_warnings, *way.warnings()]
        if not reached.way:  # else nobody pauses or reboots it
            warnings += qemu_faults.warnings(vm, disks, way.certificates is not None)
        vm.require_no_foreign_job()
        target = series.of_domain(marker.open_or_create(options.output, options.group), vm.name, vm.uuid)
        entered.enter_context(target.writing())
        report = partial(report, domain=vm.name)
        return _Run(options, reached, way, disks, target, hold, report, check, warnings).run()


def _bounded(check, seconds):
    """The same check, which also ends the run when its time is up."""
    if seconds is None:
        return check
    deadline = time.monotonic() + seconds

    def bounded():
        check()
        if time.monotonic() > deadline:
            raise errors.LimitReached(f"the pull took longer than --max-duration ({seconds:g} s): it was ended")

    return bounded


class _Run:
    """One run of a pull, with the series held."""

    def __init__(self, options, reached, way, disks, target, hold, report, check, warnings):
        self._options, self._vm, self._disks, self._series = options, reached.vm, disks, target
        self._offline, self._route, self._hold = reached.way, way, hold
        self._report, self._check_caller = report, check
        self._points, refused = target.load()
        # One that cannot be read now may be read again, and must not come after the points made meanwhile.
        self._sequence = 1 + len(refused) + max((point.manifest.sequence for point in self._points), default=0)
        self._warnings = warnings
        self._warnings += [f"a point of the series is left out of account: {error}" for error in refused.values()]
        self._warnings += self._renamed()
        self._keeps_sockets = socket_keeper.required(self._vm, disks, way)
        self._keeper: Optional[socket_keeper.SocketKeeper] = None
        self._options = replace(options, chunk_size=self._chunk_size(options.chunk_size))
        self._seconds: dict[str, float] = {}
        self._started = time.monotonic()
        self._id = layout.new_point_id()
        self._dead: Optional[journal.Run] = None  # the run whose job this one goes on with, and whose id it then has
        self._journal: Optional[journal.Journal] = None  # of that run
        self._kept_bytes = 0
        self._as_of = ""  # when the job began, or just before it: what was written before is in the point
        self._throttle = Throttle(options.max_rate, options.max_rate_file, self._check)
        self._cores = Cores(self._vm, check=self._check)

    def _check(self):
        self._check_caller()
        self._watch.check()
        self._domain_watch.check()
        if self._keeper:
            self._keeper.check()

    def run(self):
        self._series.require_of(self._points, self._vm.uuid)
        self._require_possible()
        choice = self._choice_to_resume()
        self._reclaim()
        if choice is None:
            self._vm.require_idle()
            choice = self._choose()
        plan = self._plan(choice, self._id)
        if plan.checkpoint:
            self._warnings += self._of_snapshots()
        self._report(
            event="start",
            point=self._id,
            resumed=bool(self._dead),
            offline=self._offline,
            since=choice.base and choice.base.checkpoint.name,
            parent=choice.parent and choice.parent.id,
            disks=[
                {"name": disk.target, "size": disk.size, "mode": choice.decisions[disk.target][0],
                 "reason": choice.decisions[disk.target][1]} for disk in self._disks
            ],
        )  # fmt: skip
        self._lap("prepare")
        if not self._dead:
            self._require_room(plan, choice.decisions)
        self._watch = scratch_watch.ScratchWatch(self._vm, plan.scratch_dir, self._options.scratch_limit)
        self._domain_watch = DomainWatch(self._vm.require_there)
        self._vm.heed(self._check)
        with ExitStack() as begun:
            new = begun.enter_context(self._journaled_point(plan, choice.parent))
            begun.enter_context(self._watch.guarding_guest())
            if self._keeps_sockets:
                self._keeper = begun.enter_context(socket_keeper.SocketKeeper(self._vm.uri, self._vm.uuid, self._id))
            job = begun.enter_context(self._job(plan))
            self._lap("begin")
            self._warnings += job.freeze.warnings
            with new.reading(job.freeze.consistency, job.freeze.reason):
                entries = self._copy(new, job, choice)
            job.finish()
            self._vm.heed()  # all was read: a stop that comes now is too late
            self._lap("end")
            self._add_files(new, job, choice.parent)
            point = new.commit(self._fields(choice.base, job), entries)  # in here: a checkpoint without its point goes
        resumed = Resumed(self._as_of, self._kept_bytes) if self._dead else None
        self._warnings += self._age()
        dropped = self._drop_superseded(point)
        self._warnings += self._series.store.warnings()
        scratch = self._watch.peak, self._watch.growth.samples
        partial = series.partial_disks([*self._points, point])[point.id]
        omitted = omissions.of_point(self._series, point)
        return Result(
            point, partial, omitted, self._warnings, dropped, self._reclaimed, *scratch, self._offline, resumed
        )

    def _age(self):
        """How much older the point is than who began this pull would think."""
        if not self._dead:
            return []
        told = f"the point holds the disks as of {self._as_of}: this pull went on with the job of a run that had died"
        return [f"{told} (--resume=never begins anew)"]

    def _job(self, plan):
        return self._vm.resumed_backup(plan, *self._dead.freeze) if self._dead else self._vm.backup(plan)

    def _reclaim(self):
        self._reclaimed = reclaim.reclaim(self._vm, self._series, self._hold, keep=self._dead and self._dead.id)
        self._warnings += [f"left by a dead run: {item.what}: {item.left}" for item in self._reclaimed if item.left]

    @contextmanager
    def _journaled_point(self, plan, parent):
        """A NewPoint whose folder says what is about to be made, and for whose domain this machine knows it too."""
        run = self._journal_entry(plan, parent)
        self._as_of = (self._dead or run).begun
        folder = (self._series.resumed_point(self._id, self._journal) if self._dead else
                  self._series.new_point(self._id, run))  # fmt: skip
        try:
            with folder as new:
                self._hold.note(run)
                yield new
        except BaseException as error:
            if not getattr(error, "left_behind", None):
                self._hold.clear()
            raise
        self._hold.clear()

    def _journal_entry(self, plan, parent):
        return journal.of_this_process(
            id=self._id,
            domain=self._vm.name,
            uuid=self._vm.uuid,
            uri=self._vm.shown_uri,
            checkpoint=plan.checkpoint,
            checkpoint_disks=list(plan.checkpoint_disks),
            parent=resume.parent_of(parent),
            disks=dict(plan.disks),
            socket=plan.socket,
            scratch_dir=plan.scratch_dir,
            guest_runs=self._vm.guest_state().running,
            store=self._series.store.root,
            folder=f"{self._series.folder}/{self._id}",
        )

    def _lap(self, phase):
        now = time.monotonic()
        self._seconds[phase] = round(now - self._started, 3)
        self._started = now

    # Before begin

    def _renamed(self):
        """That it is, once: the new point tells the new name."""
        before = self._points[-1].manifest.domain if self._points else self._vm.name
        if before == self._vm.name:
            return []
        where = self._series.store.path(self._series.folder)
        return [f"domain {before} is named {self._vm.name} now: its series goes on in {where}"]

    def _require_possible(self):
        """Raises where a reader would have to refuse the point."""
        for disk in self._disks:
            if disk.size > layout.MAX_DISK:
                told = f"disk {disk.target} is larger than {layout.MAX_DISK} bytes"
                raise errors.Unsupported(f"{told}: leave it out with --exclude")
        if self._sequence > members.MAX_INTEGER:
            raise errors.StoreError(
                f"a point in {self._series.store.path(self._series.folder)} is said to be the last that there can be "
                "(its sequence is 2^64 - 1): choose another folder for -o"
            )

    def _chunk_size(self, asked):
        """So large that not more chunk files are made than a manifest holds."""
        least = -(-sum(disk.size for disk in self._disks) // layout.MAX_CHUNK_FILES)
        if asked < least:
            self._warnings.append(f"a point has at most {layout.MAX_CHUNK_FILES} chunk files: each takes {least} bytes")
        return max(asked, least)

    def _choice_to_resume(self):
        """The Choice by which a dead run can be gone on with, as it would be made without it; None if none can be."""
        how, told = self._options.resume, len(self._warnings)
        dead = None if how == resume.NEVER else resume.find(self._vm, self._series)
        if dead is None:
            return None
        try:
            choice = self._choose()
            plan, limit = self._plan(choice, dead.id), self._options.scratch_limit
            obstacle = resume.obstacle(self._vm, dead, plan, choice.parent, how, limit)
            obstacle = _ENDS_WITH_ITS_RUN if self._keeps_sockets else obstacle
            self._journal = None if obstacle else self._series.resumed_journal(dead.id)
        except (errors.Interrupted, errors.LimitReached, errors.NoAnswer):
            raise
        except errors.NbdpullError as error:  # which may be due to what the dead run left
            obstacle = str(error)
        if obstacle:
            self._warnings[told:] = [f"the job of {dead.whose} is not gone on with: {obstacle}"]
            return None
        self._dead, self._id = dead, dead.id
        return choice

    def _choose(self):
        options = self._options
        how = options.since, options.full, self._check_caller
        choice = base.choose(self._vm, self._series, self._points, self._disks, *how)
        self._warnings += choice.warnings
        if options.on_lost_base == base.FAIL:
            choice.require_not_lost()
        return choice

    def _plan(self, choice, run_id):
        covered = [disk.target for disk in self._disks if disk.bitmaps is not False and disk.format == "qcow2"]
        wanted = self._options.make_checkpoint and not (why_none := self._why_no_checkpoint(covered))
        named = self._options.checkpoint is not None
        if choice.is_foreign and not named:  # the next pull has the same --since: nobody would ever delete this one's
            wanted = False
        if named and not wanted:
            raise errors.Unsupported(f"--checkpoint {self._options.checkpoint} cannot be made: {why_none}")
        return domain.Plan(
            run_id=run_id,
            disks={disk.target: choice.start(disk.target) for disk in self._disks},
            checkpoint=self._checkpoint_name(run_id) if wanted else None,
            checkpoint_disks=covered if wanted else (),
            socket=self._route.socket(self._vm, run_id, self._options.socket),
            scratch_dir=self._options.scratch_dir,
            tcp=self._route.listen,
            tls=self._route.certificates is not None,
            quiesce=self._options.quiesce,
            freeze_timeout=self._options.freeze_timeout,
        )

    def _why_no_checkpoint(self, covered):
        """As text; "" if one can be made over these disks."""
        if self._vm.reads_images:
            return "the domain is off, and its images are only read"
        if not covered:
            return "no disk here can have one (qcow2 of version 3 can)"
        return "" if self._vm.supports_checkpoints else "this libvirt or QEMU is too old"

    def _of_snapshots(self):
        """What the first checkpoint of a domain does to them, once."""
        some, first = False, not any(point.manifest.checkpoint for point in self._points)
        with suppress(errors.HypervisorError):  # who may not list them may pull all the same
            some = first and self._vm.has_internal_snapshots
        if some:
            yield (f"domain '{self._vm.name}' has internal snapshots: with the checkpoint that this pull makes, virsh "
                   "snapshot-revert to one fails, and leaves a running domain shut off; before a revert: nbdpull "
                   f"release {self._vm.name}")  # fmt: skip

    def _checkpoint_name(self, run_id):
        return f"nbdpull-{run_id}" if self._options.checkpoint is None else self._options.checkpoint

    def _require_room(self, plan, decisions):
        """Raises ScratchFull or OutputFull where the run could only fail."""
        if not self._options.space_check:
            return
        if not (self._vm.is_remote or self._vm.reads_images):
            size = sum(disk.size for disk in self._disks)
            scratch_watch.require_room(plan.scratch_dir, size, self._options.scratch_limit)
        expected = sum(disk.allocation for disk in self._disks if decisions[disk.target][0] == FULL)
        free, wanted = scratch_watch.free_bytes(self._series.store.root), min(STORE_RESERVE, expected)
        wanted = max(wanted, expected // BEST_RATIO)
        if free is not None and free < wanted:
            raise errors.OutputFull(
                f"cannot write to {self._series.store.root}: No space left on device ({free} bytes are free, "
                f"{expected} are to be read in full); free space, choose another folder, or say --no-space-check"
            )

    # While the job runs

    def _copy(self, new, job, choice):
        """Read every disk; return their DiskEntries."""
        entries = []
        with (
            self._watch.watching(job),
            self._domain_watch.watching(),
            self._cores.watching(),
            ExitStack() as open_disks,
        ):
            kept = self._kept(new)
            server = open_disks.enter_context(route.opened(self._route, self._vm, job.socket, self._check))
            server = source.Kept(server, self._keeper) if self._keeper else server
            where = server, job, new.sealed
            copies = [open_disks.enter_context(self._disk_copy(where, disk, choice, kept)) for disk in self._disks]
            self._copy_all(copies)
            entries = self._close_all(copies, choice.decisions)
            self._lap("copy")
            job.require_alive()
        return entries

    def _kept(self, new):
        """{target: what is kept of it} where a dead run is gone on with; all else that it wrote is removed."""
        if not self._dead:
            return {}
        kept = {disk.target: resume.Kept(self._series, self._dead, disk, self._check) for disk in self._disks}
        files = [entry for each in kept.values() for entry in each.files]
        new.remove_all_but(files)
        self._kept_bytes = sum(entry.size for entry in files)
        return kept

    def _disk_copy(self, where, disk, choice, kept):
        server, job, sealed = where
        known = self._known_frames(choice.base, disk, job.exports[disk.target])
        about = self._throttle, self._check, choice.dirty_from(disk), choice.whole_parent(disk.target)
        about += kept.get(disk.target), sealed
        return DiskCopy(self._options, self._series, self._id, disk, (server, job), known, *about)

    def _known_frames(self, start, disk, export):
        """What the parent holds of an incremental disk, where that is wanted, whole, and fits in memory."""
        if not (self._options.dedupe and export.bitmap and start and start.point):
            return None
        try:
            return known_frames.of_point(self._series, start.point, disk.target, self._check)
        except errors.Damaged as error:
            self._warnings.append(f"disk {disk.target} is stored without looking for known data: {error}")
            return None

    def _copy_all(self, copies):
        encoded = pipeline.ordered(
            self._work,
            ((copy, batch) for copy in copies for batch in copy.batches()),
            threads=self._options.threads,
            budget=AHEAD_PER_THREAD * self._options.threads,
            weight=lambda item: extents.total(item[1], extents.DATA),
            check=self._check,
        )
        # Closed at once where `add` fails: threads that go on reading make connections that nobody closes, and QEMU
        # stands still, guest and all, if its server is stopped while a client is in the midst of something.
        with closing(encoded):
            for copy, result in encoded:
                copy.add(result)
                self._check()
                self._report(event="progress", **copy.progress())

    def _work(self, item):
        copy, batch = item
        buffers = copy.read(batch)
        with self._cores.computing():
            return copy, copy.encode(batch, buffers)

    def _close_all(self, copies, decisions):
        """At once: what takes time here is the disk's, which does better with all of it to do."""
        return list(
            pipeline.ordered(
                lambda copy: copy.close(*decisions[copy.disk.target]),
                copies,
                threads=len(copies),
                budget=len(copies),
                weight=lambda _: 0,
                check=self._check,
            )
        )

    # After the job

    def _add_files(self, new, job, parent):
        xml, live = self._vm.domain_xml(), self._vm.live_xml()
        new.add_file(layout.DOMAIN_XML, xml.encode())
        if live and hot_plug.found(xml, live):
            new.add_file(layout.LIVE_XML, live.encode())
        if job.checkpoint:
            new.add_file(layout.CHECKPOINT_XML, job.checkpoint.xml.encode())
        if not self._vm.is_remote:
            self._add_local_files(new, xml, live, parent)
        self._warnings += self._missed(xml, live)
        self._passwords = self._found_passwords(xml, live)

    def _missed(self, xml, live):
        """What to tell of what holds data and is not in the point, and is not told of yet. A device is told when it is
        new: no option says that one knows."""
        names, last = [disk.target for disk in self._disks], self._points[-1:]
        asked = (
            {disk.target for disk in self._vm.disks()} - set(names) if self._options.disks else self._options.exclude
        )
        known = {each.what for point in last for each in omissions.of_point(self._series, point) or []}
        for each in omissions.found(xml, live, names, [] if self._vm.is_remote else None, asked):
            told = {omissions.DISK: each.why != omissions.NEXT_START, omissions.DEVICE: each.what in known}
            if each.missed and not told.get(each.kind):
                where = f" ({each.path})" if each.path else ""
                yield f"{each.what}{where} is not in the point: it {each.why}"

    def _add_local_files(self, new, xml, live, parent):
        """What the domain needs besides its disks; most of it never changes, and is then stored once."""
        files, warnings = domain_files.found(xml, live, self._vm.uuid, self._vm.uri)
        self._warnings += warnings
        for name, path in files:
            try:
                data = guest_files.read(path, self._options.stall_timeout, layout.MAX_FILE + 1)
                if not layout.fits_point(name, len(data)):
                    raise OSError(errno.EFBIG, "it is too large, or its name is none of a file of a point")
                new.add_file(name, data, parent)
            except OSError as error:
                self._warnings.append(f"{path} ({name} of the domain) is not in the point: {error.strerror}")

    def _found_passwords(self, xml, live):
        """Types of the displays that have a password, which is not in the point, or may have; told when that is new."""
        try:
            found, why = self._vm.passwords(), ""
        except errors.AccessDenied as error:
            found, why = sorted(domain_xml.displays(xml) | domain_xml.displays(live or xml)), f", if any ({error}),"
        known = self._points[-1].manifest.passwords if self._points else []
        for kind in set(found) - set(known):
            self._warnings.append(f"the password of graphics {kind}{why} is not in the point: a restored domain shows "
                                  f"it on {LOOPBACK} alone until it gets a new one")  # fmt: skip
        return found

    def _fields(self, start, job):
        made = job.checkpoint
        parent = start and start.point
        self._lap("files")
        return {
            "sequence": self._sequence,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "as_of": self._as_of,
            "store": marker.uuid_of(self._series.store),
            "parent": ParentEntry(parent.id, parent.sha256) if parent else None,
            "domain": self._vm.name,
            "uuid": self._vm.uuid,
            "since": start.checkpoint.name if start else None,
            "checkpoint": made and CheckpointEntry(made.name, made.creation_time, self._options.checkpoint is None),
            "consistency": job.freeze.consistency,
            "consistency_reason": job.freeze.reason,
            "passwords": self._passwords,
            "versions": {"nbdpull": __version__, "libnbd": source.library_version(), **self._vm.versions},
            "seconds": self._seconds,
        }

    def _drop_superseded(self, point):
        """Delete the automatic checkpoints of the points that the new one replaces as a base; return their names."""
        dropped: list[str] = []
        made = point.manifest.checkpoint
        if made is None:
            return dropped
        for older in self._superseded(point):
            name = older.manifest.checkpoint.name
            try:
                checkpoint = self._vm.checkpoint(name)
                superseded = base.is_of(older, checkpoint) and self._covers(point, checkpoint)
                if superseded and self._vm.delete_checkpoint(name):
                    dropped.append(name)
            except errors.NoSuchCheckpoint:
                continue
            except errors.NbdpullError as error:
                self._warnings.append(f"the superseded checkpoint {name} could not be deleted: {error}")
        return dropped

    def _superseded(self, point):
        """Points with automatic checkpoints: the ancestors, back to where every disk was full, and all before that."""
        older = []
        while point is not None and any(disk.mode != FULL for disk in point.manifest.disks):
            point = self._series.parent(point)
            older += [point] if point is not None else []
        if point is not None:
            older += [p for p in self._points if p.manifest.sequence < point.manifest.sequence]
        return [p for p in older if p.manifest.checkpoint and p.manifest.checkpoint.automatic]

    def _covers(self, point, checkpoint):
        """Whether no disk loses its only base: the new checkpoint has every disk of the old one that still exists."""
        present = {disk.target for disk in self._vm.disks()}
        covered = self._vm.checkpoint(point.manifest.checkpoint.name).disks
        return (set(checkpoint.disks) & present) <= set(covered)
