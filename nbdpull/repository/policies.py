"""The policies that stand in a store: which one counts for a domain, in one sealed file that is replaced as a whole.

A policy is of all domains, or of those whose names fit a pattern. One counts for a domain, never a mix of several: that
of its very name, else that of the longest pattern that fits it, else that of all. The file has them in this order, so
that a reader takes the first that fits.

Must not know: what a policy keeps, which domains there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Optional

from ..core import errors, members
from ..format import findings, layout
from ..storage.base import Store
from .retention import Policy, UnknownZone

_ESCAPED = re.compile(r"\[[*?[]\]")  # as `pattern_of` does
_MEND = "to write them anew with nbdpull policy, delete it first"


class Standing(NamedTuple):
    """A policy of a store. pattern: of the names of its domains, as of a shell; None: all."""

    pattern: Optional[str]
    policy: Policy

    @property
    def members(self) -> dict[str, Any]:
        """As a JSON object, of which `_standing` makes the same."""
        return {"domain": self.pattern, **self.policy.members}

    @property
    def _rank(self) -> tuple[bool, bool, int, str]:
        """The first that fits counts."""
        pattern = self.pattern or ""
        return self.pattern is None, any(sign in _ESCAPED.sub("", pattern) for sign in "*?["), -len(pattern), pattern


@dataclass(frozen=True)
class _Document:
    policies: list[Any]


def load(store: Store) -> list[Standing]:
    """In the order in which they are tried. Damaged, FormatTooNew, MissingSoftware: then none of them is to be
    followed."""
    return _told(store)[0]


def _told(store: Store) -> tuple[list[Standing], Optional[bytes]]:
    """The same, and the bytes of which they were read."""
    if store.size(layout.POLICY) is None:
        return [], None
    try:
        data = store.read(layout.POLICY)
        return _decoded(data, store.path(layout.POLICY)), data
    except errors.Damaged as error:
        raise errors.Damaged(f"{error}; {_MEND}") from error


def _decoded(data: bytes, path: str) -> list[Standing]:
    try:
        told = members.build(_Document, layout.unseal(data, path)).policies
        return [_standing(each) for each in told]
    except UnknownZone as error:  # its writer knew it
        zone = members.short(error.name)
        raise errors.MissingSoftware(f"{path}: this host does not know the time zone {zone}: install tzdata") from error
    except ValueError as error:
        raise errors.Damaged(f"{path}: not the policies of a store ({error})") from error


def _standing(document: Any) -> Standing:
    if type(document) is not dict or "domain" not in document:
        raise ValueError(f"{members.short(document)} in the place of a policy")
    rules = {name: value for name, value in document.items() if name != "domain"}
    return Standing(members.typed(Optional[str], document["domain"], "domain"), Policy.of(rules))


def counting(standing: Iterable[Standing], domain: str) -> Optional[Standing]:
    """That which counts for a domain of this name; None where there is none for it."""
    return next((each for each in standing if fits(domain, each.pattern)), None)


def fits(domain: str, pattern: Optional[str]) -> bool:
    """Whether a name is that of a domain that is meant. A name may have signs of a pattern in it."""
    return pattern is None or domain == pattern or fnmatchcase(domain, pattern)


def pattern_of(name: str) -> str:
    """That which fits this name alone, also one that looks like a pattern."""
    return re.sub(r"[*?[]", r"[\g<0>]", name)


def put(store: Store, pattern: Optional[str], policy: Policy) -> None:
    """From now on this one counts for the pattern. Damaged, FormatTooNew, OutputError: then all is as it was."""
    with _changing(store) as (standing, was):
        _write(store, [*(each for each in standing if each.pattern != pattern), Standing(pattern, policy)], was)


def drop(store: Store, pattern: Optional[str]) -> bool:
    """Whether there was one. OutputError where it still counts."""
    with _changing(store) as (standing, was):
        left = [each for each in standing if each.pattern != pattern]
        if left:
            _write(store, left, was)
        else:
            store.delete(layout.POLICY)
        return len(left) < len(standing)


@contextmanager
def _changing(store: Store) -> Iterator[tuple[list[Standing], Optional[bytes]]]:
    """Of two that change them at once, one waits for nothing: it is Busy."""
    with store.locked("", "try again"):
        yield _told(store)


def _write(store: Store, standing: list[Standing], was: Optional[bytes]) -> None:
    told = [each.members for each in sorted(standing, key=lambda each: each._rank)]
    document = {"format": layout.FORMAT, "requires": [], **findings.now(), "policies": told}
    if was is not None or store.has_locks:
        store.replace(layout.POLICY, layout.seal(document), was)
        return
    try:
        store.publish(layout.POLICY, layout.seal(document))
    except errors.OutputExists as error:
        raise errors.Busy(f"{error}: try again") from error
