"""What verify, drill and digest found, kept beside the points: sealed files of a series, each created once.

Owns: their names, and which of them is the newest for a point. They are no part of a point: no manifest names them, and
a reader of points ignores them. Must not know: how anything is verified or booted.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any, Optional, Protocol

from ..core import errors, members
from ..storage.base import Store
from . import layout
from .layout import Document

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
    """How a finding names the Point that it is about: a point that was replaced since is another one."""
    return {"point": point.id, "manifest_sha256": point.sha256}


def now() -> dict[str, str]:
    """When and who, as every finding tells it."""
    return {"when": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "who": _who()}


def record(target: SeriesLike, kind: str, **about: Any) -> str:
    """Keep a finding in the Series; return its path relative to the store. OutputError where that cannot be written."""
    document = {"format": layout.FORMAT, "requires": [], "kind": kind, **now(), **about}
    path = f"{target.folder}/{layout.new_point_id()}.{kind}.json"
    target.store.publish(path, layout.seal(document))
    return path


def kept(target: SeriesLike, kind: str, **about: Any) -> list[str]:
    """Record a finding; a warning where the store cannot be written to, which is no failure of what was found."""
    try:
        record(target, kind, **about)
    except (errors.OutputError, errors.StoreError) as error:
        return [f"the result is not kept: {error}"]
    return []


def attach(target: SeriesLike, path: str, suffix: str, data: bytes) -> str:
    """Keep a file that belongs to the finding at `path`, such as a picture; return its path."""
    beside = f"{path[: -len('.json')]}.{suffix}"
    with target.store.create(beside) as file:
        file.write(data)
    return beside


def names(target: SeriesLike) -> list[str]:
    """Of the files of all findings of a Series."""
    return [name for name in target.store.files(target.folder) if _NAME.match(name)]


def load(target: SeriesLike, of: Optional[Iterable[str]] = None) -> list[Document]:
    """Every finding of a Series, oldest first, as dicts, each with its `id`. One that cannot be read, or is not of this
    form, is as if it were not there. of: what `names` gives, or some of it."""
    known = filter(None, map(_NAME.match, names(target) if of is None else of))
    found = filter(None, target.store.several(partial(_sound, target), known))
    return sorted(found, key=lambda document: (document["when"], document["id"]))


def _sound(target: SeriesLike, name: re.Match[str]) -> Optional[Document]:
    try:
        document = _read(target, name[0])
    except errors.NbdpullError:
        return None
    return {**document, "id": name["id"]} if _is_sound(document, name["kind"]) else None


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
    """Whether the members have their types (docs/format.md, section 18), and those are there that are counted on."""
    try:
        finding = members.build(_Finding, document)
    except ValueError:
        return False
    counted = finding.level and None not in [about.damages for about in finding.points]
    shard_of = len(finding.shard or [1, 1]) == 2
    return finding.kind == kind and layout.is_time(finding.when) and shard_of and bool(counted or kind != VERIFY)


def left_out(target: SeriesLike, found: Iterable[Document]) -> list[str]:
    """Paths of the findings of a Series that `load`, which gave `found`, left out: what they told is not known."""
    known = {document["id"] for document in found}
    return [target.store.path(target.folder, name) for name in names(target) if name.partition(".")[0] not in known]


def by_point(
    found: Iterable[Document], points: Iterable[PointLike], kind: str
) -> dict[str, list[tuple[Document, Document]]]:
    """{point id: [(finding, its entry about that point), …], oldest first}; found: what `load` gives."""
    known = {point.id: point.sha256 for point in points}
    result: dict[str, list[tuple[Document, Document]]] = {name: [] for name in known}
    for document in found:
        for about in document["points"] if document["kind"] == kind else []:
            if known.get(about["point"]) == about["manifest_sha256"]:
                result[about["point"]].append((document, about))
    return result


def newest(found: Iterable[Document], points: Iterable[PointLike], kind: str) -> dict[str, Document]:
    """{point id: the members of the newest finding of that kind, with those that are about the point; {} for none}.

    One that a wrong clock has put after now would be the newest for years, and does not count; but a digest is right
    whatever the clock."""
    latest = "~" if kind == DIGEST else now()["when"]
    each = by_point((document for document in found if document["when"] <= latest), points, kind)
    return {name: {**about[-1][0], **about[-1][1]} if about else {} for name, about in each.items()}


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
