"""An open backup: its disks, which the program that requested it reads, and its commit.

Owns: the order of steps, and that without a commit nothing has changed: no job and no new checkpoint remain, and the
base is as before. Must not know: where the data goes.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Generator, Iterator, Sequence
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
    active_job,
    fit,
    journal_files,
    live_disk,
    opening,
    preparation,
    reclaim,
    resume,
    run_record,
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
logging.getLogger("nbdpull").addHandler(logging.NullHandler())  # else Python prints messages that nobody requested


class _NotCommitted(errors.NbdpullError):
    """The block ended without a commit. Triggers the clean-up, and goes no further."""


class _Inside(NamedTuple):
    """The parts of a Job. older: checkpoints that its own one replaces."""

    subject: Subject
    prepared: Prepared
    job: backup_job.Job
    journal: Journal
    lookout: Lookout
    older: list[Made]


class Job:
    """An open backup; made by open_backup.

    Any number of threads may read its `disks`; everything else is for the thread that opened it.

    id: of the backup; as_of: the instant that the disks show, or shortly before (ISO 8601, UTC); consistency: "frozen"
    or "crash-consistent", and consistency_reason, a code word; warnings: what the operator should know, one text each;
    committed: whether it is; dropped_checkpoints: names of those that the commit replaced.
    """

    def __init__(self, inside: _Inside, as_of: str, warnings: list[str]) -> None:
        self._still_inside: Optional[_Inside] = inside  # until the block ends: a Job that is kept holds no connection
        self._process, self._reading = os.getpid(), ExitStack()
        self._ending = threading.RLock()  # two that end the job at once would each lose it to the other
        self.id = inside.prepared.plan.run_id
        self.as_of = as_of
        self.consistency, self.consistency_reason = inside.job.freeze.consistency, inside.job.freeze.reason
        self.warnings = warnings
        self.disks: Sequence[Disk] = ()
        self.committed = False
        self.dropped_checkpoints: list[str] = []
        self._token = self._made()
        self._server: Optional[Server] = None  # once it is read

    @property
    def _inside(self) -> _Inside:
        if self._still_inside is None:
            raise errors.UsageError(f"backup {self.id} has ended without a commit: nothing of it counts")
        if os.getpid() != self._process:  # what it does to the job would be undone, or done again, by the other one
            raise errors.UsageError(f"backup {self.id} can only be ended by the process that opened it")
        return self._still_inside

    def _made(self) -> Token:
        inside, made = self._inside, self._inside.job.checkpoint
        checkpoint = token_base.of_checkpoint(made, self.id) if made else None
        disks = {disk.target: Before(disk.size, disk.source) for disk in inside.subject.disks}
        return Token(inside.subject.vm.uuid, self.id, checkpoint, disks, inside.older)

    @property
    def token(self) -> Token:
        """The token of this backup, valid once it is committed.

        It does not exist before `finish`: until then it is not proved that what was read belongs to the backup.
        UsageError.
        """
        if not (self.committed or self._inside.job.finished):
            raise errors.UsageError("a backup has its token once it is finished: call finish() or commit() first")
        return self._token

    def finish(self) -> None:
        """End the job, once you have read everything you need, and prove that it lasted until now.

        From then on it costs the guest nothing. JobLost, or a similar error: what was read is void. You still have to
        commit the backup.
        """
        with self._ending, callers.unwrapped():
            if self.committed:
                return
            inside = self._inside
            if inside.job.finished:
                return
            inside.lookout.check()
            self._end_reading()
            active_job.finish(inside.subject.vm, inside.job)

    def commit(self) -> Token:
        """Declare that everything you need of this backup is durable, and its token with it; return the token.

        From now on this backup is the base, and the previous checkpoint is dropped. That requires that the job existed
        and was ours until `finish`, which is called here if you did not. JobLost, or a similar error: then nothing has
        changed, and what was read is void.
        """
        with self._ending, callers.unwrapped():
            if self.committed:
                return self._token
            self.finish()
            inside = self._inside
            inside.journal.committed()
            self.committed = True
            made = inside.prepared.plan.checkpoint
            self.dropped_checkpoints = token_base.drop(inside.subject.vm, inside.older, made, self.warnings)
        return self._token

    def _end_reading(self) -> None:
        for disk in self.disks:
            disk._end()
        self._reading.close()

    def _begin_reading(self, options: Options) -> None:
        inside, enter = self._inside, self._reading.enter_context
        enter(inside.journal.reading(self.consistency, self.consistency_reason))
        reading = Reading(options.connections, stall_timeout=options.stall_timeout, readers=options.connections)
        live = enter(active_job.live(inside.subject, inside.job, inside.lookout, reading))
        self._server, choice, disks = live.server, inside.prepared.choice, []
        for facts in inside.subject.disks:
            known = Known(choice.dirty_from(facts), held=held.of_disk(options.held, facts.target))
            source = enter(live_disk.opened(facts, live, known, inside.lookout.check))
            disks.append(Disk(facts, *choice.decisions[facts.target], source))
        self.disks = tuple(disks)


@contextmanager
def open_backup(options: Options, check: Optional[Check] = None) -> Iterator[Job]:
    """Start a backup, and yield it. It lasts as long as the block.

    If the block ends without Job.commit, by an exception or not, the backup leaves no trace: NbdpullError.left_behind
    lists what could not be removed, and the next run removes that. check() is called often, from any thread; an
    exception from it ends the backup, and comes out unchanged.
    """
    yield from _until_exit(_opened(options, check))


@contextmanager
def open_for_others(options: Options, check: Optional[Check] = None) -> Iterator[Job]:
    """Do the same for programs that connect to the exports themselves, and hang up at any time.

    Unsupported, before anything is started, if QEMU would crash at that.
    """
    yield from _until_exit(_opened(options, check, socket_keeper.require_none))


def _until_exit(block: Generator[Job, None, None]) -> Iterator[Job]:
    """Let a block that is never left, such as one in a global ExitStack, end when the program does.

    Else it would end when Python clears its modules. No thread runs any more then, and the wait for one would not end.
    """
    process = os.getpid()

    def end() -> None:
        if os.getpid() == process:  # not one that was forked meanwhile
            block.close()

    atexit.register(end)
    try:
        yield from block
    finally:
        atexit.unregister(end)


def _opened(
    options: Options, check: Optional[Check], require: Callable[[Domain, Sequence[Facts]], None] = lambda *_: None
) -> Generator[Job, None, None]:
    checks = Checks(deadline.bounded(callers.checked(check), options.max_duration, "the backup"))
    ended = _Ended()
    try:
        with callers.unwrapped(), opening.opened(options, checks) as opened:
            require(opened.subject.vm, opened.subject.disks)
            planned = _prepare(options, opened.subject, opened.warnings)
            yield from _held_open(options, opened.subject, planned, checks, opened.warnings, ended)
    except errors.NbdpullError as error:  # errors after the backup's own end
        if not ended.is_settled:
            raise
        log.warning("%s", error)
    if ended.raised is not None:
        raise ended.raised


@dataclass
class _Ended:
    """How a block ended.

    raised: what to raise once everything is undone that has to be: the caller's exception, or any error after the
    commit; is_settled: whether the caller should hear of nothing else.
    """

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
    """Plan to resume the job of a dead run. JobLost if it no longer exists, or is not what is requested."""
    vm = subject.vm
    run = next((run for run in journal_files.runs(vm.uuid) if run.id == run_id and run.store is None), None)
    if run is None or journal_files.is_alive(run) is not False:
        why = "no process of this host left it behind"
    else:
        prepared = preparation.prepared(subject, asked, choice, run_id)
        why = resume.obstacle(vm, run, prepared.plan, None, Resume.ALWAYS, options.scratch_limit)
    if run is None or run.freeze is None or why:
        raise errors.JobLost(f"backup {run_id} of domain '{vm.name}' cannot be resumed: {why}: start a new one")
    resumes = Dead(run, run.freeze, journal_files.resume(run))
    return _Planned(replace(prepared, dead=resumes), [made for made in older if made.name != run.checkpoint])


def _held_open(
    options: Options, subject: Subject, planned: _Planned, check: Checks, warnings: list[str], ended: _Ended
) -> Iterator[Job]:
    """Yield the Job, and record how the block ended."""
    try:
        with _running(options, subject, planned, check, warnings) as made, _heard(made, ended):
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
def _running(
    options: Options, subject: Subject, planned: _Planned, check: Checks, warnings: list[str]
) -> Iterator[Job]:
    """Yield a Job of which nothing has been read yet."""
    vm, prepared, dead = subject.vm, planned.prepared, planned.prepared.dead
    keeps_sockets = socket_keeper.required(vm, subject.disks, subject.route.certificates is not None)
    lookout = Lookout(vm, prepared.plan, check, keeps_sockets, options.scratch_limit)
    record = dead.run if dead else run_record.of(vm, prepared.plan)
    with run_record.written(record, dead.journal if dead else None) as journal:
        on_ready = callers.wrapped(options.on_ready or (lambda: None))
        on_cut = partial(callers.wrapped(options.on_cut or (lambda _: None)), record.begun)
        with active_job.started(vm, prepared, lookout, on_ready, on_cut) as job:
            warnings.extend(job.freeze.warnings)
            yield Job(_Inside(subject, prepared, job, journal, lookout, planned.older), record.begun, warnings)


@contextmanager
def _heard(made: Job, ended: _Ended) -> Iterator[None]:
    """If the block ends without a commit, undo everything, whatever it raised."""
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
        made._still_inside = made._server = None
        ended.is_settled = made.committed or ended.raised is not None
    if not made.committed:
        raise _NotCommitted
