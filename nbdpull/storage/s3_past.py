"""A bucket that keeps old versions, as it was at a time: what was deleted or overwritten since is read all the same.

Owns: which version of an object had its key then, and how that becomes the newest one again. Must not know: how a
request is made (s3_client.py), what an object holds.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import IO, Any, NoReturn, Optional, Union

from ..core import errors
from .s3_client import PATIENCE, Absent, Bucket, Found, Lock, Version

NOTHING_IS_WRITTEN = "it is read as of an earlier time, and nothing is written there"


class PastBucket(Bucket):
    """May be used by several threads at once. What was listed once is kept: nothing of the past changes."""

    def __init__(self, name: str, when: datetime, patience: float = PATIENCE) -> None:
        super().__init__(name, patience)
        self.when = when
        self._known_lock = threading.Lock()
        self._known: dict[str, dict[str, Version]] = {}  # {prefix: {key: its version}}

    def past(self, key: str) -> Version:
        """That which had the key; Absent."""
        with self._known_lock:
            known = next((found for prefix, found in self._known.items() if key.startswith(prefix)), None)
        if known is None:
            known = self._picked(each for each in self.versions(key, exactly=True))
        if key not in known:
            raise Absent
        return known[key]

    def _picked(self, versions: Iterable[Version]) -> dict[str, Version]:
        return {each.key: each for each in self._each_picked(versions)}

    def _each_picked(self, versions: Iterable[Version]) -> Iterator[Version]:
        """versions: of each key the newest first."""
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
        return folders, [each.key[len(prefix) :] for each in self._picked(versions).values()]

    def put(
        self,
        key: str,
        body: Union[bytes, IO[bytes]],
        size: int,
        sha256: bytes,
        fresh: bool,
        tag: Optional[str] = None,
        lock: Optional[Lock] = None,
    ) -> None:
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


def bring_back(bucket: Bucket, past: PastBucket, key: str) -> bool:
    """Have an object again as it was; return whether it was not so. Where it was only deleted, that is undone; what
    took its place stays, as an old version, under a copy. Absent where there was none."""
    wanted, newer = past.past(key), []
    for each in bucket.versions(key, exactly=True):
        if each.id == wanted.id:
            break
        newer.append(each)
    if not newer or (newer[0].tag, newer[0].size) == (wanted.tag, wanted.size):
        return False
    if all(each.is_marker for each in newer):
        for each in newer:
            bucket.remove_version(key, each.id)
    else:
        bucket.copy_version(key, wanted.id)
    return True
