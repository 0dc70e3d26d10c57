"""Prune: points that a policy does not keep are removed, domain by domain.

Owns: what is known of each point that a policy asks for, and the rails: a series that cannot be read whole is left
alone, and so is one that would lose more than half. Must not know: what a policy keeps (retention.py does), how it is
shown.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from fnmatch import fnmatchcase

from ..core import errors
from ..core.errors import Check, Report
from ..repository import half_points, marker, pins, retention, series, soundness
from ..repository.removal import Swept
from ..repository.retention import Candidate, Decision, Policy
from ..repository.series import Series
from ..repository.soundness import Soundness
from . import remove
from .options import PruneOptions as Options


@dataclass(frozen=True)
class Pruned:
    """One domain. decisions: for each point, in the order of commits; created: by id; problem: why nothing was removed
    there, "" where all went well; swept: see removal.py."""

    domain: str
    decisions: list[Decision]
    created: dict[str, datetime]
    swept: Swept
    problem: str = ""

    @property
    def removed(self) -> list[str]:
        """Ids, also where that is only what would be."""
        return [] if self.problem else [each.id for each in self.decisions if not each.stays]


@dataclass(frozen=True)
class Result:
    """policy: the rules; domains: what came of each."""

    policy: Policy
    domains: list[Pruned]

    @property
    def is_bad(self) -> bool:
        return any(each.problem for each in self.domains)


def prune(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """UsageError of a policy that keeps nothing; what is wrong with one domain hides no other."""
    policy = _policy(options)
    opened = marker.open_store(options.store)
    every = series.all_series(opened)
    wanted = [each for each in every if options.domain is None or fnmatchcase(each.domain, options.domain)]
    if not wanted:
        known = ", ".join(sorted(each.domain for each in every)) or "none"
        raise errors.StoreError(f"no domain {options.domain or ''} in {opened.root}; it has: {known}")
    return Result(policy, [_pruned(each, policy, options, check) for each in wanted])


def _policy(options: Options) -> Policy:
    try:
        return Policy(**{each.name: getattr(options, each.name) for each in fields(Policy)})
    except ValueError as error:
        raise errors.UsageError(f"{error}; say what is to be kept, as in --keep-daily 7 --keep-weekly 4") from None


def _pruned(target: Series, policy: Policy, options: Options, check: Check) -> Pruned:
    with ExitStack() as held:
        try:
            if not options.dry_run:
                held.enter_context(half_points.writing(target))
            return _decided(target, policy, options, check)
        except errors.NbdpullError as error:
            return Pruned(target.domain, [], {}, Swept(), str(error))


def _decided(target: Series, policy: Policy, options: Options, check: Check) -> Pruned:
    known = soundness.of_series(target)
    for error in known.refused.values():
        raise errors.StoreError(f"nothing was removed, as a point cannot be read: {error}")
    candidates = _candidates(target, known)
    found = retention.decided(candidates, policy, datetime.now(timezone.utc))
    created = {each.id: each.created for each in candidates}
    if found.needs_force and not options.force and not options.dry_run:
        why = "more than half of its points would go: look with --dry-run, then add --force"
        return Pruned(target.domain, found.decisions, created, Swept(), why)
    points = [point for point in known.points if point.id in set(found.removed)]
    return Pruned(target.domain, found.decisions, created, remove.gone(target, points, options, check))


def _candidates(target: Series, known: Soundness) -> list[Candidate]:
    verified = known.verified.point.id if known.verified else None
    sound = {point.id for point in known.sound}
    return [
        Candidate(
            id=point.id,
            sequence=point.manifest.sequence,
            created=datetime.fromisoformat(point.manifest.created),
            pinned=pins.of_point(target, point) is not None,
            partial=bool(point.manifest.partial),
            damaged=point.id not in sound and not point.manifest.partial,
            verified=point.id == verified,
            drilled=point.id in known.drilled_well,
        )
        for point in known.points
    ]
