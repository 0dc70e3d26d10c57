"""What remove and prune have in common: their options, and what they report about the files.

Must not know: which points were removed, and why.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Optional, Protocol

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
    @property
    def locked(self) -> int: ...
    @property
    def locked_until(self) -> Optional[datetime]: ...


def add_how(parser: usage.Parser, of: type) -> None:
    usage.add(parser, of, "--now", action="store_true",
              help="free the space at once (default: after a day, because the points may still be in use)")  # fmt: skip
    usage.add(parser, of, "--dry-run", action="store_true", help="show what would be removed, remove nothing")


def members(swept: Swept) -> dict[str, Any]:
    """Return the members for JSON; sizes in bytes."""
    return {
        "freed_bytes": swept.freed,
        "waiting_bytes": swept.waiting,
        "shared_bytes": swept.shared,
        "locked_bytes": swept.locked,
        "locked_until": swept.locked_until and swept.locked_until.isoformat(timespec="seconds"),
    }


def lines(swept: Swept, dry_run: bool) -> list[str]:
    if dry_run:
        found = [f"would free {size(swept.waiting)}; {size(swept.shared)} are needed by remaining points"]
        return [*found, *_locked(swept)]
    found = [f"freed {size(swept.freed)}"]
    if swept.waiting:
        when = "a day (--now: at once)" if swept.has_locks else "26 hours"
        found.append(f"{size(swept.waiting)} more are freed by the next remove or prune after {when}")
    if swept.shared:
        found.append(f"{size(swept.shared)} of removed points are needed by remaining points")
    return [*found, *_locked(swept)]


def _locked(swept: Swept) -> list[str]:
    if swept.locked_until is None:
        return []
    until = swept.locked_until.astimezone().strftime("%Y-%m-%d %H:%M")
    return [f"{size(swept.locked)} more are locked until {until}; then the bucket's rule for old versions frees them"]
