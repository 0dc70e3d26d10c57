"""The files of a store in a bucket: each file is one object, and a folder is a common prefix of their keys.

base.py documents each call. An object appears whole and durable, by one request, or not at all: so a file being written
has no name yet, and there is nothing to sync. Owns: the key of each file, which calls need a request. Must not know:
how requests are made (s3_client.py), what makes a place a store, what any file contains.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from functools import partial
from typing import Callable, NamedTuple, Optional, TypeVar, Union, cast

from ..core import errors, members, pipeline
from ..core.errors import Check
from ..crypto.seal import PLAIN, Seal
from .base import MAX_READ, Protection, Store
from .cache import Cache
from .probed import Probed
from .proving import Proving
from .read_ahead import ReadAhead
from .s3_client import PATIENCE, Body, Bucket, Found, Lock
from .s3_failure import Absent, Exists
from .s3_file import S3Reader, S3Writer
from .s3_listed import Listed
from .s3_past import PastBucket, bring_back, holding, last
from .s3_probe import probe, require_locks

SCHEME = "s3://"
CHUNK_SIZE = 64 << 20  # bytes of a large file: it is sent as a whole, and sent again if that fails
_STEP = 8 << 20  # bytes per request when a whole file is read
_AT_ONCE = 16  # requests: half of the connections that s3_library.py keeps
_AS_OF = "?as-of="
_LONGEST = 478  # bytes of a prefix: a key has at most 1,024, and the longest path of a file of a store 545
_T = TypeVar("_T")
_R = TypeVar("_R")
_URL = re.compile(r"s3://([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])(?:/(.*?))?/*\Z", re.IGNORECASE | re.DOTALL)


class Place(NamedTuple):
    """A place in an object store. url: in a normal form. when: the time as of which it is read, None: now."""

    url: str
    when: Optional[datetime]

    @property
    def name(self) -> str:
        return self.url if self.when is None else f"{self.url}{_AS_OF}{self.when.isoformat()}"


def normal(word: str) -> Place:
    """Return the Place that a word names; UsageError if it names none."""
    url, _, when = word.partition(_AS_OF)
    match = _URL.match(url)
    prefix = (match[2] or "") if match else ""
    if match is None or any(each in ("", ".", "..") for each in prefix.split("/") if prefix):
        raise errors.UsageError(f"{url}: not a place in an object store; name it as s3://BUCKET or s3://BUCKET/PREFIX")
    if flaw := members.flaw_of_text(prefix):
        raise errors.UsageError(f"{url}: the prefix {flaw}")
    if len(prefix.encode()) > _LONGEST:
        raise errors.UsageError(
            f"{url}: the prefix has more than {_LONGEST} bytes, and keys of files would be too long"
        )
    return Place(f"{SCHEME}{match[1]}/{prefix}".rstrip("/"), _time(word, when) if when else None)


def _time(word: str, when: str) -> datetime:
    with suppress(ValueError):
        found = datetime.fromisoformat(when)
        if found.tzinfo:
            return found
    raise errors.UsageError(f"{word}: not a time with a time zone")


def _lock(protection: Protection) -> Lock:
    return Lock(protection.mode.upper(), protection.until)


def _is_file(found: Found) -> bool:
    """Return whether an object can be a file of a store: file managers make one whose key ends in "/" for an empty
    folder."""
    return not found.key.endswith("/")


class S3Store:
    """The objects of a bucket whose keys begin with a prefix. url: starts the names in messages. patience: see
    s3_client; cache: keeps what is read from them on this host, None: no cache."""

    has_locks = False
    is_remote = True
    chunk_size: Optional[int] = CHUNK_SIZE
    protects = False
    protection: Optional[Protection] = None

    def __init__(self, url: str, patience: Optional[float] = None, cache: Optional[Cache] = None) -> None:
        found = normal(url)
        self.root, self.url, self.when = found.name, found.url, found.when
        name, _, prefix = self.url[len(SCHEME) :].partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        patience = PATIENCE if patience is None else patience
        self.bucket = Bucket(name, patience) if found.when is None else PastBucket(name, found.when, patience)
        self.seal: Seal = PLAIN
        self._ahead, self._proving = ReadAhead(), Proving(cache)
        self._changed: set[str] = set()  # paths of files that were replaced while open for reading
        self._listed = Listed()
        self._warnings: list[str] = []
        self._protected: dict[str, datetime] = {}  # {path: until}, protected by this object
        self._held: dict[tuple[str, tuple[int, str]], str] = {}  # {(path, (size, SHA-256)): id of its version}
        self._is_back: set[tuple[str, str]] = set()  # (path, version id) that this object has brought back

    def probed(self) -> Probed:
        """Try what the server can do, and return the result, which `warnings` covers from then on; StoreError if the
        server cannot hold a store."""
        found = probe(self.bucket, self._prefix)
        self._warnings = found.warnings()
        return found

    def require_locks(self) -> list[str]:
        """Raise StoreError if the bucket cannot lock objects; return a warning if that could not be proved.
        AccessDenied."""
        return require_locks(self.bucket, self._prefix)

    def path(self, *names: str) -> str:
        return "/".join([self.url, *filter(None, names)])

    def _key(self, path: str) -> str:
        return self._prefix + path

    # Reading

    def proved(self, read: Callable[[], _T]) -> _T:
        return self._proving.run(read)

    def several(self, work: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
        todo = [*items]
        count = min(len(todo), _AT_ONCE)
        if count < 2:
            return map(work, todo)
        return pipeline.ordered(work, todo, threads=count, budget=2 * count, weight=lambda each: 1)

    def read(self, path: str, limit: int = MAX_READ) -> bytes:
        data = self.find(path, limit)
        if data is None:
            raise self._missing(path)
        return data

    def find(self, path: str, limit: int = MAX_READ) -> Optional[bytes]:
        if not self._may_be_there(path):
            return None
        data = self._proving.old(self._listed.data(path))
        if data is None:
            found = self._as_listed(path)
            fetch = partial(self.bucket.tagged, self._key(path), 0, limit + 1)
            try:
                data = self._through_cache(path, found, (0, min(found.size if found else 0, limit + 1)), fetch)
            except Absent:
                return None
        if len(data) > limit:
            raise errors.Damaged(f"{self.path(path)}: the file has more than {limit} bytes, the maximum for its kind")
        self._listed.keep(path, data)
        return data

    def _as_listed(self, path: str) -> Optional[Found]:
        files = self._listed.of(path)
        return files.get(path) if files else None

    def _may_be_there(self, path: str) -> bool:
        files = self._listed.of(path)
        return files is None or path in files

    def _missing(self, path: str) -> errors.Damaged:
        return errors.Damaged(f"{self.path(path)}: the file is missing")

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        if not length:
            return self.open_reader(path).read(offset, length)
        fetch = partial(self._range, path, offset, offset + length)
        return self._through_cache(path, self._as_listed(path), (offset, offset + length), fetch)

    def _range(self, path: str, start: int, stop: int) -> tuple[bytes, str]:
        """Return (bytes, the tag of their object); Damaged if the object is missing or too short."""
        try:
            data, tag = self.bucket.tagged(self._key(path), start, stop)
        except Absent:
            raise self._missing(path) from None
        if len(data) != stop - start:
            raise self._short(path)
        return data, tag

    def _through_cache(
        self, path: str, found: Optional[Found], span: tuple[int, int], fetch: Callable[[], tuple[bytes, str]]
    ) -> bytes:
        """Return the bytes of a span of a file, from the cache if possible. found: the present state of the file, None
        if unknown: then the cache cannot be used. fetch: returns the bytes, and the tag of the object that they are
        from."""
        if not self._proving.is_on or found is None or not found.tag:
            return fetch()[0]
        name = self.bucket.endpoint, self.bucket.name, self._key(path), found.tag, *span
        data = self._proving.get(*name)
        if data is None:
            data, tag = fetch()
            if (tag, len(data)) == (found.tag, span[1] - span[0]):
                self._proving.fetched(data, *name)
        return data

    def _short(self, path: str) -> errors.Damaged:
        return errors.Damaged(f"{self.path(path)}: the file is cut short")

    def open_reader(self, path: str, again: bool = False, through: bool = False) -> S3Reader:
        found = self._found(path)
        if found is None:
            raise self._missing(path)
        return S3Reader(found.size, partial(self._read_again if again else self._read_ahead, path, found, through))

    def _read_again(self, path: str, found: Found, through: bool, offset: int, length: int) -> bytes:
        def fetch() -> tuple[bytes, str]:
            return self._read_ahead(path, found, through, offset, length), "" if path in self._changed else found.tag

        return self._through_cache(path, found, (offset, offset + length), fetch)

    def _read_ahead(self, path: str, found: Found, through: bool, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` of a file whose state at its opening was `found`; Damaged if it has
        fewer."""
        if offset + length > found.size:
            raise self._short(path)

        def fetch(start: int, stop: int) -> bytes:
            data, tag = self._range(path, start, stop)
            if tag != found.tag:  # replaced meanwhile: memory may hold parts of both
                self._changed.add(path)
            return data

        return self._ahead.read(path, found.size, offset, length, fetch, through) if length else b""

    def size(self, path: str) -> Optional[int]:
        found = self._found(path) if path else None
        return None if found is None else found.size

    def _found(self, path: str) -> Optional[Found]:
        files = self._listed.of(path)
        return self._asked(path) if files is None else files.get(path)

    def _asked(self, path: str) -> Optional[Found]:
        try:
            return self.bucket.head(self._key(path))
        except Absent:
            return None

    def sha256(self, path: str, check: Check = lambda: None) -> str:
        digest, size = hashlib.sha256(), self.size(path)
        if size is None:
            raise self._missing(path)
        self._ahead.forget(path)  # later reads must return what is checked here
        check()
        for start in range(0, size, _STEP):
            digest.update(self._range(path, start, min(start + _STEP, size))[0])
            check()
        return digest.hexdigest()

    def free_bytes(self) -> Optional[int]:
        return None

    # Listing

    @contextmanager
    def looking(self, path: str, anew: bool = False) -> Iterator[None]:
        if not anew and self._listed.of(f"{path}/") is not None:
            yield
            return
        with self._listed.during(path, self._below(path)):
            yield

    def _below(self, path: str) -> dict[str, Found]:
        """Return {path: Found} of all files in a folder and its subfolders."""
        found = self.bucket.objects(self._key(f"{path}/" if path else ""))
        return {each.key[len(self._prefix) :]: each for each in found if _is_file(each)}

    def folders(self, path: str = "") -> list[str]:
        return self._level(path)[0]

    def files(self, path: str = "") -> list[str]:
        return self._level(path)[1]

    def names(self, path: str) -> list[str]:
        folders, files = self._level(path)
        return sorted({*folders, *files})

    def _level(self, path: str) -> tuple[list[str], list[str]]:
        """Return the names of (folders, files) in a folder."""
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
            return self._has_files(self._prefix)
        known = self._listed.of(path)
        if known is not None:
            return path in known or any(each.startswith(f"{path}/") for each in known)
        return self._found(path) is not None or self._is_folder(path)

    def _is_folder(self, path: str) -> bool:
        return self._has_files(self._key(f"{path}/"))

    def _has_files(self, prefix: str) -> bool:
        first = [*self.bucket.objects(prefix, 1)]
        return any(map(_is_file, first)) or (bool(first) and any(map(_is_file, self.bucket.objects(prefix))))

    def seconds_since_change(self, path: str, anew: bool = False) -> float:
        """Return the seconds since a file was created; for a folder, since any file in it was last created."""
        try:
            found = self._asked(path) if anew else self._found(path)
            ages = [found.age] if found else [each.age for each in self._within(path)]
        except errors.StoreError as error:
            raise errors.OutputError(str(error)) from error
        if not ages:
            raise errors.OutputError(f"cannot inspect {self.path(path)}: there is nothing of that name")
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

    # Older versions, beyond the interface of Store

    def as_it_was(self, past: Store, paths: Iterable[str]) -> dict[str, str]:
        """Return {path: id of its version} as of an earlier time. past: S3Store of this place as of that time. Damaged
        if a file did not exist then."""
        bucket = cast(PastBucket, cast(S3Store, past).bucket)
        try:
            return {path: bucket.past(self._key(path)).id for path in paths}
        except Absent:
            raise errors.Damaged(f"{self.path()}: some files of that time are missing") from None

    def holding(self, files: Mapping[str, tuple[int, str]], check: Check) -> dict[str, str]:
        """Return {path: id of the version that has this size and SHA-256}; Damaged if there is none."""
        left = [each for each in files.items() if each not in self._held]
        found = self.several(lambda item: self._version_of(*item, check), left)
        self._held.update(zip(left, found))
        return {path: self._held[path, what] for path, what in files.items()}

    def _version_of(self, path: str, what: tuple[int, str], check: Check) -> str:
        check()
        try:
            return holding(self.bucket, self._key(path), *what, check)
        except Absent:
            raise errors.Damaged(f"{self.path(path)}: no version of the file has the right SHA-256") from None

    def last(self, folder: str, is_sound: Callable[[str, bytes], bool], limit: int) -> dict[str, str]:
        """Return {path: id of its newest sound version} for the files in a folder that existed last; see s3_past.last.
        is_sound: called with a path and the file's first bytes, at most `limit`."""
        start = len(self._prefix)
        found = last(self.bucket, self._key(f"{folder}/"), lambda key, data: is_sound(key[start:], data), limit)
        return {key[start:]: version for key, version in found.items()}

    def bring_back(self, versions: Mapping[str, str]) -> int:
        """Make these versions of files the newest ones; return how many were not. Several requests run at once, in no
        order. AccessDenied, OutputError."""
        left = [each for each in versions.items() if each not in self._is_back]
        count = sum(self.several(lambda item: bring_back(self.bucket, self._key(item[0]), item[1]), left))
        self._is_back.update(left)
        for path, _ in left:
            self._ahead.forget(path)
        return count

    def had(self, path: str) -> bool:
        """Return whether a file existed and was deleted; False if it exists again, even if only since just now."""
        found = [each.is_marker for each in self.bucket.versions(self._key(path), exactly=True)]
        return found[:1] == [True] and not all(found)

    def written(self, name: str) -> dict[str, list[datetime]]:
        """Return {path: times at which its versions were written, oldest first} for all files of a name, deleted or
        not."""
        found: dict[str, list[datetime]] = {}
        for each in self.bucket.versions(self._prefix):
            if not each.is_marker and each.key.rpartition("/")[2] == name:
                found.setdefault(each.key[len(self._prefix) :], []).insert(0, each.written)
        return found

    # Creating and removing

    def make_folder(self, path: str, fresh: bool = False) -> None:
        if fresh and self._is_folder(path):
            raise self._exists("create the folder", path)

    def _exists(self, doing: str, path: str) -> errors.OutputExists:
        return errors.OutputExists(f"cannot {doing} {self.path(path)}: it exists already; nothing is ever overwritten")

    def create(self, path: str) -> S3Writer:
        return self._writer(path, True, self.protection)

    def publish(self, path: str, data: bytes, protection: Optional[Protection] = None) -> None:
        with self._writer(path, True, protection) as file:
            file.write(data)

    def _writer(self, path: str, fresh: bool, protection: Optional[Protection]) -> S3Writer:
        return S3Writer(path, self.path(path), partial(self._put, path, fresh, protection))

    def _put(
        self,
        path: str,
        fresh: bool,
        protection: Optional[Protection],
        body: Union[bytes, Body],
        size: int,
        digest: bytes,
    ) -> None:
        """Create a file with the data of body. fresh: OutputExists if the file exists."""
        lock = _lock(protection) if protection else None
        try:
            self.bucket.put(self._key(path), body, size, digest, fresh, lock=lock)
        except Exists:
            raise self._exists("create", path) from None
        except errors.OutputError as error:
            self._require_future(path, lock, error)
            raise
        self._ahead.forget(path)
        self._listed.note(Found(path, size, 0.0))
        self._protected.pop(path, None)
        if lock:
            self._protected[path] = lock.until

    def protect(self, paths: Iterable[str], protection: Protection) -> None:
        """Protect files; those that this object has already protected for long enough need no request."""
        known, enough = self._protected, protection.enough
        left = [each for each in dict.fromkeys(paths) if each not in known or known[each] < enough]
        for _ in self.several(partial(self._protect, lock=_lock(protection)), left):
            pass

    def _protect(self, path: str, lock: Lock) -> None:
        try:
            self.bucket.lock(self._key(path), lock)
        except Absent:
            raise self._missing(path) from None
        except errors.OutputError as error:
            self._require_future(path, lock, error)
            raise
        self._protected[path] = lock.until

    def _require_future(self, path: str, lock: Optional[Lock], error: errors.OutputError) -> None:
        """Raise OutputError if a lock was refused because its end is past."""
        if lock and lock.until <= datetime.now(timezone.utc):
            raise errors.OutputError(
                f"cannot lock {self.path(path)} until {lock.until:%Y-%m-%d %H:%M:%S} UTC, which is past: points are "
                "immutable for a shorter time than this run takes; set a longer one (--immutable-for)"
            ) from error

    def protected_until(self, path: str) -> Optional[datetime]:
        found = self.bucket.locked(self._key(path))
        return found.until if found else None

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
        self._protected.pop(path, None)

    def rename(self, path: str, new: str) -> None:
        data = self.find(path)
        if data is None:
            raise errors.OutputError(f"cannot rename {self.path(path)}: the file is missing")
        self.publish(new, data)
        self.delete(path)

    def replace(self, path: str, data: bytes, was: Optional[bytes] = None) -> None:
        if was is not None:
            return self._exchange(path, was, data)
        with self._writer(path, False, None) as file:
            file.write(data)

    def _exchange(self, path: str, was: bytes, data: bytes) -> None:
        key, digest = self._key(path), hashlib.sha256(data).digest()
        with suppress(Absent):
            for spelled in ("{}", '"{}"'):  # Ceph 16.2 accepts its own tag only without the quotes that it sends
                there, tag = self.bucket.tagged(key)
                if there != was:
                    break
                with suppress(Exists):
                    self.bucket.put(key, data, len(data), digest, fresh=False, tag=spelled.format(tag))
                    self._listed.note(Found(path, len(data), 0.0))
                    self._protected.pop(path, None)
                    return
        raise errors.Busy(f"{self.path(path)}: another nbdpull changed it meanwhile: try again")

    def replacing(self, path: str) -> S3Writer:
        """Give the Writer of a file that replaces the existing one. If that is locked, its replacement is locked for at
        least as long."""
        wanted, old = self.protection, self.bucket.locked(self._key(path)) if self.protects else None
        if old and old.until > datetime.now(timezone.utc) and not (wanted and wanted.until >= old.until):
            until = old.until.replace(microsecond=0)
            wanted = Protection(until, wanted.mode if wanted else old.mode.lower(), until)
        return self._writer(path, False, wanted)

    def make_durable(self, path: str) -> None:
        if self.size(path) is None:
            raise self._missing(path)

    def sync_folder(self, path: str) -> None:
        pass

    @contextmanager
    def locked(self, path: str, doing: str, holder: Callable[[], str] = lambda: "another nbdpull") -> Iterator[None]:
        yield
