"""What a restore that goes on around damage could not bring back.

Owns: how a loss is told, and that it is told at once. Must not know: what damage is, who finds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ..core.errors import Report


@dataclass(frozen=True)
class Loss:
    """A range of a disk in bytes, or a file of the point (then disk is None)."""

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
