"""Which files a point refers to, in its own folder or in those of others: docs/format.md, section 12.

Who removes, copies, counts or verifies files asks here. Must not know: what becomes of them, whether they are sound.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..format.directory import Directory
from ..format.manifest import FileEntry
from .series import Point, Series


def of_point(series: Series, point: Point) -> list[FileEntry]:
    """Each file but the manifest, once: those that the manifest names, and then those that the directories of the disks
    name. Damaged where a directory cannot be read: then nobody knows."""
    return by_directories(point, (series.directory(point, disk, partial=True) for disk in point.disks))


def by_directories(point: Point, directories: Iterable[Directory]) -> list[FileEntry]:
    """The same as far as these directories of the point tell."""
    named = [*point.manifest.all_files(), *(entry for each in directories for entry in each.files)]
    return list({entry.path: entry for entry in named}.values())
