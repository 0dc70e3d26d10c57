"""Prune: points that a policy does not keep are removed, domain by domain.

Owns: what is known of each point that a policy asks for, and the rails: a series that cannot be read whole is left
alone, and so is one that would lose more than half. Must not know: what a policy keeps (retention.py does), how it is
shown.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Optional

from ..core import errors
from ..core.errors import Check, Report
from ..repository import half_points, pins, policies, retention, soundness
from ..repository.policies import Standing
from ..repository.removal import Swept
from ..repository.retention import Candidate, Decision
from ..repository.series import Series
from ..repository.soundness import Soundness
from . import policy, remove, store_choice
from .options import PruneOptions as Options


@dataclass(frozen=True)
class Pruned:
    """One domain. policy: by which, None where the store has none for it: then nothing is removed; in_store: whether it
    stands there. decisions: for each point, in the order of commits; created: by id; problem: why nothing was removed
    there, "" where all went well; swept: see removal.py."""

    domain: str
    policy: Optional[Standing]
    in_store: bool
    decisions: list[Decision] = field(default_factory=list)
    created: dict[str, datetime] = field(default_factory=dict)
    swept: Swept = Swept()
    problem: str = ""

    @property
    def removed(self) -> list[str]:
        """Ids, also where that is only what would be."""
        return [] if self.problem else [each.id for each in self.decisions if not each.stays]


@dataclass(frozen=True)
class Result:
    """What came of each domain."""

    domains: list[Pruned]

    @property
    def is_bad(self) -> bool:
        return any(each.problem for each in self.domains)


def prune(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """UsageError where no policy is told and the store has none, or one that keeps nothing is told; Damaged where those
    of the store cannot be read; what is wrong with one domain hides no other."""
    told = Standing(None, policy.made(options.rules)) if options.rules else None
    wanted = store_choice.find_domains(options.store, options.domain)
    standing = [told] if told else policies.load(wanted[0].store)
    found = [Pruned(each.domain, policies.counting(standing, each.domain), not told) for each in wanted]
    if not any(each.policy for each in found):
        raise errors.UsageError(f"{_WITHOUT}: {_REMEDY.format(options.store)}")
    return Result([_pruned(target, each, options, check) for target, each in zip(wanted, found)])


_WITHOUT = "no policy is told, and the store has none"
_REMEDY = "say what is to be kept, as in --keep-daily 7 --keep-weekly 4, or write it into the store: nbdpull policy {}"


def _pruned(target: Series, asked: Pruned, options: Options, check: Check) -> Pruned:
    if asked.policy is None:
        return asked
    with ExitStack() as held:
        try:
            if not options.dry_run:
                held.enter_context(half_points.writing(target))
            return _decided(target, asked, asked.policy, options, check)
        except errors.NbdpullError as error:
            return replace(asked, problem=str(error))


def _decided(target: Series, asked: Pruned, by: Standing, options: Options, check: Check) -> Pruned:
    known = soundness.of_series(target)
    for error in known.refused.values():
        raise errors.StoreError(f"nothing was removed, as a point cannot be read: {error}")
    candidates = _candidates(target, known)
    found = retention.decided(candidates, by.policy, datetime.now(timezone.utc))
    decided = replace(asked, decisions=found.decisions, created={each.id: each.created for each in candidates})
    if found.needs_force and not options.force and not options.dry_run:
        why = "more than half of its points would go: look with --dry-run, then add --force"
        return replace(decided, problem=why)
    points = [point for point in known.points if point.id in set(found.removed)]
    return replace(decided, swept=remove.gone(target, points, options, check))


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
