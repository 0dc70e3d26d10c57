"""Where a restored disk goes: a new image, an image or block device that is there, an NBD export, or a pipe.

Owns: what a place named by the user is, that it fits before anything is written, and that a new image carries its final
name only when it is whole. Must not know: points, frames, which disk it is.

A target is the other end of a copy than a source or an image, with the verbs `write`, `zero`, `flush` (and `read` and
`allocated`, to compare before writing), and three facts: `size` in bytes, `blank` (it reads as zero everywhere) and
`sequential` (it takes ascending writes only). In one call of `write` belongs all that is written of a block of 1 MiB.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Callable, Optional, Protocol

from ..core import errors, sizes
from ..core.errors import Check
from ..images import image_header, image_lock, qcow2, qemu_img
from ..storage.store import WRITEBACK_STEP, start_writeback, translated

if TYPE_CHECKING:
    from ..core.extents import Buffer
    from ..nbd.nbd_target import NbdTarget

    Range = tuple[int, int]  # (offset, length)
    Part = tuple[int, Buffer]  # (offset, bytes)

NEW, EXISTING, DEVICE, NBD, STDOUT = "new image", "image", "block device", "NBD export", "stdout"

# Options of a new image that name another file or its size: the one would show through or be overwritten.
_REFUSED_OPTIONS = ("backing_file", "backing_fmt", "data_file", "size")
_PUNCH_HOLE, _ZERO_RANGE, _KEEP_SIZE = 2, 16, 1
_MAX_IOV = 1024  # buffers in one pwritev
_ANYWHERE = 1 << 31  # bytes that a file can have on any file system
LOOK_INTERVAL = 0.2  # seconds between looks at the stop flag


class Target(Protocol):
    size: int
    blank: bool
    sequential: bool

    def write(self, parts: Sequence[Part]) -> int: ...

    def flush(self) -> None: ...


class Rewritable(Target, Protocol):
    """One that may hold something."""

    def zero(self, offset: int, length: int) -> int: ...

    def read(self, offset: int, length: int) -> Buffer: ...

    def allocated(self, offset: int, length: int) -> list[Range]: ...


@dataclass(frozen=True)
class Place:
    """Where one disk goes. kind: one of the above; path: a URI for NBD; options: of qemu-img create, for NEW qcow2;
    secret: path of a file with that by which it is encrypted there, None: it is not."""

    kind: str
    path: str
    format: str = "raw"
    options: str = ""
    secret: Optional[str] = None

    @property
    def image(self) -> list[str]:
        """How QEMU's programs are told of it."""
        return qemu_img.named(self.path, self.format, self.secret, self.kind == DEVICE)


def is_uri(text: str) -> bool:
    return text.startswith(("nbd://", "nbd+unix://", "nbds://", "nbds+unix://"))


