"""Status: has every domain of a store a sound point that is young enough?

Owns: what is wrong with a domain's backups, in one word each, and which domains are looked at. Must not know: what
makes a point sound (soundness.py does), how any of it is shown.
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
from .options import StatusOptions as Options

# What can be wrong, the worst first.
NO_POINT, UNREADABLE, NONE_SOUND, DAMAGED = "no-point", "unreadable", "none-sound", "damaged"
TOO_OLD, FUTURE, DRILL_FAILED = "too-old", "future", "drill-failed"
PROBLEMS = (NO_POINT, UNREADABLE, NONE_SOUND, DAMAGED, TOO_OLD, FUTURE, DRILL_FAILED)

_SKEW = 300  # seconds that the clocks of two hosts may differ by

Described = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """time: of the ages; domains: in the order of their names, in the shape that JSON output has; warnings: what the
    operator should know, and is not wrong with a domain; short_ids: {id of each point that was looked at: as much of it
    as no other one begins with}; immutable: how what is made is protected, None: not at all, or not known."""

    time: str
    domains: list[Described]
    warnings: list[str]
    short_ids: dict[str, str]
    immutable: Optional[Immutability] = None

    @property
    def is_bad(self) -> bool:
        """Also where there is nothing at all: who asks expects a backup."""
        return not self.domains or any(each["problems"] for each in self.domains)


class _Domain(NamedTuple):
    """A domain and what there is of it. uuid: None where no point can be read; elsewhere: why its series is not the one
    that pulls go on with."""

    name: str
    uuid: Optional[str]
    found: Soundness
    elsewhere: Optional[str] = None

    def is_called(self, wanted: str) -> bool:
        """A name that it had before is not its own: another domain may have it by now."""
        return wanted == self.name or wanted.lower() == self.uuid


def status(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Look at every domain, or at those that a pattern fits. A series that cannot be read hides no other."""
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
    """How what is made is protected, and why that is not known."""
    try:
        return (None if opened.has_locks else policies.immutability(opened)), []
    except (errors.Damaged, errors.FormatTooNew) as error:
        return None, [str(error)]


def _asked(every: list[_Domain], pattern: Optional[str]) -> list[_Domain]:
    """What is the name of one is no pattern."""
    called = [each for each in every if pattern is not None and each.is_called(pattern)]
    return called or [each for each in every if policies.fits(each.name, pattern)]


def _domains(opened: Store, check: Check) -> Iterator[_Domain]:
    """Those that have a folder in which a pull has ever begun a point."""
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
    """By its newest point: a domain may have been renamed."""
    if not found.points:
        return _Domain(target.domain, None, found)
    last = found.points[-1].manifest
    return _Domain(last.domain, last.uuid, found, _elsewhere(target, last))


def _elsewhere(target: series.Series, last: Manifest) -> Optional[str]:
    """Say that no pull goes on with the series, such as with a copy of one: its age tells nothing."""
    try:
        home = series_choice.of_domain(target.store, last.domain, last.uuid).folder
    except errors.StoreError:  # told of that folder itself
        home = target.folder
    where = target.store.path(target.folder)
    if home == target.folder:
        return None
    return f"{where} holds points of domain {last.domain}, whose series is in {home}: it is left out"


def _without_points(names: list[str]) -> list[_Domain]:
    return [_Domain(name, None, Soundness()) for name in names]


def _is_among(domain: _Domain, expected: Optional[list[str]]) -> Optional[bool]:
    """None where nothing was expected."""
    return None if expected is None else any(map(domain.is_called, expected))


def _described(domain: _Domain, now: datetime, max_age: Optional[float], expected: Optional[bool]) -> Described:
    found = domain.found
    newest = found.sound[-1] if found.sound else None
    age = (now - newest.when).total_seconds() if newest else None
    drilled = found.drilled
    wrong = {
        NO_POINT: not found.points and not found.refused,
        UNREADABLE: bool(found.refused),
        NONE_SOUND: bool(found.points or found.refused) and not found.sound,
        DAMAGED: bool(found.damaged),
        # Of one that nobody expects no new point is to come: it may be retired.
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
        "unreadable": [str(error) for error in found.refused.values()],
        "problems": [problem for problem in PROBLEMS if wrong[problem]],
    }  # fmt: skip


def _proved(proved: Optional[Proved], *members: str) -> Optional[Described]:
    return None if proved is None else {"point": proved.point.id, **{name: proved.found.get(name) for name in members}}


def _warnings(domain: _Domain, now: datetime) -> Iterator[str]:
    if domain.elsewhere:
        yield domain.elsewhere
    for path in domain.found.lost:
        yield f"{path} cannot be read: its findings are lost"
    early = [point.id for point in domain.found.points if (point.when - now).total_seconds() > _SKEW]
    if early:
        yield f"a clock was wrong: points of {domain.name} are of the future: {point_choice.listed(early)}"
