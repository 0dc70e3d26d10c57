"""The checkpoints of a domain: who made them, what is wrong with them, what they prevent.

Must not know: stores, and so which checkpoint is still needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

from ..hypervisor.domain import Domain
from ..pulling import journal_files, strays
from .finding import WARN, Finding, good, guarded

_PEER = "virtnbdbackup"  # its program, and the start of its checkpoints' names


def found(vm: Domain) -> Iterator[Finding]:
    names = vm.checkpoints.names()
    for name in names:
        yield from guarded(f"checkpoint {name}", _checkpoint(vm, name))
    yield from guarded("strays", _strays(vm))
    yield from _peer(vm, names)
    if vm.has_internal_snapshots:
        when = "as long as there are checkpoints" if names else "once a pull has made a checkpoint"
        yield Finding(WARN, "snapshots", f"virsh snapshot-revert to an internal one fails {when}, and leaves a running "
                      "domain shut off", f"before a revert: nbdpull release {vm.name}")  # fmt: skip


def _checkpoint(vm: Domain, name: str) -> Iterator[Finding]:
    checkpoint = vm.checkpoints.get(name)
    ours = f"made by nbdpull run {checkpoint.run_id}; once its store is gone, nbdpull release {vm.name} removes it"
    owner = ours if checkpoint.run_id else "not made by nbdpull"
    lost = [target for target, fit in checkpoint.disks.items() if fit is False]
    subject, covered = f"checkpoint {name}", f"on {', '.join(checkpoint.disks) or 'no disk'}"
    if checkpoint.run_id in _interrupted_runs(vm):
        yield Finding(WARN, subject, f"{covered}, left by interrupted nbdpull run {checkpoint.run_id}",
                      f"the next pull resumes or removes it, or nbdpull cleanup {vm.name} does")  # fmt: skip
    elif lost:
        yield Finding(WARN, subject, f"{covered}, {owner}; bitmap missing or broken on {', '.join(lost)}",
                      f"the next pull reads them in full; virsh checkpoint-delete {vm.name} {name}")  # fmt: skip
    else:
        yield good(subject, f"{covered}, {owner}")


def _interrupted_runs(vm: Domain) -> set[str]:
    """Return the ids of the runs that died while they held the domain."""
    return {run.id for run in journal_files.runs(vm.uuid) if journal_files.is_alive(run) is False}


def _strays(vm: Domain) -> Iterator[Finding]:
    """Yield what still records changes, at a small cost for each write of the guest, for a store that may no longer
    exist."""
    ours = strays.checkpoints(vm)
    if len(ours) > 1:
        yield Finding(WARN, "checkpoints", f"{len(ours)} made by nbdpull: a store needs only its newest one",
                      f"unless there are as many stores: nbdpull release {vm.name}, or virsh checkpoint-delete "
                      f"{vm.name} for one")  # fmt: skip
    orphans, flaws = strays.orphans(vm)
    for each in orphans:
        yield Finding(WARN, f"bitmap {each.name}", f"on disk {', '.join(each.disks)}: it belongs to no checkpoint",
                      f"nbdpull release {vm.name}")  # fmt: skip
    for flaw in flaws:
        yield Finding(WARN, "bitmaps", flaw, "see the text")


def _peer(vm: Domain, names: Sequence[str]) -> Iterator[Finding]:
    """Yield a warning about virtnbdbackup, which stops at each checkpoint that is not its own, so at each of
    nbdpull's."""
    beside = [name for name in names if name.startswith(_PEER)]
    if not beside and not shutil.which(_PEER):
        return
    ours = strays.checkpoints(vm)
    text = f"{_PEER} has checkpoints of {vm.name}" if beside else f"{_PEER} is installed"
    text += f", and refuses a domain that has one of nbdpull{', as this one' * bool(ours)}"
    advice = f"nbdpull release {vm.name}, and pull it with --no-checkpoint" if ours else "pull it with --no-checkpoint"
    yield Finding(WARN, _PEER, text, f"to continue with {_PEER}: {advice}")
