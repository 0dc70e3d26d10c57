"""Requests to one bucket of an object store, and the interpretation of its answers.

Owns: which requests exist, which are retried, and for how long. Must not know: how boto3 is configured (s3_library.py),
what a failure means (s3_failure.py), what an object contains, which keys exist.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Optional, Protocol, Union

from ..core import ending, errors
from . import s3_failure, s3_library, s3_waiting
from .s3_failure import Absent, Exists, Failure

log = logging.getLogger("nbdpull.s3")
PATIENCE = 60.0  # seconds that a server may be unreachable
_PAUSES = 0.1, 3.0  # seconds between two tries: at first, at most
_RENEWAL = 60.0  # seconds after which credentials that a server refuses are read again
_MAY_BE_LEFT = 8 << 20  # bytes from which on an object may be left half sent when the process has to end
_PORTS = {"http": ":80", "https": ":443"}  # the default ports


class Body(Protocol):
    """The data of an object, to be sent."""

    def read(self, size: int) -> bytes: ...

    def seek(self, offset: int, whence: int = 0) -> int: ...

    def tell(self) -> int: ...


class Found(NamedTuple):
    """An object. age: seconds since it was written, by the server's clock; tag: distinguishes its content from what
    else the key may have had, "" if unknown."""

    key: str
    size: int
    age: float
    tag: str = ""


class Version(NamedTuple):
    """A version of an object. id: assigned by the server. written: by the server's clock. age: seconds since then.
    is_marker: a delete marker, which has no size. tag: as a rule the same for the same content."""

    key: str
    id: str
    size: int
    written: datetime
    age: float
    is_marker: bool
    tag: str = ""


class Lock(NamedTuple):
    """A lock of an object. mode: as the server spells it. until: with a time zone."""

    mode: str
    until: datetime


class _Tries:
    """The schedule of retries: pauses of increasing length until the patience is exhausted, counted from the first
    failure; if that was a timeout, from the beginning of the silence."""

    def __init__(self, patience: float, what: str) -> None:
        """what: the request, for the log."""
        self._patience, self._pause, self._what = patience, _PAUSES[0], what
        self._until: Optional[float] = None

    def wait(self, failure: Failure) -> bool:
        """Wait for the next try and return True; return False if there is no time for one."""
        now = time.monotonic()
        silence = s3_library.silence(self._patience) if failure.code in s3_failure.SILENT else 0.0
        self._until = self._until or now + self._patience - silence
        if now + self._pause > self._until:
            return False
        log.info("%s: %s; trying again in %.1f s", self._what, failure.code, self._pause)
        ending.wait(self._pause)
        self._pause = min(2 * self._pause, _PAUSES[1])
        return True


class Bucket:
    """A bucket, with all requests to it. Safe for several threads at once. patience: seconds for which a failed request
    is retried, counted from its first failure, unless the process has to end meanwhile (core/ending.py). After a
    request that was retried in vain, the following ones are not retried until one succeeds, as a caller that gives up
    still has to clean up. If retrying does not help: StoreError for a failed read, OutputError for a failed write,
    AccessDenied. requests: {call: number of requests made}."""

    def __init__(self, name: str, patience: float = PATIENCE) -> None:
        self.name, self._patience = name, patience
        self._sdk, self._failures = s3_library.library()
        self._lock = threading.Lock()
        self._client: Any = None
        self._renewed = -_RENEWAL  # when the credentials were read again
        self._is_away = False  # a request was retried in vain: the next ones are tried once
        self._has_worked = False  # whether any request has succeeded
        self.requests: dict[str, int] = {}

    def get(self, key: str, start: int = 0, stop: Optional[int] = None, version: Optional[str] = None) -> bytes:
        """Return the bytes of an object from `start` up to `stop`, or to its end if that comes first; Absent. version:
        its id, None: the newest."""
        return self.tagged(key, start, stop, version)[0]

    def tagged(
        self, key: str, start: int = 0, stop: Optional[int] = None, version: Optional[str] = None
    ) -> tuple[bytes, str]:
        """Return the bytes as `get` does, and the tag by which `put` recognises the object."""
        span = {} if (start, stop) == (0, None) else {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
        span.update({} if version is None else {"VersionId": version})
        answer = self._ask("get_object", key, Key=key, **span)
        return answer["Body"], _tag(answer)

    def head(self, key: str) -> Found:
        """Return the state of an object; Absent."""
        answer = self._ask("head_object", key, Key=key)
        return Found(key, answer["ContentLength"], _age(answer, answer.get("LastModified")), _tag(answer))

    def put(
        self,
        key: str,
        body: Union[bytes, Body],
        size: int,
        sha256: bytes,
        fresh: bool,
        tag: Optional[str] = None,
        lock: Optional[Lock] = None,
    ) -> None:
        """Write an object, whole and durably; the server verifies its digest. fresh: Exists if the key is in use. tag:
        Exists if the current object has another tag, Absent if there is none."""
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
        """Delete an object; a missing one is no error."""
        self._ask("delete_object", key, Key=key)

    def version(self, key: str) -> Optional[str]:
        """Return the id of the current version of an object; None if the bucket keeps no versions. Absent."""
        found: Optional[str] = self._ask("head_object", key, Key=key).get("VersionId")
        return found

    def lock(self, key: str, lock: Lock) -> None:
        """Lock an object. A lock that ends later remains unchanged, and a lock in the other mode keeps its mode.
        Absent."""
        try:
            self._put_lock(key, lock)
        except (errors.AccessDenied, errors.OutputError):
            found = None
            with suppress(errors.Failure):
                found = self.locked(key)
            if found is None:
                raise
            if found.until < lock.until:  # a longer lock cannot be shortened, which is no failure
                if found.mode == lock.mode:
                    raise
                self._put_lock(key, Lock(found.mode, lock.until))

    def _put_lock(self, key: str, lock: Lock) -> None:
        self._ask("put_object_retention", key, Key=key, Retention=_retention(lock))

    def locked(self, key: str, version: Optional[str] = None) -> Optional[Lock]:
        """Return the lock of an object; None if it is not locked or does not exist. version: its id, None: the
        newest."""
        which = {} if version is None else {"VersionId": version}
        try:
            retention = self._ask("get_object_retention", key, Key=key, **which).get("Retention", {})
        except Absent:
            return None
        return Lock(retention["Mode"], retention["RetainUntilDate"]) if "RetainUntilDate" in retention else None

    def objects(self, prefix: str, at_most: Optional[int] = None) -> Iterator[Found]:
        """Yield every object whose key begins with a prefix, in the order of their keys; with at_most, only the first
        ones."""
        for answer in self._pages(prefix, at_most):
            yield from (
                Found(e["Key"], e["Size"], _age(answer, e.get("LastModified")), _tag(e))
                for e in answer.get("Contents", ())
            )

    def versions(self, prefix: str, exactly: bool = False) -> Iterator[Version]:
        """Yield every version of every object whose key begins with a prefix, in the order of the keys, for each key
        the newest first. exactly: only versions of the object whose key is the prefix."""
        for answer in self._version_pages(prefix):
            for each in _versions(answer):
                if exactly and each.key != prefix:
                    return
                yield each

    def versions_level(self, prefix: str) -> tuple[list[str], list[Version]]:
        """Return (folders, versions of files) as `level` does, including those of deleted files."""
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
        """Make a version the newest one by a copy on the server, with its lock."""
        lock = self.locked(key, version)
        how: dict[str, Any] = {"CopySource": {"Bucket": self.name, "Key": key, "VersionId": version}}
        if lock and lock.until > datetime.now(timezone.utc):
            how.update(ObjectLockMode=lock.mode, ObjectLockRetainUntilDate=lock.until)
        self._ask("copy_object", key, Key=key, **how)

    def level(self, prefix: str) -> tuple[list[str], list[str]]:
        """Return (folders, files): what follows the prefix in the keys, up to a "/" or in full."""
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
        """Make any request, to learn how the server reacts: return ("", the answer), or (error code, {}) if it is
        refused. AccessDenied if these credentials lack a right that a store needs."""
        tries = _Tries(self._patience, _named(call, what))
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
        failed = self._error(call, what, failure)
        if failure.code == s3_failure.NO_BUCKET or (
            call in s3_failure.CALLS and isinstance(failed, errors.AccessDenied)
        ):
            raise failed
        return failure.code, {}

    def _ask(self, call: str, key: str, **what: Any) -> dict[str, Any]:
        """Make a request, with retries, and return the answer with its body read."""
        tries, may_be_done = _Tries(self._patience, _named(call, what)), False
        while True:
            client = self._client
            try:
                answer = self._once(call, what)
                self._is_away, self._has_worked = False, True
                return answer
            except self._failures as error:
                failure = s3_failure.of(error)
            if failure.status == 412 or failure.code == "PreconditionFailed":
                if may_be_done and self._is_there(key, what["ChecksumSHA256"]):  # our own first try, whose answer was
                    return {}  # lost, or another writer's object of the same content
                raise Exists
            if failure.status == 416:  # the object ends before the range
                return {"Body": b""}
            if s3_failure.may_be_outdated(call, failure) and self._has_new_client(client):
                continue
            if not self._may_pass(failure):
                raise self._error(call, what, failure)
            may_be_done = may_be_done or not failure.status or failure.status >= 500
            if not self._is_back(tries, failure):
                raise self._error(call, what, failure)

    def _may_pass(self, failure: Failure) -> bool:
        """Return whether a failure may be temporary. An unknown host counts as temporary only if a request has
        succeeded before."""
        return failure.is_temporary and (self._has_worked or failure.code != s3_failure.NO_HOST)

    def _is_back(self, tries: _Tries, failure: Failure) -> bool:
        """Wait, and return whether to try again. When this gives up, or the process has to end, the following requests
        are not retried: the caller still has to clean up."""
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
                f"s3://{self.name}: cannot run {error.filename}, which should supply the credentials: {error.strerror}"
            ) from error

    def _made(self, call: str, what: dict[str, Any]) -> dict[str, Any]:
        client = self._connected()
        if hasattr(what.get("Body"), "seek"):
            what["Body"].seek(0)
        with self._lock:
            self.requests[call] = self.requests.get(call, 0) + 1

        def ask() -> dict[str, Any]:
            began = time.monotonic()
            try:
                answer: dict[str, Any] = getattr(client, call)(Bucket=self.name, **what)
                if "Body" in answer:
                    answer["Body"] = answer["Body"].read()
                return answer
            finally:
                log.debug("%s (%.3f s)", _named(call, what), time.monotonic() - began)

        # An abandoned write may still succeed later: so small ones, such as of a manifest, are waited for.
        if call in s3_failure.WRITING and what.get("ContentLength", 0) < _MAY_BE_LEFT:
            return ask()
        try:
            return s3_waiting.answer(ask)
        except errors.NbdpullError:
            self._is_away = True
            raise

    @property
    def endpoint(self) -> str:
        """The URL of the server."""
        return str(self._connected().meta.endpoint_url)

    @property
    def server(self) -> str:
        """The URL of the server in a normal form, without a password."""
        scheme, _, rest = s3_library.without_password(self.endpoint).partition("://")
        host, _, path = rest.partition("/")
        scheme, host = scheme.lower(), host.lower()
        return f"{scheme}://{host.removesuffix(_PORTS.get(scheme, ''))}/{path}".rstrip("/")

    def _connected(self) -> Any:
        """Return the client of boto3, which is created on first use: that takes 50 ms."""
        with self._lock:
            if self._client is None:
                self._client = s3_library.client(self._sdk, self._patience)
            return self._client

    def _has_new_client(self, old: Any) -> bool:
        """Return whether there is, or will be, another client than the old one, whose credentials were refused. boto3
        renews only those whose end it knows; others are read from its files again, as somebody may have renewed them
        there. `old`: None for the first request."""
        with self._lock:
            if old is None or self._client is not old:
                return old is not None
            if time.monotonic() < self._renewed + _RENEWAL:
                return False
            self._client, self._renewed = None, time.monotonic()
            return True

    def _error(self, call: str, what: dict[str, Any], failure: Failure) -> Exception:
        return s3_failure.error(self.name, call, what, failure, self._patience if self._may_pass(failure) else None)

    def _is_there(self, key: str, checksum: str) -> bool:
        try:
            return base64.b64encode(hashlib.sha256(self.get(key)).digest()).decode() == checksum
        except Absent:
            return False


def _versions(answer: dict[str, Any]) -> list[Version]:
    """Return the versions on one page of a listing. Times have whole seconds: of two within a second, the delete marker
    counts as later."""
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


def _named(call: str, what: Mapping[str, Any]) -> str:
    """Return a request as the log shows it, without the data."""
    return " ".join(filter(None, [call, what.get("Key") or what.get("Prefix"), what.get("Range")]))


def _tag(answer: dict[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _age(answer: dict[str, Any], written: Any) -> float:
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date is None or written is None:
        raise errors.StoreError(s3_failure.NO_SERVER)
    now = parsedate_to_datetime(date)
    return max(0.0, float((now - written).total_seconds()))
