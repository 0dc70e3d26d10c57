"""Pieces of what is in a bucket, kept in a folder of this host, so that they are not asked for again.

Any number of processes use one folder at once: a piece is there whole or not at all, and whoever has put much there
removes what was not used for longest. What is lost of it is asked for again, so nothing here is an error: where it
does not work, the user is told once. Pieces are as they are in the bucket: sealed, where the store is. Owns: that
folder. Must not know: what is in a piece, whose it is.
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

LIMIT = 1 << 30  # bytes, where nobody says
LEAST = 16 << 20
TAG = "CACHEDIR.TAG"  # by which programs that copy files know a folder that they may leave out
TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# Pieces of stores of nbdpull, which may be removed.\n"
COST = 4096  # bytes that a file takes beside what is in it
STALE = 3600.0  # seconds after which a use is noted again, and after which a half piece is one of a dead process
_PART = 16  # what was put since the folder was looked at is at most this part of the limit
_CHECK = 4  # bytes
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NAME, _HALF = re.compile(r"[0-9a-f]{62}\Z"), ".new"

Warn = Callable[[str], None]


def _check(data: bytes) -> bytes:
    """What a piece begins with."""
    return zlib.crc32(data).to_bytes(_CHECK, "little")


class _Piece(NamedTuple):
    used: float
    size: int
    path: str


def chosen(warn: Warn) -> Optional[Cache]:
    """The one that the environment names; None where nothing can be kept in it. warn: see Cache. UsageError."""
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
    """limit: bytes of all pieces, about. warn: is told, once, why nothing more is kept. May be used by several threads
    at once. OSError where the folder cannot be made or read, is not only ours, or holds anything else."""

    def __init__(self, folder: str, limit: int, warn: Warn) -> None:
        self._folder, self._limit, self._warn = os.path.abspath(folder), limit, warn
        self._lock = threading.Lock()
        self._put: Optional[int] = None  # bytes since the folder was looked at; None: it was not yet
        self._is_broken = False
        with suppress(FileExistsError):
            os.makedirs(self._folder, 0o700)
        self._root = os.open(self._folder, _FOLDER)  # what has that name later may be anybody's
        weakref.finalize(self, os.close, self._root)
        self._prepare()

    def _prepare(self) -> None:
        found = os.fstat(self._root)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise OSError(errno.EACCES, "it has to be yours alone (chmod 700), as whoever can enter it can read it")
        names = os.listdir(self._root)
        if TAG in names:
            return
        if names:
            raise OSError(errno.ENOTEMPTY, "it is not empty, and no cache of nbdpull")
        with open(TAG, "w", encoding="ascii", opener=partial(os.open, mode=0o600, dir_fd=self._root)) as file:
            file.write(TAG_TEXT)

    def get(self, *name: object) -> Optional[bytes]:
        """A piece, by whatever tells it from all others; None where it is not there."""
        try:
            descriptor = os.open(_path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._root)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._break(error)
            return None
        try:
            told = os.fstat(descriptor)
            digits, data = os.read(descriptor, _CHECK), os.read(descriptor, told.st_size)
            if time.time() - told.st_mtime > STALE:
                with suppress(OSError):  # it can be read all the same
                    os.utime(descriptor)
        except OSError as error:
            self._break(error)
            return None
        finally:
            os.close(descriptor)
        return data if digits == _check(data) else None  # else of a machine that lost its power: it is written again

    def put(self, data: bytes, *name: object) -> None:
        """Keep a piece, in the place of what has that name."""
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
        """Leave room for what may be put until the next time."""
        found = sorted(self._pieces())
        size = sum(each.size for each in found)
        for each in found:
            if size <= self._limit - self._limit // _PART:
                return
            with suppress(OSError):  # another process was faster
                os.unlink(each.path, dir_fd=self._root)
            size -= each.size

    def _pieces(self) -> Iterator[_Piece]:
        """Those that are there; the half ones that dead processes left are removed."""
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
    """Of a piece, in the folder."""
    digest = hashlib.sha256("\0".join(map(str, name)).encode()).hexdigest()
    return f"{digest[:2]}/{digest[2:]}"
