"""The options of the verbs that are about a whole store: init and key, policy and prune, copy and compare."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from ...core.choices import KeyAction


@dataclass(frozen=True)
class _Domains:
    """The domains of a store. domain: may also be a shell pattern, None: all."""

    store: str
    domain: Optional[str] = None


@dataclass(frozen=True)
class _Rules:
    """The rules of a policy. keep_…, time_zone: see repository/retention.py; None: no rule."""

    keep_last: Optional[int] = None
    keep_hourly: Optional[int] = None
    keep_daily: Optional[int] = None
    keep_weekly: Optional[int] = None
    keep_monthly: Optional[int] = None
    keep_yearly: Optional[int] = None
    keep_within: Optional[float] = None
    time_zone: Optional[str] = None

    @property
    def rules(self) -> dict[str, Any]:
        """The rules that were given."""
        given = {name: value for name, value in vars(self).items() if name.startswith("keep_") or name == "time_zone"}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class _Locks:
    """The protection of new objects in an object store.

    immutable_for: how long nobody can remove what is made from now on; 0: no protection, None: unchanged. lock_mode: a
    word of LockMode, None: unchanged, or COMPLIANCE if there is none.
    """

    immutable_for: Optional[float] = None
    lock_mode: Optional[str] = None


@dataclass(frozen=True)
class PolicyOptions(_Locks, _Rules, _Domains):
    """The options of policy.

    domain: the name or pattern that the policy is for; without rules, the name of one domain. remove: remove the policy
    of exactly this name or pattern.
    """

    remove: bool = False


@dataclass(frozen=True)
class PruneOptions(_Rules, _Domains):
    """The options of prune. Without rules, the policies of the store apply.

    force: continue even if more than half of a domain's points would be removed. now, dry_run: as for remove.
    repack_below, repack_limit: see repack.Wanted; a repack_below of 0 repacks nothing.
    """

    force: bool = False
    repack_below: float = 0.5
    repack_limit: Optional[int] = None
    now: bool = False
    dry_run: bool = False
    identities: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _TwoStores:
    """Two stores. dest: the second one. domain: may also be a shell pattern, None: all."""

    store: str
    dest: str
    domain: Optional[str] = None


@dataclass(frozen=True)
class CopyOptions(_Rules, _TwoStores):
    """The options of copy.

    points: ids, or ALL_POINTS; empty: the points that are newer than those of dest, and that the rules keep, if any
    are given. max_rate: of reading. dry_run: copy nothing. dest_identities: files that open dest; empty: those that
    open store. unseal: allow copies from a sealed store into a dest that is not sealed.
    """

    points: list[str] = field(default_factory=list)
    max_rate: Optional[int] = None
    max_duration: Optional[float] = None
    dry_run: bool = False
    identities: list[str] = field(default_factory=list)
    dest_identities: list[str] = field(default_factory=list)
    unseal: bool = False


@dataclass(frozen=True)
class CompareOptions(_TwoStores):
    """The options of compare."""


@dataclass(frozen=True)
class _Recipients:
    """The keys for a store. recipients: public keys of age or ssh; passphrase_file: file with a passphrase."""

    recipients: list[str] = field(default_factory=list)
    passphrase_file: Optional[str] = None


@dataclass(frozen=True)
class InitOptions(_Locks, _Recipients):
    """The options of init.

    store: the store to create; it is sealed if a recipient or passphrase is given. group: a group of the system that
    may read it.
    """

    store: str = ""
    group: Optional[str] = None


@dataclass(frozen=True)
class KeyOptions(_Recipients):
    """The options of key.

    action: a word of KeyAction. key: the key to remove, by its name, label or recipient. label: of a new key. force:
    remove and rotate even if no available identity opens the store afterwards.
    """

    action: str = KeyAction.LIST
    store: str = ""
    key: Optional[str] = None
    label: str = ""
    force: bool = False
    identities: list[str] = field(default_factory=list)
