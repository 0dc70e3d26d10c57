"""A new file that has its name only when it is whole, and then in the place of what was there.

Owns: the draft's name, that two runs do not write one draft, that it is durable before it is renamed, and whose it is.
Must not know: what is written to it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Callable

from ..core import errors, file_system
from ..core.os_error import translated


@contextlib.contextmanager
def whole(path: str, force: bool = False) -> Iterator[str]:
    """Give the name of a new, empty draft. Left without an exception, it is at `path`, durable, in the place of what
    was there; left by one it is gone."""
    draft = f"{path}.partial"
    _claim(draft, force)
    try:
        yield draft
        with translated("write", path):
            _sync(draft, os.fsync)
            _like_the_replaced(draft, path)
            os.replace(draft, path)
            _sync(os.path.dirname(path), file_system.sync_folder)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(draft)


def _claim(draft: str, force: bool) -> None:
    """Create the draft, so that two restores of one image cannot mix their bytes."""
    try:
        with translated("create", draft):
            os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (0 if force else os.O_EXCL), 0o600))
    except errors.OutputExists:
        raise errors.OutputExists(
            f"{draft} exists: another restore writes it, or was killed; use --force to overwrite it"
        ) from None


def _like_the_replaced(draft: str, path: str) -> None:
    """A replaced image's owner and mode stay, so that whom it was for can still open it."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        before = os.stat(path)
        os.chmod(draft, stat.S_IMODE(before.st_mode))
        os.chown(draft, before.st_uid, before.st_gid)


def _sync(path: str, how: Callable[[int], None]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        how(descriptor)
    finally:
        os.close(descriptor)
