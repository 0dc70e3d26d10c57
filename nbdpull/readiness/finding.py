"""A finding: how a thing stands, and what to do about it.

Owns: its states, and how an error is told as one. Must not know: what is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..core import errors

GOOD, WARN, BAD = "good", "warn", "BAD"


@dataclass(frozen=True)
class Finding:
    """state: GOOD, WARN (a pull works, with less) or BAD; advice: what to do, empty where good."""

    state: str
    subject: str
    text: str
    advice: str = ""
    exit_code: int = 0


def good(subject: str, text: str) -> Finding:
    return Finding(GOOD, subject, text)


def bad(subject: str, error: errors.NbdpullError) -> Finding:
    """An error as a finding; what ends the run is none, and is raised again."""
    if isinstance(error, errors.Interrupted):
        raise error
    what, _, advice = str(error).partition(": ")
    return Finding(BAD, subject, what, advice or "see the text", error.exit_code)


def told(subject: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """What one look finds; where it fails, the others go on."""
    try:
        yield from findings
    except errors.NbdpullError as error:
        yield bad(subject, error)
