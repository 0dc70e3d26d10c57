"""A step of a clean-up, which must not keep the next ones from being done.

Owns: how an error says that something is left behind, and who removes it then. Must not know: what the step is.
"""

from __future__ import annotations

import logging
from typing import Callable

from ..core import errors

log = logging.getLogger("nbdpull.cleanup")


def attempt(step: Callable[[], None], what: str, left: list[str]) -> bool:
    """Whether the step was done; else a text about `what` comes into `left`."""
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
    """Note on an error what could not be removed, after what it says already. One that is no error of ours has no field
    for it."""
    if isinstance(error, errors.NbdpullError):
        error.left_behind = (*error.left_behind, *left)
    else:
        for each in left:
            log.warning("%s", each)
