"""The output of a verb that removes things: what was removed, what is left, and the exit code.

Must not know: what it was, or how it is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, Protocol

from .output import Outcome

_FATE = {"": "removed", "dry run": "would be removed"}


class Leftover(Protocol):
    """A pulling.leftover.Leftover."""

    @property
    def what(self) -> str: ...

    @property
    def left(self) -> str: ...


def outcome(
    found: Sequence[Leftover], dry_run: bool, domain: Optional[str], nothing: str, code: int, after: str = ""
) -> Outcome:
    """Return the Outcome. nothing: the text if nothing was found; code: if something is left; after: if something was
    removed."""
    lines = [f"{item.what}: {_FATE.get(item.left, f'left: {item.left}')}" for item in found] or [nothing]
    if after and any(not item.left for item in found):
        lines.append(after)
    left = any(item.left for item in found) and not dry_run
    return Outcome({"found": [vars(item) for item in found]}, lines, code if left else 0, domain=domain)
