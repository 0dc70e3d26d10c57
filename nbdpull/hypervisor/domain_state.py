"""The state of a domain and its reason, in words, and which error its end means for a run.

Owns: libvirt's numbers for states and their reasons. Must not know: libvirt's calls, what the run was about to do.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from ..core import errors
from .bindings import libvirt

_WORDS = ("in no known state", "running", "blocked", "paused", "shutting down", "shut off", "crashed", "suspended")
_WHY_PAUSED = {
    libvirt.VIR_DOMAIN_PAUSED_USER: "by its owner",
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: "for a migration",
    libvirt.VIR_DOMAIN_PAUSED_SAVE: "to be saved",
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "by an I/O error",
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: "by its watchdog",
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: "because the guest crashed",
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP: "while it starts",
}
_HOW_ENDED = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: "was shut down by its guest",
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: "was destroyed (as by virsh destroy)",
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: "was migrated to another host",
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: "was saved (as by virsh save)",
    libvirt.VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT: "was reverted to a snapshot",
}
_CRASHES = (libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, libvirt.VIR_DOMAIN_SHUTOFF_FAILED)


class State(NamedTuple):
    """A state of a domain. number, reason: libvirt's; both None for a transient domain that is gone."""

    number: Optional[int]
    reason: Optional[int] = None

    @property
    def running(self) -> bool:
        return bool(self.number == libvirt.VIR_DOMAIN_RUNNING)

    @property
    def paused(self) -> bool:
        return bool(self.number == libvirt.VIR_DOMAIN_PAUSED)

    @property
    def io_error(self) -> bool:
        """Whether QEMU stopped the CPUs because a write of the guest failed or found no space."""
        return self.paused and self.reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR

    @property
    def off(self) -> bool:
        return self.number is None or self.number == libvirt.VIR_DOMAIN_SHUTOFF

    def __str__(self) -> str:
        if self.number is None:
            return "gone"
        word = _WORDS[self.number] if self.number < len(_WORDS) else _WORDS[0]
        why = _WHY_PAUSED.get(self.reason) if self.paused else None
        return f"{word} ({why})" if why else word


GONE = State(None)


def ended(name: str, state: State) -> errors.NbdpullError:
    """Return the error for the end of a domain, according to its current state."""
    if state.number == libvirt.VIR_DOMAIN_SHUTOFF and state.reason in _CRASHES:
        return errors.DomainCrashed(
            f"QEMU of domain '{name}' crashed or was killed: see its log in /var/log/libvirt/qemu, start it, and pull "
            "again, in full, because its bitmaps are lost"
        )
    how = _HOW_ENDED.get(state.reason) if state.number is not None else None
    return errors.DomainStopped(f"domain '{name}' {how or 'ended'} during the run: pull again")
