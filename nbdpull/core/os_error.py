"""What the operating system says about a file that is being written, as one of our errors.

Owns: which class an OSError becomes, by its number, and its message. Must not know: what the file is for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from . import errors

FULL = (errno.ENOSPC, errno.EDQUOT)
TOO_MANY = (errno.EMFILE, errno.ENFILE)  # open files: the file that could not be opened is not to blame


def reason(error: OSError) -> str:
    """Return what the operating system says, and advice where known."""
    why = error.strerror or os.strerror(errno.EIO)
    if error.errno in TOO_MANY:
        return f"{why}; allow more (ulimit -n)"
    return f"{why}; free space or choose another directory" if error.errno in FULL else why


def _missing_folder(path: str) -> str:
    """Return the highest directory of a path that does not exist, "" if all exist."""
    folder, missing = os.path.dirname(os.path.abspath(path)), ""
    while not os.path.lexists(folder):
        folder, missing = os.path.dirname(folder), folder
    return missing


def unprintable(error: OSError) -> str:
    """Return why standard output cannot be written."""
    return "it is closed" if error.errno == errno.EBADF else error.strerror or os.strerror(errno.EIO)


@contextmanager
def translated(doing: str, path: str) -> Iterator[None]:
    """Turn an OSError while `doing` something to `path` into the error whose class says who must act."""
    try:
        yield
    except FileExistsError as error:
        raise errors.OutputExists(f"cannot {doing} {path}: it exists already; nothing is ever overwritten") from error
    except FileNotFoundError as error:
        missing = _missing_folder(path)
        why = f"there is no directory {missing}" if missing else reason(error)
        raise errors.OutputError(f"cannot {doing} {path}: {why}") from error
    except OSError as error:
        kind = errors.OutputFull if error.errno in FULL else errors.OutputError
        raise kind(f"cannot {doing} {path}: {reason(error)}") from error
