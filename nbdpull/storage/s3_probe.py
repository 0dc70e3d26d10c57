"""What a bucket's server can do, found by trying it once, before a store is created there.

Some servers accept a condition and ignore it, so that the second writer of a name replaces what the first one wrote:
such a server cannot hold a store. Owns: what is tried, and what is refused. Must not know: how a request is made and
retried (s3_client.py), how the result is recorded (probed.py).
"""

from __future__ import annotations

import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Optional
from uuid import uuid4

from ..core import errors
from .probed import PREFIX, Probed
from .s3_client import Bucket, Lock
from .s3_failure import NO_SERVER, Absent

_AT_ONCE = 4  # writers of one name
_GOVERNANCE = "GOVERNANCE"  # the mode of a lock that privileged users may end early
_MARGIN = 3600.0  # seconds by which a server's own two clocks may differ: half the margin for judging ages
_UNFIT = "; a store needs a server that honours `If-None-Match: *`, such as Ceph's RGW, SeaweedFS or AWS S3"
_UNPROVED = (
    "{where}: whether the server heeds locks was not proved: it does not let these credentials remove versions at all "
    "(s3:DeleteObjectVersion); try it once with nbdpull init and keys that may"
)
_VERSIONS = ", and this one may do so in a bucket that keeps no old versions"  # Ceph 16.2


def probe(bucket: Bucket, prefix: str) -> Probed:
    """Try what a store needs below a prefix, and leave nothing behind. StoreError if the server cannot hold a store;
    AccessDenied, OutputError."""
    settings = _settings(bucket, prefix)
    start = f"{prefix}{PREFIX}{uuid4().hex}/"
    trial = _Trial(bucket, start, settings["versions"] == "Enabled")
    try:
        trial.require_created_once()
        trial.require_one_winner()
        trial.require_listed()
        checks = trial.refuses_wrong_digest()
        clocks = trial.clocks()
        trial.require_deleted()
        return Probed(
            when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            server=clocks.server,
            checks_sha256=checks,
            clock_ahead=clocks.ahead,
            **settings,
        )
    finally:
        trial.clear()


def require_locks(bucket: Bucket, prefix: str) -> list[str]:
    """Lock an object for a minute, and try to remove it; return a warning if that proved nothing. StoreError if the
    server has no locks, or accepts and ignores them; AccessDenied."""
    where, settings = f"s3://{bucket.name}", _settings(bucket, prefix)
    if settings["object_lock"] is None or settings["versions"] is None:
        raise errors.AccessDenied(
            f"{where}: cannot find out whether the bucket locks objects: allow s3:GetBucketObjectLockConfiguration and "
            "s3:GetBucketVersioning on it to these credentials"
        )
    if not settings["object_lock"] or settings["versions"] != "Enabled":
        raise errors.StoreError(
            f"{where}: the bucket locks no objects, so nothing in it can be immutable: make another one, with object "
            "lock from the beginning, as aws s3api create-bucket --object-lock-enabled-for-bucket does"
        )
    key = f"{prefix}{PREFIX}{uuid4().hex}/locked"
    bucket.put(key, b"", 0, hashlib.sha256(b"").digest(), fresh=True, lock=Lock(_GOVERNANCE, _soon(bucket, prefix)))
    try:
        if bucket.locked(key) is None or _is_removed(bucket, key):
            raise errors.StoreError(f"{where}: the server accepts locks, but ignores them: nothing there is immutable")
        return [] if _removes_versions(bucket, key) else [_UNPROVED.format(where=where)]
    finally:
        _clear(bucket, key)


def _soon(bucket: Bucket, prefix: str) -> datetime:
    """Return the time one minute from now, by the server's clock."""
    _, answer = bucket.tried("list_objects_v2", Prefix=prefix, MaxKeys=1)
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date") if answer else None
    now = parsedate_to_datetime(date) if date else datetime.now(timezone.utc)
    return now + timedelta(seconds=60)


def _is_removed(bucket: Bucket, key: str) -> bool:
    """Return whether the server removes a locked object in spite of its lock."""
    version = bucket.version(key)
    with suppress(errors.AccessDenied):
        return bool(version) and not bucket.tried("delete_object", Key=key, VersionId=version)[0]
    return False


def _removes_versions(bucket: Bucket, key: str) -> bool:
    """Return whether these credentials may remove a version that nothing locks. A delete marker is one, even in a
    bucket that locks every object."""
    with suppress(errors.AccessDenied):
        marker = bucket.tried("delete_object", Key=key)[1].get("VersionId")
        return bool(marker) and not bucket.tried("delete_object", Key=key, VersionId=marker)[0]
    return False


def _clear(bucket: Bucket, key: str) -> None:
    """Remove the trial object, if these credentials may; otherwise leave it to the rule for old versions."""
    with suppress(errors.NbdpullError):
        try:
            version = bucket.version(key)
        except Absent:  # a delete marker hides it, which these credentials may not remove
            return
        if bucket.tried("delete_object", Key=key, VersionId=version, BypassGovernanceRetention=True)[0]:
            bucket.delete(key)
        return
    with suppress(errors.NbdpullError):
        bucket.delete(key)


class _Clocks(NamedTuple):
    """server: the server's name for itself; ahead: seconds by which this host's clock is ahead of the server's."""

    server: str
    ahead: float


