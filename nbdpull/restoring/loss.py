"""What a restore with --salvage could not bring back because of damage.

Owns: how a loss is reported, and that it is reported at once. Must not know: what damage is, how it is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ..core.errors import Report


@dataclass(frozen=True)
class Loss:
    """A lost range of a disk, in bytes, or a lost file of the point; then disk, offset and length are None."""

    disk: Optional[str]
    offset: Optional[int]
    length: Optional[int]
    problem: str


def of_range(report: Report, disk: str, offset: int, length: int, problem: str) -> Loss:
    return _reported(report, Loss(disk, offset, length, problem))


def of_file(report: Report, problem: str) -> Loss:
    return _reported(report, Loss(None, None, None, problem))


def _reported(report: Report, loss: Loss) -> Loss:
    report(event="lost", **vars(loss))
    return loss
