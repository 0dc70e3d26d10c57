"""Retention: which points of a series stay by a policy, and for what.

As with restic, each rule counts for itself, and what any of them keeps stays. Of an hour, day, ISO week, month or year
it is the newest point; counted are those that have points, from the newest back, and not the calendar's.

What stays under any policy:

- The newest point, the newest sound, verified and drilled one, and what is pinned.
- Partial points. They are no images, take part in nothing, and nobody knows who needs them: they go by hand alone.
- Points that a clock which went backwards has put out of order: what was made later than another point, and is older by
  its time, and that other point. Nobody knows which of them is wrong, so they are of no hour and no day.

A damaged point takes nobody's place: where it is the newest of a day, the newest sound point of that day stays as well.

What a decision keeps is again kept of what it left: so a second run removes nothing, and a rule of more keeps no less.
Pure: no clock, no file. Must not know: where points are, what a point is made of, how one is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone, tzinfo
from typing import Any, Optional
from zoneinfo import ZoneInfo

from ..core import members

UTC = "UTC"
_MOST = 10**12  # points, or seconds, which are more than a time can have

# What keeps a point, beside the rules of a policy.
NEWEST, SOUND, VERIFIED, DRILLED = "newest", "newest-sound", "newest-verified", "newest-drilled"
PINNED, PARTIAL, CLOCK = "pinned", "partial", "clock"
LAST, WITHIN = "last", "within"
PERIODS = {"hourly": "%Y-%m-%d %Hh", "daily": "%Y-%m-%d", "weekly": "%G-W%V", "monthly": "%Y-%m", "yearly": "%Y"}


class UnknownZone(ValueError):
    """There is none of that name here. Where the host lacks the list of them, that is every one but UTC."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no time zone is called {members.short(name)}: write one such as Europe/Berlin")
        self.name = name