def is_device(text: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISBLK(os.stat(text).st_mode)
    return False


def is_raw(text: str) -> bool:
    """Whether it is no image file, and so takes raw bytes only."""
    return text == "-" or is_uri(text) or is_device(text)


def place(
    text: str, kind: Optional[str] = None, options: str = "", in_place: bool = False, secret: Optional[str] = None
) -> Place:
    """The Place that the user means. kind: "raw", "qcow2" or None, what is best there; in_place: an image is there."""
    if is_raw(text):
        if kind == "qcow2" or options:
            raise errors.UsageError(f"{text}: only raw can be written there, give no other format and no image options")
        if secret and not is_device(text):
            raise errors.UsageError(f"{text}: what goes there cannot be encrypted on the way")
        return Place(STDOUT if text == "-" else NBD if is_uri(text) else DEVICE, text, secret=secret)
    path = os.path.realpath(text) if os.path.exists(text) else os.path.abspath(text)  # not a link is replaced
    if path.startswith("/dev/") and not path.startswith("/dev/shm/"):
        raise errors.UsageError(f"{text}: there is no block device of that name")
    kind = kind or image_header.QCOW2
    _require_sensible(options, kind == image_header.QCOW2 or bool(secret))
    return Place(EXISTING if in_place else NEW, path, kind, options, secret)


def _require_sensible(options: str, made_by_qemu_img: bool) -> None:
    if options and not made_by_qemu_img:
        raise errors.UsageError("--image-options are those of qcow2, not of raw")
    for name in [option.partition("=")[0].strip() for option in options.split(",")]:
        if name in _REFUSED_OPTIONS:
            raise errors.UsageError(f"--image-options: not {name}: the image is one file, of the disk's size")


def require_fit(
    place: Place, size: int, force: bool = False, in_place: bool = False, check: Check = lambda: None
) -> None:
    """Raise unless a disk of `size` bytes can go there; nothing is changed. force: what is there may be overwritten."""
    if place.kind == STDOUT:
        if sys.stdout.isatty():
            raise errors.UsageError("-o -: stdout is a terminal; send it to a file or a program")
        return
    if place.kind == NEW:
        if os.path.lexists(place.path) and not force:
            raise errors.OutputExists(f"{place.path} exists; give --force to overwrite it, or another folder to -o")
        _require_replaceable(place.path)
        return
    room = _room(place, check)
    if place.kind != EXISTING and room < size:  # a file can be made to grow
        raise errors.OutputError(f"{place.path} has {room} bytes, the disk needs {size}; nothing was written")
    if not (force or in_place):
        raise errors.OutputExists(f"{place.path} exists; give --force to overwrite all that is on it")


def require_folder(place: Place, to_be_made: Optional[str] = None) -> None:
    """Raise unless a new image can be made where it is to go. to_be_made: a folder that will be there by then."""
    if place.kind != NEW:
        return
    folder, there = os.path.dirname(place.path), _existing_folder(place.path)
    below = os.path.join(there, os.path.relpath(folder, there).split(os.sep)[0])
    if os.path.lexists(below) and not os.path.isdir(below):
        raise errors.OutputExists(f"cannot create {place.path}: {below} exists and is no folder")
    why = None
    if folder != there and (to_be_made is None or folder != os.path.abspath(to_be_made)):
        why = f"there is no folder {folder}, make it first"
    elif not os.access(there, os.W_OK | os.X_OK):
        why = os.strerror(errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES)
    if why:
        raise errors.OutputError(f"cannot create {place.path}: {why}")


def require_file_size(place: Place, size: int) -> None:
    """Raise where a raw image would be larger than a file can be on its file system."""
    if place.kind not in (NEW, EXISTING) or place.format != image_header.RAW:
        return
    folder = _existing_folder(place.path)
    limit = _largest_file(folder, size)
    if limit < size:
        raise errors.OutputError(
            f"cannot create {place.path}: it would be a file of {sizes.shown(size)}, and none can be larger than "
            f"{sizes.shown(limit)} on the file system of {folder}; restore it as qcow2 (--format qcow2), or elsewhere"
        )


def _largest_file(folder: str, wanted: int) -> int:
    """The size in bytes that a file there can have, as far as it is below `wanted`; `wanted` where no file can be made,
    which others tell."""
    if wanted < _ANYWHERE:
        return wanted
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as probe:
        if not _takes(probe, wanted):
            fits, too_large = 0, wanted
            while too_large - fits > 1:
                middle = (fits + too_large) // 2
                fits, too_large = (middle, too_large) if _takes(probe, middle) else (fits, middle)
            return fits
    return wanted


def _takes(probe: IO[bytes], size: int) -> bool:
    try:
        os.ftruncate(probe.fileno(), size)
        return True
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        return False


def first_bytes(place: Place, count: int, check: Check = lambda: None) -> bytes:
    """Up to so many of the first bytes of what is at a Place, none where nothing is."""
    if place.kind == NBD:
        with _opened_uri(place.path, 1, check) as export:
            return bytes(export.read(0, min(count, export.size)))
    if place.kind == STDOUT or not (os.path.isfile(place.path) or is_device(place.path)):  # a FIFO would never answer
        return b""
    with translated("read", place.path), open(place.path, "rb") as file:
        return file.read(count)


def _require_replaceable(path: str) -> None:
    """Raise where something is that is no image, or an image in use: its VM would go on with a nameless file."""
    if not os.path.exists(path):
        return
    if not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "no regular file"
        raise errors.OutputExists(f"{path} is {what}")
    with translated("open", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            image_lock.keep_all_out(descriptor, path)
        finally:
            os.close(descriptor)


def require_space(needs: Iterable[tuple[Place, Callable[[], int], int]]) -> None:
    """Raise OutputFull unless new images can be written. needs: of each (Place, function that tells how many bytes it
    takes, and a bound of that which is known at once)."""
    file_systems: dict[int, list[tuple[str, Callable[[], int], int]]] = {}
    for place, exact, bound in needs:
        folder = _existing_folder(place.path)
        with translated("look into", folder):
            file_systems.setdefault(os.stat(folder).st_dev, []).append((folder, exact, bound))
    for images in file_systems.values():
        status = os.statvfs(images[0][0])
        free = status.f_bavail * status.f_frsize
        if sum(bound for _, _, bound in images) <= free:
            continue
        wanted = sum(exact() for _, exact, _ in images)
        if wanted > free:
            raise errors.OutputFull(
                f"cannot write to {images[0][0]}: the images take {wanted} bytes, {free} are free; free space, choose "
                "another folder, or say --no-space-check; nothing was written"
            )


def _existing_folder(path: str) -> str:
    folder = os.path.dirname(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def block_size(place: Place) -> int:
    """What a new image is made of: bytes."""
    return qcow2.CLUSTER if place.format == "qcow2" else 4096


def _room(place: Place, check: Check) -> int:
    if place.kind == NBD:
        with _opened_uri(place.path, 1, check) as export:
            size: int = export.size
            return size
    if place.secret:
        return qemu_img.virtual_size(place.path, place.format, place.secret, place.kind == DEVICE)
    if place.format == "qcow2":
        return _qcow2_size(place.path)
    with translated("open", place.path):
        descriptor = os.open(place.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return os.lseek(descriptor, 0, os.SEEK_END)
        finally:
            os.close(descriptor)


def _qcow2_size(path: str) -> int:
    with translated("open", path), open(path, "rb") as file:
        if image_header.parse(file.read(image_header.SIZE)).format != image_header.QCOW2:
            raise errors.UsageError(f"{path} is no qcow2 image; give --format raw if it is a raw one")
    return qemu_img.virtual_size(path, "qcow2")


def _opened_uri(uri: str, connections: int, check: Check = lambda: None) -> NbdTarget:
    from ..nbd import nbd_target

    opened: NbdTarget = nbd_target.open_uri(uri, connections, check)
    return opened


@contextlib.contextmanager
def open_target(
    place: Place, size: int, connections: int, force: bool = False, check: Check = lambda: None
) -> Iterator[Target]:
    """Give the target of a Place for a disk of `size` bytes; what was written is durable after its `flush`.
    check() is called while a server is waited for.

    Left without an exception, a NEW image is at its path, replacing what was there; left by one there is none.
    """
    if place.kind == NEW:
        with whole(place.path, force) as draft, _draft(place, draft, size, connections, check) as image:
            yield image
    else:
        with _OPEN[place.kind](place, size, connections, check) as target:
            yield target


@contextlib.contextmanager
def whole(path: str, force: bool = False) -> Iterator[str]:
    """Give the name of a new, empty draft. Left without an exception, it is at `path`, durable, in the place of what
    was there; left by one it is gone."""
    draft = f"{path}.partial"
    _claim(draft, force)
    try:
        yield draft
        with translated("write", path):
            _sync(draft)
            _like_the_replaced(draft, path)
            os.replace(draft, path)
            _sync(os.path.dirname(path))
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
            f"{draft} exists: another restore writes it, or one that was killed left it; give --force to overwrite it"
        ) from None


def _draft(place: Place, draft: str, size: int, connections: int, check: Check) -> AbstractContextManager[Target]:
    if place.options or place.secret:
        from ..nbd import nbd_target

        if place.secret:
            qemu_img.create_encrypted(draft, size, place.format, place.secret, place.options)
        else:
            qemu_img.create(draft, size, "-o", place.options)
        opened = nbd_target.qemu_nbd(draft, replace(place, path=draft).image, connections, True, check)
        # What was never written to raw LUKS is no zero: it is decrypted, too.
        return _blank(opened) if place.format == image_header.QCOW2 else opened
    with translated("create", draft):
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    if place.format == "qcow2":
        return NewQcow2(descriptor, draft, size)
    with translated("create", draft):
        os.ftruncate(descriptor, size)
    return File(descriptor, draft, size, blank=True)


@contextlib.contextmanager
def _blank(opening: AbstractContextManager[NbdTarget]) -> Iterator[Target]:
    with opening as target:
        target.blank = True
        yield target


def _like_the_replaced(draft: str, path: str) -> None:
    """A replaced image's owner and mode stay, so that whom it was for can still open it."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        before = os.stat(path)
        os.chmod(draft, stat.S_IMODE(before.st_mode))
        os.chown(draft, before.st_uid, before.st_gid)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _existing(place: Place, size: int, connections: int, check: Check) -> Iterator[Target]:
    if place.format == "qcow2" or place.secret:
        from ..nbd import nbd_target

        if _room(place, check) < size:
            qemu_img.grow(place.path, place.format, -(-size // qemu_img.SECTOR) * qemu_img.SECTOR, place.secret)
        with nbd_target.qemu_nbd(place.path, place.image, connections, False, check) as target:
            yield target
        return
    with translated("open", place.path):
        descriptor = os.open(place.path, os.O_RDWR | os.O_CLOEXEC)
        with File(descriptor, place.path, max(size, os.fstat(descriptor).st_size)) as target:
            image_lock.keep_all_out(descriptor, place.path)
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
            yield target


@contextlib.contextmanager
def _device(place: Place, size: int, connections: int, check: Check) -> Iterator[Target]:
    try:
        # EXCL: not one that is mounted, or part of a volume group or array
        descriptor = os.open(place.path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise errors.Busy(f"{place.path} is in use: mounted, or part of a volume group or array") from error
        raise errors.OutputError(f"cannot open {place.path}: {error.strerror}") from error
    if place.secret:
        from ..nbd import nbd_target

        opened = nbd_target.qemu_nbd(place.path, place.image, connections, False, check)
        with os.fdopen(descriptor, "rb"), opened as target:  # kept open: nobody else gets it meanwhile
            yield target
        return
    with File(descriptor, place.path, os.lseek(descriptor, 0, os.SEEK_END)) as target:
        image_lock.keep_all_out(descriptor, place.path)
        yield target


_OPEN: dict[str, Callable[[Place, int, int, Check], AbstractContextManager[Target]]] = {
    EXISTING: _existing,
    DEVICE: _device,
    NBD: lambda place, _size, connections, check: _opened_uri(place.path, connections, check),
    STDOUT: lambda _place, size, _connections, check: Stream(1, size, check),
}


class File:
    """A raw image or a block device; closes the descriptor. Used by several threads at once."""

    sequential = False

    def __init__(self, descriptor: int, path: str, size: int, blank: bool = False) -> None:
        self._descriptor, self._path = descriptor, path
        self.size, self.blank = size, blank
        self._since_writeback = 0

    def write(self, parts: Sequence[Part]) -> int:
        """Write [(offset, buffer), …], ascending; return how many bytes."""
        for offset, buffers in _runs(parts):
            self._pwrite(offset, buffers)
        return sum(len(buffer) for _, buffer in parts)

    def _pwrite(self, offset: int, buffers: list[Buffer]) -> None:
        with translated("write to", self._path):
            while buffers:
                done = os.pwritev(self._descriptor, buffers[:_MAX_IOV], offset)
                offset, buffers = offset + done, _rest(buffers, done)
                self._since_writeback += done
        if self._since_writeback >= WRITEBACK_STEP:  # a race of threads costs a call too many, no more
            self._since_writeback = 0
            start_writeback(self._descriptor)

    def zero(self, offset: int, length: int) -> int:
        """Make a range read as zero, by deallocating it where that can be done."""
        for mode in (_PUNCH_HOLE, _ZERO_RANGE):
            if not _FALLOCATE(self._descriptor, mode | _KEEP_SIZE, offset, length):
                return length
        zeros = bytes(min(length, 1 << 20))
        for at in range(offset, offset + length, len(zeros)):
            self._pwrite(at, [memoryview(zeros)[: offset + length - at]])
        return length

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        with translated("read", self._path):
            while length and (part := os.pread(self._descriptor, length, offset)):
                parts.append(part)
                offset, length = offset + len(part), length - len(part)
        return b"".join(parts) + bytes(length)

    def allocated(self, offset: int, length: int) -> list[Range]:
        """[(offset, length), …] of what may be other than zero in a range."""
        found, stop = [], offset + length
        try:
            while offset < stop:
                start = os.lseek(self._descriptor, offset, os.SEEK_DATA)
                offset = min(os.lseek(self._descriptor, start, os.SEEK_HOLE), stop)
                found += [(start, offset - start)] if start < offset else []
        except OSError as error:
            if error.errno != errno.ENXIO:  # no more data; else a block device, which has no holes
                return [*found, (offset, stop - offset)]
        return found

    def flush(self) -> None:
        with translated("write to", self._path):
            os.fsync(self._descriptor)

    def __enter__(self) -> File:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._descriptor)


class NewQcow2:
    """A qcow2 image in a new file. Used by several threads at once; each block of 1 MiB is written once."""

    sequential, blank = False, True

    def __init__(self, descriptor: int, path: str, size: int) -> None:
        self._file = File(descriptor, path, size)
        self._layout = qcow2.Layout(size)
        self.size = size

    def write(self, parts: Sequence[Part]) -> int:
        """Write [(offset, buffer), …], ascending; return how many bytes."""
        for first, count, members in _cluster_runs(parts):
            start, table, entries = self._layout.place(first, count)
            shift = start - first * qcow2.CLUSTER
            self._file.write([(offset + shift, buffer) for offset, buffer in members])
            self._file.write([(table, entries)])
        return sum(len(buffer) for _, buffer in parts)

    def flush(self) -> None:
        for offset, data in self._layout.finish():
            self._file.write([(offset, data)])
        # the last cluster may not be full, or not be written at all up to its end; new_image syncs the file

    def __enter__(self) -> NewQcow2:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.__exit__(*exc)


class Stream:
    """A pipe: takes bytes in order, what is not written becomes zeroes. check() is called while its reader is waited
    for."""

    sequential, blank = True, True

    def __init__(self, descriptor: int, size: int, check: Check = lambda: None) -> None:
        self._descriptor, self.size, self._check = descriptor, size, check
        self._reached = 0
        self._blocks = os.get_blocking(descriptor)
        os.set_blocking(descriptor, False)  # a write to a full pipe would hear no signal

    def write(self, parts: Sequence[Part]) -> int:
        for offset, buffer in parts:
            self._fill(offset)
            self._out(buffer)
        return sum(len(buffer) for _, buffer in parts)

    def _fill(self, stop: int) -> None:
        zeros = bytes(1 << 20)
        while self._reached < stop:
            self._out(memoryview(zeros)[: stop - self._reached])

    def _out(self, buffer: Buffer) -> None:
        view = memoryview(buffer)
        self._reached += len(view)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BrokenPipeError:
                raise  # the command line knows what it means
            except BlockingIOError:
                self._check()
                select.select([], [self._descriptor], [], LOOK_INTERVAL)
            except OSError as error:
                raise errors.OutputError(f"cannot write to stdout: {error.strerror}") from error

    def flush(self) -> None:
        self._fill(self.size)
        with contextlib.suppress(OSError):  # a pipe has none
            os.fsync(self._descriptor)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        os.set_blocking(self._descriptor, self._blocks)


def _runs(parts: Iterable[Part]) -> Iterator[tuple[int, list[Buffer]]]:
    """Group [(offset, buffer), …] into (offset, [adjacent buffers])."""
    start = reached = 0
    run: list[Buffer] = []
    for offset, buffer in parts:
        if run and offset != reached:
            yield start, run
            run = []
        start = start if run else offset
        run.append(buffer)
        reached = offset + len(buffer)
    if run:
        yield start, run


def _cluster_runs(parts: Iterable[Part]) -> Iterator[tuple[int, int, list[Part]]]:
    """Group [(offset, buffer), …] by runs of clusters, none of which reaches into another L2 table."""
    first = count = 0
    members: list[Part] = []
    for offset, buffer in parts:
        at, more = qcow2.clusters(offset, len(buffer))
        if members and (at > first + count or at // qcow2.TABLE != first // qcow2.TABLE):
            yield first, count, members
            members = []
        first = first if members else at
        count = at + more - first
        members.append((offset, buffer))
    if members:
        yield first, count, members


def _rest(buffers: list[Buffer], done: int) -> list[Buffer]:
    """What is left of buffers after their first `done` bytes."""
    while buffers and done >= len(buffers[0]):
        done -= len(buffers[0])
        buffers = buffers[1:]
    return [memoryview(buffers[0])[done:], *buffers[1:]] if done else buffers


_LIBC = ctypes.CDLL(None)
_FALLOCATE: Any = getattr(_LIBC, "fallocate64", getattr(_LIBC, "fallocate", lambda *_: -1))
if hasattr(_FALLOCATE, "argtypes"):
    _FALLOCATE.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
