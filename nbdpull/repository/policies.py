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
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Optional

from ..core import errors, members
from ..core.choices import LockMode
from ..format import findings, layout
from ..storage.base import Store
from .retention import Policy, UnknownZone

_ESCAPED = re.compile(r"\[[*?[]\]")  # as `pattern_of` does
LONGEST = 100 * 365 * 86400.0  # seconds of a lock: a typing error that nobody could undo is refused
_MEND = (
    "to write them anew with nbdpull policy, delete it first; then say --immutable-for again, too, if points were "
    "immutable: without it, later ones are not"
)


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
class Immutability:
    """seconds: for which nobody can remove what is made, from then on; mode: a word of LockMode. ValueError."""

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


class _Told(NamedTuple):
    """data: the bytes of which the others were read, None where there is no file."""

    standing: list[Standing]
    immutable: Optional[Immutability] = None
    data: Optional[bytes] = None


def load(store: Store) -> list[Standing]:
    """In the order in which they are tried. Damaged, FormatTooNew, MissingSoftware: then none of them is to be
    followed."""
    return _told(store).standing


def immutability(store: Store) -> Optional[Immutability]:
    """Of all that is made in a store from now on. Damaged, FormatTooNew: then nobody knows."""
    data = store.find(layout.POLICY)
    if data is None:
        return None
    try:
        return members.build(_Document, layout.unseal(data, store.path(layout.POLICY))).immutable
    except (ValueError, errors.Damaged) as error:
        raise errors.Damaged(f"{store.path(layout.POLICY)}: {error}; {_MEND}") from error


def _told(store: Store) -> _Told:
    if store.size(layout.POLICY) is None:
        return _Told([])
    try:
        return _decoded(store.read(layout.POLICY), store.path(layout.POLICY))
    except errors.Damaged as error:
        raise errors.Damaged(f"{error}; {_MEND}") from error


def _decoded(data: bytes, path: str) -> _Told:
    try:
        told = members.build(_Document, layout.unseal(data, path))
        return _Told([_standing(each) for each in told.policies], told.immutable, data)
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
    with _changing(store) as told:
        others = [each for each in told.standing if each.pattern != pattern]
        _write(store, told._replace(standing=[*others, Standing(pattern, policy)]))


def put_immutability(store: Store, immutable: Optional[Immutability]) -> None:
    """Of what is made from now on; None: nothing is protected any more. Errors as of `put`."""
    with _changing(store) as told:
        _write_or_remove(store, told._replace(immutable=immutable))


def drop(store: Store, pattern: Optional[str]) -> bool:
    """Whether there was one. OutputError where it still counts."""
    with _changing(store) as told:
        left = [each for each in told.standing if each.pattern != pattern]
        _write_or_remove(store, told._replace(standing=left))
        return len(left) < len(told.standing)


@contextmanager
def _changing(store: Store) -> Iterator[_Told]:
    """Of two that change them at once, one waits for nothing: it is Busy."""
    with store.locked("", "try again"):
        yield _told(store)


def _write_or_remove(store: Store, told: _Told) -> None:
    """Without locks a file of nothing stays: not every server can remove one on the condition that it is what was
    read. Where no file was read, one that is there by now is another writer's."""
    if told.standing or told.immutable or (told.data is not None and not store.has_locks):
        _write(store, told)
    elif told.data is not None:
        store.delete(layout.POLICY)


def _write(store: Store, told: _Told) -> None:
    standing = [each.members for each in sorted(told.standing, key=lambda each: each._rank)]
    document: layout.Document = {"format": layout.FORMAT, "requires": [], **findings.now(), "policies": standing}
    if told.immutable:
        document["immutable"] = asdict(told.immutable)
    if told.data is not None or store.has_locks:
        store.replace(layout.POLICY, layout.seal(document), told.data)
        return
    try:
        store.publish(layout.POLICY, layout.seal(document))
    except errors.OutputExists as error:
        raise errors.Busy(f"{error}: try again") from error
