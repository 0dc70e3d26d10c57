"""What remove and prune have in common: their options, and what became of the files.

Must not know: which points went, and why.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..core.sizes import shown as size
from . import usage


class Swept(Protocol):
    """A repository.removal.Swept."""

    @property
    def freed(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def shared(self) -> int: ...
    @property
    def has_locks(self) -> bool: ...


def add_how(parser: usage.Parser, of: type) -> None:
    usage.add(parser, of, "--now", action="store_true",
              help="free the space at once; by default after a day, as somebody may still read the points")  # fmt: skip
    usage.add(parser, of, "--dry-run", action="store_true", help="show what would go, remove nothing")


def members(swept: Swept) -> dict[str, Any]:
    """In JSON; sizes in bytes."""
    return {"freed_bytes": swept.freed, "waiting_bytes": swept.waiting, "shared_bytes": swept.shared}


def lines(swept: Swept, dry_run: bool) -> list[str]:
    if dry_run:
        return [f"would free {size(swept.waiting)}; {size(swept.shared)} are needed by points that stay"]
    found = [f"freed {size(swept.freed)}"]
    if swept.waiting:
        when = "a day (--now: at once)" if swept.has_locks else "26 hours"
        found.append(f"{size(swept.waiting)} more go with the next remove or prune after {when}")
    if swept.shared:
        found.append(f"{size(swept.shared)} of removed points are needed by points that stay")
    return found
