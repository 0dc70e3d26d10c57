"""A disk of a backup as a volume that is served over HTTP.

Owns: which methods of a disk that needs, one of them private. Must not know: HTTP.
"""

from __future__ import annotations

from .disk import Disk


class Served:
    """A disk of an open backup, as serving/http/volume.py describes a Live one."""

    def __init__(self, disk: Disk) -> None:
        self.name, self.size, self.mode = disk.name, disk.size, disk.mode
        self.extents, self.read_into, self.filling = disk.extents, disk.read_into, disk._filling
