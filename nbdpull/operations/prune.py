"""Prune: remove the points that a policy does not keep, domain by domain.

Owns: the facts about each point that a policy needs, and the safeguards: a series that cannot be read completely is
left alone, and so is one that would lose more than half of its points. Must not know: what a policy keeps (see
retention.py), how the result is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from typing import Optional

from ..core import errors
from ..core.choices import NotRepacked
from ..core.errors import Check, Report
from ..repository import (
    half_points,
    marker,
    pins,
    policies,
    removal,
    repack,
    retention,
    series_choice,
    soundness,
)
from ..repository.policies import StoredPolicy
from ..repository.removal import Swept
from ..repository.repack import Repacked
from ..repository.retention import Candidate, Decision
from ..repository.series import Point, Series
from ..repository.soundness import Soundness
from . import policy, remove, store_choice, unlocking
from .options.stores import PruneOptions as Options


@dataclass(frozen=True)
class Pruned:
    """What was done for one domain, or would be done with dry_run.

    policy: the one that applies, None if the store has none for the domain: then nothing is removed; in_store: whether
    it comes from the store. decisions: for each point, in the order of commits; created: by id of the point; removed:
    ids; swept: see removal.py; repacked: see repack.py; problem: why nothing was removed, or not everything, "" if
    there was no problem.
    """

    domain: str
    policy: Optional[StoredPolicy]
    in_store: bool
    decisions: list[Decision] = field(default_factory=list)
    created: dict[str, datetime] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    swept: Swept = Swept()
    repacked: Repacked = Repacked()
    problem: str = ""


@dataclass(frozen=True)
class Result:
    """What was done for each domain."""

    domains: list[Pruned]

    @property
    def is_bad(self) -> bool:
        return any(each.problem for each in self.domains)


def prune(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Remove the points that the policy in the options, or else that of the store, does not keep.

    A problem with one domain hides no other. UsageError if neither has a policy, or the policy in the options keeps
    nothing; the errors of `policies.load` if the policies of the store cannot be read.
    """
    given = StoredPolicy(None, policy.made(options.rules)) if options.rules else None
    wanted = store_choice.find_domains(options.store, options.domain, options.identities)
    if options.now:
        removal.require_at_once(wanted[0].store)
    stored = [given] if given else policies.load(wanted[0].store)
    found = [Pruned(each.domain, policies.applying(stored, each.domain), not given) for each in wanted]
    if not any(each.policy for each in found):
        of = f" for {options.domain or 'any of its domains'}" if stored else ""
        raise errors.UsageError(f"no policy given, and the store has none{of}: {_REMEDY.format(options.store)}")
    return Result(list(_all_pruned(zip(wanted, found), options, check)))


def _all_pruned(asked: Iterable[tuple[Series, Pruned]], options: Options, check: Check) -> Iterator[Pruned]:
    for target, each in asked:
        yield _pruned(target, each, options, check)
        check()  # whatever ended this domain early, such as a signal, ends all others, too


_REMEDY = "say what to keep, as in --keep-daily 7 --keep-weekly 4, or write it into the store: nbdpull policy {}"


def require_policy(root: str, domain: Optional[str] = None) -> None:
    """Require that a store has a policy for the domain (None: any policy), before a pull that will prune it.

    UsageError if no policy applies; Damaged. If this host merely does not know a time zone, let the pull go ahead:
    `after_pull` will report that.
    """
    try:
        stored = [] if marker.is_new(root) else policies.load(marker.open_store(root))
    except errors.MissingSoftware:
        return
    if not (policies.applying(stored, domain) if domain is not None else stored):
        of = "" if domain is None else f" for {domain}"
        raise errors.UsageError(
            f"--prune: {root} has no policy{of}; write one with nbdpull policy, once the store has its first point"
        )


def after_pull(root: str, point: Point, identities: Sequence[str], check: Check) -> Pruned:
    """Prune the series of a point that was just made; an error becomes the `problem` of Pruned, as the point exists."""
    pulled = point.manifest
    try:
        opened = unlocking.opened(root, identities)
        asked = Pruned(pulled.domain, policies.applying(policies.load(opened), pulled.domain), in_store=True)
        return _pruned(series_choice.of_domain(opened, pulled.domain, pulled.uuid), asked, Options(root), check)
    except errors.NbdpullError as error:
        return Pruned(pulled.domain, None, in_store=True, problem=str(error))


def warnings(pruned: Pruned) -> list[str]:
    """Return the warnings of a prune after a pull: its failure is not a failure of the pull."""
    if pruned.problem:
        return [f"the point is committed, but the pruning failed: {pruned.problem}"]
    if found := problems(pruned):
        return found
    return [] if pruned.policy else [f"the store has no policy for {pruned.domain} any more: nothing was pruned"]


def problems(pruned: Pruned) -> list[str]:
    """Return what concerns files that were not repacked, or whose locks are unknown: no point loses anything by it."""
    found = [f"{pruned.domain}: not repacked: {each}" for each in pruned.repacked.problems]
    return [*found, *(f"{pruned.domain}: {each}" for each in pruned.swept.warnings)]


def _pruned(target: Series, asked: Pruned, options: Options, check: Check) -> Pruned:
    if asked.policy is None:
        return asked
    with ExitStack() as held:
        try:
            if not options.dry_run:
                held.enter_context(half_points.writing(target, "prune"))
            return _decided(target, asked, asked.policy, options, check)
        except errors.NbdpullError as error:
            return replace(asked, problem=str(error))


def _decided(target: Series, asked: Pruned, by: StoredPolicy, options: Options, check: Check) -> Pruned:
    with target.store.looking(target.folder):
        known = soundness.of_series(target)
        for error in known.refused.values():
            raise errors.StoreError(f"nothing was removed, as a point cannot be read: {error}")
        for lost in known.lost:  # what the policy takes for sound may be damaged, and what it removes be sound
            raise errors.StoreError(f"nothing was removed: {lost}")
        every = candidates(target, known)
    found = retention.decided(every, by.policy, datetime.now(timezone.utc))
    decided = replace(asked, decisions=found.decisions, created={each.id: each.created for each in every})
    if found.needs_force and not options.force and not options.dry_run:
        why = "more than half of its points would be removed: check with --dry-run, then add --force"
        return replace(decided, problem=why)
    points = [point for point in known.points if point.id in set(found.removed)]
    try:
        emptied = partial(repack.emptied, target, check) if options.repack_below else frozenset
        swept = remove.gone(target, points, options, check, emptied)
    except errors.NbdpullError as error:
        gone = [name for name in found.removed if not target.has_point(name)]
        return replace(decided, removed=gone, problem=str(error))
    pruned = replace(decided, removed=found.removed, swept=swept)
    try:
        return replace(pruned, repacked=_repacked(target, found.removed, options, check))
    except errors.NbdpullError as error:
        return replace(pruned, problem=str(error))


def _repacked(target: Series, removed: list[str], options: Options, check: Check) -> Repacked:
    if not options.repack_below:
        return Repacked(skipped=NotRepacked.OFF)
    wanted = repack.Wanted(options.repack_below, options.repack_limit)
    try:
        if options.dry_run:
            return repack.would_repack(target, removed, wanted, check)
        return repack.repack(target, wanted, check)
    except errors.KeyNeeded as error:  # which frames are live is secret; the points have been removed nevertheless
        return Repacked(problems=(f"{error}, or let a host that has one repack, and use --repack-below 0 here",))


def candidates(target: Series, known: Soundness) -> list[Candidate]:
    """Return the points of a series, with the facts that a policy needs."""
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
