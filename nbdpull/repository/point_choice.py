"""The point that a user means by something shorter than a whole id: the beginning of an id, or a time.

Owns: the forms of a time, and the rule that a day or a minute means its last instant. Pure: must not know stores, nor
read a clock.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Optional

from ..core import errors

_TIME = re.compile(
    r"(?P<day>today|yesterday|\d{4}-\d\d-\d\d)"
    r"(?:[ T](?P<clock>\d\d?:\d\d(?P<seconds>:\d\d(?:\.\d{1,6})?)?)(?P<zone>Z|[+-]\d\d:\d\d)?)?\Z",
    re.ASCII,
)
FORMS = "2026-11-22, '2026-11-22 18:00', yesterday or 'yesterday 18:00'"
SHOWN = 4  # ids in a message


def moment(text: str, now: datetime, zone: Optional[tzinfo] = None) -> Optional[datetime]:
    """Return the last instant that a text means, None if it is not a time. ValueError for a time that does not exist.

    now: with a time zone. zone: that of a time without one, and of "today"; None: this machine's.
    """
    match = _TIME.match(text)
    if match is None:
        return None
    days = {"today": 0, "yesterday": 1}.get(match["day"])
    own = _own_zone(match["zone"]) or zone
    try:
        day = (datetime.fromisoformat(match["day"]) if days is None
               else _midnight(now.astimezone(own)) - timedelta(days=days))  # fmt: skip
        if match["clock"] is None:
            naive, span = day, timedelta(days=1)
        else:
            hours, minutes, *seconds = match["clock"].split(":")
            naive = day.replace(hour=int(hours), minute=int(minutes), second=int(seconds[0][:2]) if seconds else 0)
            span = timedelta(seconds=1) if seconds else timedelta(minutes=1)
        last = naive + span - timedelta(microseconds=1)
        return last.replace(tzinfo=own) if own else last.astimezone()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text!r} is not a time that exists; write {FORMS}") from None


def _midnight(when: datetime) -> datetime:
    return datetime(when.year, when.month, when.day)


def _own_zone(text: Optional[str]) -> Optional[tzinfo]:
    if text is None or text == "Z":
        return timezone.utc if text else None
    sign = -1 if text[0] == "-" else 1
    minutes = 60 * int(text[1:3]) + int(text[4:])
    return timezone(timedelta(minutes=sign * min(minutes, 24 * 60 - 1)))


def beginning_with(wanted: str, ids: Sequence[str]) -> list[str]:
    """Return the ids that begin with `wanted`; only that id if it is a whole one."""
    return [wanted] if wanted in ids else [each for each in ids if wanted and each.startswith(wanted)]


def short(ids: Sequence[str], least: int = 16) -> dict[str, str]:
    """Return {id: its shortest beginning that no other of these ids shares}, each of at least `least` characters."""
    found: dict[str, str] = {}
    ordered = sorted(set(ids))
    for at, each in enumerate(ordered):
        beside = [*ordered[max(at - 1, 0) : at], *ordered[at + 1 : at + 2]]
        length = max([least, *(_common(each, other) + 1 for other in beside)])
        found[each] = each[:length]
    return found


def _common(one: str, other: str) -> int:
    """Return the length of the common beginning of two texts."""
    return next((at for at, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def listed(ids: Sequence[str]) -> str:
    """Return some of the ids as a text that fits in a line."""
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[-SHOWN:]) + more if ids else "none"


def ambiguous(wanted: str, ids: Sequence[str]) -> errors.NoSuchPoint:
    return errors.NoSuchPoint(f"{wanted} fits {len(ids)} points: {listed(ids)}")
