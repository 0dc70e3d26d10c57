"""Files of a store in a bucket of an object store: each is one object, and a folder what their keys have in common.
base.py says what each call promises.

An object appears whole and durable, by one request, or not at all: so what is being written has no name yet, and there
is nothing to sync. Owns: which key a file has, where bytes wait until they are sent, what of a listing is remembered.
Must not know: requests (s3_client.py), what makes a place a store, what any file holds.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Callable, Optional

from ..core import errors
from ..core.errors import Check
from ..crypto.seal import PLAIN, Seal
from .base import MAX_READ
from .read_ahead import ReadAhead
from .s3_client import Absent, Bucket, Exists, Found
from .s3_probe import Probed, probe

SCHEME = "s3://"
CHUNK_SIZE = 64 << 20  # bytes of a large file: it is sent as a whole, and again where that fails
_IN_MEMORY = 8 << 20  # bytes of a file being written; what is more waits in a temporary file without a name
_KEPT = 16 << 10  # bytes of a file that is kept for a second look
_STEP = 8 << 20  # bytes of one request of a file that is read from end to end
_URL = re.compile(r"s3://([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])(?:/(.*?))?/*\Z", re.IGNORECASE | re.DOTALL)


def normal(url: str) -> str:
    """The same place, always spelled alike; UsageError where that is none."""
    match = _URL.match(url)
    prefix = (match[2] or "") if match else ""
    if match is None or any(each in ("", ".", "..") for each in prefix.split("/") if prefix):
        raise errors.UsageError(f"{url}: no place in an object store; name it as s3://BUCKET or s3://BUCKET/PREFIX")
    return f"{SCHEME}{match[1]}/{prefix}".rstrip("/")


class S3Store:
    """The objects of a bucket whose keys begin with a prefix. patience: see s3_client."""

    has_locks = False
    chunk_size: Optional[int] = CHUNK_SIZE

    def __init__(self, url: str, patience: Optional[float] = None) -> None:
        self.root = normal(url)
        name, _, prefix = self.root[len(SCHEME) :].partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self.bucket = Bucket(name) if patience is None else Bucket(name, patience)
        self.seal: Seal = PLAIN
        self._ahead = ReadAhead()
        self._listed = _Listed()
        self._warnings: list[str] = []

    def probed(self) -> Probed:
        """What the server does, of which `warnings` tell from then on; StoreError where no store can be there."""
        found = probe(self.bucket, self._prefix)
        self._warnings = found.warnings()
        return found

    def path(self, *names: str) -> str:
        return "/".join([self.root, *filter(None, names)])

    def _key(self, path: str) -> str:
        return self._prefix + path

    # Reading

    def read(self, path: str, limit: int = MAX_READ) -> bytes:
        data = self.find(path, limit)
        if data is None:
            raise self._missing(path)
        return data

    def find(self, path: str, limit: int = MAX_READ) -> Optional[bytes]:
        if not self._may_be_there(path):
            return None
        data = self._listed.data(path)
        if data is None:
            try:
                data = self.bucket.get(self._key(path), 0, limit + 1)
            except Absent:
                return None
        if len(data) > limit:
            raise errors.Damaged(f"{self.path(path)}: the file has more than {limit} bytes, which none of its kind has")
        self._listed.keep(path, data)
        return data

    def _may_be_there(self, path: str) -> bool:
        files = self._listed.of(path)
        return files is None or path in files

    def _missing(self, path: str) -> errors.Damaged:
        return errors.Damaged(f"{self.path(path)}: the file is missing")

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        return self._range(path, offset, length) if length else self.open_reader(path).read(offset, length)

    def _range(self, path: str, offset: int, length: int) -> bytes:
        try:
            data = self.bucket.get(self._key(path), offset, offset + length)
        except Absent:
            raise self._missing(path) from None
        if len(data) != length:
            raise self._short(path)
        return data

    def _short(self, path: str) -> errors.Damaged:
        return errors.Damaged(f"{self.path(path)}: the file is cut short")

    def open_reader(self, path: str) -> S3Reader:
        size = self.size(path)
        if size is None:
            raise self._missing(path)
        return S3Reader(self, path, size)

    def read_ahead(self, path: str, size: int, offset: int, length: int) -> bytes:
        """Of a file of that size: `length` bytes from `offset`; Damaged where it has not so many."""
        if offset + length > size:
            raise self._short(path)
        fetch = lambda start, stop: self._range(path, start, stop - start)  # noqa: E731
        return self._ahead.read(path, size, offset, length, fetch) if length else b""

    def size(self, path: str) -> Optional[int]:
        found = self._found(path) if path else None
        return None if found is None else found.size

    def _found(self, path: str) -> Optional[Found]:
        files = self._listed.of(path)
        if files is not None:
            return files.get(path)
        try:
            return self.bucket.head(self._key(path))
        except Absent:
            return None

    def sha256(self, path: str, check: Check = lambda: None) -> str:
        digest, size = hashlib.sha256(), self.size(path)
        if size is None:
            raise self._missing(path)
        check()
        for start in range(0, size, _STEP):
            digest.update(self._range(path, start, min(_STEP, size - start)))
            check()
        return digest.hexdigest()

    def free_bytes(self) -> Optional[int]:
        return None

    # Looking

    @contextmanager
    def looking(self, path: str, anew: bool = False) -> Iterator[None]:
        if not anew and self._listed.of(f"{path}/") is not None:
            yield
            return
        with self._listed.during(path, self._below(path)):
            yield

    def _below(self, path: str) -> dict[str, Found]:
        """{path: Found} of all files in a folder, and in those in it."""
        found = self.bucket.objects(self._key(f"{path}/" if path else ""))
        return {each.key[len(self._prefix) :]: each for each in found}

    def folders(self, path: str = "") -> list[str]:
        return self._level(path)[0]

    def files(self, path: str = "") -> list[str]:
        return self._level(path)[1]

    def names(self, path: str) -> list[str]:
        folders, files = self._level(path)
        return sorted({*folders, *files})

    def _level(self, path: str) -> tuple[list[str], list[str]]:
        """Names of (folders, files)."""
        below = f"{path}/" if path else ""
        known = self._listed.of(below)
        if known is None:
            folders, files = self.bucket.level(self._key(below))
        else:
            rests = [each[len(below) :].partition("/") for each in known if each.startswith(below)]
            folders = [name for name, is_folder, _ in rests if is_folder]
            files = [name for name, is_folder, _ in rests if not is_folder]
        return sorted({*folders}), sorted({*files})

    def holds(self, path: str) -> bool:
        if not path:
            return any(self.bucket.objects(self._prefix, 1))
        known = self._listed.of(path)
        if known is not None:
            return path in known or any(each.startswith(f"{path}/") for each in known)
        return self._found(path) is not None or self._is_folder(path)

    def _is_folder(self, path: str) -> bool:
        return any(self.bucket.objects(self._key(f"{path}/"), 1))

    def seconds_since_change(self, path: str) -> float:
        """Of a folder: since anything in it was made."""
        try:
            found = self._found(path)
            ages = [found.age] if found else [each.age for each in self._within(path)]
        except errors.StoreError as error:
            raise errors.OutputError(str(error)) from error
        if not ages:
            raise errors.OutputError(f"cannot look at {self.path(path)}: there is nothing of that name")
        return min(ages)

    def _within(self, path: str) -> Iterable[Found]:
        known = self._listed.of(f"{path}/")
        if known is None:
            return self._below(path).values()
        return [found for name, found in known.items() if name.startswith(f"{path}/")]

    def inode(self, path: str) -> Optional[int]:
        return None

    def is_same(self, path: str, other: str) -> Optional[bool]:
        return other == self.path(path)

    def warnings(self) -> list[str]:
        return self._warnings

    # Creating and removing

    def make_folder(self, path: str, fresh: bool = False) -> None:
        if fresh and self._is_folder(path):
            raise self._exists("create the folder", path)

    def _exists(self, doing: str, path: str) -> errors.OutputExists:
        return errors.OutputExists(f"cannot {doing} {self.path(path)}: it exists already; nothing is ever overwritten")

    def create(self, path: str) -> S3Writer:
        return S3Writer(self, path, fresh=True)

    def publish(self, path: str, data: bytes) -> None:
        with self.create(path) as file:
            file.write(data)

    def put(self, path: str, body: tempfile.SpooledTemporaryFile[bytes], size: int, digest: bytes, fresh: bool) -> None:
        """Make a file of those bytes. fresh: OutputExists where there is one."""
        try:
            self.bucket.put(self._key(path), body, size, digest, fresh)
        except Exists:
            raise self._exists("create", path) from None
        self._listed.note(Found(path, size, 0.0))

    def remove_file(self, path: str) -> None:
        with suppress(errors.NbdpullError):
            self.delete(path)

    def remove_folder(self, path: str) -> None:
        with suppress(errors.NbdpullError):
            known = self._listed.of(f"{path}/")
            for each in [*(self._below(path) if known is None else known)]:
                if each.startswith(f"{path}/"):
                    self.delete(each)

    def delete(self, path: str) -> None:
        self.bucket.delete(self._key(path))
        self._listed.forget(path)

    def rename(self, path: str, new: str) -> None:
        data = self.find(path)
        if data is None:
            raise errors.OutputError(f"cannot rename {self.path(path)}: the file is missing")
        self.publish(new, data)
        self.delete(path)

    def replace(self, path: str, data: bytes, was: Optional[bytes] = None) -> None:
        if was is not None:
            return self._exchange(path, was, data)
        with self.replacing(path) as file:
            file.write(data)

    def _exchange(self, path: str, was: bytes, data: bytes) -> None:
        key, digest = self._key(path), hashlib.sha256(data).digest()
        with suppress(Absent):
            for spelled in ("{}", '"{}"'):  # Ceph 16.2 takes its own tag only without the quotes that it writes
                there, tag = self.bucket.tagged(key)
                if there != was:
                    break
                with suppress(Exists):
                    self.bucket.put(key, data, len(data), digest, fresh=False, tag=spelled.format(tag))
                    self._listed.note(Found(path, len(data), 0.0))
                    return
        raise errors.Busy(f"{self.path(path)}: another nbdpull changed it meanwhile: try again")

    def replacing(self, path: str) -> S3Writer:
        return S3Writer(self, path, fresh=False)

    def make_durable(self, path: str) -> None:
        if self.size(path) is None:
            raise self._missing(path)

    def sync_folder(self, path: str) -> None:
        pass

    @contextmanager
    def locked(self, path: str, doing: str, holder: Callable[[], str] = lambda: "another nbdpull") -> Iterator[None]:
        yield


class _Listed:
    """What listings said, for as long as somebody looks, with what was changed here since."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Found]] = {}  # {path of a folder with its "/": {path: Found}}
        self._data: dict[str, bytes] = {}  # of small files that were read meanwhile

    def of(self, path: str) -> Optional[dict[str, Found]]:
        """Of the folder, or one above it, that a file is in."""
        with self._lock:
            return next((known for folder, known in self._known.items() if path.startswith(folder)), None)

    @contextmanager
    def during(self, path: str, known: dict[str, Found]) -> Iterator[None]:
        folder = f"{path}/" if path else ""
        with self._lock:
            self._known[folder] = known
        try:
            yield
        finally:
            with self._lock:
                self._known.pop(folder, None)
                self._data = {} if not self._known else self._data

    def data(self, path: str) -> Optional[bytes]:
        """Of a file, where that was kept."""
        with self._lock:
            return self._data.get(path)

    def keep(self, path: str, data: bytes) -> None:
        """For who reads it again as long as somebody looks: points are loaded more than once."""
        with self._lock:
            is_listed = any(path.startswith(folder) for folder in self._known)
            if is_listed and len(data) <= _KEPT and len(self._data) * _KEPT < _IN_MEMORY:
                self._data[path] = data

    def forget(self, path: str) -> None:
        """Of a file that is gone."""
        self._change(path, None)

    def note(self, made: Found) -> None:
        """Of a file that was made. key: its path."""
        self._change(made.key, made)

    def _change(self, path: str, made: Optional[Found]) -> None:
        with self._lock:
            self._data.pop(path, None)
            for folder in [each for each in self._known if path.startswith(each)]:
                known = {each: found for each, found in self._known[folder].items() if each != path}
                self._known[folder] = {**known, path: made} if made else known


