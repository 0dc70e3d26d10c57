"""The way to pull a domain that is off: start it with its CPUs paused, or read its images without a start.

Owns: the choice between the two, and the warnings about it. Must not know: how either is done, what is pulled.
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
    """vm: the Domain to pull; way: START_PAUSED or READ, None if it is running; warnings: why its images are read."""

    vm: domain.Domain
    way: Optional[str]
    warnings: list[str]


@contextlib.contextmanager
def reached(vm: domain.Domain, how: str, hold: Hold, check: Check, stall_timeout: float) -> Iterator[Reached]:
    """Make sure that the domain can be pulled inside the block. hold: its holder.Hold.

    AUTO starts a domain that is off if that is possible and costs only memory; otherwise it reads the images. Raises
    what Power.awake and offline_read.opened raise.
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
    """Return why the domain should not be started unless the user asks for it, "" if there is no reason."""
    if vm.has_saved_state:
        return "the domain has a saved state, which a start would consume"
    return "the domain has devices of the host, which a start would take from it" if vm.has_host_devices else ""