class _Trial:
    def __init__(self, bucket: Bucket, start: str, has_versions: bool) -> None:
        self._bucket, self._start = bucket, start
        self._where, self._unfit = f"s3://{bucket.name}", _UNFIT + _VERSIONS * has_versions

    def require_created_once(self) -> None:
        """Require that creating a name a second time is refused, and leaves the first content."""
        self._create("once", b"first")
        refused = self._create("once", b"second")
        if not refused or self._read("once") != b"first":
            raise self._useless("the server overwrites what was to be created only if absent")

    def require_one_winner(self) -> None:
        """Require that only one of several concurrent creations of a name succeeds."""
        with ThreadPoolExecutor(_AT_ONCE) as writers:
            texts = [b"writer %d" % number for number in range(_AT_ONCE)]
            refused = [*writers.map(lambda text: self._create("raced", text), texts)]
        winners = [text for text, each in zip(texts, refused) if not each]
        if len(winners) > 1 or self._read("raced") not in (winners or texts):  # none: the winner's answer was lost
            raise self._useless(f"of {_AT_ONCE} writers of one name, {len(winners)} were told that they created it")

    def _useless(self, why: str) -> errors.StoreError:
        return errors.StoreError(f"{self._where}: {why}{self._unfit}")

    def require_listed(self) -> None:
        if self._listed() != {"once", "raced"}:
            raise errors.StoreError(f"{self._where}: the server does not list at once what was written")

    def refuses_wrong_digest(self) -> bool:
        return bool(self._create("wrong", b"data", of=b"other"))

    def clocks(self) -> _Clocks:
        """Compare the clocks of the server and of this host; StoreError if the ages of objects could not be
        determined."""
        _, answer = self._bucket.tried("head_object", Key=self._start + "once")
        headers = answer["ResponseMetadata"]["HTTPHeaders"] if answer else {}
        if "date" not in headers or "LastModified" not in answer:
            raise errors.StoreError(f"{self._where}: {NO_SERVER}")
        now = parsedate_to_datetime(headers["date"])
        if abs((now - answer["LastModified"]).total_seconds()) > _MARGIN:
            raise errors.StoreError(
                f"{self._where}: the server's clock says {now}, but it dates a new object {answer['LastModified']}"
            )
        ahead = (datetime.now(timezone.utc) - now).total_seconds()
        return _Clocks(headers.get("server", ""), round(ahead, 1))

    def require_deleted(self) -> None:
        for name in ("once", "raced", "wrong"):
            self._bucket.delete(self._start + name)
        if self._listed() or self._read("once") is not None:
            raise errors.StoreError(f"{self._where}: the server still shows what was deleted")

    def clear(self) -> None:
        with suppress(errors.NbdpullError):
            for name in self._listed():
                self._bucket.delete(self._start + name)

    def _create(self, name: str, data: bytes, of: Optional[bytes] = None) -> str:
        """Create an object; return the error code with which that was refused, "" if it succeeded. of: data whose
        digest is sent along instead of the object's own."""
        digest = base64.b64encode(hashlib.sha256(data if of is None else of).digest()).decode()
        what = {"Body": data, "ContentLength": len(data), "ChecksumSHA256": digest, "IfNoneMatch": "*"}
        return self._bucket.tried("put_object", Key=self._start + name, **what)[0]

    def _read(self, name: str) -> Optional[bytes]:
        code, answer = self._bucket.tried("get_object", Key=self._start + name)
        return None if code else answer["Body"]

    def _listed(self) -> set[str]:
        return {each.key[len(self._start) :] for each in self._bucket.objects(self._start)}


def _settings(bucket: Bucket, prefix: str) -> dict[str, Any]:
    """Return the bucket's settings, as fields of Probed. Not all credentials may read them, and not every server knows
    the requests."""
    code, answer = bucket.tried("get_object_lock_configuration")
    lock = answer.get("ObjectLockConfiguration", {})
    retention = lock.get("Rule", {}).get("DefaultRetention", {})
    expires, old_expire = _lifecycle(bucket, prefix)
    return {
        "object_lock": _known(code, lock.get("ObjectLockEnabled") == "Enabled", False),
        "default_retention": retention.get("Days") or 365 * retention.get("Years", 0) or None,
        "versions": _versions(bucket),
        "expires": expires,
        "old_expire": old_expire,
    }


def _known(code: str, value: Any, otherwise: Any) -> Any:
    """Return `value` if the request succeeded, None if it was denied, else `otherwise`: servers also report a missing
    setting as an error."""
    return value if not code else None if code == "AccessDenied" else otherwise


def _versions(bucket: Bucket) -> Optional[str]:
    code, answer = bucket.tried("get_bucket_versioning")
    found: Optional[str] = _known(code, answer.get("Status", ""), "")
    return found


def _lifecycle(bucket: Bucket, prefix: str) -> tuple[Optional[int], Optional[int]]:
    """Return the days after which a lifecycle rule first deletes objects below the prefix, and old versions of them;
    None each if no rule does."""
    _, answer = bucket.tried("get_bucket_lifecycle_configuration")
    rules = [each for each in answer.get("Rules", ()) if each.get("Status") == "Enabled" and _applies(each, prefix)]
    expire = [each["Expiration"]["Days"] for each in rules if "Days" in each.get("Expiration", {})]
    old = [each["NoncurrentVersionExpiration"].get("NoncurrentDays", 0) for each in rules
           if "NoncurrentVersionExpiration" in each]  # fmt: skip
    return min(expire, default=None), min(old, default=None)


def _applies(rule: dict[str, Any], prefix: str) -> bool:
    chosen = rule.get("Filter", {})
    start = chosen.get("And", chosen).get("Prefix", rule.get("Prefix", ""))
    return bool(prefix.startswith(start) or start.startswith(prefix))
