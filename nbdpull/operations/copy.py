"""Copy: copy the points that another store lacks, domain by domain, in the order in which they were made.

Owns: which points are copied, and which are not, and why; that a problem with one hides no other. Must not know: how a
point is copied (see incoming.py and resealed_point.py), how the result is shown.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Callable, NamedTuple, Optional, Union

from ..core import deadline, errors
from ..core.choices import ALL_POINTS
from ..core.errors import Check, Report
from ..core.throttle import Throttle
from ..crypto.seal import PLAIN
from ..format import findings
from ..format.manifest import FileEntry
from ..pulling import known_stores
from ..repository import (
    crossing,
    foreign,
    half_points,
    key_changes,
    marker,
    matching,
    removal,
    resealed_point,
    retention,
    series_choice,
    soundness,
)
from ..repository.incoming import Incoming, Taken
from ..repository.marker import NewSeal
from ..repository.matching import Matched
from ..repository.resealed_point import Pair, Resealing
from ..repository.retention import Policy
from ..repository.series import Point, Series
from ..storage import place
from ..storage.base import Store
from . import policy, prune, store_choice, unlocking
from .options.stores import CopyOptions as Options

Foresee = Callable[[Point, list[FileEntry], Check], None]  # see incoming.Incoming.foresee


class Refused(NamedTuple):
    """A point that should have been copied, and was not."""

    point: str
    error: errors.NbdpullError


@dataclass
class Domain:
    """What was done for one domain.

    copied: in the order of commits; same: ids of the points that DEST already had; older: ids of the points that were
    left out because DEST has newer ones; problem: why no more of the domain was copied, None if there was no problem.
    """

    domain: str
    copied: list[Taken] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    older: list[str] = field(default_factory=list)
    problem: Optional[errors.NbdpullError] = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """What was done for each domain, or would be done with dry_run. about_dest: warnings about DEST itself."""

    domains: list[Domain]
    about_dest: list[str] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        return [*self.about_dest, *(warning for each in self.domains for warning in each.warnings)]

    @property
    def errors(self) -> list[errors.NbdpullError]:
        """The reasons why anything was not copied, damage first."""
        found = [error for each in self.domains for error in (each.problem, *(one.error for one in each.refused))]
        return sorted(filter(None, found), key=lambda error: not isinstance(error, errors.Damaged))


@dataclass(frozen=True)
class _Run:
    """What every step of a copy needs. points: ids of the points to copy, None: choose by age and policy."""

    options: Options
    points: Optional[Collection[str]]
    policy: Optional[Policy]
    throttle: Throttle
    report: Report
    check: Check


def copy(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Copy points to DEST. A problem with one domain or point hides no other.

    UsageError, NoSuchPoint, StoreError: nothing was done. OutputError if DEST cannot be created.
    """
    if options.points and options.rules:
        raise errors.UsageError("--point and --keep-… cannot be combined: name points, or give rules")
    check = deadline.bounded(check, options.max_duration, "the copy")
    by = policy.made(options.rules) if options.rules else None
    sources, points = _wanted(options)
    warnings: list[str] = []
    dest = _destination(options, sources[0].store, warnings.append)
    run = _Run(options, points, by, Throttle(options.max_rate, check=check), report, check)
    domains = [_domain(source, dest, run) for source in sources]
    return Result(domains, [] if options.dry_run else [*warnings, *dest.warnings()])


def _wanted(options: Options) -> tuple[list[Series], Optional[Collection[str]]]:
    if not options.points or ALL_POINTS in options.points:
        return store_choice.find_domains(options.store, options.domain, options.identities), None
    found = [
        store_choice.find_point(options.store, each, options.domain, options.identities) for each in options.points
    ]
    return list({each.folder: each for each, _ in found}.values()), {point.id for _, point in found}


def _destination(options: Options, source: Store, warn: place.Warn) -> Store:
    """Return DEST, created if it is new, and unlocked as far as the identities allow.

    A new DEST gets the key of the source. Between stores of the same key, sealed files are copied unchanged; a user who
    has the key can prove with it what both stores claim. For a store with another key, points are sealed again; for one
    without a key, they are unsealed.
    """
    if not place.are_apart(options.store, options.dest):
        raise errors.UsageError(f"{options.dest} and {options.store} are the same store, or one contains the other")
    if options.unseal:
        if source.seal.id is None:
            raise errors.UsageError(f"--unseal: {options.store} is not sealed")
        source.seal.require()  # before a DEST is made
    _require_there(options, source)
    dest, seal = _opened(options, source)
    if options.unseal and dest.seal.id is not None:
        raise errors.UsageError(f"--unseal: {options.dest} is sealed: leave the option out, or name another DEST")
    if options.dest_identities:
        unlocking.unlock(dest, options.dest_identities)
    if dest.seal.id is None or dest.seal.id != source.seal.id:
        known_stores.require(dest)  # what is sealed for its key, or not at all, may be for somebody else
    if dest.seal.id != source.seal.id:
        _require_both(dest, source, options)
        if not options.dry_run:
            known_stores.note(dest, warn)
        return dest
    dest.seal = source.seal
    if seal and not options.dry_run:
        key_changes.bring(seal, dest)
    return dest


