"""What dead runs left in a domain and a store: told, and removed, without making a point.

Owns: which domain and series are looked at. Must not know: what a run leaves, and how it is found (reclaim.py does).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Optional

from . import domain, journal, reclaim, series, store


@dataclass(frozen=True)
class Request:
    """output: a store, None: only what this machine has noted of the domain's last run."""

    domain: str
    output: Optional[str] = None
    uri: Optional[str] = None
    dry_run: bool = False
    stall_timeout: float = 60.0


def cleanup(request):
    """Return the Leftovers found; with dry_run nothing is removed. Busy if a live run holds the domain or series."""
    with ExitStack() as stack:
        vm = stack.enter_context(domain.open(request.domain, request.uri, request.stall_timeout))
        hold = stack.enter_context(journal.holding(vm.uuid, vm.name))
        return reclaim.reclaim(vm, _series(request, stack), hold, request.dry_run)


def _series(request, stack):
    if request.output is None:
        return None
    target = series.Series(store.open_store(request.output), request.domain)
    if target.folder not in target.store.folders():
        return None
    stack.enter_context(target.writing())
    return target
