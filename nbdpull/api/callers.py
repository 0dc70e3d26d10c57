"""What belongs to the caller: the functions that it passes, and what they raise.

An exception of the caller is not an error of nbdpull, yet it has to end a backup as one does, through code that undoes
what an NbdpullError interrupts. So it travels wrapped in one, and comes out unchanged. Owns: that wrapping. Must not
know: what a callback is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Optional

from ..core import errors


class Raised(errors.NbdpullError):
    """raised: the exception of a function of the caller."""

    def __init__(self, raised: BaseException) -> None:
        super().__init__(f"{type(raised).__name__}: {raised}")
        self.raised = raised


def require_function(name: str, given: Any) -> None:
    """Raise UsageError if what a caller gave for a function cannot be called; None: it gave none."""
    if not (given is None or callable(given)):
        raise errors.UsageError(f"{name} is {given!r}: give a function")


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, which raises Raised.

    Once it has, every further call raises that again: the thread in which it was first raised may be one whose errors
    nobody receives.
    """
    heard: list[Raised] = []

    def called(*args: Any) -> Any:
        if heard:
            raise heard[0]
        try:
            return function(*args)
        except errors.NbdpullError:
            raise
        except BaseException as error:
            heard.append(Raised(error))
            raise heard[0] from error

    return called


@contextmanager
def unwrapped() -> Iterator[None]:
    """Let what was raised inside come out as the caller's own exception."""
    try:
        yield
    except Raised as error:
        raise error.raised  # noqa: B904 (it is the very exception, with its own cause)


def checked(check: Optional[Callable[[], None]]) -> Callable[[], None]:
    """Return the check of a caller, wrapped; one that does nothing if it gave none."""
    require_function("check", check)
    return wrapped(check) if check else lambda: None
