"""Findings: the results of verify, drill and digest, kept beside the points in sealed files, each created once.

Findings are not part of a point: no manifest names them, and a reader of points ignores them.

Owns: their names and form, and which of them is the newest for a point. Must not know: how anything is verified or
booted.
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any, Optional, Protocol

from ..core import errors, members
from ..storage.base import Store
from . import layout
from .layout import Document

log = logging.getLogger("nbdpull.store")
VERIFY, DRILL, DIGEST = "verify", "drill", "digest"

_NAME = re.compile(r"(?P<id>\d{8}T\d{6}Z-[0-9a-f]{6,16})\.(?P<kind>verify|drill|digest)\.json\Z", re.ASCII)


class PointLike(Protocol):
    """A repository.series.Point."""

    @property
    def id(self) -> str: ...

    @property
    def sha256(self) -> str: ...


class SeriesLike(Protocol):
    """A repository.series.Series."""

    @property
    def store(self) -> Store: ...

    @property
    def folder(self) -> str: ...


def entry(point: PointLike) -> dict[str, str]:
    """Return the members that identify a point in a finding. A point that was replaced since has another digest."""
    return {"point": point.id, "manifest_sha256": point.sha256}


def now() -> dict[str, str]:
    """Return the members `when` and `who` of a finding made now."""
    return {"when": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "who": _who()}


def record(target: SeriesLike, kind: str, **about: Any) -> str:
    """Store a finding in the series; return its path relative to the store. OutputError if it cannot be written."""
    document = {"format": layout.FORMAT, "requires": [], "kind": kind, **now(), **about}
    where = path(target, layout.new_point_id(), kind)
    target.store.publish(where, layout.seal(document))
    log.info("result recorded in %s", target.store.path(where))
    return where


def path(target: SeriesLike, name: str, kind: str) -> str:
    """Return the path of a finding, relative to the store. name: its id."""
    return f"{target.folder}/{name}.{kind}.json"


def kept(target: SeriesLike, kind: str, **about: Any) -> list[str]:
    """Store a finding; return a warning if the store cannot be written to, which does not invalidate the result."""
    try:
        record(target, kind, **about)
    except (errors.OutputError, errors.StoreError) as error:
        return [f"the result is not kept: {error}"]
    return []


def attach(target: SeriesLike, path: str, suffix: str, data: bytes) -> str:
    """Store a file that belongs to the finding at `path`, such as a picture; return the file's path."""
    beside = f"{path[: -len('.json')]}.{suffix}"
    with target.store.create(beside) as file:
        file.write(data)
    return beside


def names(target: SeriesLike) -> list[str]:
    """Return the file names of all findings of a series."""
    return [name for name in target.store.files(target.folder) if _NAME.match(name)]


def load(target: SeriesLike, of: Optional[Iterable[str]] = None) -> list[Document]:
    """Return every finding of a series, oldest first, as dicts, each with its `id`.

    Findings that cannot be read or are not well-formed are left out. of: some of the `names`; None: all.
    """
    known = filter(None, map(_NAME.match, names(target) if of is None else of))
    found = filter(None, target.store.several(partial(_sound, target), known))
    return sorted(found, key=lambda document: (document["when"], document["id"]))


def _sound(target: SeriesLike, name: re.Match[str]) -> Optional[Document]:
    document = readable(target, name[0])
    return {**document, "id": name["id"]} if document and _is_sound(document, name["kind"]) else None


def readable(target: SeriesLike, name: str) -> Optional[Document]:
    """Return the document in a file of a series; None if it cannot be read, or is not what was stored."""
    with suppress(errors.Failure):
        return _read(target, name)
    return None


def _read(target: SeriesLike, name: str) -> Document:
    return target.store.proved(lambda: layout.unseal(target.store.read(f"{target.folder}/{name}"), name))


@dataclass(frozen=True)
class _Place:
    disk: Optional[str] = None
    path: Optional[str] = None
    offset: Optional[int] = None
    length: Optional[int] = None
    problem: Optional[str] = None


@dataclass(frozen=True)
class _About:
    point: str
    manifest_sha256: str
    verdict: Optional[str] = None
    damages: Optional[int] = None
    places: list[_Place] = field(default_factory=list)
    more: bool = False
    settles: list[str] = field(default_factory=list)
    complete: bool = True
    seconds: Optional[float] = None
    waited_for: Optional[str] = None
    reason: Optional[str] = None
    disks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Finding:
    kind: str
    when: str
    who: str
    points: list[_About]
    level: Optional[str] = None
    sample: Optional[float] = None
    shard: Optional[list[int]] = None


def _is_sound(document: Document, kind: str) -> bool:
    """Return whether all members have their types (docs/format.md, section 18), and no needed one is missing."""
    try:
        finding = members.build(_Finding, document)
    except ValueError:
        return False
    counted = finding.level and None not in [about.damages for about in finding.points]
    shard_of = len(finding.shard or [1, 1]) == 2
    return finding.kind == kind and layout.is_time(finding.when) and shard_of and bool(counted or kind != VERIFY)


def left_out(target: SeriesLike, found: Iterable[Document]) -> list[str]:
    """Return a message for each finding of a series that `load` left out: a point that seems sound may be damaged, or
    have failed its drill. Digests of disks say nothing of that.

    found: what `load` returned. A finding that a verification has removed since it was listed is superseded by others.
    """
    known = {document["id"] for document in found}
    rest = [match for match in map(_NAME.match, names(target)) if match and match["id"] not in known]
    return [
        f"{target.store.path(target.folder, match[0])} cannot be read, and may record that a point is damaged or "
        f"failed a drill: {problem}"
        for match in rest
        if match["kind"] != DIGEST and (problem := _problem(target, match)) and not _is_gone(target, match[0])
    ]


def _problem(target: SeriesLike, name: re.Match[str]) -> Optional[str]:
    """Return why a finding cannot be read, and what to do; None if it can: another run may have stored it just now."""
    try:
        if _is_sound(_read(target, name[0]), name["kind"]):
            return None
        reason = "it lacks a member, or one has a wrong type"
    except errors.FormatTooNew as error:
        return str(error)
    except errors.Failure as error:
        reason = str(error)
    return f"{reason}; run nbdpull verify {target.store.root}, then remove that file"


def _is_gone(target: SeriesLike, name: str) -> bool:
    with suppress(errors.Failure):
        return target.store.find(f"{target.folder}/{name}") is None
    return False


def by_point(
    found: Iterable[Document], points: Iterable[PointLike], kind: str
) -> dict[str, list[tuple[Document, Document]]]:
    """Return {point id: [(finding, its entry about that point), …], oldest first}. found: what `load` returned."""
    known = {point.id: point.sha256 for point in points}
    result: dict[str, list[tuple[Document, Document]]] = {name: [] for name in known}
    for document in found:
        for about in document["points"] if document["kind"] == kind else []:
            if known.get(about["point"]) == about["manifest_sha256"]:
                result[about["point"]].append((document, about))
    return result


def newest(found: Iterable[Document], points: Iterable[PointLike], kind: str) -> dict[str, Document]:
    """Return {point id: members of the newest finding of that kind, merged with those of its entry; {} if none}.

    A finding that a wrong clock dated in the future would remain the newest for years, so it does not count; except for
    a digest, which is right whatever the time.
    """
    latest = "~" if kind == DIGEST else now()["when"]
    each = by_point((document for document in found if document["when"] <= latest), points, kind)
    return {name: {**about[-1][0], **about[-1][1]} if about else {} for name, about in each.items()}


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
