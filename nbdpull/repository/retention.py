"""Retention: which points of a series a policy keeps, and why.

As in restic, each rule applies on its own, and a point is kept if any rule keeps it. Of an hour, day, ISO week, month
or year the newest point is kept. Only periods with points count, from the newest back, not those of the calendar.

Every policy keeps:

- The newest point, the newest sound, verified and drilled one, and pinned points.
- Partial points. They are no images, no rule applies to them, and what needs them is unknown: only the user removes
  them.
- Points that are out of order because a clock went backwards: a point that was made after another one but has an
  earlier time, and that other point. Which of the two times is wrong is unknown, so the former belongs to no period.

A damaged point does not replace another one: if it is the newest of a day, the newest sound point of that day is kept
as well.

A second decision about the kept points keeps all of them again: so a second run removes nothing, and a rule with a
higher number keeps no fewer points. Pure: no clock, no file. Must not know: where points are, what a point consists of,
how one is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone, tzinfo
from typing import Any, Optional
from zoneinfo import ZoneInfo

from ..core import members

UTC = "UTC"
_MOST = 10**12  # points or seconds: more seconds than a datetime can span

# The reasons to keep a point besides the rules of a policy.
NEWEST, SOUND, VERIFIED, DRILLED = "newest", "newest-sound", "newest-verified", "newest-drilled"
PINNED, PARTIAL, CLOCK = "pinned", "partial", "clock"
LAST, WITHIN = "last", "within"
PERIODS = {"hourly": "%Y-%m-%d %Hh", "daily": "%Y-%m-%d", "weekly": "%G-W%V", "monthly": "%Y-%m", "yearly": "%Y"}


class UnknownZone(ValueError):
    """This host knows no time zone of that name. Without the time zone database it knows only UTC."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no time zone {members.short(name)}: write one such as Europe/Berlin")
        self.name = name


@dataclass(frozen=True)
class Policy:
    """How many points each rule keeps, 0: none.

    keep_within: keep all points that are at most this many seconds older than the newest one; time_zone: IANA name of
    the time zone of the periods. ValueError if a value or the time zone is invalid, or if the policy keeps nothing.
    """

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
            raise ValueError(f"{wrong[0]} is {members.short(getattr(self, wrong[0]))}, and may be from 0 to {_MOST}")
        if not any(self._rules.values()):
            raise ValueError("the policy keeps nothing")
        zone(self.time_zone)

    @property
    def _rules(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if name != "time_zone"}

    @property
    def members(self) -> dict[str, Any]:
        """The policy as a JSON object, which `of` reads back."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def of(cls, document: dict[str, Any]) -> Policy:
        """Return the policy of a JSON object. ValueError, also for a member of a later version: if it were ignored, the
        points that it should keep would be removed."""
        known = {each.name for each in fields(cls)}
        strange = [name for name in document if name not in known]
        if strange:
            raise ValueError(f"no rule of a policy is called {members.short(strange[0])}")
        return members.build(cls, document)

    def __str__(self) -> str:
        """Return the policy as command-line options."""
        rules = {**self.members, "keep_within": self.keep_within and _duration(self.keep_within)}
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in rules.items() if value not in (0, UTC))


@dataclass(frozen=True)
class Candidate:
    """A point. created: with a time zone; damaged: the point, or one that it builds on, is damaged; verified, drilled:
    all of it, successfully."""

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
    """The decision on one point. kept_by: {rule: its hour, day … or other detail, or ""}; empty: the point is
    removed."""

    id: str
    kept_by: dict[str, str]

    @property
    def stays(self) -> bool:
        return bool(self.kept_by)


@dataclass(frozen=True)
class Outcome:
    """decisions: in the order of commits; needs_force: more than half of the points that are not partial would be
    removed."""

    decisions: list[Decision]
    needs_force: bool

    @property
    def removed(self) -> list[str]:
        return [each.id for each in self.decisions if not each.stays]


def zone(name: str) -> tzinfo:
    """Return the time zone of that name; UnknownZone."""
    try:
        return timezone.utc if name == UTC else ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UnknownZone(name) from None


def decided(points: Iterable[Candidate], policy: Policy, now: datetime) -> Outcome:
    """Decide which points a policy keeps. now: for keep_within, points with a later time do not count as the newest."""
    ordered = sorted(points, key=lambda point: (point.sequence, point.id))
    kept: dict[str, dict[str, str]] = {point.id: {} for point in ordered}
    whole = [point for point in ordered if not point.partial]
    for point, rule, period in (*_always(ordered, whole), *_by_policy(whole, policy, now)):
        kept[point.id].setdefault(rule, period)
    gone = [point for point in ordered if not kept[point.id]]
    return Outcome([Decision(point.id, kept[point.id]) for point in ordered], 2 * len(gone) > len(whole))


Keeping = Iterator[tuple[Candidate, str, str]]  # the point, the rule, the detail of the rule


def _always(ordered: Sequence[Candidate], whole: Sequence[Candidate]) -> Keeping:
    yield from ((point, PARTIAL, "") for point in ordered if point.partial)
    yield from ((point, PINNED, "") for point in ordered if point.pinned)
    sound = [point for point in whole if not point.damaged]
    verified, drilled = ([point for point in whole if point.verified], [point for point in whole if point.drilled])
    for rule, those in ((NEWEST, whole), (SOUND, sound), (VERIFIED, verified), (DRILLED, drilled)):
        yield from ((point, rule, "") for point in those[-1:])
    for point, ahead in _behind(whole):
        yield point, CLOCK, f"its time is before that of {ahead.id}"
        yield ahead, CLOCK, f"its time is after that of {point.id}"


def _behind(whole: Sequence[Candidate]) -> Iterator[tuple[Candidate, Candidate]]:
    """Yield (a point whose time is earlier than that of a point made before it, the latest by time of those made
    before)."""
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
    """Yield the points within `seconds` of the newest one. As in restic, points do not expire if no newer ones are
    made. A point with a time in the future does not count as the newest."""
    newest = max((point.created for point in points if point.created <= now), default=now)
    for point in points:
        if seconds and (newest - point.created).total_seconds() <= seconds:
            yield point, WITHIN, _duration(seconds)


def _local(moment: datetime, where: tzinfo) -> datetime:
    try:
        return moment.astimezone(where)
    except OverflowError:  # on the first or the last day that datetime can represent: a manifest can contain it
        return moment


def _duration(seconds: float) -> str:
    """Return a duration as written on the command line: 14d, 36h."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{int(seconds // length)}{unit}"
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
