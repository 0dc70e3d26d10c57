"""Which files a point refers to, in its own folder or in those of others: docs/format.md, section 12.

Who removes, copies, counts or verifies files asks here. Must not know: what becomes of them, whether they are sound.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress

from ..core import errors
from ..format import layout, moved
from ..format.directory import Directory
from ..format.manifest import FileEntry
from .series import Point, Series


def of_point(series: Series, point: Point) -> list[FileEntry]:
    """Each file but the manifest, once: those that the manifest names, and then those that the directories of the disks
    name. Damaged where a directory cannot be read: then nobody knows."""
    return by_directories(point, (series.directory(point, disk, partial=True) for disk in point.disks))


def readable(series: Series, point: Point) -> list[Directory]:
    """Those of a point that are sound: one damaged disk takes nothing from the others."""
    found: list[Directory] = []
    for disk in point.disks:
        with suppress(errors.Damaged):
            found.append(series.directory(point, disk, partial=True))
    return found


def by_directories(point: Point, directories: Iterable[Directory]) -> list[FileEntry]:
    """The same as far as these directories of the point tell."""
    named = [*point.manifest.all_files(), *(entry for each in directories for entry in each.files)]
    return list({entry.path: entry for entry in named}.values())


def standing(series: Series, entries: Iterable[FileEntry]) -> list[FileEntry]:
    """The files that are read in the end, each once: these themselves, and in the place of one that was moved its table
    and the files that this names. Damaged where a table cannot be read."""
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
    """Of all that must stay as long as something refers to these files: they themselves, their moved tables, and what
    those name. A file may be there beside its table, where a run was killed between the two. Damaged."""
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
    """Paths of what will be read in the place of files that are there yet: their moved tables, and the files that these
    name, as far as they are there."""
    found: dict[str, None] = {}
    for entry in entries:
        if series.store.size(f"{series.folder}/{entry.path}") is not None:
            with suppress(errors.Damaged):
                table = moved.read(series.store, series.folder, entry)
                held = [moved.path_of(entry.path), *(each.path for each in table.files)] if table else []
                found.update(dict.fromkeys(held))
    return [path for path in found if series.store.size(f"{series.folder}/{path}") is not None]


def is_lost(series: Series, kept: Iterable[str]) -> bool:
    """Whether a chunk file among these paths has gone without a moved table: nobody knows whether its frames were
    moved, and where to."""
    chunks = (path for path in kept if layout.CHUNK_PATH.match(path))
    return any(
        series.store.size(f"{series.folder}/{path}") is None
        and series.store.size(f"{series.folder}/{moved.path_of(path)}") is None
        for path in chunks
    )


def live(directories: Iterable[Directory]) -> dict[str, int]:
    """{path: how much of a chunk file or index these directories of one point need, in bytes}"""
    return {entry.path: size for each in directories for entry, size in zip(each.files, each.live.tolist())}
