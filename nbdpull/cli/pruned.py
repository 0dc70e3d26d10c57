"""What prune, and pull with --prune, report about a domain.

Must not know: which of its points were removed, and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..core.sizes import shown as size
from . import removed, terminal

if TYPE_CHECKING:
    from ..operations.prune import Pruned


def members(of: Pruned) -> dict[str, Any]:
    """Return the members for JSON."""
    return {
        "domain": of.domain,
        "policy": of.policy and {"in_store": of.in_store, **of.policy.members},
        "problem": of.problem or None,
        "points": [
            {"id": each.id, "created": of.created[each.id].isoformat(), "kept_by": each.kept_by}
            for each in of.decisions
        ],
        "removed": of.removed,
        **removed.members(of.swept),
        "repack_moved_bytes": of.repacked.moved,
        "repack_freed_bytes": of.repacked.freed,
        "repack_waiting_bytes": of.repacked.waiting,
        "repack_left_bytes": of.repacked.left,
        "repack_skipped": of.repacked.skipped,
    }


def lines(of: Pruned, dry_run: bool) -> Iterator[str]:
    """Yield the result, if all went well."""
    if of.policy is None:
        yield "no policy of the store applies to it: nothing is removed"
        return
    verb = "would be removed" if dry_run else "removed"
    yield f"{len(of.removed)} of {terminal.count(len(of.decisions), 'point')} {verb} ({of.policy.policy}{_whose(of)})"
    yield from removed.lines(of.swept, dry_run)
    would, done = ("would move", "would free") if dry_run else ("moved", "freed")
    if of.repacked.waiting and of.repacked.moved:
        yield f"{would} {size(of.repacked.moved)} of mostly dead files"
    if of.repacked.waiting:
        yield f"{size(of.repacked.waiting)} of repacked files are freed by a prune 26 hours after their repack"
    if of.repacked.freed:
        yield f"{would} {size(of.repacked.moved)} of mostly dead files, which {done} {size(of.repacked.freed)}"
    if of.repacked.left:
        yield f"{size(of.repacked.left)} more can be freed in this way"


def _whose(of: Pruned) -> str:
    if not of.in_store or of.policy is None:
        return ""
    return f", the store's policy for {of.policy.pattern or 'all domains'}"
