"""A libvirt domain to which calls can be made: libvirt's objects for it, and the seam that translates their errors.

Owns: which domain it is, whether it is running and was seen running, and that every error of a domain that has ended
means that end. Must not know: what a call is for. All actions on a domain build on this, and know nothing of each
other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Optional

from ..core import errors
from . import domain_start, domain_state, libvirt_uri
from .bindings import libvirt
from .domain_link import Link
from .libvirt_error import FAILED, Verdict, code_of, translated

# What a call fails with if QEMU ends during it ("End of file from qemu monitor"), among many other causes. libvirt sets
# the domain's state later, when that process is gone: after 44 ms, or more than 2 s if it has much to flush.
_OF_AN_END = (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_OPERATION_FAILED)
END_TIMEOUT, END_INTERVAL = 30.0, 0.05  # seconds to wait for that state, and between checks


class Handle:
    """One domain through one connection.

    connection, dom: libvirt's virConnect and virDomain, wrapped by `link`; name, uuid: the domain's; uri: as libvirt
    reports it.
    """

    def __init__(self, connection: Any, dom: Any, link: Link):
        self.connection, self.dom, self.link = connection, dom, link
        self.name: str = dom.name()
        self.uuid: str = dom.UUIDString()
        self.uri: str = connection.getURI()
        self.was_active = False  # if so, an end that was not noticed yet is news
        self._seen = ""  # its last known state, and the time

    @property
    def id(self) -> int:
        """ID of the running domain, -1 if it is off."""
        return int(self.dom.ID())

    @property
    def is_remote(self) -> bool:
        """Whether its paths may name another machine's files."""
        return libvirt_uri.is_remote(self.uri)

    @property
    def active(self) -> bool:
        """Whether it is running, with its CPUs paused or not."""
        with self.seam("check whether it runs"):
            active = bool(self.dom.isActive())
        self.was_active = self.was_active or active
        return active

    def guest_state(self) -> domain_state.State:
        """Return its current state."""
        with self.seam("check whether the guest runs"):
            state = domain_state.State(*self.dom.state())
        self._seen = f"{state} at {time.strftime('%H:%M:%S')}"
        return state

    def vcpu_seconds(self) -> float:
        """Return the CPU seconds that its virtual processors have used."""
        with self.live("read the guest's CPU times"):
            return float(sum(cpu[2] for cpu in self.dom.vcpus()[0]) / 1e9)

    @property
    def has_saved_state(self) -> bool:
        """Whether it is off with a managed-save image, from which its next start continues."""
        with self.seam("look for a saved state"):
            return bool(self.dom.hasManagedSaveImage(0))

    @property
    def other_session(self) -> str:
        """Why this libvirt may be wrong about the domain, as a sentence; "" if there is no sign of that."""
        return domain_start.other_session(self.uri)

    def require_running(self) -> None:
        """Raise DomainNotRunning if it is off."""
        if not self.active:
            raise self.not_running()

    def not_running(self) -> errors.DomainNotRunning:
        """Return the error for a domain that is off, with advice."""
        advice = self.other_session or "start it first"
        if not self.other_session and self.has_saved_state:
            advice = "it has a saved state (managedsave), from which virsh start continues"
        return errors.DomainNotRunning(f"domain '{self.name}' is not running: {advice}")

    def ignoring_check(self) -> contextlib.AbstractContextManager[None]:
        """Ignore check() inside the block: for clean-up after it raised."""
        return self.link.ignoring_check()

    @contextlib.contextmanager
    def seam(self, doing: str, otherwise: Verdict = FAILED) -> Iterator[None]:
        """Translate libvirt's errors into ours. If the domain has ended meanwhile, any code means that end."""
        try:
            with translated(f"domain '{self.name}': cannot {doing}", otherwise):
                yield
        except errors.NoAnswer as error:
            seen = f"; it was last seen {self._seen}" if self._seen else ""
            raise errors.NoAnswer(f"domain '{self.name}': cannot {doing}: {error}{seen}") from error
        except errors.HypervisorError as error:
            if self.was_active and code_of(error) in _OF_AN_END:
                self._wait_for_end()
            ended = self.ended()
            if ended:
                raise ended from error
            raise

    @contextlib.contextmanager
    def live(self, doing: str, otherwise: Verdict = FAILED) -> Iterator[None]:
        """Do the same as `seam` for calls that need QEMU: if the domain is off, raise DomainNotRunning, whatever
        libvirt says."""
        try:
            with self.seam(doing, otherwise):
                yield
        except (errors.DomainStopped, errors.NoAnswer):
            raise
        except errors.HypervisorError as error:
            if self._end_state():
                raise self.ended() or self.not_running() from error
            raise

    def ended(self) -> Optional[errors.NbdpullError]:
        """Return the error that its end means; None while it is running, or if it was never seen running."""
        state = self._end_state() if self.was_active else None
        return domain_state.ended(self.name, state) if state else None

    def _wait_for_end(self) -> None:
        """Wait until its end is known, or known not to have happened."""
        deadline = time.monotonic() + END_TIMEOUT
        while not (self._end_state() or self._qemu_answers()) and time.monotonic() < deadline:
            time.sleep(END_INTERVAL)

    def _qemu_answers(self) -> bool:
        """Return whether its monitor answers the cheapest question; True if libvirt itself does not answer, to end the
        wait."""
        try:
            self.dom.blockStatsFlags("")
        except errors.HypervisorError:
            return True
        except libvirt.libvirtError:
            return False
        return True

    def _end_state(self) -> Optional[domain_state.State]:
        """Return the state of a domain that is off, or of a transient one that ended; else None."""
        try:
            state = domain_state.State(*self.dom.state())
        except errors.HypervisorError:
            return None
        except libvirt.libvirtError as error:
            return domain_state.GONE if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN else None
        return state if state.off else None
