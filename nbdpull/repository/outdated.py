"""Findings of verifications without which everything that is known of the points stays the same.

Each verification adds a finding with an entry for each point, so in a store that is verified daily, `list` would read
more and more of them. A finding is outdated if later ones prove at least as much of each point, and have settled all
damage that it reports. These have to be a day old: a reader that listed the findings before they existed has to find
the outdated ones.

Owns: which findings are outdated. No lock is needed: of two runs, each removes only what others that stay make
needless. Must not know: how anything is verified.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple, Optional

from ..core import errors
from ..format import findings
from ..format.layout import Document
from . import grace as graces
from . import half_points, lock_free, verdict
from .series import Series


class _Claim(NamedTuple):
    """What an entry shows of a point: that it was checked; or at which level, with the shard, None for the whole; or
    settles, the id of a finding whose damage of the point is settled."""

    point: str
    manifest_sha256: str
    level: str = ""
    shard: Optional[tuple[int, ...]] = None
    settles: str = ""


def remove(target: Series, found: Sequence[Document]) -> None:
    """Remove the outdated findings of a series, as far as possible: what remains is only needless. found: what
    findings.load returned."""
    looks = [each for each in found if each["kind"] == findings.VERIFY]
    if len(looks) < 2:
        return
    with suppress(errors.Failure), target.store.looking(target.folder, anew=True):
        grace = graces.of(target.store)
        there = frozenset(name.partition(".")[0] for name in findings.names(target))
        old = [each for each in looks if each["id"] in there and _age(target, each) > grace]
        for each in superseded(old, _points(target, grace), there):
            target.store.remove_file(_path(target, each))


def _path(target: Series, document: Document) -> str:
    return findings.path(target, document["id"], findings.VERIFY)


def _age(target: Series, document: Document) -> float:
    return target.store.seconds_since_change(_path(target, document))


def _points(target: Series, grace: float) -> set[str]:
    """Return the ids of the points that exist, readable or not, or were removed so recently that this may be undone."""
    removed = {name for name in half_points.removed(target) if half_points.seconds_removed(target, name) <= grace}
    return {*lock_free.points(target), *removed}


def superseded(found: Sequence[Document], points: Container[str], there: frozenset[str]) -> list[Document]:
    """Return the outdated ones of these findings.

    found: of verifications, oldest first; points: ids of the points that exist; there: ids of all existing findings.
    Damage counts for removed points, too, as they may come back.
    """
    settled = {(*_key(about), name) for each in found for about in each["points"] for name in about.get("settles", [])}
    proved, result, now = set[_Claim](), list[Document](), findings.now()["when"]
    for document in reversed(found):
        if document["when"] > now:  # it proves nothing until then
            continue
        claims = {
            claim
            for about in document["points"]
            for claim in _claims(document, about)
            if (about["point"] in points and not claim.settles) or claim.settles in there
        }
        damages = {(*_key(about), document["id"]) for about in document["points"] if about["damages"]}
        if damages <= settled and all(proved & {claim, claim._replace(shard=None)} for claim in claims):
            result.append(document)
        proved |= claims
    return result


def _key(about: Document) -> tuple[str, str]:
    return about["point"], about["manifest_sha256"]


def _claims(document: Document, about: Document) -> Iterator[_Claim]:
    shard = document.get("shard")
    yield _Claim(*_key(about))
    yield from (_Claim(*_key(about), settles=name) for name in about.get("settles", []))
    for level in verdict.proved_levels(document, about):
        yield _Claim(*_key(about), level, None if shard is None else tuple(shard))
