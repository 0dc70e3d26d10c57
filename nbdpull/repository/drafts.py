"""Drafts of files whose writers were killed before the files appeared under their names, and directories whose makers
were killed before they put anything into them.

A draft may be as large as a chunk file, and no point refers to it, so nothing else would ever remove it. Owns: which
drafts no process is still writing. The caller holds the series, or the store. Must not know: what any of the drafts was
meant to become.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from ..core import errors
from ..format import layout
from ..storage.base import DRAFT, Store
from . import grace, half_points, pins
from .series import Series


def remove_all(series: Series) -> int:
    """Remove all abandoned drafts of a series, and of the store itself; return the number of bytes freed. Remove the
    directories of the series that are empty and old, too."""
    folders = series.store.folders(series.folder)
    freed = remove(series, folders) + _remove_old(series.store, series.folder) + remove_of_store(series.store)
    for name in folders:
        _remove_if_empty(series, name)
    return freed


def remove_of_store(store: Store, held: Iterable[str] = ()) -> int:
    """Remove the abandoned drafts of a store's marker, policies and keys; return the number of bytes freed. held: paths
    of files that only a process that holds the store replaces: their drafts need not be old."""
    freed = sum(_remove_old(store, folder) for folder in ("", layout.KEYS))
    return freed + sum(_removed(store, draft) for path in held for draft in _drafts_of(store, path))


def remove(series: Series, names: Iterable[str]) -> int:
    """Remove the abandoned drafts in the directories with these names; return the number of bytes freed. Drafts in half
    points are left to the run that may resume the point."""
    if not series.store.has_locks:  # an object is never partly written
        return 0
    return sum(_remove_in(series, f"{series.folder}/{name}", name) for name in names if layout.POINT_ID.match(name))


def _remove_in(series: Series, folder: str, name: str) -> int:
    files = series.store.files(folder)
    if not {layout.MANIFEST, half_points.REMOVED, layout.REPACKED}.intersection(files):
        return 0
    drafts = [f"{folder}/{file}" for file in files if file.endswith(DRAFT)]
    return sum(_removed(series.store, path) for path in drafts if not _may_be_written(series, path, f"{name}/"))


def _remove_if_empty(series: Series, name: str) -> None:
    """Remove a directory in which nothing but drafts ever was, such as that of a repack that was killed at once. A run
    that holds no lock, as on some network file systems, may have made it just now."""
    folder, store = f"{series.folder}/{name}", series.store
    if not store.has_locks or not layout.POINT_ID.match(name):
        return
    if all(file.endswith(DRAFT) for file in store.names(folder)) and _is_old(store, folder):
        store.remove_folder(folder)


def _remove_old(store: Store, folder: str) -> int:
    """Remove the drafts in a folder that is written without a lock: as findings are, in the folder of their series."""
    if not store.has_locks:
        return 0
    drafts = [f"{folder}/{file}".lstrip("/") for file in store.files(folder) if file.endswith(DRAFT)]
    return sum(_removed(store, path) for path in drafts if _is_old(store, path))


def _drafts_of(store: Store, path: str) -> list[str]:
    folder, _, name = path.rpartition("/")
    files = store.files(folder) if store.has_locks else []
    return [f"{folder}/{file}" for file in files if file.startswith(f"{name}.") and file.endswith(DRAFT)]


def _may_be_written(series: Series, path: str, within: str) -> bool:
    """Return whether a process may be pinning the point at this moment: pins are written without a lock."""
    return path.partition(within)[2].startswith(pins.NAME) and not _is_old(series.store, path)


def _is_old(store: Store, path: str) -> bool:
    with suppress(errors.OutputError):
        return store.seconds_since_change(path) > grace.GRACE
    return False


def _removed(store: Store, path: str) -> int:
    with suppress(errors.Damaged):
        size = store.size(path) or 0
        store.remove_file(path)
        return size if store.size(path) is None else 0
    return 0
