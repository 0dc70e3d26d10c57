"""A token in a file of the user: read before a backup, and replaced when the backup is committed.

Owns: that the file contains either the previous token or the new one, complete, whatever happens. Must not know: what a
token is used for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Optional

from ..core import errors, file_system
from ..core.os_error import translated
from .token import MAX_TEXT, Token


def read(path: str) -> Token:
    """Return the token in a file; UsageError if there is none."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read(MAX_TEXT + 1)
    except OSError as error:
        raise errors.UsageError(f"token file {path}: {error.strerror}; without a token the backup is full") from None
    try:
        return Token.loads(text)
    except errors.UsageError as error:
        raise errors.UsageError(f"token file {path}: {error}") from None


def read_if_there(path: str) -> Optional[Token]:
    """Return the token in a file, None if there is no such file; UsageError if the file contains none."""
    _require_name(path)
    return read(path) if os.path.lexists(path) else None


def is_same(one: str, other: str) -> bool:
    """Return whether two paths name the same file, which need not exist."""
    return os.path.realpath(one) == os.path.realpath(other)


def _require_name(path: str) -> None:
    if not path:  # a variable of a script that is not set: each backup would be full, or its token kept nowhere
        raise errors.UsageError("the name of a token file is empty: name a file, or leave the option out")


def require_new(path: str) -> None:
    """Raise OutputExists if the file exists."""
    if os.path.lexists(path):
        raise errors.OutputExists(f"token file {path} exists, and only the one that is read (--since) is replaced")


class Draft:
    """A new token in a file beside the one that it will replace. path: of the token file, None: keep nothing."""

    def __init__(self, path: Optional[str]) -> None:
        self._path = path
        self._draft = f"{path}.{os.getpid()}.new"  # unique: another process that is refused removes its own draft

    def write(self, token: Token) -> None:
        """Write the draft durably, so that it only has to be renamed."""
        if self._path is None:
            return
        with translated("write", self._draft), open(self._draft, "w", encoding="ascii") as file:
            file.write(token.dumps() + "\n")
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def committing(self, token: Token, before: Optional[Token]) -> Iterator[None]:
        """Publish the token durably before the block, and undo that if the block raises. before: the previous token of
        the file, None if the file is new."""
        try:
            self.write(token)
            self.publish(is_new=before is None)
            yield
        except BaseException:
            with suppress(OSError, errors.NbdpullError):  # at worst, a useless token causes a full backup
                self._put_back(token, before)
            raise

    def _put_back(self, token: Token, before: Optional[Token]) -> None:
        """Restore the previous state of the file if it contains the token."""
        if self._path is None or read(self._path) != token:
            return
        if before is None:
            os.unlink(self._path)
        else:
            self.write(before)
            self.publish()

    def publish(self, is_new: bool = False) -> None:
        """Give the draft the name of the token file, durably. is_new: replace no file, raise OutputExists instead."""
        if self._path is None:
            return
        with translated("write", self._path):
            (os.link if is_new else os.replace)(self._draft, self._path)
            folder = os.open(os.path.dirname(os.path.abspath(self._path)), os.O_RDONLY | os.O_DIRECTORY)
            try:
                file_system.sync_folder(folder)
            finally:
                os.close(folder)

    def _claim(self) -> None:
        """Create the draft, to find out before the backup begins whether it can be written."""
        if self._path is not None:
            with translated("write", self._draft):
                os.close(os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _drop(self) -> None:
        if self._path is not None:
            with suppress(OSError):
                os.unlink(self._draft)


@contextmanager
def drafted(path: Optional[str]) -> Iterator[Draft]:
    """Yield the Draft of a token file; it is removed after the block if it was not published. OutputError if it cannot
    be written, UsageError if its name is empty."""
    if path is not None:
        _require_name(path)
    draft = Draft(path)
    draft._claim()
    try:
        yield draft
    finally:
        draft._drop()
