"""The ledger of a series: which files were proved, and when; and the oldest of these proofs for each point.

A ledger is a file beside the findings, created once. The next ledger includes what still counts, and replaces it: so
its size depends on that of the store, not on its age. If two runs wrote one each, both count.

Owns: its form. Must not know: how a file is proved, which file is next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Optional

from ..core import errors, members
from ..core.choices import Level
from . import findings, layout
from .findings import PointLike, SeriesLike
from .layout import Document

KIND = "ledger"
MAX_BYTES = layout.MAX_DOCUMENT  # bytes of a ledger that readers accept
_PER_FILE, _PER_GROUP = 80, 160  # bytes that each adds to a ledger, at most; without a file's path

_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6,16}\.ledger\.json\Z", re.ASCII)

Key = tuple[str, str]  # path of a file, relative to the series; its SHA-256


class Proof(NamedTuple):
    """When a file was last proved, at each level; None: never. A proof of the frames also proves the file."""

    files: Optional[str] = None
    frames: Optional[str] = None

    def at(self, level: str) -> Optional[str]:
        return self.frames if level == Level.FRAMES else self.files

    def with_one(self, level: str, when: str) -> Proof:
        """Return the result of a further proof, at this level and time."""
        frames = when if level == Level.FRAMES else ""
        return Proof(max(self.files or "", when), max(self.frames or "", frames) or None)

    def or_later(self, other: Proof) -> Proof:
        """Return the later time of two proofs, at each level."""
        return Proof(*(max(times, key=lambda when: when or "") for times in zip(self, other)))


NEVER = Proof()
Proofs = Mapping[Key, Proof]


@dataclass(frozen=True)
class _About:
    point: str
    manifest_sha256: str
    files: Optional[str] = None
    frames: Optional[str] = None


@dataclass(frozen=True)
class _Proofs:
    when: str
    level: str
    files: dict[str, str]


@dataclass(frozen=True)
class _Ledger:
    kind: str
    when: str
    who: str
    level: str
    points: list[_About]


def load(target: SeriesLike) -> list[Document]:
    """Return every ledger of a series, oldest first, as dicts, each with its `name`.

    Ledgers that cannot be read or are not well-formed are left out: the files that they list have to be proved again.
    """
    found = []
    for name in filter(_NAME.match, target.store.files(target.folder)):
        document = findings.readable(target, name)
        if document and _is_sound(document):
            found.append({**document, "name": name})
    return sorted(found, key=lambda document: (document["when"], document["name"]))


def _is_sound(document: Document) -> bool:
    """Return whether a ledger is well-formed, except for its proofs, which only a verification needs."""
    try:
        content = members.build(_Ledger, document)
    except ValueError:
        return False
    times = [
        content.when,
        *(time for about in content.points for time in (about.files, about.frames) if time is not None),
    ]
    return content.kind == KIND and all(map(layout.is_time, times))


def proofs(found: Iterable[Document], now: str) -> dict[Key, Proof]:
    """Return the proofs in all these ledgers. Those that a wrong clock dated after `now` do not count."""
    result: dict[Key, Proof] = {}
    for group in (each for document in found for each in _groups(document)):
        if layout.is_time(group.when) and group.when <= now and group.level in Level.WORDS:
            for key in group.files.items():
                result[key] = result.get(key, NEVER).with_one(group.level, group.when)
    return result


def _groups(document: Document) -> list[_Proofs]:
    try:
        found: list[_Proofs] = members.typed(list[_Proofs], document.get("proofs"), "proofs")
        return found
    except ValueError:
        return []


def of(level: str, points: Iterable[tuple[PointLike, Proof]], known: Proofs) -> Document:
    """Return the document of a ledger.

    level: of the run that writes it; points: each with the oldest proofs of its files; known: the proofs to include.
    """
    abouts = [{**findings.entry(point), **proof._asdict()} for point, proof in points]
    document = {"kind": KIND, **findings.now(), "level": level, "points": abouts, "proofs": []}
    return {**document, "proofs": _grouped(known, MAX_BYTES - len(_sealed(document)))}


def _sealed(document: Document) -> bytes:
    return layout.seal({"format": layout.FORMAT, "requires": [], **document})


def _grouped(known: Proofs, room: int) -> list[Document]:
    """Return the proofs grouped by their times, as a run proves many files.

    room: bytes that they may take; if all proofs need more, the oldest are left out.
    """
    newest_first = sorted(known.items(), key=lambda each: each[1].files or "", reverse=True)
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for (path, sha256), proof in newest_first:
        pairs = [(when, level) for level in Level.WORDS if (when := proof.at(level))]
        if proof.files == proof.frames:
            pairs = pairs[1:]  # the proof of the frames implies the other
        room -= len(pairs) * (len(json.dumps(path, ensure_ascii=False).encode()) + _PER_FILE) + _PER_GROUP * len(
            {*pairs} - groups.keys()
        )
        if room < 0:
            break
        for each in pairs:
            groups.setdefault(each, {})[path] = sha256
    return [{"when": when, "level": level, "files": files} for (when, level), files in sorted(groups.items())]


def record(target: SeriesLike, document: Document, superseded: Collection[Document]) -> list[str]:
    """Store a ledger, and remove the superseded ones, whose proofs it includes. Return a warning if the store cannot be
    written to, or if the ledger is too large for readers."""
    path, data = f"{target.folder}/{layout.new_point_id()}.{KIND}.json", _sealed(document)
    if len(data) > layout.MAX_DOCUMENT:
        return [f"the proofs are not kept: the ledger would have {len(data)} bytes; remove points"]
    try:
        target.store.publish(path, data)
    except (errors.OutputError, errors.StoreError) as error:
        return [f"the proofs are not kept: {error}"]
    for each in superseded:
        target.store.remove_file(f"{target.folder}/{each['name']}")
    return []


def by_point(found: Iterable[Document], points: Iterable[PointLike]) -> dict[str, list[tuple[Document, Document]]]:
    """Return {point id: [(ledger, its entry about that point), …], oldest first}. found: what `load` returned."""
    return findings.by_point(found, points, KIND)
