"""Drafts of files whose writers were killed before the files appeared under their names.

A draft may be as large as a chunk file, and no point refers to it, so nothing else would ever remove it. Owns: which
drafts no process is still writing. The caller holds the series. Must not know: what any of the drafts was meant to
become.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from ..core import errors
from ..format import layout
from ..storage.base import DRAFT
from . import grace, half_points, pins
from .series import Series


def remove_all(series: Series) -> int:
    """Remove all abandoned drafts of a series, and of the store's marker, policies and keys; return the number of bytes
    freed."""
    freed = remove(series, series.store.folders(series.folder))
    return freed + sum(_remove_old(series, folder) for folder in (series.folder, "", layout.KEYS))


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
    return sum(_removed(series, path) for path in drafts if not _may_be_written(series, path, f"{name}/"))


def _remove_old(series: Series, folder: str) -> int:
    """Remove the drafts in a folder that is written without the lock of the series: as findings are, in its own
    folder."""
    if not series.store.has_locks:
        return 0
    drafts = [f"{folder}/{file}".lstrip("/") for file in series.store.files(folder) if file.endswith(DRAFT)]
    return sum(_removed(series, path) for path in drafts if _is_old(series, path))


def _may_be_written(series: Series, path: str, within: str) -> bool:
    """Return whether a process may be pinning the point at this moment: pins are written without a lock."""
    return path.partition(within)[2].startswith(pins.NAME) and not _is_old(series, path)


def _is_old(series: Series, path: str) -> bool:
    with suppress(errors.OutputError):
        return series.store.seconds_since_change(path) > grace.GRACE
    return False


def _removed(series: Series, path: str) -> int:
    with suppress(errors.Damaged):
        size = series.store.size(path) or 0
        series.store.remove_file(path)
        return size if series.store.size(path) is None else 0
    return 0
