"""What the operating system says of a file that is being written, as one of our errors.

Owns: which class an OSError becomes, by its number, and how it reads. Must not know: what the file is for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from . import errors

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def translated(doing: str, path: str) -> Iterator[None]:
    """Turn an OSError while `doing` something to `path` into the error whose class says who must act."""
    try:
        yield
    except FileExistsError as error:
        raise errors.OutputExists(f"cannot {doing} {path}: it exists already; nothing is ever overwritten") from error
    except OSError as error:
        kind: type[errors.OutputError] = errors.OutputError
        hint = ""
        if error.errno in FULL:
            kind, hint = errors.OutputFull, "; free space or choose another directory"
        why = error.strerror or os.strerror(errno.EIO)
        raise kind(f"cannot {doing} {path}: {why}{hint}") from error
