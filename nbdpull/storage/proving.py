"""Reading through a cache: nothing is kept before it is proved, and only data fresh from the server can be Damaged.

Otherwise a wrong answer of the server would be read from the cache forever: a file that is healed has the same tag as
before. So reads without a proof bypass the cache. Owns: what a proof has read so far, per thread. Must not know: how
the data are proved, how they are fetched.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Callable, Optional, TypeVar

from ..core import errors
from .cache import Cache

_T = TypeVar("_T")


@dataclass
class _Attempt:
    """One call of read(). is_anew: all pieces are fetched; has_old: some piece was not fetched; fetched: {name of a
    piece: its bytes}, to be kept after the proof."""

    is_anew: bool = False
    has_old: bool = False
    fetched: dict[tuple[object, ...], bytes] = field(default_factory=dict)


class Proving:
    """Proofs of what is read. cache: None for no cache. Safe for several threads at once."""

    def __init__(self, cache: Optional[Cache]) -> None:
        self._cache, self._own = cache, threading.local()

    def run(self, read: Callable[[], _T]) -> _T:
        """Call read() and return its result. read() must raise Damaged unless the pieces that it reads are right. If it
        does, and some pieces had not been fetched anew, it is called again with all of them fetched. A run inside
        another one is part of the outer one."""
        if self._cache is None or self._attempt is not None:
            return read()
        attempt = _Attempt()
        try:
            return self._once(read, attempt, self._cache)
        except errors.Damaged:
            if not attempt.has_old:
                raise
        return self._once(read, _Attempt(is_anew=True), self._cache)

    def _once(self, read: Callable[[], _T], attempt: _Attempt, cache: Cache) -> _T:
        self._own.attempt = attempt
        try:
            found = read()
        finally:
            self._own.attempt = None
        for name, data in attempt.fetched.items():
            cache.put(data, *name)
        return found

    @property
    def _attempt(self) -> Optional[_Attempt]:
        """The current attempt of this thread, None outside any."""
        found: Optional[_Attempt] = getattr(self._own, "attempt", None)
        return found

    @property
    def is_on(self) -> bool:
        """Whether pieces may be taken from the cache and kept in it."""
        return self._attempt is not None

    def get(self, *name: object) -> Optional[bytes]:
        """Return a piece from the cache; None if it has to be fetched."""
        return self.old(self._cache.get(*name)) if self._cache and self._attempt else None

    def old(self, data: Optional[bytes]) -> Optional[bytes]:
        """Return data that are in memory from an earlier read; None if they have to be fetched."""
        attempt = self._attempt
        if attempt is None or data is None:
            return data
        attempt.has_old = True
        return None if attempt.is_anew else data

    def fetched(self, data: bytes, *name: object) -> None:
        """Take a piece that was fetched, to be kept once it is proved."""
        if self._attempt:
            self._attempt.fetched[name] = data
