"""The policies stored in a store, and which one applies to a domain: one file with a digest, replaced as a whole.

A policy is for all domains, or for those whose names match a pattern. Exactly one applies to a domain, never a mix of
several: that of its exact name, else that of the longest matching pattern, else that of all domains. The file lists
them in this order, so that a reader takes the first that matches.

Must not know: what a policy keeps, which domains exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Optional

from ..core import errors, members
from ..core.choices import LockMode
from ..format import findings, layout
from ..storage.base import Store
from .retention import Policy, UnknownZone

_ESCAPED = re.compile(r"\[[*?[]\]")  # by `pattern_of`
LONGEST = 100 * 365 * 86400.0  # seconds of a lock: refuse a typing error that could not be undone
_MEND = (
    "to write them anew with nbdpull policy, delete it first; then say --immutable-for again, too, if points were "
    "immutable: without it, later ones are not"
)


class StoredPolicy(NamedTuple):
    """A policy of a store. pattern: a shell pattern that the names of its domains match; None: all domains."""

    pattern: Optional[str]
    policy: Policy

    @property
    def members(self) -> dict[str, Any]:
        """The policy as a JSON object, which `_stored` reads back."""
        return {"domain": self.pattern, **self.policy.members}

    @property
    def _rank(self) -> tuple[bool, bool, int, str]:
        """The sort key of the file: the first policy that matches applies."""
        pattern = self.pattern or ""
        return self.pattern is None, any(sign in _ESCAPED.sub("", pattern) for sign in "*?["), -len(pattern), pattern


@dataclass(frozen=True)
class Immutability:
    """The protection of new files. seconds: how long nothing can remove a file after it is made; mode: a word of
    LockMode. ValueError."""

    seconds: float
    mode: str = LockMode.COMPLIANCE

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= LONGEST:
            raise ValueError(f"immutable.seconds is {members.short(self.seconds)}")
        if self.mode not in LockMode.WORDS:
            raise ValueError(f"immutable.mode is {members.short(self.mode)}")


@dataclass(frozen=True)
class _Document:
    policies: list[Any]
    immutable: Optional[Immutability] = None


class _Content(NamedTuple):
    """The contents of the file. data: its bytes, None if there is no file."""

    policies: list[StoredPolicy]
    immutable: Optional[Immutability] = None
    data: Optional[bytes] = None


def load(store: Store) -> list[StoredPolicy]:
    """Return the policies in the order in which they are tried. Damaged, FormatTooNew, MissingSoftware: then none of
    them may be applied."""
    return _content(store).policies


def immutability(store: Store) -> Optional[Immutability]:
    """Return the protection of all files that are made in a store from now on; None: no protection. Damaged,
    FormatTooNew: then it is unknown."""
    data = store.find(layout.POLICY)
    if data is None:
        return None
    try:
        return members.build(_Document, layout.unseal(data, store.path(layout.POLICY))).immutable
    except ValueError as error:
        raise errors.Damaged(f"{store.path(layout.POLICY)}: {error}; {_MEND}") from error
    except errors.Damaged as error:
        raise errors.Damaged(f"{error}; {_MEND}") from error


def _content(store: Store) -> _Content:
    if store.size(layout.POLICY) is None:
        return _Content([])
    try:
        return _decoded(store.read(layout.POLICY), store.path(layout.POLICY))
    except errors.Damaged as error:
        raise errors.Damaged(f"{error}; {_MEND}") from error


def _decoded(data: bytes, path: str) -> _Content:
    try:
        content = members.build(_Document, layout.unseal(data, path))
        return _Content([_stored(each) for each in content.policies], content.immutable, data)
    except UnknownZone as error:  # the host that wrote the file knew the time zone
        zone = members.short(error.name)
        raise errors.MissingSoftware(f"{path}: this host does not know the time zone {zone}: install tzdata") from error
    except ValueError as error:
        raise errors.Damaged(f"{path}: not the policies of a store ({error})") from error


def _stored(document: Any) -> StoredPolicy:
    if type(document) is not dict or "domain" not in document:
        raise ValueError(f"{members.short(document)} instead of a policy")
    rules = {name: value for name, value in document.items() if name != "domain"}
    return StoredPolicy(members.typed(Optional[str], document["domain"], "domain"), Policy.of(rules))


def applying(policies: Iterable[StoredPolicy], domain: str) -> Optional[StoredPolicy]:
    """Return the policy that applies to a domain with this name; None if there is none."""
    return next((each for each in policies if fits(domain, each.pattern)), None)


def fits(domain: str, pattern: Optional[str]) -> bool:
    """Return whether a pattern matches the name of a domain. The name itself may contain characters of patterns."""
    return pattern is None or domain == pattern or fnmatchcase(domain, pattern)


def pattern_of(name: str) -> str:
    """Return the pattern that matches only this name, even if the name looks like a pattern."""
    return re.sub(r"[*?[]", r"[\g<0>]", name)


def put(store: Store, pattern: Optional[str], policy: Policy) -> None:
    """Store the policy for the pattern, in place of any earlier one. Damaged, FormatTooNew, OutputError: then nothing
    is changed."""
    with _changing(store) as content:
        others = [each for each in content.policies if each.pattern != pattern]
        _write(store, content._replace(policies=[*others, StoredPolicy(pattern, policy)]))


def put_immutability(store: Store, immutable: Optional[Immutability]) -> None:
    """Store the protection of files that are made from now on; None: protect no more files. Errors as for `put`."""
    with _changing(store) as content:
        _write_or_remove(store, content._replace(immutable=immutable))


def drop(store: Store, pattern: Optional[str]) -> bool:
    """Remove the policy for the pattern; return whether there was one. OutputError if it still applies."""
    with _changing(store) as content:
        left = [each for each in content.policies if each.pattern != pattern]
        _write_or_remove(store, content._replace(policies=left))
        return len(left) < len(content.policies)


@contextmanager
def _changing(store: Store) -> Iterator[_Content]:
    """Read the policies for a change. If two runs change them at once, one fails with Busy and does not wait."""
    with store.locked("", "try again"):
        yield _content(store)


def _write_or_remove(store: Store, content: _Content) -> None:
    """Write the file, or remove it if nothing is left to write. Without locks a file without policies remains, because
    not every server can delete an object on the condition that it is unchanged. If no file was read, a file that exists
    by now is another writer's."""
    if content.policies or content.immutable or (content.data is not None and not store.has_locks):
        _write(store, content)
    elif content.data is not None:
        store.delete(layout.POLICY)


def _write(store: Store, content: _Content) -> None:
    policies = [each.members for each in sorted(content.policies, key=lambda each: each._rank)]
    document: layout.Document = {"format": layout.FORMAT, "requires": [], **findings.now(), "policies": policies}
    if content.immutable:
        document["immutable"] = asdict(content.immutable)
    if content.data is not None or store.has_locks:
        store.replace(layout.POLICY, layout.seal(document), content.data)
        return
    try:
        store.publish(layout.POLICY, layout.seal(document))
    except errors.OutputExists as error:
        raise errors.Busy(f"{error}: try again") from error