class S3Reader:
    """A file that is open for reading; may be used by several threads at once."""

    def __init__(self, store: S3Store, path: str, size: int) -> None:
        self.size = size
        self._store, self._path = store, path

    def read(self, offset: int, length: int) -> bytes:
        return self._store.read_ahead(self._path, self.size, offset, length)

    def close(self) -> None:
        pass

    def __enter__(self) -> S3Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class S3Writer:
    """A file being created: it is sent when it is sealed, so nothing shows before."""

    def __init__(self, store: S3Store, path: str, fresh: bool) -> None:
        self.path, self.size = path, 0
        self._store, self._fresh = store, fresh
        self._sha256 = hashlib.sha256()
        self._body: Optional[tempfile.SpooledTemporaryFile[bytes]] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115

    def write(self, data: bytes) -> None:
        body = self._opened()
        try:
            body.write(data)
        except OSError as error:
            self.close()
            where = tempfile.gettempdir()
            raise errors.OutputError(
                f"cannot write to {self._store.path(self.path)}: {error.strerror} in {where}, where it waits to be "
                "sent; set TMPDIR to another folder"
            ) from error
        self._sha256.update(data)
        self.size += len(data)

    def _opened(self) -> tempfile.SpooledTemporaryFile[bytes]:
        if self._body is None:
            full = self._store.path(self.path)
            raise errors.OutputError(f"cannot write to {full}: it is closed, or an earlier write failed")
        return self._body

    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def seal(self) -> None:
        try:
            self._store.put(self.path, self._opened(), self.size, self._sha256.digest(), self._fresh)
        finally:
            self.close()

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def __enter__(self) -> S3Writer:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        try:
            if kind is None:
                self.seal()
        finally:
            self.close()
