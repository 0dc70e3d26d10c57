"""A libvirt domain that can be asked: its objects of libvirt, and the seam where the error of a call becomes ours.

Owns: which domain it is, whether it runs and was seen to, and that of one which ended meanwhile every error means that
end. Must not know: what a call is for; so all that is done with a domain is built on this, and none of it knows the
rest.
"""

from __future__ import annotations

import contextlib
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any, Optional

from ..core import errors
from . import domain_start, domain_state
from .bindings import libvirt
from .domain_link import Link
from .libvirt_error import FAILED, Verdict, code_of, translated

# What a call fails with whose QEMU ends amid it ("End of file from qemu monitor"), and much else does. libvirt sets the
# domain's state later, when that process is gone: after 44 ms, or more than 2 s where it has much to flush.
_OF_AN_END = (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_OPERATION_FAILED)
END_TIMEOUT, END_INTERVAL = 30.0, 0.05  # seconds to wait for that state, and between looks


class Handle:
    """One domain through one connection.

    connection, dom: libvirt's virConnect and virDomain, wrapped by `link`; name, uuid: the domain's; uri: as libvirt
    tells it.
    """

    def __init__(self, connection: Any, dom: Any, link: Link):
        self.connection, self.dom, self.link = connection, dom, link
        self.name: str = dom.name()
        self.uuid: str = dom.UUIDString()
        self.uri: str = connection.getURI()
        self.was_active = False  # an end of it that nobody has seen is then news
        self._seen = ""  # its state, and when that was

    @property
    def id(self) -> int:
        """Number of the running domain, -1 when off."""
        return int(self.dom.ID())

    @property
    def is_remote(self) -> bool:
        """Whether its paths may name another machine's files. Any host counts, localhost may be a tunnel's end."""
        return bool(urllib.parse.urlsplit(self.uri).netloc)

    @property
    def active(self) -> bool:
        """Whether it runs, its CPUs paused or not."""
        with self.seam("check whether it runs"):
            active = bool(self.dom.isActive())
        self.was_active = self.was_active or active
        return active

    def guest_state(self) -> domain_state.State:
        """The state that it is in now."""
        with self.seam("check whether the guest runs"):
            state = domain_state.State(*self.dom.state())
        self._seen = f"{state} at {time.strftime('%H:%M:%S')}"
        return state

    def vcpu_seconds(self) -> float:
        """CPU seconds that its virtual processors have used."""
        with self.live("read the guest's CPU times"):
            return float(sum(cpu[2] for cpu in self.dom.vcpus()[0]) / 1e9)

    @property
    def has_saved_state(self) -> bool:
        """Whether it is off with a managed-save image: its next start continues from that."""
        with self.seam("look for a saved state"):
            return bool(self.dom.hasManagedSaveImage(0))

    @property
    def other_session(self) -> str:
        """Why this libvirt may be wrong about the domain, as a sentence; "" if there is no sign of that."""
        return domain_start.other_session(self.uri)

    def require_running(self) -> None:
        """Raises DomainNotRunning."""
        if not self.active:
            raise self.not_running()

    def not_running(self) -> errors.DomainNotRunning:
        """The error, with what to do about it."""
        advice = self.other_session or "start it first"
        if not self.other_session and self.has_saved_state:
            advice = "it has a saved state (managedsave), from which virsh start continues"
        return errors.DomainNotRunning(f"domain '{self.name}' is not running: {advice}")

    def ignoring_check(self) -> contextlib.AbstractContextManager[None]:
        """Around what clears up after check() raised."""
        return self.link.ignoring_check()

    @contextlib.contextmanager
    def seam(self, doing: str, otherwise: Verdict = FAILED) -> Iterator[None]:
        """Turns libvirt's errors into ours; of a domain that ended meanwhile they have many codes and one meaning."""
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
        """The same for what QEMU has to do: DomainNotRunning, whatever libvirt says, of a domain that is off."""
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
        """The error that its end is; None as long as it runs, and of one that was not seen to run."""
        state = self._end_state() if self.was_active else None
        return domain_state.ended(self.name, state) if state else None

    def _wait_for_end(self) -> None:
        """Until its end is known, or it is known that there is none."""
        deadline = time.monotonic() + END_TIMEOUT
        while not (self._end_state() or self._qemu_answers()) and time.monotonic() < deadline:
            time.sleep(END_INTERVAL)

    def _qemu_answers(self) -> bool:
        """Its monitor, as little as can be asked of it; where libvirt itself does not answer, nothing is to be waited
        for."""
        try:
            self.dom.blockStatsFlags("")
        except errors.HypervisorError:
            return True
        except libvirt.libvirtError:
            return False
        return True

    def _end_state(self) -> Optional[domain_state.State]:
        """The state of a domain that is off, or a transient one that ended."""
        try:
            state = domain_state.State(*self.dom.state())
        except errors.HypervisorError:
            return None
        except libvirt.libvirtError as error:
            return domain_state.GONE if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN else None
        return state if state.off else None
