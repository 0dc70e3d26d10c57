"""A token in a file of the user's: read, and put there when its backup is committed.

Owns: that the file holds the token of before or the new one, whole, whatever happens. Must not know: what a token is
good for.
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
    """UsageError where there is none."""
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
    """None where there is no such file; UsageError where that has none."""
    return read(path) if os.path.lexists(path) else None


def is_same(one: str, other: str) -> bool:
    """Whether two paths are those of one file, which need not be there."""
    return os.path.realpath(one) == os.path.realpath(other)


def require_new(path: str) -> None:
    """OutputExists."""
    if os.path.lexists(path):
        raise errors.OutputExists(f"token file {path} exists, and only the one that is read (--since) is replaced")


class Draft:
    """A file beside the one that it will replace. path None: nothing is kept."""

    def __init__(self, path: Optional[str]) -> None:
        self._path = path
        self._draft = f"{path}.{os.getpid()}.new"  # nobody else's, who may be refused and tidy up

    def write(self, token: Token) -> None:
        """Durably, so that nothing but the name is missing."""
        if self._path is None:
            return
        with translated("write", self._draft), open(self._draft, "w", encoding="ascii") as file:
            file.write(token.dumps() + "\n")
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def committing(self, token: Token, before: Optional[Token]) -> Iterator[None]:
        """Inside, the file has the token, durably, and from then on, unless the block raises. before: what it has had,
        None where it is a new file."""
        try:
            self.write(token)
            self.publish(is_new=before is None)
            yield
        except BaseException:
            with suppress(OSError, errors.NbdpullError):  # a token that is worth nothing costs a full backup, no more
                self._put_back(token, before)
            raise

    def _put_back(self, token: Token, before: Optional[Token]) -> None:
        """Where the file has come to have the token."""
        if self._path is None or read(self._path) != token:
            return
        if before is None:
            os.unlink(self._path)
        else:
            self.write(before)
            self.publish()

    def publish(self, is_new: bool = False) -> None:
        """This is the token of the next backup. is_new: nothing is replaced, OutputExists."""
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
        """Before there is anything to lose: find out that it can be written."""
        if self._path is not None:
            with translated("write", self._draft):
                os.close(os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _drop(self) -> None:
        if self._path is not None:
            with suppress(OSError):
                os.unlink(self._draft)


@contextmanager
def drafted(path: Optional[str]) -> Iterator[Draft]:
    """Without `publish` nothing is left of it. OutputError where it cannot be written."""
    draft = Draft(path)
    draft._claim()
    try:
        yield draft
    finally:
        draft._drop()
