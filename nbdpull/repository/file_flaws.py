"""What is wrong with the files that directories name, wherever their frames are now.

Must not know: whose files they are, what follows of a flaw.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Optional

from ..core.errors import Check
from ..format.manifest import FileEntry
from .series import Series


class FileFlaws:
    """A file that several were moved to is read once. May be used by several threads at once."""

    def __init__(self, series: Series, check: Check) -> None:
        """check: called often."""
        self._series, self._check = series, check
        self._locks: defaultdict[FileEntry, threading.Lock] = defaultdict(threading.Lock)
        self._known: dict[FileEntry, Optional[str]] = {}  # of those that others were moved to

    def of(self, entry: FileEntry) -> Optional[str]:
        """Why it is not what was stored, or None."""
        return self._series.flaw(entry, lambda held: self._own(held) if held == entry else self._of_new(held))

    def _own(self, entry: FileEntry) -> Optional[str]:
        return self._series.own_flaw(entry, self._check)

    def _of_new(self, entry: FileEntry) -> Optional[str]:
        with self._locks[entry]:
            if entry not in self._known:
                self._known[entry] = self._own(entry)
            return self._known[entry]
