"""Release: remove everything that nbdpull has in a domain, so that nothing records changes for backups any more.

Owns: the order of steps. Must not know: stores (the next pull into each finds its base lost), how a checkpoint is
deleted.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Callable

from ..core.errors import Check, Report
from ..hypervisor import domain
from ..pulling import holder, strays
from ..pulling.leftover import Leftover, removed
from .options.domains import ReleaseOptions as Options


@dataclass(frozen=True)
class Result:
    """Every Leftover found; its `left` says why it still exists."""

    domain: str
    found: list[Leftover]


def release(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Remove every checkpoint that nbdpull made, and every bitmap of nbdpull's that no checkpoint owns.

    Busy if a job or another nbdpull runs. A domain that is off is started with paused CPUs, as by a pull: only QEMU can
    remove bitmaps that libvirt knows.
    """
    with ExitStack() as stack:
        vm = stack.enter_context(domain.open(options.domain, options.uri, options.stall_timeout, check))
        hold = stack.enter_context(holder.holding(vm.uuid, vm.name))
        if not options.dry_run:
            stack.enter_context(vm.power.awake(True, hold))
            vm.jobs.require_idle()
        found = []
        remove: Callable[[], object]
        for made in strays.checkpoints(vm):
            remove = partial(vm.checkpoints.delete, made.name)
            found.append(removed(made.run_id, f"checkpoint {made.name}", remove, options.dry_run))
        orphans, flaws = strays.orphans(vm, check)
        for each in orphans:
            remove = partial(vm.checkpoints.delete_bitmaps, each.name, each.run, each.disks)
            what = f"bitmap {each.name} of disk {', '.join(each.disks)}"
            found.append(removed(each.run, what, remove, options.dry_run))
        found += [Leftover(None, "bitmaps that no checkpoint owns", flaw) for flaw in flaws]
        return Result(vm.name, found)
