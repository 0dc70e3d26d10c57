"""A backup that is open: its disks, to be read by the program that asked for it, and its commit.

Owns: the order of steps, and that without a commit nothing moved: no job, no new checkpoint is left, and the base is as
it was. Must not know: where what is read goes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Callable, NamedTuple, Optional

from ..core import deadline, errors
from ..core.choices import OnLostBase, Resume
from ..core.errors import Check
from ..definitions.domain_xml import Disk as Facts
from ..format import layout
from ..hypervisor import backup_job, socket_keeper
from ..hypervisor.domain import Domain
from ..pulling import (
    fit,
    journal_files,
    live_disk,
    opening,
    preparation,
    reclaim,
    resume,
    run_record,
    standing,
    token_base,
)
from ..pulling.base import Choice
from ..pulling.journal_files import Journal
from ..pulling.live_disk import Known, Reading, Server
from ..pulling.lookout import Checks, Lookout
from ..pulling.preparation import Asked, Dead, Prepared, Subject
from ..pulling.token import Before, Made, Token
from . import callers, held
from .disk import Disk
from .options import Options

log = logging.getLogger("nbdpull.backup")
logging.getLogger("nbdpull").addHandler(logging.NullHandler())  # else Python prints what nobody asked for


class _NotCommitted(errors.NbdpullError):
    """The block was left without a commit: undoes what is to be undone, and goes no further."""


class _Inside(NamedTuple):
    """What a Job is made of. older: checkpoints that its own one replaces."""

    subject: Subject
    prepared: Prepared
    job: backup_job.Job
    journal: Journal
    lookout: Lookout
    older: list[Made]


class Job:
    """An open backup; made by open_backup. Its `disks` may be read by any number of threads, all else is for the one
    that opened it.

    id: of the backup; as_of: the instant that the disks are as of, or shortly before (ISO 8601, UTC); consistency:
    "frozen" or "crash-consistent", and consistency_reason, a code word; warnings: what the operator should know, one
    text each; committed: whether it is; dropped_checkpoints: names of those that the commit replaced.
    """

    def __init__(self, inside: _Inside, as_of: str, warnings: list[str]) -> None:
        self._inside, self._reading = inside, ExitStack()
        self.id = inside.prepared.plan.run_id
        self.as_of = as_of
        self.consistency, self.consistency_reason = inside.job.freeze.consistency, inside.job.freeze.reason
        self.warnings = warnings
        self.disks: Sequence[Disk] = ()
        self.committed = False
        self.dropped_checkpoints: list[str] = []
        self._token = self._made()
        self._server: Optional[Server] = None  # once it is read

    def _made(self) -> Token:
        inside, made = self._inside, self._inside.job.checkpoint
        checkpoint = token_base.of_checkpoint(made, self.id) if made else None
        disks = {disk.target: Before(disk.size, disk.source) for disk in inside.subject.disks}
        return Token(inside.subject.vm.uuid, self.id, checkpoint, disks, inside.older)

    @property
    def token(self) -> Token:
        """Of this backup, good once it is committed. There is none before `finish`: until then nothing that was read is
        proved to be the backup's. UsageError."""
        if not self._inside.job.finished:
            raise errors.UsageError("a backup has its token once it is finished: call finish() or commit() first")
        return self._token

    def finish(self) -> None:
        """All that you need was read: end the job, so that it costs the guest no more, and prove that it was whole
        until now. JobLost, and the like: what was read is void. The backup still has to be committed."""
        inside = self._inside
        if inside.job.finished:
            return
        with callers.unwrapped():
            inside.lookout.check()
            self._end_reading()
            standing.finish(inside.subject.vm, inside.job)

    def commit(self) -> Token:
        """Your word that all that you need of this backup is durable, and its token with it. Only if the job was there
        and ours until `finish`, which is called here if you did not, this backup is the base from now on, and the
        checkpoint before it is dropped. JobLost, and the like: then nothing moved, and what was read is void."""
        if self.committed:
            return self.token
        self.finish()
        inside, vm = self._inside, self._inside.subject.vm
        with callers.unwrapped():
            inside.journal.committed()
        self.committed = True
        made = inside.prepared.plan.checkpoint
        self.dropped_checkpoints = token_base.drop(vm, inside.older, made, self.warnings)
        return self.token

    def _end_reading(self) -> None:
        for disk in self.disks:
            disk._end()
        self._reading.close()

    def _begin_reading(self, options: Options) -> None:
        inside, enter = self._inside, self._reading.enter_context
        enter(inside.journal.reading(self.consistency, self.consistency_reason))
        reading = Reading(options.connections, stall_timeout=options.stall_timeout)
        live = enter(standing.live(inside.subject, inside.job, inside.lookout, reading))
        self._server, choice, disks = live.server, inside.prepared.choice, []
        for facts in inside.subject.disks:
            known = Known(choice.dirty_from(facts), held=held.of_disk(options.held, facts.target))
            source = enter(live_disk.opened(facts, live, known, inside.lookout.check))
            disks.append(Disk(facts, *choice.decisions[facts.target], source))
        self.disks = tuple(disks)


@contextmanager
def open_backup(options: Options, check: Optional[Check] = None) -> Iterator[Job]:
    """Begin a backup, and give it as long as the block lasts. Left without Job.commit, by an exception or not, it ends
    as if it had never been: NbdpullError.left_behind says what could not be removed, and the next run removes that.

    check() is called often, from any thread; what it raises ends the backup, and comes out as it is.
    """
    yield from _opened(options, check)


@contextmanager
def open_for_others(options: Options, check: Optional[Check] = None) -> Iterator[Job]:
    """The same for programs that connect to the exports themselves, and hang up when they like. Unsupported, before
    anything is begun, where QEMU would crash at that."""
    yield from _opened(options, check, socket_keeper.require_none)


