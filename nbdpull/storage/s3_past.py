"""A bucket that keeps old versions, as of an earlier time: what was deleted or overwritten since can still be read.

Owns: which version of an object was current at that time, or has the wanted content, and how a version becomes the
newest one again. Must not know: how a request is made (s3_client.py), what an object contains.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, NoReturn, Optional

from ..core import errors
from ..core.errors import Check
from .s3_client import PATIENCE, Bucket, Found, Lock, Version
from .s3_failure import Absent

_STEP = 8 << 20  # bytes per request
_AT_ONCE = timedelta(minutes=1)  # objects deleted within this time were deleted together, as by an attacker
NOTHING_IS_WRITTEN = "it is read as of an earlier time, and nothing is written there"


class PastBucket(Bucket):
    """A bucket as of an earlier time. Safe for several threads at once. Listings are kept: the past does not change."""

    def __init__(self, name: str, when: datetime, patience: float = PATIENCE) -> None:
        super().__init__(name, patience)
        self.when = when
        self._known_lock = threading.Lock()
        self._known: dict[str, dict[str, Version]] = {}  # {prefix: {key: its version}}
        self._keeps_versions = False  # as far as is known

    def past(self, key: str) -> Version:
        """Return the version of an object that was current at that time; Absent."""
        with self._known_lock:
            known = next((found for prefix, found in self._known.items() if key.startswith(prefix)), None)
        if known is None:
            known = self._picked(each for each in self.versions(key, exactly=True))
        if key not in known:
            raise Absent
        return known[key]

    def _version_pages(self, prefix: str, **how: Any) -> Iterator[dict[str, Any]]:
        self._require_versions()
        yield from super()._version_pages(prefix, **how)

    def _require_versions(self) -> None:
        """Raise StoreError if the bucket keeps no versions: what was not changed since would look like all that there
        was."""
        if not self._keeps_versions:
            code, answer = super().tried("get_bucket_versioning")
            if not code and not answer.get("Status"):
                raise errors.StoreError(f"s3://{self.name}: the bucket keeps no old versions, so it has no past")
            self._keeps_versions = True

    def _picked(self, versions: Iterable[Version]) -> dict[str, Version]:
        return {each.key: each for each in self._each_picked(versions)}

    def _each_picked(self, versions: Iterable[Version]) -> Iterator[Version]:
        """Yield the versions that were current at that time. versions: for each key the newest first."""
        decided = ""
        for each in versions:
            if each.key != decided and each.written <= self.when:
                decided = each.key
                if not each.is_marker:
                    yield each

    def tagged(
        self, key: str, start: int = 0, stop: Optional[int] = None, version: Optional[str] = None
    ) -> tuple[bytes, str]:
        return super().tagged(key, start, stop, version or self.past(key).id)

    def head(self, key: str) -> Found:
        return _found(self.past(key))

    def objects(self, prefix: str, at_most: Optional[int] = None) -> Iterator[Found]:
        if at_most is not None:
            for _, each in zip(range(at_most), self._each_picked(self.versions(prefix))):
                yield _found(each)
            return
        if prefix not in self._known:
            found = self._picked(self.versions(prefix))
            with self._known_lock:
                self._known[prefix] = found
        yield from map(_found, self._known[prefix].values())

    def level(self, prefix: str) -> tuple[list[str], list[str]]:
        folders, versions = self.versions_level(prefix)
        names = [each.key[len(prefix) :] for each in self._picked(versions).values()]
        return folders, [name for name in names if name]

    def put(self, key: str, *_: Any, **__: Any) -> None:
        self._refuse(key)

    def delete(self, key: str) -> None:
        self._refuse(key)

    def lock(self, key: str, lock: Lock) -> None:
        self._refuse(key)

    def tried(self, call: str, **what: Any) -> tuple[str, dict[str, Any]]:
        self._refuse(what.get("Key", ""))

    def _refuse(self, key: str) -> NoReturn:
        raise errors.OutputError(f"s3://{self.name}/{key}: {NOTHING_IS_WRITTEN}")


def _found(version: Version) -> Found:
    return Found(version.key, version.size, version.age, version.tag.strip('"'))


def bring_back(bucket: Bucket, key: str, version: str) -> bool:
    """Make a version of an object the newest one; return False if it, or one of the same content, already is. If the
    object was only deleted, the deletion is undone; otherwise the version is copied, and what had replaced it remains
    as an older version."""
    newer: list[Version] = []
    for each in bucket.versions(key, exactly=True):
        if each.id == version:
            if not newer or (newer[0].tag, newer[0].size) == (each.tag, each.size):
                return False
            break
        newer.append(each)
    if not all(each.is_marker for each in newer) or not _are_removed(bucket, newer):
        bucket.copy_version(key, version)
    return True


def _are_removed(bucket: Bucket, markers: list[Version]) -> bool:
    """Remove delete markers; return False if some could not be removed, as an attacker can have them locked."""
    with suppress(errors.AccessDenied, errors.OutputError):
        for each in markers:
            bucket.remove_version(each.key, each.id)
        return True
    return False


def holding(bucket: Bucket, key: str, size: int, sha256: str, check: Check) -> str:
    """Return the id of the newest version of an object that has this size and SHA-256; Absent. Versions are read only
    if several of that size differ."""
    found = [each for each in bucket.versions(key, exactly=True) if not each.is_marker and each.size == size]
    differ = list({each.tag or each.id: each for each in reversed(found)}.values())[::-1]
    if len(differ) == 1:
        return differ[0].id
    for each in sorted(differ, key=found.index):
        if _digest(bucket, each, check) == sha256:
            return each.id
    raise Absent


def _digest(bucket: Bucket, version: Version, check: Check) -> str:
    digest = hashlib.sha256()
    for start in range(0, version.size, _STEP):
        check()
        digest.update(bucket.get(version.key, start, min(start + _STEP, version.size), version.id))
    return digest.hexdigest()


def last(bucket: Bucket, prefix: str, is_sound: Callable[[str, bytes], bool], limit: int) -> dict[str, str]:
    """Return {key: id of its newest sound version} for the objects that existed last. An object that was deleted or
    overwritten long before the others is left out: that was somebody else's doing. is_sound: called with a key and its
    first bytes, at most `limit`."""
    found: dict[str, tuple[Version, Optional[Version]]] = {}  # {key: (that version, the one that replaced it)}
    newer: Optional[Version] = None
    for each in bucket.versions(prefix):
        if each.key not in found:
            is_newest = newer is None or newer.key != each.key
            if not each.is_marker and is_sound(each.key, bucket.get(each.key, 0, limit, each.id)):
                found[each.key] = each, None if is_newest else newer
        newer = each
    ends = {key: datetime.max.replace(tzinfo=timezone.utc) if after is None else after.written
            for key, (_, after) in found.items()}  # fmt: skip
    latest = max(ends.values(), default=None)
    return {key: found[key][0].id for key, end in ends.items() if latest and latest - end <= _AT_ONCE}
