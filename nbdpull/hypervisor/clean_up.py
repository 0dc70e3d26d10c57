"""A step of a clean-up, whose failure must not prevent the next steps.

Owns: how an error reports what was left behind, and what removes it later. Must not know: what the step is.
"""

from __future__ import annotations

from typing import Callable

from ..core import errors


def attempt(step: Callable[[], None], what: str, left: list[str]) -> bool:
    """Return whether the step succeeded. If not, append a text about `what` to `left`."""
    try:
        step()
    except (errors.DomainNotRunning, errors.DomainStopped):
        left.append(f"{what} is left behind because the domain is off: the next pull removes it once the domain runs")
        return False
    except errors.NoAnswer:
        left.append(f"{what} is left behind because libvirt does not answer: the next pull resumes or removes it, or "
                    "nbdpull cleanup removes it")  # fmt: skip
        return False
    except errors.NbdpullError as error:
        left.append(f"{what} is left behind: {error}")
        return False
    return True


def leave(error: BaseException, left: list[str]) -> None:
    """Append what could not be removed to an error, after its own notes. One that is not ours gets the field for it."""
    if left:
        error.left_behind = (*errors.left_behind(error), *left)  # type: ignore[attr-defined]
