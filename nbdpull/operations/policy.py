"""Policy: write what to keep into the store, so that it need not be repeated for each prune.

Must not know: how policies are stored, what they keep, how they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Union

from ..core import errors, members
from ..core.choices import LockMode
from ..core.errors import Check, Report
from ..repository import immutable, marker, policies, series_choice
from ..repository.policies import Immutability, StoredPolicy
from ..repository.retention import Policy
from ..storage import place
from ..storage.base import Store
from .options.stores import InitOptions
from .options.stores import PolicyOptions as Options


@dataclass(frozen=True)
class Result:
    """The policies of a store.

    policies: the present ones, in the order in which they are tried; for a domain that was asked for, only the one
    that applies to it. immutable: how new objects are protected, None: not at all. changed: whether anything changed.
    warnings: about locks.
    """

    policies: list[StoredPolicy]
    immutable: Optional[Immutability]
    changed: bool
    warnings: list[str] = field(default_factory=list)


def policy(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Write a policy, remove one, or list them.

    UsageError, Damaged; StoreError if the policy to remove does not exist.
    """
    _require_sense(options)
    wanted = made(options.rules) if options.rules else None
    immutability(options)
    opened = marker.open_store(options.store)
    before, was = policies.load(opened), policies.immutability(opened)
    unproved: list[str] = []
    if options.immutable_for is not None:
        unproved = _make_immutable(opened, immutability(options, was))
    if options.domain is not None and not options.remove:
        _require_no_uuid(opened, options.domain)
    if wanted:
        policies.put(opened, _pattern(opened, options.domain), wanted)
    elif options.remove:
        patterns = [_pattern(opened, options.domain), options.domain]  # the policy may be older than the domain
        if not any(policies.drop(opened, each) for each in patterns):
            raise errors.StoreError(f"{opened.root} has no policy {_of(options.domain)}; it has: {_names(before)}")
    elif options.domain is not None:
        applying = policies.applying(before, options.domain)
        return Result([applying] if applying else [], was, changed=False)
    stored, now = policies.load(opened), policies.immutability(opened)
    return Result(stored, now, (stored, now) != (before, was), unproved)


def _require_sense(options: Options) -> None:
    if options.domain == "":
        raise errors.UsageError("--domain has no name: leave it out for a policy of all domains")
    if flaw := members.flaw_of_text(options.domain or ""):
        raise errors.UsageError(f"--domain {flaw}")
    if options.remove and options.rules:
        raise errors.UsageError("--remove takes no rules: it removes the policy as a whole")
    if options.domain is not None and options.immutable_for is not None:
        raise errors.UsageError("--immutable-for is for all of a store: leave out --domain")


def immutability(options: Union[Options, InitOptions], was: Optional[Immutability] = None) -> Optional[Immutability]:
    """Return the protection that the options ask for, None if none; UsageError.

    was: the present protection, whose mode remains unless the options give another.
    """
    if not options.immutable_for:
        if options.lock_mode:
            raise errors.UsageError("--lock-mode has no effect without --immutable-for: add it")
        return None
    try:
        return Immutability(options.immutable_for, options.lock_mode or (was.mode if was else LockMode.COMPLIANCE))
    except ValueError:
        raise errors.UsageError("--immutable-for: more than 100 years, which nobody could take back") from None


def _make_immutable(store: Store, wanted: Optional[Immutability]) -> list[str]:
    """Protect what is made from now on, or no longer if nothing is wanted; return warnings."""
    unproved = place.require_locks(store) if wanted else []
    if wanted:
        immutable.put(store, wanted)
    else:
        policies.put_immutability(store, None)
    return unproved


def _require_no_uuid(store: Store, named: str) -> None:
    """Raise UsageError for the UUID of a domain: policies apply by name, so one for a UUID never would."""
    every = series_choice.all_series(store)
    found = [each.domain for each in every if each.uuid() == named.lower()]
    if found and all(each.domain != named for each in every):
        raise errors.UsageError(
            f"policies apply by name, and {named} is the UUID of {found[0]}: use --domain {found[0]}"
        )


def _pattern(store: Store, named: Optional[str]) -> Optional[str]:
    """Return the pattern for the named domains: the name of a domain is no pattern, even if it looks like one."""
    if named is None or all(each.domain != named for each in series_choice.all_series(store)):
        return named
    return policies.pattern_of(named)


def made(rules: dict[str, Any]) -> Policy:
    """Return the Policy with the rules of the options; UsageError."""
    try:
        return Policy(**rules)
    except ValueError as error:
        raise errors.UsageError(f"{error}; say what to keep, as in --keep-daily 7 --keep-weekly 4") from None


def _of(pattern: Optional[str]) -> str:
    return "of all domains" if pattern is None else f"of {pattern}"


def _names(stored: list[StoredPolicy]) -> str:
    return ", ".join(f"one {_of(each.pattern)}" for each in stored) or "none"
