"""Dataclasses whose methods are made when a class is first used: each takes Python half a millisecond, and of the many
that are there to be chosen from a run needs one or two.

Owns: when they are made, once, whatever thread comes first. Must not know: which classes.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any, Callable

__all__ = ["late_dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass as late_dataclass
else:

    def late_dataclass(**how: Any) -> Callable[[type], type]:
        """dataclass, of a class that has no __new__ of its own. Until it is first used, a default that a factory makes
        is not told from an attribute of the class."""
        return lambda of: _Late(of, how).stands_in()


_LOCK = threading.RLock()  # what a class inherits is made with it


class _Late:
    """In the place of a class's fields until somebody asks for them: itself for an object, dataclasses for a list."""

    def __init__(self, of: type, how: dict[str, Any]) -> None:
        self._of, self._how, self._is_made = of, how, False

    def stands_in(self) -> type:
        def new(kind: type, /, *_: object, **__: object) -> object:
            if not self._is_made:
                self._make()
            return object.__new__(kind)

        of: Any = self._of
        of.__new__, of.__dataclass_fields__ = new, self
        return self._of

    def __get__(self, _: object, __: type) -> Any:
        self._make()
        of: Any = self._of
        return of.__dataclass_fields__

    def _make(self) -> None:
        with _LOCK:
            if not self._is_made:
                dataclasses.dataclass(**self._how)(self._of)
                self._is_made = True  # last: until then whoever wants an object waits
