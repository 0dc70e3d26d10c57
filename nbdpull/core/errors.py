"""Everything that can go wrong, with its exit code.

Owns: one class for each kind of failure, the stable `code` word in the JSON result, and the exit code. A class says who
must act: the operator, the hypervisor's side, or the storage's side. Foreign errors (libvirt, nbd, OSError) become one
of these at the seam where they occur.

Must not know: how a message is shown. Only the command line prints and exits.
"""

from __future__ import annotations

from typing import Callable

NO_MEMORY = "there is not enough memory for this"  # the message of a MemoryError
Check = Callable[[], None]  # long operations call it often; an exception from it ends them
Report = Callable[..., None]  # receives progress: report(event=…, **members)


class NbdpullError(Exception):
    """Base of all expected failures: `str(error)` is one line that says what is wrong, with what, and what to do.

    left_behind: what could not be removed after the failure, one text each.
    """

    exit_code = 1
    code = "internal"
    left_behind: tuple[str, ...] = ()


def left_behind(error: BaseException) -> tuple[str, ...]:
    """Return what could not be removed after an error, which may be an unexpected one (see hypervisor/clean_up.py)."""
    found: tuple[str, ...] = getattr(error, "left_behind", ())
    return found


class Failure(NbdpullError):
    """Something failed. All others ask the whole run to end: a signal, a limit, or a program that uses the API.

    What takes an error for an answer ("cannot be read") and goes on catches only this. What undoes something and raises
    the error again, or reports it after everything else is done, catches NbdpullError.
    """


# The operator's request cannot be fulfilled as it is.


class UsageError(Failure):
    """Arguments that contradict each other or name nothing."""

    exit_code = 2
    code = "usage"


class NoSuchDomain(Failure):
    exit_code = 3
    code = "no-such-domain"


class DomainNotRunning(Failure):
    exit_code = 3
    code = "domain-not-running"


class NoSuchDisk(Failure):
    exit_code = 3
    code = "no-such-disk"


class UnfitDisk(Failure):
    """A disk that was named, but that no backup job can or may include."""

    exit_code = 3
    code = "unfit-disk"


class DomainExists(Failure):
    """A domain of this name or uuid exists, and would be replaced."""

    exit_code = 3
    code = "domain-exists"


class ForeignDefinition(Failure):
    """The definition of a restored domain names what is neither its own nor offered by the host to every domain."""

    exit_code = 3
    code = "foreign-definition"


class NothingToBackUp(Failure):
    exit_code = 3
    code = "nothing-to-back-up"


class NoSuchCheckpoint(Failure):
    exit_code = 4
    code = "no-such-checkpoint"


class CheckpointExists(Failure):
    exit_code = 4
    code = "checkpoint-exists"


class CheckpointUnusable(Failure):
    """The checkpoint exists, but one of its bitmaps is missing or inconsistent."""

    exit_code = 4
    code = "checkpoint-unusable"


class Busy(Failure):
    """Another process holds the domain or the series: try again later."""

    exit_code = 5
    code = "busy"


# The hypervisor's side.


class HypervisorError(Failure):
    """libvirt or QEMU failed, or the connection to libvirt did."""

    exit_code = 6
    code = "hypervisor"


class Unsupported(HypervisorError):
    """This libvirt, QEMU or binding does not support the request."""

    code = "unsupported"


class SourceError(HypervisorError):
    """Reading the export failed, or its answer cannot be true."""

    code = "source"


class DomainStopped(HypervisorError):
    """The domain ended while it was needed: its guest shut it down, or somebody ended it."""

    code = "domain-stopped"


class DomainCrashed(DomainStopped):
    """The domain ended because its QEMU crashed or was killed."""

    code = "domain-crashed"


class StartFailed(HypervisorError):
    """A domain that is off could not be started for the pull."""

    code = "start-failed"


class JobLost(HypervisorError):
    """The backup job ended, or stopped being ours, before we ended it: what was read is invalid."""

    code = "job-lost"


class JobStuck(HypervisorError):
    """libvirt lost a backup job but still reserves the domain for it: its daemon was killed while the job started."""

    code = "job-stuck"


class NoAnswer(HypervisorError):
    """libvirt did not answer in time; what the call requested may still happen."""

    code = "no-answer"


class ScratchFull(HypervisorError):
    """The scratch space has, or will soon have, no room for what the guest overwrites."""

    code = "scratch-full"


class NotQuiesced(HypervisorError):
    """The guest had to be frozen, and did not freeze."""

    code = "not-quiesced"


class AccessDenied(Failure):
    exit_code = 7
    code = "access-denied"


class MissingSoftware(Failure):
    exit_code = 8
    code = "missing-software"


# The storage's side.


class OutputError(Failure):
    """A file could not be created or written."""

    exit_code = 9
    code = "output"


class OutputFull(OutputError):
    code = "output-full"


class OutputExists(OutputError):
    code = "output-exists"


class Declined(OutputError):
    """The recipient of the backup reports that it did not store it."""

    code = "declined"


class EncryptedTarget(OutputError):
    """The existing content is encrypted, and would be lost."""

    code = "output-encrypted"


class StoreError(Failure):
    """The store cannot be used as requested: no store, no such point, another VM's series."""

    exit_code = 10
    code = "store"


class NoSuchPoint(StoreError):
    code = "no-such-point"


class OtherDomain(StoreError):
    """The series belongs to another VM of the same name."""

    code = "other-domain"


class FormatTooNew(StoreError):
    """Written by a later nbdpull, in a format or with a feature that this one does not know."""

    code = "format-too-new"


class FormatTooOld(StoreError):
    """Written before the first release, in a format that no release reads."""

    code = "format-too-old"


class Damaged(Failure):
    """Stored bytes differ from what was written: found by verify, refused by every reader."""

    exit_code = 11
    code = "damaged"


class Foreign(Damaged):
    """An intact document in the wrong place: not made with the key of the store, or of another domain."""

    code = "foreign"


class PartialPoint(Damaged):
    """The point contains only what changed since a state that nobody stored: nothing is damaged, but no image is
    whole."""

    code = "partial-point"


class LimitReached(NbdpullError):
    """A limit of the operator (--max-duration, --scratch-limit) ended the run."""

    exit_code = 12
    code = "limit-reached"


# A failed proof, although the store is as it should be.


class Differs(Failure):
    """An image differs from the point that it was compared with, or a store from another one."""

    exit_code = 13
    code = "differs"


class DrillFailed(Failure):
    """The served point did not boot as required."""

    exit_code = 13
    code = "drill-failed"


class CommandFailed(Failure):
    """The command that should take the blocks did not end with 0, or could not be run."""

    exit_code = 14
    code = "command-failed"


class NotOk(Failure):
    """A domain has no sound backup that is recent enough, or one that is not as it should be; raised only by status."""

    exit_code = 15
    code = "not-ok"


class KeyNeeded(Failure):
    """The store is sealed, and the caller has no key that opens it, or none for this purpose."""

    exit_code = 16
    code = "key-needed"


class Interrupted(NbdpullError):
    """A signal asked us to stop. The exit code is 128 plus the signal's number."""

    code = "interrupted"

    def __init__(self, signal_number: int, message: str = "interrupted") -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
