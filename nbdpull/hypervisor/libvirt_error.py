"""libvirt's errors as ours.

Owns: which of our errors each of libvirt's codes becomes, with advice. It uses the code and never the text, which is
localised and changes. Must not know: what was being done.
"""

import contextlib
import errno
from collections.abc import Iterator
from typing import Any, Callable, Optional

from ..core import errors
from .bindings import libvirt

# Numbers, as older bindings that we support may lack the names.
NO_CHECKPOINT, NO_BACKUP, CHECKPOINT_INCONSISTENT = 103, 104, 109

Verdict = tuple[type[errors.NbdpullError], str]  # which error, and what to do
DENIED = (errors.AccessDenied, "permission denied: run as root or in the group libvirt, or let polkit allow it")
_BUSY = (errors.Busy, "another job holds the domain: see virsh domjobinfo, try again when it has ended")
_TOO_OLD = (errors.Unsupported, "this libvirt or QEMU does not support it: connect to libvirt's driver for QEMU, such "
            "as qemu:///system; incremental pulls need libvirt 7.6, QEMU 6.1, and a VM started on them")  # fmt: skip
_BY_CODE: dict[int, Verdict] = {
    libvirt.VIR_ERR_ACCESS_DENIED: DENIED,
    libvirt.VIR_ERR_AUTH_FAILED: DENIED,
    libvirt.VIR_ERR_AUTH_CANCELLED: DENIED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE: DENIED,
    libvirt.VIR_ERR_OPERATION_DENIED: DENIED,
    libvirt.VIR_ERR_OPERATION_TIMEOUT: _BUSY,
    libvirt.VIR_ERR_NO_SUPPORT: _TOO_OLD,
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: _TOO_OLD,
    libvirt.VIR_ERR_XML_INVALID_SCHEMA: _TOO_OLD,
    CHECKPOINT_INCONSISTENT: (errors.CheckpointUnusable, "a bitmap of the checkpoint is missing or broken: "
                              "pull that disk in full"),
    NO_CHECKPOINT: (errors.NoSuchCheckpoint, "the checkpoint is gone: pull in full"),
}  # fmt: skip
FAILED: Verdict = (errors.HypervisorError, "libvirt or QEMU failed")
UNREACHABLE: Verdict = (errors.HypervisorError, "check that libvirtd or virtqemud runs there and that the URI is right")


@contextlib.contextmanager
def translated(doing: str, otherwise: Verdict = FAILED, denied: Verdict = DENIED) -> Iterator[None]:
    """Raise libvirt's errors as ours, with what was being done. UsageError if it was asked with a text that is not
    UTF-8, as a command line may contain."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise errors.UsageError(f"{doing}: {error.object!r} is not text in UTF-8") from error
    except libvirt.libvirtError as error:
        code = error.get_error_code()
        forbidden = code == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() in (errno.EACCES, errno.EPERM)
        verdict = DENIED if forbidden else _BY_CODE.get(code, otherwise)
        kind, advice = denied if verdict is DENIED else verdict
        raise kind(f"{doing}: {advice} ({' '.join(str(error).split())})") from error


def unless(codes: tuple[int, ...], call: Callable[[], Any]) -> Any:
    """Return what the call returns, None if it fails with one of these codes."""
    try:
        return call()
    except libvirt.libvirtError as error:
        if error.get_error_code() in codes:
            return None
        raise


def is_unanswered(error: BaseException) -> bool:
    """Return whether libvirt may still do what it was asked."""
    return isinstance(error, errors.NoAnswer) or isinstance(error.__cause__, errors.NoAnswer)


def code_of(error: BaseException) -> Optional[int]:
    """Return libvirt's code for an error of ours, None if it does not come from libvirt."""
    return error.__cause__.get_error_code() if isinstance(error.__cause__, libvirt.libvirtError) else None
