"""Prune: points that a policy does not keep are removed, domain by domain.

Owns: what is known of each point that a policy asks for, and the rails: a series that cannot be read whole is left
alone, and so is one that would lose more than half. Must not know: what a policy keeps (retention.py does), how it is
shown.
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
from ..repository.policies import Standing
from ..repository.removal import Swept
from ..repository.repack import Repacked
from ..repository.retention import Candidate, Decision
from ..repository.series import Point, Series
from ..repository.soundness import Soundness
from . import policy, remove, store_choice, unlocking
from .options import PruneOptions as Options


@dataclass(frozen=True)
class Pruned:
    """One domain. policy: by which, None where the store has none for it: then nothing is removed; in_store: whether it
    stands there. decisions: for each point, in the order of commits; created: by id; removed: ids, also where that is
    only what would be; swept: see removal.py; repacked: see repack.py; problem: why nothing was removed there, or not
    all, "" if there is none."""

    domain: str
    policy: Optional[Standing]
    in_store: bool
    decisions: list[Decision] = field(default_factory=list)
    created: dict[str, datetime] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    swept: Swept = Swept()
    repacked: Repacked = Repacked()
    problem: str = ""


@dataclass(frozen=True)
class Result:
    """What came of each domain."""

    domains: list[Pruned]

    @property
    def is_bad(self) -> bool:
        return any(each.problem for each in self.domains)


def prune(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """UsageError where no policy is told and the store has none, or one that keeps nothing is told; what
    `policies.load` raises where those of the store cannot be read; what is wrong with one domain hides no other."""
    told = Standing(None, policy.made(options.rules)) if options.rules else None
    wanted = store_choice.find_domains(options.store, options.domain, options.identities)
    if options.now:
        removal.require_at_once(wanted[0].store)
    standing = [told] if told else policies.load(wanted[0].store)
    found = [Pruned(each.domain, policies.counting(standing, each.domain), not told) for each in wanted]
    if not any(each.policy for each in found):
        of = f" for {options.domain or 'any of its domains'}" if standing else ""
        raise errors.UsageError(f"no policy is told, and the store has none{of}: {_REMEDY.format(options.store)}")
    return Result(list(_all_pruned(zip(wanted, found), options, check)))


def _all_pruned(asked: Iterable[tuple[Series, Pruned]], options: Options, check: Check) -> Iterator[Pruned]:
    for target, each in asked:
        yield _pruned(target, each, options, check)
        check()  # what ended one, such as a signal, is to end them all


_REMEDY = "say what is to be kept, as in --keep-daily 7 --keep-weekly 4, or write it into the store: nbdpull policy {}"


def require_policy(root: str, domain: Optional[str] = None) -> None:
    """Of a store that a pull is to prune. UsageError where no policy counts for the domain; Damaged. Where only this
    host does not know a time zone, the pull comes first, and `after_pull` tells."""
    try:
        standing = [] if marker.is_new(root) else policies.load(marker.open_store(root))
    except errors.MissingSoftware:
        return
    if not (policies.counting(standing, domain) if domain is not None else standing):
        of = "" if domain is None else f" for {domain}"
        raise errors.UsageError(
            f"--prune: {root} has no policy{of}; write one with nbdpull policy, once the store has its first point"
        )


def after_pull(root: str, point: Point, identities: Sequence[str], check: Check) -> Pruned:
    """Of the series of a point that was just made. It is there, whatever goes wrong: that is the problem of Pruned."""
    pulled = point.manifest
    try:
        opened = unlocking.opened(root, identities)
        asked = Pruned(pulled.domain, policies.counting(policies.load(opened), pulled.domain), in_store=True)
        return _pruned(series_choice.of_domain(opened, pulled.domain, pulled.uuid), asked, Options(root), check)
    except errors.NbdpullError as error:
        return Pruned(pulled.domain, None, in_store=True, problem=str(error))


def warnings(pruned: Pruned) -> list[str]:
    """Of one that is no failure of what came before."""
    if pruned.problem:
        return [f"the point is made, but nbdpull prune failed: {pruned.problem}"]
    if found := problems(pruned):
        return found
    return [] if pruned.policy else [f"the store has no policy for {pruned.domain} any more: nothing was pruned"]


def problems(pruned: Pruned) -> list[str]:
    """Of files that stay as they were, or of which that is not told: nothing that a point needs is lost by that."""
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


def _decided(target: Series, asked: Pruned, by: Standing, options: Options, check: Check) -> Pruned:
    with target.store.looking(target.folder):
        known = soundness.of_series(target)
        for error in known.refused.values():
            raise errors.StoreError(f"nothing was removed, as a point cannot be read: {error}")
        every = candidates(target, known)
    found = retention.decided(every, by.policy, datetime.now(timezone.utc))
    decided = replace(asked, decisions=found.decisions, created={each.id: each.created for each in every})
    if found.needs_force and not options.force and not options.dry_run:
        why = "more than half of its points would go: look with --dry-run, then add --force"
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
    except errors.KeyNeeded as error:  # which frames live is secret; what was to be removed is gone all the same
        return Repacked(problems=(f"{error}, or let a host repack that has one, and this one with --repack-below 0",))


def candidates(target: Series, known: Soundness) -> list[Candidate]:
    """The points of a series, with what a policy asks of them."""
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
