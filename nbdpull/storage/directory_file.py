"""One open file of a store in a directory, being read or created. base.py documents each call.

Owns: the descriptor, the translation of its errors, when written data are durable. Must not know: the other files, what
the file contains.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional, Union

from ..core import errors, file_system
from ..core.os_error import TOO_MANY, reason, translated
from . import access, beneath
from .access import Access
from .base import Closing, Sealing


def unreadable(path: str, error: OSError) -> Union[errors.Damaged, errors.StoreError]:
    """Return our error for the OSError of a file or folder that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return errors.Damaged(f"{path}: the file is missing")
    if error.errno in TOO_MANY:
        return errors.StoreError(f"{path}: cannot be opened: {reason(error)}")
    return errors.Damaged(f"{path}: cannot be read: {error.strerror}")


class DirectoryReader(Closing):
    """A file that is open for reading. Safe for several threads at once."""

    def __init__(self, root: str, path: str, full_path: str, held: Optional[beneath.Held] = None) -> None:
        """full_path: for messages; held: as for beneath.parent."""
        self._full_path = full_path
        self._descriptor = -1
        try:
            self._descriptor, known = beneath.open_known(root, path, os.O_RDONLY, held=held)
            self.size = known.st_size
        except OSError as error:
            self.close()
            raise unreadable(self._full_path, error) from error

    def read(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, offset) if offset + length <= self.size else b""
        except OSError as error:
            raise unreadable(self._full_path, error) from error
        if len(data) != length:
            raise errors.Damaged(f"{self._full_path}: the file is cut short")
        return data

    def close(self) -> None:
        if self._descriptor != -1:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = close


class DirectoryWriter(Sealing):
    """A file being created, or one that an interrupted run was writing, continued at its end.

    After an error every call but `close` fails; only `seal` makes the file durable. size and sha256 cover what this
    object wrote.
    """

    def __init__(self, root: str, path: str, new: Optional[Access]) -> None:
        """new: the Access of a file that must not exist yet; None if the file must exist."""
        self.path = path
        self.size = 0
        self._full_path = os.path.join(root, path)
        self._sha256 = hashlib.sha256()
        how = os.O_APPEND if new is None else os.O_CREAT | os.O_EXCL
        with translated("create", self._full_path):
            self._descriptor: Optional[int] = beneath.open_file(root, path, os.O_WRONLY | how, 0o600)
            if new is not None:
                access.give(self._descriptor, new.file, new)

    def write(self, data: bytes) -> None:
        with self._writing() as descriptor:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        self._sha256.update(data)
        if self.size // file_system.WRITEBACK_STEP != (self.size + len(data)) // file_system.WRITEBACK_STEP:
            file_system.start_writeback(descriptor)
        self.size += len(data)

    @contextmanager
    def _writing(self) -> Iterator[int]:
        """Give the descriptor. Any OSError inside the block closes the file."""
        if self._descriptor is None:
            raise errors.OutputError(f"cannot write to {self._full_path}: it is closed, or an earlier write failed")
        try:
            with translated("write to", self._full_path):
                yield self._descriptor
        except errors.OutputError:
            self.close()  # a second fsync would report success, although the first one lost data
            raise

    def sync(self) -> None:
        """Make durable what was written so far; more may follow."""
        with self._writing() as descriptor:
            os.fsync(descriptor)

    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def seal(self) -> None:
        self.sync()
        self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