@dataclass(frozen=True)
class Policy:
    """How many points a rule keeps, 0: it keeps none; keep_within: all that are at most so many seconds older than the
    newest one. time_zone: of the hours and days, by its IANA name. ValueError where it is none, or keeps nothing."""

    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    keep_within: float = 0.0
    time_zone: str = UTC

    def __post_init__(self) -> None:
        wrong = [name for name, value in self._rules.items() if not 0 <= value <= _MOST]
        if wrong:
            raise ValueError(f"{wrong[0]} is {members.short(getattr(self, wrong[0]))}")
        if not any(self._rules.values()):
            raise ValueError("the policy keeps nothing")
        zone(self.time_zone)

    @property
    def _rules(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if name != "time_zone"}

    @property
    def members(self) -> dict[str, Any]:
        """As a JSON object, of which `of` makes the same."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def of(cls, document: dict[str, Any]) -> Policy:
        """Made of a JSON object. ValueError, also where it has a member of a later version: left out, what that is to
        keep would go."""
        known = {each.name for each in fields(cls)}
        strange = [name for name in document if name not in known]
        if strange:
            raise ValueError(f"no rule of a policy is called {members.short(strange[0])}")
        return members.build(cls, document)

    def __str__(self) -> str:
        """As its options are written."""
        told = {**self.members, "keep_within": self.keep_within and _duration(self.keep_within)}
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in told.items() if value not in (0, UTC))


@dataclass(frozen=True)
class Candidate:
    """A point. created: with a time zone. damaged: it, or what it builds on; verified, drilled: whole, and well."""

    id: str
    sequence: int
    created: datetime
    pinned: bool = False
    partial: bool = False
    damaged: bool = False
    verified: bool = False
    drilled: bool = False


@dataclass(frozen=True)
class Decision:
    """Of one point. kept_by: {rule: which hour, day … of it, or "" where there is nothing to tell}; empty: it goes."""

    id: str
    kept_by: dict[str, str]

    @property
    def stays(self) -> bool:
        return bool(self.kept_by)


@dataclass(frozen=True)
class Outcome:
    """decisions: in the order of commits; needs_force: more than half of the points that are not partial would go."""

    decisions: list[Decision]
    needs_force: bool

    @property
    def removed(self) -> list[str]:
        return [each.id for each in self.decisions if not each.stays]


def zone(name: str) -> tzinfo:
    """UnknownZone."""
    try:
        return timezone.utc if name == UTC else ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UnknownZone(name) from None


def decided(points: Iterable[Candidate], policy: Policy, now: datetime) -> Outcome:
    """now: no point is newer, for keep_within, where that is known of a clock."""
    ordered = sorted(points, key=lambda point: (point.sequence, point.id))
    kept: dict[str, dict[str, str]] = {point.id: {} for point in ordered}
    whole = [point for point in ordered if not point.partial]
    for point, rule, told in (*_always(ordered, whole), *_by_policy(whole, policy, now)):
        kept[point.id].setdefault(rule, told)
    gone = [point for point in ordered if not kept[point.id]]
    return Outcome([Decision(point.id, kept[point.id]) for point in ordered], 2 * len(gone) > len(whole))


Keeping = Iterator[tuple[Candidate, str, str]]  # the point, the rule, what of it


def _always(ordered: Sequence[Candidate], whole: Sequence[Candidate]) -> Keeping:
    yield from ((point, PARTIAL, "") for point in ordered if point.partial)
    yield from ((point, PINNED, "") for point in ordered if point.pinned)
    sound = [point for point in whole if not point.damaged]
    verified, drilled = ([point for point in whole if point.verified], [point for point in whole if point.drilled])
    for rule, those in ((NEWEST, whole), (SOUND, sound), (VERIFIED, verified), (DRILLED, drilled)):
        yield from ((point, rule, "") for point in those[-1:])
    for point, ahead in _behind(whole):
        yield point, CLOCK, f"by its time before {ahead.id}"
        yield ahead, CLOCK, f"by its time after {point.id}"


def _behind(whole: Sequence[Candidate]) -> Iterator[tuple[Candidate, Candidate]]:
    """(one that is older by its time than one made before, the newest of those by its time)"""
    latest: Optional[Candidate] = None
    for point in whole:
        if latest is not None and point.created < latest.created:
            yield point, latest
        else:
            latest = point


def _by_policy(whole: Sequence[Candidate], policy: Policy, now: datetime) -> Keeping:
    behind = {point.id for point, _ in _behind(whole)}
    sound = [point for point in whole if not point.damaged]
    for those in (sound, whole):
        yield from _last(those, policy.keep_last)
        timely = [point for point in those if point.id not in behind]
        for period, form in PERIODS.items():
            yield from _newest_of_each(timely, period, form, getattr(policy, f"keep_{period}"), zone(policy.time_zone))
    yield from _within(whole, policy.keep_within, now)


def _last(points: Sequence[Candidate], count: int) -> Keeping:
    for number, point in enumerate(reversed(points), 1):
        if number <= count:
            yield point, LAST, f"{number} of {count}"


def _newest_of_each(points: Sequence[Candidate], period: str, form: str, count: int, where: tzinfo) -> Keeping:
    seen: set[str] = set()
    for point in reversed(points):
        name = _local(point.created, where).strftime(form)
        if name not in seen and len(seen) < count:
            seen.add(name)
            yield point, period, name


def _within(points: Sequence[Candidate], seconds: float, now: datetime) -> Keeping:
    """As with restic, nothing of a domain goes by its age after its last point; one of the future is not that."""
    newest = max((point.created for point in points if point.created <= now), default=now)
    for point in points:
        if seconds and (newest - point.created).total_seconds() <= seconds:
            yield point, WITHIN, _duration(seconds)


def _local(moment: datetime, where: tzinfo) -> datetime:
    try:
        return moment.astimezone(where)
    except OverflowError:  # of the first or the last day that there is: a manifest can have it
        return moment


def _duration(seconds: float) -> str:
    """As it is written on the command line: 14d, 36h."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{int(seconds // length)}{unit}"
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
