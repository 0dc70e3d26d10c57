"""What is wrong with the files that directories name, wherever their frames are stored now.

Owns: that a file to which several others were moved is read only once. Must not know: which points the files belong to,
or what a flaw means for them.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Optional

from ..core.errors import Check
from ..format.manifest import FileEntry
from .series import Series


class FileFlaws:
    """The flaws of the files of a series. A file to which several others were moved is read once. Several threads may
    use the object at once."""

    def __init__(self, series: Series, check: Check) -> None:
        """check: called often."""
        self._series, self._check = series, check
        self._locks: defaultdict[FileEntry, threading.Lock] = defaultdict(threading.Lock)
        self._known: dict[FileEntry, Optional[str]] = {}  # of files to which others were moved

    def of(self, entry: FileEntry) -> Optional[str]:
        """Return why the file is not what was stored, or None."""
        return self._series.flaw(entry, lambda held: self._own(held) if held == entry else self._of_new(held))

    def _own(self, entry: FileEntry) -> Optional[str]:
        return self._series.own_flaw(entry, self._check)

    def _of_new(self, entry: FileEntry) -> Optional[str]:
        with self._locks[entry]:
            if entry not in self._known:
                self._known[entry] = self._own(entry)
            return self._known[entry]