def _require_there(options: Options, source: Store) -> None:
    """Of a DEST that is no store yet, and would be another one than is meant: UsageError, Foreign."""
    if options.dest_identities and marker.is_new(options.dest, sealed=True):
        raise errors.UsageError(
            f"{options.dest} is not a store yet, and a copy does not create one with another key: first run nbdpull "
            f"init {shlex.quote(options.dest)} --recipient …, or name no identity for it ({options.dest_identities[0]})"
        )
    is_plain = source.seal.id is None or options.unseal
    if is_plain and known_stores.has(here := place.opened(options.dest)) and marker.is_new(options.dest, sealed=True):
        raise known_stores.gone(here)


def _opened(options: Options, source: Store) -> tuple[Store, Optional[NewSeal]]:
    """Return DEST, created if it is new, and the seal that a new one gets; with dry_run, DEST as it would be."""
    seal = None if options.unseal or source.seal.id is None else key_changes.copied(source)
    if not options.dry_run:
        return marker.open_or_create(options.dest, seal=seal), seal
    if not marker.is_new(options.dest, sealed=source.seal.id is not None):
        return marker.open_store(options.dest), seal
    dest = place.opened(options.dest)
    dest.seal = PLAIN if options.unseal else source.seal
    return dest, seal


def _require_both(dest: Store, source: Store, options: Options) -> None:
    """Require that both of two stores with different seals are unlocked; KeyNeeded if not."""
    if dest.seal.id is None and not options.unseal:
        raise errors.StoreError(
            f"{source.root} is sealed, and {dest.root} is not: whoever can read {dest.root} could read what is copied; "
            "add --unseal if you want that, or name a new directory, which becomes a store with the same key"
        )
    if dest.seal.id is not None and not dest.seal.opens:
        unlocking.unlock(dest, options.identities)
    source.seal.require()
    if not dest.seal.opens:
        raise errors.KeyNeeded(
            f"{dest.root} is sealed, and not with the key of {source.root}: name an identity that opens it with "
            "--dest-identity FILE"
        )


class _Ends(NamedTuple):
    """The series of a domain in the two stores. there: the points of the target; match: how those of the source compare
    with them."""

    source: Series
    target: Series
    there: list[Point]
    match: Matched


def _domain(source: Series, dest: Store, run: _Run) -> Domain:
    found = Domain(source.domain)
    with ExitStack() as held:
        try:
            _copied(source, dest, found, held, run)
        except (errors.StoreError, errors.Damaged, errors.Busy, errors.OutputError) as error:
            found.problem = error
    return found


def _copied(source: Series, dest: Store, found: Domain, held: ExitStack, run: _Run) -> None:
    known = soundness.of_series(source)
    found.warnings += known.lost
    if run.points is None:
        found.refused += [Refused(name, error) for name, error in known.refused.items()]
    if not known.points:
        return
    uuid = known.points[-1].manifest.uuid
    source.require_of(known.points, uuid)
    target = series_choice.of_domain(dest, source.domain, uuid)
    if not run.options.dry_run:
        held.enter_context(half_points.writing(target, "copy"))
    known_there = soundness.of_series(target)
    there, unreadable = known_there.points, known_there.refused
    target.require_of(there, uuid)
    match = matching.matched(known.points, there, unreadable)
    found.warnings += soundness.damaged_copies(known_there, target, match.same, source.store)
    if resealed_point.is_needed(source, target, match):
        foreign.require_none(target, there, unreadable)
    ends = _Ends(source, target, there, match)
    points = _to_copy(source, dest, known, match, found, run)
    if run.options.dry_run:
        foresee = _taking(ends, run).foresee if points else None
        found.copied = _planned(ends, points, found, run.check, foresee)
    elif points:
        _take(ends, points, found, run)


def _to_copy(
    source: Series, dest: Store, known: soundness.Soundness, match: Matched, found: Domain, run: _Run
) -> list[Point]:
    """Return the points to copy: wanted and sound. Note in `found` those that exist, are left out, or are refused."""
    found.same = [point.id for point in match.same]
    found.refused += [Refused(point.id, _other(point, dest)) for point in _asked(match.different, run)]
    chosen = _chosen(source, known, match, run)
    found.older = _without(match.older, {point.id for point in chosen}) if run.points is None else []
    match.require_one_history(match.here if run.points is None else chosen, source.store.root, dest.root)
    unordered = [point for point in match.unordered if point in chosen and not run.options.points]
    found.refused += [Refused(point.id, match.out_of_order(point, dest.root)) for point in unordered]
    damaged = [point for point in chosen if point.id in known.damaged and point not in unordered]
    found.refused += [Refused(point.id, soundness.damage(source, point)) for point in damaged]
    return [point for point in chosen if point not in [*unordered, *damaged]]


