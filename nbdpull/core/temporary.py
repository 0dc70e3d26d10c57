"""Files without a name and folders of our own, in the directory for temporary files.

Owns: which directory that is, and the error if nothing can be created there. Must not know: what they are for.
"""

from __future__ import annotations

import tempfile
from typing import IO

from . import errors
from .os_error import translated


def place() -> str:
    """Return the directory for temporary files; OutputError if none can be written, as with a full root file system."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:  # Python has tried to write in each
        raise errors.OutputError(
            "no directory for temporary files can be written (TMPDIR, /tmp, /var/tmp): free space there, or name "
            "another one in TMPDIR"
        ) from error


def file() -> IO[bytes]:
    """Return a new file without a name; OutputError."""
    where = place()
    with translated("create a file in", where):
        return tempfile.TemporaryFile(dir=where)


def folder() -> str:
    """Return the path of a new folder that only our user can enter, for the caller to remove; OutputError."""
    where = place()
    with translated("create a folder in", where):
        return tempfile.mkdtemp(prefix="nbdpull-", dir=where)
