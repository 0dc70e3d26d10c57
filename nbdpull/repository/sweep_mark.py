"""The mark that a sweep leaves in a directory of a store without locks before it removes files from it.

Two sweeps may have found the same files. As long as the slower one may still be running, no copy may make any of these
files again. So the mark outlives the files, and a run that finds a young mark does not change the directory. Owns: the
mark, and when it is young. Must not know: which files are removed, what else is in a directory.
"""

from __future__ import annotations

from . import grace
from .series import Series

NAME = "manifest.swept"
_TEXT = b"A prune has begun to remove files of this directory. No copy makes any of them again for a day.\n"


def put(series: Series, name: str) -> None:
    """Leave a mark in a directory. A store with locks needs none."""
    if not series.store.has_locks:
        series.store.replace(_path(series, name), _TEXT)


def is_young(series: Series, name: str) -> bool:
    """Return whether a sweep may be removing files of a directory."""
    if not is_there(series, name):
        return False
    return age(series, name) < grace.MARKED


def age(series: Series, name: str) -> float:
    """Return the seconds since the existing mark was left."""
    return series.store.seconds_since_change(_path(series, name))


def is_there(series: Series, name: str) -> bool:
    return not series.store.has_locks and series.store.size(_path(series, name)) is not None


def drop(series: Series, name: str) -> None:
    """Remove the mark of a directory, if there is one. Only for a mark that is not young, or a directory from which no
    sweep removes files any more. OutputError."""
    if is_there(series, name):
        series.store.delete(_path(series, name))


def _path(series: Series, name: str) -> str:
    return f"{series.folder}/{name}/{NAME}"
