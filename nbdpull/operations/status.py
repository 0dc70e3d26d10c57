"""Status: has every domain of a store a sound point that is young enough?

Owns: what can be wrong with a domain's backups, in one word each, and which domains are inspected. Must not know: what
makes a point sound (see soundness.py), how the result is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple, Optional

from ..core import errors
from ..core.errors import Check, Report
from ..format.manifest import Manifest
from ..repository import (
    half_points,
    key_files,
    marker,
    point_choice,
    policies,
    series,
    series_choice,
    soundness,
    verdict,
)
from ..repository.policies import Immutability
from ..repository.soundness import Proved, Soundness
from ..storage.base import Store
from .options.points import StatusOptions as Options

# What can be wrong, the worst first.
NO_POINT, UNREADABLE, NONE_SOUND, DAMAGED = "no-point", "unreadable", "none-sound", "damaged"
TOO_OLD, FUTURE, DRILL_FAILED = "too-old", "future", "drill-failed"
PROBLEMS = (NO_POINT, UNREADABLE, NONE_SOUND, DAMAGED, TOO_OLD, FUTURE, DRILL_FAILED)

_SKEW = 300  # seconds that the clocks of two hosts may differ by

Described = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """The state of a store.

    time: the time that ages refer to; domains: by name, in the shape of the JSON output; warnings: what the operator
    should know, but is no problem of a domain; short_ids: {id of each point: its shortest unique beginning}; immutable:
    how new objects are protected, None: not at all, or unknown.
    """

    time: str
    domains: list[Described]
    warnings: list[str]
    short_ids: dict[str, str]
    immutable: Optional[Immutability] = None

    @property
    def is_bad(self) -> bool:
        """Whether a domain has a problem, or there is no domain at all: a user who asks expects a backup."""
        return not self.domains or any(each["problems"] for each in self.domains)


class _Domain(NamedTuple):
    """A domain and its points.

    uuid: None if no point can be read; elsewhere: a warning if its series is not the one that pulls continue, else
    None.
    """

    name: str
    uuid: Optional[str]
    found: Soundness
    elsewhere: Optional[str] = None

    def is_called(self, wanted: str) -> bool:
        """Return whether this is its name or UUID. A former name does not count: another domain may have it by now."""
        return wanted == self.name or wanted.lower() == self.uuid


def status(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Report on every domain, or on those that match a pattern. An unreadable series hides no other."""
    opened, now = marker.open_store(options.store), datetime.now(timezone.utc)
    every = list(_domains(opened, check))
    here = [each for each in every if each.elsewhere is None]
    missing = [name for name in options.expect or [] if not any(each.is_called(name) for each in here)]
    wanted = _asked([*here, *_without_points(missing)], options.domain)
    if options.domain is not None and not wanted:
        known = ", ".join(sorted({each.name for each in every})) or "none"
        raise errors.StoreError(f"no domain {options.domain} in {opened.root}; it has: {known}")
    wanted.sort(key=lambda each: (each.name, each.uuid or ""))
    immutable, unread = _immutable(opened)
    return Result(
        now.isoformat(timespec="seconds"),
        [_described(each, now, options.max_age, _is_among(each, options.expect)) for each in wanted],
        [
            *(warning for each in _asked(every, options.domain) for warning in _warnings(each, now)),
            *key_files.warnings(opened),
            *unread,
        ],
        point_choice.short([point.id for each in every for point in each.found.points]),
        immutable,
    )


def _immutable(opened: Store) -> tuple[Optional[Immutability], list[str]]:
    """Return (how new objects are protected, why that is unknown)."""
    try:
        return (None if opened.has_locks else policies.immutability(opened)), []
    except (errors.Damaged, errors.FormatTooNew) as error:
        return None, [str(error)]


