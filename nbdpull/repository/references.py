"""The files that a point refers to, in its own folder or in those of other points: docs/format.md, section 12.

All code that removes, copies, counts or verifies files uses this module. Must not know: what is done with the files,
or whether they are intact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from operator import attrgetter

from ..core import errors
from ..format import layout, moved
from ..format.directory import Directory
from ..format.manifest import FileEntry
from .series import Point, Series

_PATH = attrgetter("path")  # a comprehension takes twice as long, and a thousand points name half a million files


def of_point(series: Series, point: Point) -> list[FileEntry]:
    """Return each file of a point except the manifest, once: first those that the manifest names, then those that the
    directories of the disks name. Damaged if a directory cannot be read: then the files are unknown."""
    return by_directories(point, (series.directory(point, disk, partial=True) for disk in point.disks))


def readable(series: Series, point: Point) -> list[Directory]:
    """Return the directories of a point that are intact: one damaged disk does not affect the others."""
    found: list[Directory] = []
    for disk in point.disks:
        with suppress(errors.Damaged):
            found.append(series.directory(point, disk, partial=True))
    return found


def by_directories(point: Point, directories: Iterable[Directory]) -> list[FileEntry]:
    """Return each file that the manifest or these directories of the point name, once."""
    named = [*point.manifest.all_files(), *chain.from_iterable(each.files for each in directories)]
    return list(dict(zip(map(_PATH, named), named)).values())


def holding(series: Series, entries: Iterable[FileEntry]) -> list[FileEntry]:
    """Return the files that are actually read for these, each once: the files themselves, and instead of a moved file
    its table and the files that the table names. Damaged if a table cannot be read."""
    found: dict[str, FileEntry] = {}
    for entry in entries:
        is_there = series.store.size(f"{series.folder}/{entry.path}") is not None
        table = None if is_there else moved.read(series.store, series.folder, entry)
        held = [entry] if table is None else [_of_table(series, entry), *table.files]
        found.update({each.path: each for each in held})
    return list(found.values())


def _of_table(series: Series, entry: FileEntry) -> FileEntry:
    path = moved.path_of(entry.path)
    data = series.store.read(f"{series.folder}/{path}", moved.MAX_TABLE)
    return FileEntry(path, len(data), hashlib.sha256(data).hexdigest())


def paths(series: Series, entries: Iterable[FileEntry]) -> set[str]:
    """Return the paths of all that must remain as long as something refers to these files: the files, their moved
    tables, and the files that the tables name. A file and its table may both exist if a run was killed before it
    removed the file. Damaged."""
    found: set[str] = set()
    for entry in {entry.path: entry for entry in entries}.values():
        found.add(entry.path)
        is_there = series.store.size(f"{series.folder}/{entry.path}") is not None
        with suppress(*([errors.Damaged] if is_there else [])):
            table = moved.read(series.store, series.folder, entry)
            if table is not None:
                found |= {moved.path_of(entry.path), *(each.path for each in table.files)}
    return found


def beside(series: Series, entries: Iterable[FileEntry]) -> list[str]:
    """Return the paths of what will be read instead of files that still exist: their moved tables, and the files that
    the tables name, as far as these exist."""
    found: dict[str, None] = {}
    for entry in entries:
        if series.store.size(f"{series.folder}/{entry.path}") is not None:
            with suppress(errors.Damaged):
                table = moved.read(series.store, series.folder, entry)
                held = [moved.path_of(entry.path), *(each.path for each in table.files)] if table else []
                found.update(dict.fromkeys(held))
    return [path for path in found if series.store.size(f"{series.folder}/{path}") is not None]


def is_lost(series: Series, kept: Iterable[str]) -> bool:
    """Return whether a chunk file among these paths is missing and has no moved table: then it is unknown whether its
    frames were moved, and where to."""
    chunks = (path for path in kept if layout.CHUNK_PATH.match(path))
    return any(
        series.store.size(f"{series.folder}/{path}") is None
        and series.store.size(f"{series.folder}/{moved.path_of(path)}") is None
        for path in chunks
    )


def live(directories: Iterable[Directory]) -> dict[str, int]:
    """Return {path: how many bytes of a chunk file or index these directories of one point need}."""
    return {entry.path: size for each in directories for entry, size in zip(each.files, each.live.tolist())}
