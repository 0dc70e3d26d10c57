"""Listings of a bucket, kept inside a `looking` block, and updated with the changes made here since.

Owns: which questions about a path need no request. Must not know: requests, what a file contains, except that small
ones are read more than once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

from .s3_client import Found

_KEPT = 16 << 10  # bytes of a file that is kept for a second read, at most
_IN_MEMORY = 8 << 20  # bytes of all these files


class _Look:
    """A listing. files: {path: Found}, which is replaced, never changed."""

    def __init__(self, files: dict[str, Found]) -> None:
        self.files = files


class Listed:
    """The listings of all current `looking` blocks. Safe for several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, list[_Look]] = {}  # {path of a folder with its "/": its listings, the newest last}
        self._data: dict[str, bytes] = {}  # of small files that were read inside the block
        self._kept = 0  # bytes of these

    def of(self, path: str) -> Optional[dict[str, Found]]:
        """Return the listing {path: Found} that covers a path, None if there is none."""
        with self._lock:
            return next((looks[-1].files for folder, looks in self._known.items() if path.startswith(folder)), None)

    @contextmanager
    def during(self, path: str, known: dict[str, Found]) -> Iterator[None]:
        """Use a listing of a folder and its subfolders inside this block."""
        folder, look = f"{path}/" if path else "", _Look(known)
        with self._lock:
            self._known.setdefault(folder, []).append(look)
        try:
            yield
        finally:
            with self._lock:
                self._known[folder].remove(look)  # an outer block goes on with its own listing
                if not self._known[folder]:
                    del self._known[folder]
                if not self._known:
                    self._data, self._kept = {}, 0

    def data(self, path: str) -> Optional[bytes]:
        """Return the content of a file if it was kept, else None."""
        with self._lock:
            return self._data.get(path)

    def keep(self, path: str, data: bytes) -> None:
        """Keep the content of a small file for further reads inside the block: points are loaded more than once."""
        with self._lock:
            self._drop(path)
            is_listed = any(path.startswith(folder) for folder in self._known)
            if is_listed and len(data) <= _KEPT and self._kept < _IN_MEMORY:
                self._data[path] = data
                self._kept += len(data)

    def _drop(self, path: str) -> None:
        self._kept -= len(self._data.pop(path, b""))

    def forget(self, path: str) -> None:
        """Record that a file was removed."""
        self._change(path, None)

    def note(self, made: Found) -> None:
        """Record that a file was created. made.key: its path."""
        self._change(made.key, made)

    def _change(self, path: str, made: Optional[Found]) -> None:
        with self._lock:
            self._drop(path)
            for look in (look for folder, looks in self._known.items() if path.startswith(folder) for look in looks):
                known = {each: found for each, found in look.files.items() if each != path}
                look.files = {**known, path: made} if made else known