def _asked(every: list[_Domain], pattern: Optional[str]) -> list[_Domain]:
    """Return the domains that were asked for: a name or UUID of a domain is no pattern."""
    called = [each for each in every if pattern is not None and each.is_called(pattern)]
    return called or [each for each in every if policies.fits(each.name, pattern)]


def _domains(opened: Store, check: Check) -> Iterator[_Domain]:
    """Yield the domains that have a folder in which a pull has ever begun a point."""
    for target in series_choice.folders(opened):
        check()
        with ExitStack() as looking:
            try:
                looking.enter_context(opened.looking(target.folder))
                found = soundness.of_series(target)
                begun = bool(found.points or found.refused or half_points.names(target))
            except (errors.StoreError, errors.Damaged) as error:
                begun, found = True, Soundness(refused={target.folder: error})
            if begun:
                yield _named(target, found)


def _named(target: series.Series, found: Soundness) -> _Domain:
    """Return the _Domain of a series, with the name in its newest point: a domain may have been renamed."""
    if not found.points:
        return _Domain(target.domain, None, found)
    last = found.points[-1].manifest
    return _Domain(last.domain, last.uuid, found, _elsewhere(target, last))


def _elsewhere(target: series.Series, last: Manifest) -> Optional[str]:
    """Return a warning if no pull continues the series, such as a copy of one: its age says nothing about backups."""
    try:
        home = series_choice.of_domain(target.store, last.domain, last.uuid).folder
    except errors.StoreError:  # reported for that folder itself
        home = target.folder
    where = target.store.path(target.folder)
    if home == target.folder:
        return None
    return f"{where} holds points of domain {last.domain}, whose series is in {home}: it is left out"


def _without_points(names: list[str]) -> list[_Domain]:
    return [_Domain(name, None, Soundness()) for name in names]


def _is_among(domain: _Domain, expected: Optional[list[str]]) -> Optional[bool]:
    """Return whether the domain is expected, None if no list of expected domains was given."""
    return None if expected is None else any(map(domain.is_called, expected))


def _described(domain: _Domain, now: datetime, max_age: Optional[float], expected: Optional[bool]) -> Described:
    found = domain.found
    newest = found.sound[-1] if found.sound else None
    age = (now - newest.when).total_seconds() if newest else None
    drilled = found.drilled
    wrong = {
        NO_POINT: not found.points and not found.refused,
        UNREADABLE: bool(found.refused or found.lost),
        NONE_SOUND: bool(found.points or found.refused) and not found.sound,
        DAMAGED: bool(found.damaged),
        # A domain that is not expected may be retired, so it needs no new point.
        TOO_OLD: age is not None and max_age is not None and age > max_age and expected is not False,
        FUTURE: age is not None and age < -_SKEW and expected is not False,
        DRILL_FAILED: drilled is not None and drilled.found.get("verdict") != verdict.OK,
    }
    return {
        "domain": domain.name,
        "uuid": domain.uuid,
        "expected": expected,
        "points": len(found.points),
        "newest": newest and {
            "id": newest.id,
            "as_of": newest.manifest.as_of,
            "created": newest.manifest.created,
            "age": age,
            "consistency": newest.manifest.consistency,
        },
        "verified": _proved(found.verified, "when", "level"),
        "drilled": _proved(drilled, "when", "verdict"),
        "damaged": found.damaged,
        "unreadable": [*map(str, found.refused.values()), *found.lost],
        "problems": [problem for problem in PROBLEMS if wrong[problem]],
    }  # fmt: skip


def _proved(proved: Optional[Proved], *members: str) -> Optional[Described]:
    return None if proved is None else {"point": proved.point.id, **{name: proved.found.get(name) for name in members}}


def _warnings(domain: _Domain, now: datetime) -> Iterator[str]:
    if domain.elsewhere:
        yield domain.elsewhere
    early = [point.id for point in domain.found.points if (point.when - now).total_seconds() > _SKEW]
    if early:
        yield f"a clock was wrong: points of {domain.name} are from the future: {point_choice.listed(early)}"