def _without(points: Iterable[Point], known: Collection[str]) -> list[str]:
    return [point.id for point in points if point.id not in known]


def _asked(points: Iterable[Point], run: _Run) -> list[Point]:
    return [point for point in points if run.points is None or point.id in run.points]


def _chosen(source: Series, known: soundness.Soundness, match: Matched, run: _Run) -> list[Point]:
    if run.options.points:
        return _asked(match.here, run)
    newer = [*match.unordered, *match.newer]
    if run.policy is None:
        return newer
    decided = retention.decided(prune.candidates(source, known), run.policy, datetime.now(timezone.utc))
    gone = set(decided.removed)
    return [point for point in newer if point.id not in gone]


def _other(point: Point, dest: Store) -> errors.NbdpullError:
    return errors.StoreError(
        f"{dest.root} has another point with this id, or cannot read it; nbdpull verify shows whether that is damaged "
        f"or forged; if so, nbdpull remove {shlex.quote(dest.root)} {point.id} makes way for this one"
    )


def _planned(
    ends: _Ends, points: list[Point], found: Domain, check: Check, foresee: Optional[Foresee] = None
) -> list[Taken]:
    """Return what a copy of each point would add; refuse the points for which that cannot be determined, or for which
    `foresee` raises an error."""
    seen: set[str] = set()
    planned = []
    lacking = resealed_point.lacking(ends.source, ends.target, ends.match, check)
    for point in points:
        check()
        try:
            entries = lacking(point, seen)
            if foresee:
                foresee(point, entries, check)
        except (errors.Damaged, errors.StoreError) as error:
            found.refused.append(Refused(point.id, _why(ends, point, error)))
            continue
        seen |= {entry.path for entry in entries}
        planned.append(Taken(point.id, len(entries), sum(entry.size for entry in entries)))
    return planned


def _take(ends: _Ends, points: list[Point], found: Domain, run: _Run) -> None:
    source, target = ends.source, ends.target
    with source.store.looking(source.folder), target.store.looking(target.folder):
        known = frozenset(findings.names(target))
        planned = {each.point: each.bytes for each in _planned(ends, points, found, run.check)}
    progress = _Progress(partial(run.report, domain=found.domain), sum(planned.values()))
    taking = _taking(ends, run)
    with _sweeping(target, found, run):
        for point in points:
            if point.id not in planned:
                continue
            try:
                taken = taking.take(point, partial(progress, point.id), run.check)
            except (errors.Damaged, errors.StoreError) as error:
                found.refused.append(Refused(point.id, _why(ends, point, error)))
                continue
            found.copied.append(taken)
            run.report(event="copied", domain=found.domain, point=point.id, files=taken.files, copied_bytes=taken.bytes)
            found.warnings += _found_since(target, taken, known)  # at once: a failure of a later point may end the copy


@contextmanager
def _sweeping(target: Series, found: Domain, run: _Run) -> Iterator[None]:
    """Remove, after the block, what a dead copy began and nothing needs any more. After Busy, too: it may have been in
    the way."""
    try:
        yield
    except errors.Busy:
        _sweep(target, found, run)
        raise
    _sweep(target, found, run)


def _sweep(target: Series, found: Domain, run: _Run) -> None:
    try:
        removal.sweep(target, check=run.check)
    except (errors.Damaged, errors.StoreError) as error:
        found.warnings.append(str(error))


def _found_since(target: Series, taken: Taken, known: Container[str]) -> list[str]:
    """Return warnings if findings that were stored since the copy began affect the point."""
    try:
        made = map(target.point_in, [taken.point])  # read only if needed; under another seal, its manifest differs
        return crossing.warn_of_findings(target, made, known)
    except (errors.Damaged, errors.StoreError) as error:
        return [f"it is not known whether a verification has found damages of point {taken.point} meanwhile: {error}"]


def _taking(ends: _Ends, run: _Run) -> Union[Incoming, Resealing]:
    source, target, there, match = ends
    if not resealed_point.is_needed(source, target, match):
        return Incoming(source, target, there, run.throttle)
    for store in (source.store, target.store):
        store.seal.require()
    known = {point.id: point for point in there}
    return Resealing(source, target, there, [Pair(point, known[point.id]) for point in match.same], run.throttle)


class _Progress:
    """Reports the progress of all points of a domain together."""

    def __init__(self, report: Report, size: int) -> None:
        self._report, self._size, self._position = report, size, 0

    def __call__(self, point: str, count: int) -> None:
        self._position += count
        size = max(self._size, self._position)  # an existing file may have turned out to be incomplete
        self._report(event="progress", point=point, position=self._position, size=size, written_bytes=self._position)


def _why(ends: _Ends, point: Point, error: errors.NbdpullError) -> errors.NbdpullError:
    """Return why a point was not copied: a point that was removed meanwhile is not damaged."""
    if ends.source.has_point(point.id):
        return error
    here, there = ends.source.store.root, ends.target.store.root
    return errors.NoSuchPoint(f"it was removed from {here} meanwhile; {there} has none of it")
