"""Between a cache and who proves what he reads: nothing is kept before its proof, and only the server's is Damaged.

What a server once answered wrongly would else be read for ever: a file that is healed has the tag that it had. So what
is read without a proof goes past the cache. Owns: what a proof has read so far, by thread. Must not know: what proves
it, how it is fetched.
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
    """is_anew: all is fetched; has_old: something was not; fetched: {name of a piece: its bytes}, to be kept."""

    is_anew: bool = False
    has_old: bool = False
    fetched: dict[tuple[object, ...], bytes] = field(default_factory=dict)


class Proving:
    """cache: None where there is none. May be used by several threads at once."""

    def __init__(self, cache: Optional[Cache]) -> None:
        self._cache, self._own = cache, threading.local()

    def run(self, read: Callable[[], _T]) -> _T:
        """What read() makes of pieces, raising Damaged unless they are right. It is called again where they were not,
        and not all were fetched. Within another run it is a part of that one."""
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
        """That of this thread."""
        found: Optional[_Attempt] = getattr(self._own, "attempt", None)
        return found

    @property
    def is_on(self) -> bool:
        """Whether pieces may be had, and kept."""
        return self._attempt is not None

    def get(self, *name: object) -> Optional[bytes]:
        """A piece that was kept; None where it is to be fetched."""
        return self.old(self._cache.get(*name)) if self._cache and self._attempt else None

    def old(self, data: Optional[bytes]) -> Optional[bytes]:
        """What is in memory of an earlier read; None where it is to be fetched."""
        attempt = self._attempt
        if attempt is None or data is None:
            return data
        attempt.has_old = True
        return None if attempt.is_anew else data

    def fetched(self, data: bytes, *name: object) -> None:
        """A piece, to be kept once it is proved."""
        if self._attempt:
            self._attempt.fetched[name] = data
