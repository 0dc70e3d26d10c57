"""A new file that gets its name only once it is complete, and then replaces what was there.

Owns: the draft's name, that two runs do not write one draft, that it is durable before it is renamed, and its owner.
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
    """Yield the name of a new, empty draft.

    If the block ends without an exception, the draft moves to `path`, durably, replacing what was there; otherwise it
    is removed.
    """
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
            f"{draft} exists: another restore is writing it, or was killed; use --force to overwrite it"
        ) from None


def _like_the_replaced(draft: str, path: str) -> None:
    """Keep the owner and mode of the replaced image, so that its users can still open it; fit.owner_lost has warned
    before if they cannot be kept."""
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
