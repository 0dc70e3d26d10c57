"""What a failure of an object store means: whether it is temporary, and which of our errors it becomes.

Owns: the known error codes of servers and exception classes of botocore, and the rights that requests need. Must not
know: how a request is made, when it is repeated.
"""

from __future__ import annotations

import socket
from typing import Any, NamedTuple, Optional

from ..core import errors
from . import s3_library

CALLS = {  # the verb for messages, and the right that the call needs
    "get_object": ("read", "s3:GetObject"),
    "head_object": ("read", "s3:GetObject"),
    "put_object": ("write", "s3:PutObject"),
    "delete_object": ("remove", "s3:DeleteObject"),
    "list_objects_v2": ("list", "s3:ListBucket"),
    "list_object_versions": ("list the versions of", "s3:ListBucketVersions"),
    "put_object_retention": ("lock", "s3:PutObjectRetention"),
    "get_object_retention": ("ask for the lock of", "s3:GetObjectRetention"),
    "copy_object": ("bring back", "s3:GetObjectVersion and s3:PutObject"),
}
_OF_VERSIONS = ("get_object", "head_object", "delete_object")  # calls that need another right for a version
_OF_LOCKS = ("put_object_retention", "get_object_retention")
_UNLOCKED = ("NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "InvalidRequest")
WRITING = ("put_object", "delete_object", "put_object_retention", "copy_object")
_OUTDATED = ("ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired")
CHANGED = ("BadDigest", "XAmzContentChecksumMismatch")  # the data changed in transit
NO_BUCKET = "NoSuchBucket"
_AGAIN = {
    "ConditionalRequestConflict",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    *CHANGED,
}
_DENIED = {  # reasons for a refused request
    "AllAccessDisabled": "the server has closed this bucket",
    "ExpiredToken": "the credentials have expired",
    "InvalidAccessKeyId": "the server does not know the access key",
    "InvalidToken": "the server does not know the session token",
    "RequestTimeTooSkewed": "the clocks of this host and of the server differ by too much",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "TokenRefreshRequired": "the credentials have expired",
    "UserSuspended": "the server has suspended the user of the access key",
    "NoCredentialsError": "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
}
_ON_THE_WAY = {  # of botocore; HTTPError is urllib3's, for a broken-off answer without object data; Unanswered is ours
    "ConnectionError",
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseStreamingError",
    "HTTPError",
    "Unanswered",
}
SILENT = ("ConnectTimeoutError", "ReadTimeoutError")
NO_HOST = "NoHost"  # our own code
NO_SERVER = "the server does not answer as an object store does; name the endpoint of one"
_FULL = ("EntityTooLarge", "InsufficientCapacity", "QuotaExceeded", "XMinioStorageFull")  # Ceph has a quota as a 403


class Absent(Exception):
    """The object does not exist."""


class Exists(Exception):
    """The object exists already, or is not the expected one."""


class Failure(NamedTuple):
    """A failed request. code: the server's error code, or the name of a class of botocore; status: of HTTP, 0 if there
    was no answer; is_lasting: without an answer, whether trying again is useless."""

    code: str
    status: int
    text: str
    is_lasting: bool = False

    @property
    def is_temporary(self) -> bool:
        if not self.status:
            return not self.is_lasting
        return self.code in _AGAIN or self.status in (429, 500, 502, 503, 504)


def error(bucket: str, call: str, what: dict[str, Any], failure: Failure, tried: Optional[float] = None) -> Exception:
    """Return the exception for a failure: Absent, or an NbdpullError. what: the parameters of the call. tried: for how
    many seconds, None: the request was made only once."""
    code, status, text, _ = failure
    key = what.get("Key", what.get("Prefix", ""))
    doing, right = CALLS.get(call, ("ask about", f"s3:{call}"))
    right += "Version" if call in _OF_VERSIONS and "VersionId" in what else ""
    right += " and s3:PutObjectRetention" if "ObjectLockMode" in what else ""
    where = f"s3://{bucket}/{key}".rstrip("/")
    cannot = f"cannot {doing} {where}"
    if code == NO_BUCKET:
        return errors.StoreError(f"s3://{bucket}: there is no such bucket; create it, or name another one")
    is_unlocked = call == "get_object_retention" and code in _UNLOCKED
    is_deleted = status == 405 and call in _OF_LOCKS  # what has the key is a delete marker
    if is_unlocked or is_deleted or (status == 404 and call in ("get_object", "head_object", *_OF_LOCKS)):
        return Absent()
    if code in _DENIED:
        return errors.AccessDenied(f"{cannot}: {_DENIED[code]}")
    if call == "head_object" and status == 400:
        return errors.AccessDenied(f"{cannot}: refused without a reason, as with credentials that have expired")
    if code not in _FULL and (code == "AccessDenied" or status in (401, 403)):
        return errors.AccessDenied(f"{cannot}: access denied; allow {right} on it to these credentials")
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        return errors.UsageError(f"{cannot}: the bucket is in another region; set AWS_REGION to it ({text})")
    if 300 <= status < 400:
        return errors.StoreError(f"s3://{bucket}: {NO_SERVER}")
    if not status and failure.is_lasting and code != "SSLError":
        kind_of = errors.AccessDenied if "Credential" in code else errors.UsageError
        return kind_of(f"{cannot}: {text}")
    kind = errors.OutputFull if code in _FULL else errors.OutputError if call in WRITING else errors.StoreError
    in_vain = "" if tried is None else f"; {tried:g} s of retries did not help"
    return kind(f"{cannot}: {text}{in_vain}")


def may_be_outdated(call: str, failure: Failure) -> bool:
    """Return whether the credentials of a request may have been replaced since they were read. The answer to HEAD has
    no error code."""
    return failure.code in _OUTDATED or (call == "head_object" and failure.status in (400, 403))


def of(error: Any) -> Failure:
    """Return the Failure for an exception of one of the classes that s3_library.library() returns."""
    response = getattr(error, "response", None)
    if not response:
        is_lasting = not _names(type(error)) & _ON_THE_WAY
        text = s3_library.without_password(str(error)).rstrip(".")
        if _is_no_host(error):
            return Failure(NO_HOST, 0, f"{text}: there is no host of that name")
        return Failure(type(error).__name__, 0, text, is_lasting or type(error).__name__ == "SSLError")
    about = response.get("Error", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code, text = str(about.get("Code", status)), str(about.get("Message", "")).strip().rstrip(".")
    return Failure(code, status, f"the server says {code}{f' ({text})' if text else ''}")


def _is_no_host(error: Optional[BaseException]) -> bool:
    """Return whether the server's host name does not exist or has no address; False if no name server could be
    asked."""
    while error is not None and not isinstance(error, socket.gaierror):
        error = error.__cause__ or error.__context__
    return error is not None and error.errno in (socket.EAI_NONAME, socket.EAI_NODATA)


def _names(kind: type) -> set[str]:
    return {each.__name__ for each in kind.__mro__}
