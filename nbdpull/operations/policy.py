"""Policy: what is to be kept of a store stands in it, so that nobody has to say it each time.

Must not know: how policies are stored, what they keep, how they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Union

from ..core import errors
from ..core.choices import LockMode
from ..core.errors import Check, Report
from ..repository import immutable, marker, policies, series_choice
from ..repository.policies import Immutability, Standing
from ..repository.retention import Policy
from ..storage import place
from ..storage.base import Store
from .options import InitOptions
from .options import PolicyOptions as Options


@dataclass(frozen=True)
class Result:
    """standing: what there is now, in the order in which it is tried; of a domain that was asked for, what counts for
    it. immutable: how what is made is protected, None: not at all. changed: whether there was something else before."""

    standing: list[Standing]
    immutable: Optional[Immutability]
    changed: bool


def policy(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Write a policy, remove one, or tell which there are. UsageError, Damaged; StoreError where it is not there."""
    if options.domain == "":
        raise errors.UsageError("--domain has no name: leave it out for a policy of all domains")
    if options.remove and options.rules:
        raise errors.UsageError("--remove takes no rules: it removes the policy as a whole")
    if options.domain is not None and options.immutable_for is not None:
        raise errors.UsageError("--immutable-for is for all of a store: leave out --domain")
    wanted = made(options.rules) if options.rules else None
    immutability(options)
    opened = marker.open_store(options.store)
    before, was = policies.load(opened), policies.immutability(opened)
    if options.immutable_for is not None:
        _make_immutable(opened, immutability(options, was))
    if options.domain is not None and not options.remove:
        _require_no_uuid(opened, options.domain)
    if wanted:
        policies.put(opened, _pattern(opened, options.domain), wanted)
    elif options.remove:
        patterns = [_pattern(opened, options.domain), options.domain]  # it may be older than the domain
        if not any(policies.drop(opened, each) for each in patterns):
            raise errors.StoreError(f"{opened.root} has no policy {_of(options.domain)}; it has: {_names(before)}")
    elif options.domain is not None:
        counting = policies.counting(before, options.domain)
        return Result([counting] if counting else [], was, changed=False)
    standing, now = policies.load(opened), policies.immutability(opened)
    return Result(standing, now, (standing, now) != (before, was))


def immutability(options: Union[Options, InitOptions], was: Optional[Immutability] = None) -> Optional[Immutability]:
    """What options tell, None: nothing; UsageError. was: what there is, whose mode stays unless another one is told."""
    if not options.immutable_for:
        if options.lock_mode:
            raise errors.UsageError("--lock-mode: add --immutable-for, to say for how long; it changes nothing alone")
        return None
    try:
        return Immutability(options.immutable_for, options.lock_mode or (was.mode if was else LockMode.COMPLIANCE))
    except ValueError:
        raise errors.UsageError("--immutable-for: more than 100 years, which nobody could take back") from None


def _make_immutable(store: Store, wanted: Optional[Immutability]) -> None:
    if wanted:
        place.require_locks(store)
        immutable.put(store, wanted)
    else:
        policies.put_immutability(store, None)


def _require_no_uuid(store: Store, named: str) -> None:
    """UsageError: policies count by names, and one for a UUID would never do."""
    every = series_choice.all_series(store)
    found = [each.domain for each in every if each.uuid() == named.lower()]
    if found and all(each.domain != named for each in every):
        raise errors.UsageError(f"a policy is for names, and {named} is the UUID of {found[0]}: --domain {found[0]}")


def _pattern(store: Store, named: Optional[str]) -> Optional[str]:
    """What is the name of a domain is that, also where it looks like a pattern."""
    if named is None or all(each.domain != named for each in series_choice.all_series(store)):
        return named
    return policies.pattern_of(named)


def made(rules: dict[str, Any]) -> Policy:
    """Of the rules that options tell; UsageError."""
    try:
        return Policy(**rules)
    except ValueError as error:
        raise errors.UsageError(f"{error}; say what is to be kept, as in --keep-daily 7 --keep-weekly 4") from None


def _of(pattern: Optional[str]) -> str:
    return "of all domains" if pattern is None else f"of {pattern}"


def _names(standing: list[Standing]) -> str:
    return ", ".join(f"one {_of(each.pattern)}" for each in standing) or "none"
