"""A domain: its state, what may prevent a pull of it, and the order of all checks of it.

Must not know: the checks of its disks and checkpoints (disks.py and checkpoints.py do).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Optional

from ..core import errors
from ..core.errors import Check
from ..hypervisor import domain
from ..hypervisor.domain import Domain
from ..pulling import holder, offline_read
from . import checkpoints, disks
from .finding import BAD, WARN, Finding, bad, good, guarded


def found(name: str, uri: Optional[str], check: Check) -> Iterator[Finding]:
    """Check the domain of that name."""
    with contextlib.ExitStack() as entered:
        vm = entered.enter_context(domain.open(name, uri, check=check))
        asked = _reader_of_images(vm, entered, check)
        yield from guarded("state", _state(vm))
        yield from guarded("disks", disks.found(asked))
        yield from guarded("other data", disks.other_data(vm))
        yield from guarded("iothreads", disks.in_threads(vm))
        yield from guarded("checkpoints", checkpoints.found(asked))


def _reader_of_images(vm: Domain, entered: contextlib.ExitStack, check: Check) -> Domain:
    """Return a handle that inspects images. If the domain is off, it reads the images itself, as libvirt does not."""
    if not (vm.active or vm.is_remote):
        with contextlib.suppress(errors.MissingSoftware):  # which is reported already
            return entered.enter_context(offline_read.opened(vm, check))
    return vm


def _state(vm: Domain) -> Iterator[Finding]:
    if not vm.active:
        yield off(vm)
        return
    if vm.power.left_paused(holder.look(vm.uuid)):
        yield Finding(WARN, vm.name, "was off, and was left paused by a pull that was killed",
                      f"nbdpull cleanup {vm.name}, or the next pull, stops it")  # fmt: skip
    else:
        yield good(vm.name, "is active")
    yield _jobs(vm)
    yield _agent(vm.agent_state)
    if not vm.supports_checkpoints:
        yield Finding(WARN, "incremental", f"{vm.name}'s emulator does not support it", "full pulls work; upgrade QEMU")
    yield _socket(os.path.dirname(vm.backups.socket_path("")), vm.is_remote)


def off(vm: Domain) -> Finding:
    """Return what a pull does with a domain that is off."""
    if vm.other_session:
        code = errors.DomainNotRunning.exit_code
        return Finding(BAD, vm.name, "is shut off, according to this libvirt", vm.other_session, code)
    read = "a pull reads its images, and makes no checkpoint" if not vm.is_remote else "only a pull there can read them"
    if vm.has_saved_state:
        text = (
            f"is shut off with a saved state (managedsave): {read}; its disks belong to that memory, which is in "
            "no point"
        )
        advice = f"virsh start {vm.name} continues from it, virsh managedsave-remove {vm.name} deletes it"
        return Finding(WARN, vm.name, text, advice)
    if vm.has_host_devices:
        text = f"is shut off, and a start takes devices from the host: {read}"
        return Finding(WARN, vm.name, text, "pull it while it runs, now and then; or see --offline=start-paused")
    return good(vm.name, f"is shut off: a pull starts it with its CPUs paused; if that is not possible, {read}")


def _jobs(vm: Domain) -> Finding:
    try:
        vm.jobs.require_idle()
    except (errors.Busy, errors.JobStuck) as error:
        return bad("jobs", error)
    return good("jobs", "none")


def _agent(state: Optional[str]) -> Finding:
    if state == "connected":
        return good("guest agent", "connected: its file systems can be frozen")
    text = "not running in the guest" if state else "no channel for it"
    return Finding(WARN, "guest agent", f"{text}: points will be crash-consistent",
                   "install qemu-guest-agent in the guest" if state else
                   "add a virtio channel org.qemu.guest_agent.0 to the domain")  # fmt: skip


def _socket(folder: str, remote: bool) -> Finding:
    if remote or os.access(folder, os.W_OK | os.X_OK):
        return good("NBD socket", f"will be in {folder}")
    return Finding(BAD, "NBD socket", f"will be in {folder}, which you may not enter", "run as root", 7)
