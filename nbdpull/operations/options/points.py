"""The options of the verbs that list, compare, remove or mark points."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional


@dataclass(frozen=True)
class ListOptions:
    store: str
    domain: Optional[str] = None
    as_of: Optional[str] = None


@dataclass(frozen=True)
class StatusOptions:
    """The options of status.

    domain: may also be a shell pattern, None: all. max_age: of the newest sound point. expect: names or UUIDs of the
    domains that must have a sound point.
    """

    store: str
    domain: Optional[str] = None
    max_age: Optional[float] = None
    expect: Optional[list[str]] = None


@dataclass(frozen=True)
class ShowOptions:
    """The options of show.

    point: an id is searched in all domains of the store. definition: show the definition of its domain instead.
    """

    store: str
    point: str
    domain: Optional[str] = None
    definition: bool = False
    identities: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DiffOptions:
    """The options of diff. before, after: points of one series, in any order; disk: compare only this one."""

    store: str
    before: str
    after: str
    domain: Optional[str] = None
    disk: Optional[str] = None
    identities: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class UsageOptions:
    """The options of usage. domain: may also be a shell pattern, None: all."""

    store: str
    domain: Optional[str] = None


@dataclass(frozen=True)
class IndexOptions:
    """The options of index, also with --rebuild. point: as for show; disk: a name."""

    store: str
    point: str
    disk: str
    domain: Optional[str] = None
    identities: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RemoveOptions:
    """The options of remove.

    points: as for show. now: remove files at once, although others may still be reading them. dry_run: remove nothing.
    """

    store: str
    points: list[str]
    domain: Optional[str] = None
    now: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class UndeleteOptions:
    """The options of undelete. points: as for show; with as_of also ALL_POINTS."""

    store: str
    points: list[str]
    domain: Optional[str] = None
    as_of: Optional[str] = None
    identities: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PinOptions:
    """The options of pin and unpin. point: as for show. reason: why the point is pinned."""

    store: str
    point: str
    domain: Optional[str] = None
    reason: str = ""
