"""Requests to one bucket of an object store, and what its answers mean.

Owns: which requests there are, which are made again, and for how long. Must not know: how boto3 is set (s3_library.py),
what a failure means (s3_failure.py), what an object holds, which keys there are.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import IO, Any, NamedTuple, Optional, Union

from ..core import ending, errors
from . import s3_failure, s3_library, s3_waiting
from .s3_failure import Absent, Exists, Failure

PATIENCE = 60.0  # seconds that a server may be away
_PAUSES = 0.1, 3.0  # seconds between two tries: at first, at most
_MAY_BE_LEFT = 8 << 20  # bytes of an object that a process which is to end leaves half sent
_PORTS = {"http": ":80", "https": ":443"}  # where none is told


class Found(NamedTuple):
    """An object. age: seconds since it was written, by the server's clock; tag: tells what is in it from what else that
    key may have had, "" where it is not known."""

    key: str
    size: int
    age: float
    tag: str = ""


class Version(NamedTuple):
    """Of an object. id: the server's. written: by its clock. age: seconds since. is_marker: it says that the object was
    deleted, and has no size. tag: the same of the same content, as a rule."""

    key: str
    id: str
    size: int
    written: datetime
    age: float
    is_marker: bool
    tag: str = ""


class Lock(NamedTuple):
    """Of an object. mode: as the server spells it. until: with a time zone."""

    mode: str
    until: datetime


class _Tries:
    """When to try again: after longer and longer pauses, until the patience is over that begins with the first
    failure; where that was silence, with the silence."""

    def __init__(self, patience: float) -> None:
        self._patience, self._pause = patience, _PAUSES[0]
        self._until: Optional[float] = None

    def wait(self, failure: Failure) -> bool:
        """Whether there is time for one more try, which is due now."""
        now = time.monotonic()
        silence = s3_library.silence(self._patience) if failure.code in s3_failure.SILENT else 0.0
        self._until = self._until or now + self._patience - silence
        if now + self._pause > self._until:
            return False
        ending.wait(self._pause)
        self._pause = min(2 * self._pause, _PAUSES[1])
        return True


class Bucket:
    """May be used by several threads at once. patience: seconds for which a request is tried again from its first
    failure on, unless the process is to end meanwhile (core/ending.py); one after another that was tried in vain gets
    none, as whoever gives up has still to clean up. Where that does not help: StoreError of what cannot be read,
    OutputError of what cannot be written, AccessDenied. requests: {call: how many were made}."""

    def __init__(self, name: str, patience: float = PATIENCE) -> None:
        self.name, self._patience = name, patience
        self._sdk, self._failures = s3_library.library()
        self._lock = threading.Lock()
        self._client: Any = None
        self._is_away = False  # since a request that was tried for so long: the next ones are tried once
        self._has_worked = False  # any request
        self.requests: dict[str, int] = {}

    def get(self, key: str, start: int = 0, stop: Optional[int] = None, version: Optional[str] = None) -> bytes:
        """The bytes of an object from `start`, up to `stop` where there are so many; Absent. version: its id, None: of
        the newest."""
        return self.tagged(key, start, stop, version)[0]

    def tagged(
        self, key: str, start: int = 0, stop: Optional[int] = None, version: Optional[str] = None
    ) -> tuple[bytes, str]:
        """The same, and the tag by which `put` knows the object again."""
        span = {} if (start, stop) == (0, None) else {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
        span.update({} if version is None else {"VersionId": version})
        answer = self._ask("get_object", key, Key=key, **span)
        return answer["Body"], _tag(answer)

    def head(self, key: str) -> Found:
        """Absent."""
        answer = self._ask("head_object", key, Key=key)
        return Found(key, answer["ContentLength"], _age(answer, answer.get("LastModified")), _tag(answer))

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
        """Write an object, whole and durably; the server proves its digest. fresh: Exists where one has that key. tag:
        Exists where another one than that has it, or Absent."""
        digest = base64.b64encode(sha256).decode()
        what: dict[str, Any] = {"Body": body, "ContentLength": size, "ChecksumSHA256": digest}
        if lock:
            what.update(ObjectLockMode=lock.mode, ObjectLockRetainUntilDate=lock.until)
        if fresh:
            what["IfNoneMatch"] = "*"
        if tag is not None:
            what["IfMatch"] = tag
        self._ask("put_object", key, Key=key, **what)

    def delete(self, key: str) -> None:
        """One that is not there is no error."""
        self._ask("delete_object", key, Key=key)

    def version(self, key: str) -> Optional[str]:
        """The id of what has the key now; None where the bucket keeps no versions. Absent."""
        found: Optional[str] = self._ask("head_object", key, Key=key).get("VersionId")
        return found

    def lock(self, key: str, lock: Lock) -> None:
        """One of which the lock ends later keeps that, and one that is locked in the other mode, that mode. Absent."""
        try:
            self._lock_as_told(key, lock)
        except (errors.AccessDenied, errors.OutputError):
            found = None
            with suppress(errors.NbdpullError):
                found = self.locked(key)
            if found is None:
                raise
            if found.until < lock.until:  # else nobody can shorten it, and that is no failure
                if found.mode == lock.mode:
                    raise
                self._lock_as_told(key, Lock(found.mode, lock.until))

    def _lock_as_told(self, key: str, lock: Lock) -> None:
        self._ask("put_object_retention", key, Key=key, Retention=_retention(lock))

    def locked(self, key: str, version: Optional[str] = None) -> Optional[Lock]:
        """None where it is not, or there is no such object. version: its id, None: of the newest."""
        which = {} if version is None else {"VersionId": version}
        try:
            told = self._ask("get_object_retention", key, Key=key, **which).get("Retention", {})
        except Absent:
            return None
        return Lock(told["Mode"], told["RetainUntilDate"]) if "RetainUntilDate" in told else None

    def objects(self, prefix: str, at_most: Optional[int] = None) -> Iterator[Found]:
        """Every object whose key begins so, in the order of their keys; or the first ones."""
        for answer in self._pages(prefix, at_most):
            yield from (
                Found(e["Key"], e["Size"], _age(answer, e.get("LastModified")), _tag(e))
                for e in answer.get("Contents", ())
            )

    def versions(self, prefix: str, exactly: bool = False) -> Iterator[Version]:
        """Every version of every object whose key begins so, in the order of their keys, of each the newest first.
        exactly: of the object of that very key."""
        for answer in self._version_pages(prefix):
            for each in _versions(answer):
                if exactly and each.key != prefix:
                    return
                yield each

    def versions_level(self, prefix: str) -> tuple[list[str], list[Version]]:
        """(folders, versions of files): as `level`, also where all was deleted."""
        folders: list[str] = []
        files: list[Version] = []
        for answer in self._version_pages(prefix, Delimiter="/"):
            folders += [each["Prefix"][len(prefix) : -1] for each in answer.get("CommonPrefixes", ())]
            files += _versions(answer)
        return folders, files

    def _version_pages(self, prefix: str, **how: Any) -> Iterator[dict[str, Any]]:
        while True:
            answer = self._ask("list_object_versions", prefix, Prefix=prefix, **how)
            yield answer
            if not answer.get("IsTruncated"):
                return
            how["KeyMarker"] = answer["NextKeyMarker"]
            how.pop("VersionIdMarker", None)
            if "NextVersionIdMarker" in answer:  # else the page ends with a folder
                how["VersionIdMarker"] = answer["NextVersionIdMarker"]

    def remove_version(self, key: str, version: str) -> None:
        self._ask("delete_object", key, Key=key, VersionId=version)

    def copy_version(self, key: str, version: str) -> None:
        """Have it be the newest one, in the server, locked as it is."""
        lock = self.locked(key, version)
        how: dict[str, Any] = {"CopySource": {"Bucket": self.name, "Key": key, "VersionId": version}}
        if lock and lock.until > datetime.now(timezone.utc):
            how.update(ObjectLockMode=lock.mode, ObjectLockRetainUntilDate=lock.until)
        self._ask("copy_object", key, Key=key, **how)

    def level(self, prefix: str) -> tuple[list[str], list[str]]:
        """(folders, files): what follows on the prefix, up to a "/" or whole."""
        folders: list[str] = []
        files: list[str] = []
        for answer in self._pages(prefix, None, Delimiter="/"):
            folders += [each["Prefix"][len(prefix) : -1] for each in answer.get("CommonPrefixes", ())]
            files += [each["Key"][len(prefix) :] for each in answer.get("Contents", ())]
        return folders, [name for name in files if name]

    def _pages(self, prefix: str, at_most: Optional[int], **how: Any) -> Iterator[dict[str, Any]]:
        how.update({} if at_most is None else {"MaxKeys": at_most})
        while True:
            answer = self._ask("list_objects_v2", prefix, Prefix=prefix, **how)
            yield answer
            if at_most is not None or not answer.get("IsTruncated"):
                return
            how["ContinuationToken"] = answer["NextContinuationToken"]

    def tried(self, call: str, **what: Any) -> tuple[str, dict[str, Any]]:
        """Make a request of any kind, to learn what the server says of it: ("", the answer), or (the code with which it
        is refused, {}). What is refused to these credentials is AccessDenied, if it is a call that a store needs."""
        tries = _Tries(self._patience)
        while True:
            try:
                return "", self._once(call, what)
            except self._failures as error:
                failure = s3_failure.of(error)
            if failure.status and (failure.code in s3_failure.CHANGED or not failure.is_temporary):
                break
            if not self._may_pass(failure) or not tries.wait(failure):
                raise self._error(call, what, failure)
        self._has_worked = True
        told = self._error(call, what, failure)
        if failure.code == s3_failure.NO_BUCKET or (call in s3_failure.CALLS and isinstance(told, errors.AccessDenied)):
            raise told
        return failure.code, {}

    def _ask(self, call: str, key: str, **what: Any) -> dict[str, Any]:
        """The answer, its body read."""
        tries, may_be_done = _Tries(self._patience), False
        while True:
            try:
                answer = self._once(call, what)
                self._is_away, self._has_worked = False, True
                return answer
            except self._failures as error:
                failure = s3_failure.of(error)
            if failure.status == 412 or failure.code == "PreconditionFailed":
                if may_be_done and self._is_there(key, what["ChecksumSHA256"]):  # our own first try, whose answer was
                    return {}  # lost, or the very same of somebody else
                raise Exists
            if failure.status == 416:  # the object ends before
                return {"Body": b""}
            if not self._may_pass(failure):
                raise self._error(call, what, failure)
            may_be_done = may_be_done or not failure.status or failure.status >= 500
            if not self._is_back(tries, failure):
                raise self._error(call, what, failure)

    def _may_pass(self, failure: Failure) -> bool:
        """Whether a failure is one of those that pass. A host that is not known is, where it has been known before."""
        return failure.is_temporary and (self._has_worked or failure.code != s3_failure.NO_HOST)

    def _is_back(self, tries: _Tries, failure: Failure) -> bool:
        """Whether to try again. Whoever is told that it was in vain, or is to end, has still to clean up."""
        is_back = False
        try:
            is_back = not self._is_away and tries.wait(failure)
        finally:
            self._is_away = self._is_away or not is_back
        return is_back

    def _once(self, call: str, what: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._made(call, what)
        except OSError as error:
            if not error.filename:
                raise
            raise errors.AccessDenied(
                f"s3://{self.name}: cannot run {error.filename}, which is to tell the credentials: {error.strerror}"
            ) from error

    def _made(self, call: str, what: dict[str, Any]) -> dict[str, Any]:
        client = self._connected()
        if hasattr(what.get("Body"), "seek"):
            what["Body"].seek(0)
        with self._lock:
            self.requests[call] = self.requests.get(call, 0) + 1

        def ask() -> dict[str, Any]:
            answer: dict[str, Any] = getattr(client, call)(Bucket=self.name, **what)
            if "Body" in answer:
                answer["Body"] = answer["Body"].read()
            return answer

        # What appears after its writer has ended must be nothing that counts, as a manifest does.
        if call in s3_failure.WRITING and what.get("ContentLength", 0) < _MAY_BE_LEFT:
            return ask()
        try:
            return s3_waiting.answer(ask)
        except errors.NbdpullError:
            self._is_away = True
            raise

    @property
    def endpoint(self) -> str:
        """Where the server is."""
        return str(self._connected().meta.endpoint_url)

    @property
    def server(self) -> str:
        """The same, always spelled alike, and without a password."""
        scheme, _, rest = s3_library.without_password(self.endpoint).partition("://")
        host, _, path = rest.partition("/")
        scheme, host = scheme.lower(), host.lower()
        return f"{scheme}://{host.removesuffix(_PORTS.get(scheme, ''))}/{path}".rstrip("/")

    def _connected(self) -> Any:
        """The client of boto3, made when it is first needed: that takes a tenth of a second."""
        with self._lock:
            if self._client is None:
                self._client = s3_library.client(self._sdk, self._patience)
            return self._client

    def _error(self, call: str, what: dict[str, Any], failure: Failure) -> Exception:
        return s3_failure.error(self.name, call, what, failure, self._patience if self._may_pass(failure) else None)

    def _is_there(self, key: str, checksum: str) -> bool:
        try:
            return base64.b64encode(hashlib.sha256(self.get(key)).digest()).decode() == checksum
        except Absent:
            return False


def _versions(answer: dict[str, Any]) -> list[Version]:
    """Of one page. Times are of seconds: of two in one, what deletes comes later."""
    found = [(each, False) for each in answer.get("Versions", ())]
    found += [(each, True) for each in answer.get("DeleteMarkers", ())]
    made = [
        Version(
            *(e["Key"], e["VersionId"], e.get("Size", 0), e["LastModified"], _age(answer, e["LastModified"])),
            is_marker=gone,
            tag=e.get("ETag", ""),
        )
        for e, gone in found
    ]
    latest = {(each["Key"], each["VersionId"]) for each, _ in found if each.get("IsLatest")}
    made.sort(key=lambda each: ((each.key, each.id) in latest, each.written, each.is_marker), reverse=True)
    return sorted(made, key=lambda each: each.key)


def _retention(lock: Lock) -> dict[str, Any]:
    return {"Mode": lock.mode, "RetainUntilDate": lock.until}


def _tag(told: dict[str, Any]) -> str:
    return str(told.get("ETag", "")).strip('"')


def _age(answer: dict[str, Any], written: Any) -> float:
    told = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if told is None or written is None:
        raise errors.StoreError(s3_failure.NO_SERVER)
    now = parsedate_to_datetime(told)
    return max(0.0, float((now - written).total_seconds()))
