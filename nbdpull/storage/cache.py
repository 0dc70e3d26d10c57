"""Parts of the objects of a bucket, kept in a folder of this host so that they need not be requested again.

Any number of processes use one folder at once: a piece is there whole or not at all, and a process that has added much
removes the least recently used pieces. A lost piece is requested again, so no failure here is an error: if the cache
does not work, the user is warned once. Pieces are stored as in the bucket: sealed, if the store is. Owns: that folder.
Must not know: what a piece contains, which store it belongs to.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import threading
import time
import weakref
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Callable, NamedTuple, Optional

from ..core import errors, sizes
from ..core.choices import CACHE_DIR, CACHE_DIR_SIZE

LIMIT = 1 << 30  # bytes, unless the user sets a limit
LEAST = 16 << 20
TAG = "CACHEDIR.TAG"  # by which backup programs recognise a folder that they may skip
TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# Pieces of stores of nbdpull, which may be removed.\n"
COST = 4096  # bytes of disk space of a file beyond its content
STALE = 3600.0  # seconds until a use is recorded again, and until an incomplete piece counts as a dead process's
_PART = 16  # the pieces added since the last tidying, and any single piece, are at most this part of the limit
_CHECK = 4  # bytes
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NAME, _HALF = re.compile(r"[0-9a-f]{62}\Z"), ".new"

Warn = Callable[[str], None]


def _check(data: bytes) -> bytes:
    """Return the checksum that precedes the data of a piece."""
    return zlib.crc32(data).to_bytes(_CHECK, "little")


class _Piece(NamedTuple):
    used: float
    size: int
    path: str


def chosen(warn: Warn) -> Optional[Cache]:
    """Return the cache that the environment names; None if none is named or it cannot be used. warn: see Cache.
    UsageError."""
    folder, limit = os.environ.get(CACHE_DIR), os.environ.get(CACHE_DIR_SIZE)
    if not folder:
        return None
    try:
        size = sizes.parse(limit) if limit else LIMIT
        if size < LEAST:
            raise ValueError(f"give {sizes.shown(LEAST)} or more")
    except ValueError as error:
        raise errors.UsageError(f"--cache-dir-size, {CACHE_DIR_SIZE}: {error}") from None
    try:
        return Cache(folder, size, warn)
    except NotADirectoryError as error:
        raise errors.UsageError(f"--cache-dir {folder}: {error.strerror}") from error
    except OSError as error:
        warn(f"--cache-dir {folder}: {error.strerror}; it is not used")
        return None


class Cache:
    """A folder of pieces, least recently used first out. limit: bytes of all pieces, approximately. warn: called once,
    with the reason why nothing more is kept. Safe for several threads at once. OSError if the folder cannot be created
    or read, is open to other users, or contains other files."""

    def __init__(self, folder: str, limit: int, warn: Warn) -> None:
        self._folder, self._limit, self._warn = os.path.abspath(folder), limit, warn
        self._lock = threading.Lock()
        self._put: Optional[int] = None  # bytes added since the last tidying; None: there was none yet
        self._is_broken = False
        with suppress(FileExistsError):
            os.makedirs(self._folder, 0o700)
        self._root = os.open(self._folder, _FOLDER)  # another user's folder may have that name later
        weakref.finalize(self, os.close, self._root)
        self._prepare()

    def _prepare(self) -> None:
        found = os.fstat(self._root)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise OSError(errno.EACCES, "only you may have access to it (chmod 700), or others can read it")
        names = os.listdir(self._root)
        if TAG in names:
            return
        if names:
            raise OSError(errno.ENOTEMPTY, "it is not empty, and not a cache of nbdpull")
        with open(TAG, "w", encoding="ascii", opener=partial(os.open, mode=0o600, dir_fd=self._root)) as file:
            file.write(TAG_TEXT)

    def get(self, *name: object) -> Optional[bytes]:
        """Return the piece of this name, whose parts together identify it; None if it is not in the cache."""
        try:
            descriptor = os.open(_path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._root)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._break(error)
            return None
        try:
            status = os.fstat(descriptor)
            digits, data = os.read(descriptor, _CHECK), os.read(descriptor, status.st_size)
            if time.time() - status.st_mtime > STALE:
                with suppress(OSError):  # the piece can be read nevertheless
                    os.utime(descriptor)
        except OSError as error:
            self._break(error)
            return None
        finally:
            os.close(descriptor)
        return data if digits == _check(data) else None  # else the host lost power: it is fetched again

    def put(self, data: bytes, *name: object) -> None:
        """Keep a piece, replacing an existing one of that name."""
        if self._is_broken or len(data) > self._limit // _PART:
            return
        path = _path(name)
        half = f"{path}.{secrets.token_hex(4)}{_HALF}"
        try:
            with suppress(FileExistsError):
                os.mkdir(os.path.dirname(path), 0o700, dir_fd=self._root)
            with open(half, "xb", opener=partial(os.open, mode=0o600, dir_fd=self._root)) as file:
                file.write(_check(data))
                file.write(data)
            os.rename(half, path, src_dir_fd=self._root, dst_dir_fd=self._root)
            self._count(len(data) + COST)
        except OSError as error:
            self._break(error)
            with suppress(OSError):
                os.unlink(half, dir_fd=self._root)

    def _break(self, error: OSError) -> None:
        with self._lock:
            was_broken, self._is_broken = self._is_broken, True
        if not was_broken:
            self._warn(f"--cache-dir {self._folder}: {error.strerror}; nothing more is kept there")

    def _count(self, size: int) -> None:
        with self._lock:
            self._put = None if self._put is None else self._put + size
            if self._put is None or self._put > self._limit // _PART:
                self._tidy()
                self._put = 0

    def _tidy(self) -> None:
        """Make room for what may be added until the next call."""
        found = sorted(self._pieces())
        size = sum(each.size for each in found)
        for each in found:
            if size <= self._limit - self._limit // _PART:
                return
            with suppress(OSError):  # another process was faster
                os.unlink(each.path, dir_fd=self._root)
            size -= each.size

    def _pieces(self) -> Iterator[_Piece]:
        """Yield the existing pieces, and remove the incomplete ones that dead processes left."""
        for name in os.listdir(self._root):
            if len(name) == 2:
                with suppress(FileNotFoundError, NotADirectoryError):
                    yield from self._pieces_in(name)

    def _pieces_in(self, folder: str) -> Iterator[_Piece]:
        now, descriptor = time.time(), os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=self._root)
        try:
            for name in os.listdir(descriptor):
                with suppress(FileNotFoundError):  # another process was faster
                    found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    if _NAME.match(name):
                        yield _Piece(found.st_mtime, found.st_size + COST, f"{folder}/{name}")
                    elif name.endswith(_HALF) and now - found.st_mtime > STALE:
                        os.unlink(name, dir_fd=descriptor)
        finally:
            os.close(descriptor)


def _path(name: tuple[object, ...]) -> str:
    """Return the path of a piece within the folder."""
    digest = hashlib.sha256("\0".join(map(str, name)).encode()).hexdigest()
    return f"{digest[:2]}/{digest[2:]}"
