"""A finding: the state of a thing, and what to do about it.

Owns: the possible states, and how an error becomes a finding. Must not know: what is checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..core import errors

GOOD, WARN, BAD = "good", "warn", "BAD"


@dataclass(frozen=True)
class Finding:
    """The result of one check. state: GOOD, WARN (a pull works, with less) or BAD; advice: what to do, empty if
    GOOD."""

    state: str
    subject: str
    text: str
    advice: str = ""
    exit_code: int = 0


def good(subject: str, text: str) -> Finding:
    return Finding(GOOD, subject, text)


def bad(subject: str, error: errors.NbdpullError) -> Finding:
    """Return an error as a finding."""
    what, _, advice = str(error).partition(": ")
    return Finding(BAD, subject, what, advice or "see the text", error.exit_code)


def guarded(subject: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings of one check, and an error as a finding, so that a failure does not prevent the other
    checks."""
    try:
        yield from findings
    except errors.Failure as error:
        yield bad(subject, error)
