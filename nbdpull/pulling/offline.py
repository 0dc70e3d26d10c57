"""How a domain that is off is pulled: started with its CPUs paused, or its images read without a start.

Owns: which of the two, and the warnings about it. Must not know: how either is done, what is pulled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple, Optional

from ..core import errors
from ..core.choices import Offline
from ..core.errors import Check
from ..hypervisor import domain
from . import offline_read
from .holder import Hold


class Reached(NamedTuple):
    """vm: the Domain to pull; way: START_PAUSED or READ, None where it is up; warnings: why it is not as usual."""

    vm: domain.Domain
    way: Optional[str]
    warnings: list[str]


@contextlib.contextmanager
def reached(vm: domain.Domain, how: str, hold: Hold, check: Check, stall_timeout: float) -> Iterator[Reached]:
    """Inside, the domain can be pulled. hold: its holder.Hold.

    AUTO starts one that is off where that can be done and takes nothing but memory, and reads its images elsewhere.
    Raises what Power.awake and offline_read.opened do.
    """
    why = ""
    with contextlib.ExitStack() as entered:
        if vm.active or not (how == Offline.READ or (how == Offline.AUTO and (why := _unwanted(vm)))):
            try:
                started = entered.enter_context(vm.power.awake(how != Offline.REFUSE, hold))
            except (errors.StartFailed, errors.AccessDenied) as error:
                if how != Offline.AUTO or vm.active:
                    raise
                why = f"the domain could not be started ({error})"
            else:
                yield Reached(vm, Offline.START_PAUSED if started else None, [])
                return
        off = entered.enter_context(offline_read.opened(vm, check, stall_timeout, why))
        yield Reached(
            off, Offline.READ, [f"{why}: its images were read instead, and no checkpoint was made"] if why else []
        )


def _unwanted(vm: domain.Domain) -> str:
    """Why a start should be asked for, "" if there is no reason."""
    if vm.has_saved_state:
        return "the domain has a saved state, which a start would consume"
    return "the domain has devices of the host, which a start would take from it" if vm.has_host_devices else ""
