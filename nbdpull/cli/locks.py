"""How points are protected in an object store, in words: what init, policy and the verbs that remove have in common.

Must not know: how an object is locked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional, Protocol

from ..core.choices import LockMode
from . import types, usage


class Immutability(Protocol):
    """A repository.policies.Immutability."""

    @property
    def seconds(self) -> float: ...
    @property
    def mode(self) -> str: ...


def add(parser: usage.Parser, of: type) -> None:
    usage.add(parser, of, "--immutable-for", metavar="T", type=types.time_with_unit_or_none,
              help="in a bucket with object lock: nobody can remove a point for this long after its pull began: 30d; "
              "0: not at all")  # fmt: skip
    usage.add(parser, of, "--lock-mode", choices=LockMode.WORDS,
              help="who can shorten that: nobody, or whoever has s3:BypassGovernanceRetention")  # fmt: skip


def lines(setting: Optional[Immutability]) -> Iterator[str]:
    if setting:
        who = "nobody can" if setting.mode == LockMode.COMPLIANCE else "whoever has s3:BypassGovernanceRetention can"
        yield f"points are immutable for {types.duration_text(setting.seconds)} ({setting.mode}: {who} shorten it)"