def _opened(
    options: Options, check: Optional[Check], require: Callable[[Domain, Sequence[Facts]], None] = lambda *_: None
) -> Iterator[Job]:
    checks = Checks(deadline.bounded(callers.checked(check), options.max_duration, "the backup"))
    ended = _Ended()
    try:
        with callers.unwrapped(), opening.opened(options, checks) as opened:
            require(opened.subject.vm, opened.subject.disks)
            planned = _prepare(options, opened.subject, opened.warnings)
            yield from _held_open(options, opened.subject, planned, checks, opened.warnings, ended)
    except errors.NbdpullError as error:  # of what comes after the backup's own end
        if not ended.is_settled:
            raise
        log.warning("%s", error)
    if ended.raised is not None:
        raise ended.raised


@dataclass
class _Ended:
    """How a block was left. raised: what is to be raised when all is undone that has to be: what the caller raised, or
    whatever came after the commit; is_settled: whether that is all that the caller is to hear of."""

    raised: Optional[BaseException] = None
    is_settled: bool = False


class _Planned(NamedTuple):
    """older: checkpoints that its own one replaces."""

    prepared: Prepared
    older: list[Made]


def _prepare(options: Options, subject: Subject, warnings: list[str]) -> _Planned:
    vm = subject.vm
    left = reclaim.reclaim(vm, None, keep=options.resume)
    warnings.extend(f"left by a dead run: {item.what}: {item.left}" for item in left if item.left)
    choice = token_base.choose(vm, subject.disks, options.since)
    if options.on_lost_base == OnLostBase.FAIL:
        choice.require_not_lost()
    warnings.extend(choice.warnings)
    asked = Asked(
        make_checkpoint=options.checkpoint,
        socket=options.socket,
        scratch_dir=options.scratch_dir,
        quiesce=options.quiesce,
        freeze_timeout=options.freeze_timeout,
    )
    older = token_base.still_there(vm, options.since)
    if options.resume is not None:
        return _resumed(options, options.resume, subject, asked, choice, older)
    vm.jobs.require_idle()
    if not (vm.is_remote or vm.reads_images):
        fit.require_scratch(options.scratch_dir, subject.disks, options.scratch_limit)
    prepared = preparation.prepared(subject, asked, choice, layout.new_point_id())
    if prepared.plan.checkpoint and options.since is None:
        warnings.extend(preparation.snapshot_warnings(subject))
    return _Planned(prepared, older)


def _resumed(
    options: Options, run_id: str, subject: Subject, asked: Asked, choice: Choice, older: list[Made]
) -> _Planned:
    """The job of a dead run. JobLost where it is not there any more, or not what is asked for."""
    vm = subject.vm
    run = next((run for run in journal_files.runs(vm.uuid) if run.id == run_id and run.store is None), None)
    if run is None or journal_files.is_alive(run) is not False:
        why = "no process of this host left it behind"
    else:
        prepared = preparation.prepared(subject, asked, choice, run_id)
        why = resume.obstacle(vm, run, prepared.plan, None, Resume.ALWAYS, options.scratch_limit)
    if run is None or run.freeze is None or why:
        raise errors.JobLost(f"backup {run_id} of domain '{vm.name}' cannot be resumed: {why}: begin a new one")
    resumes = Dead(run, run.freeze, journal_files.resume(run))
    return _Planned(replace(prepared, dead=resumes), [made for made in older if made.name != run.checkpoint])


def _held_open(
    options: Options, subject: Subject, planned: _Planned, check: Checks, warnings: list[str], ended: _Ended
) -> Iterator[Job]:
    """Yield the Job, and note how the block was left."""
    try:
        with _standing(options, subject, planned, check, warnings) as made, _heard(made, ended):
            made._begin_reading(options)
            yield made
    except _NotCommitted as undone:
        if undone.left_behind and ended.raised is None:
            failed = errors.HypervisorError(f"the backup was not committed; {'; '.join(undone.left_behind)}")
            failed.left_behind = undone.left_behind
            raise failed from None
        for each in undone.left_behind:
            log.warning("the backup was not committed; %s", each)


@contextmanager
def _standing(
    options: Options, subject: Subject, planned: _Planned, check: Checks, warnings: list[str]
) -> Iterator[Job]:
    """Yield a Job of which nothing is read yet."""
    vm, prepared, dead = subject.vm, planned.prepared, planned.prepared.dead
    keeps_sockets = socket_keeper.required(vm, subject.disks, subject.route.certificates is not None)
    lookout = Lookout(vm, prepared.plan, check, keeps_sockets, options.scratch_limit)
    record = dead.run if dead else run_record.of(vm, prepared.plan)
    with run_record.written(record, dead.journal if dead else None) as journal:
        on_ready = callers.wrapped(options.on_ready or (lambda: None))
        on_cut = partial(callers.wrapped(options.on_cut or (lambda _: None)), record.begun)
        with standing.standing(vm, prepared, lookout, on_ready, on_cut) as job:
            warnings.extend(job.freeze.warnings)
            yield Job(_Inside(subject, prepared, job, journal, lookout, planned.older), record.begun, warnings)


@contextmanager
def _heard(made: Job, ended: _Ended) -> Iterator[None]:
    """A block that is left without a commit undoes what there is, whatever it raised."""
    try:
        yield
    except errors.NbdpullError as error:
        if not made.committed:
            raise
        ended.raised = error
    except BaseException as error:
        ended.raised = error
    finally:
        made._end_reading()
        ended.is_settled = made.committed or ended.raised is not None
    if not made.committed:
        raise _NotCommitted
