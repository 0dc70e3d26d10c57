"""What a failed request to an object store becomes: which error, with which advice, and whether it is tried again.

test_s3_client.py has the same of real servers. Not every server says each of these things, and none on demand.
"""

import socket

import pytest

from nbdpull.core import errors
from nbdpull.storage import s3_failure
from nbdpull.storage.s3_failure import Absent, Failure


def error(call, code, status, text="the server says so", is_lasting=False, tried=None, **what):
    return s3_failure.error("b", call, what or {"Key": "s/x"}, Failure(code, status, text, is_lasting), tried)


def answer(code, status, message=""):
    """Return the exception of botocore for an answer of the server."""
    found = type("ClientError", (Exception,), {})()
    found.response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return found


def exception(*names, text="it failed"):
    """Return an exception of a class whose bases have these names, the last first."""
    kind = Exception
    for name in reversed(names):
        kind = type(name, (kind,), {})
    return kind(text)


# -- which error ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call, code, status, kind, says", [
    ("get_object", "NoSuchBucket", 404, errors.StoreError, "s3://b: there is no such bucket"),
    ("put_object", "NoSuchBucket", 404, errors.StoreError, "s3://b: there is no such bucket"),
    ("put_object", "QuotaExceeded", 403, errors.OutputFull, "cannot write s3://b/s/x: the server says so"),  # Ceph
    ("put_object", "XMinioStorageFull", 507, errors.OutputFull, "cannot write s3://b/s/x: the server says so"),
    ("get_object", "UserSuspended", 403, errors.AccessDenied, "the server has suspended the user of the access key"),
    ("put_object", "SlowDown", 503, errors.OutputError, "cannot write s3://b/s/x"),
    ("delete_object", "InternalError", 500, errors.OutputError, "cannot remove s3://b/s/x"),
    ("get_object", "SlowDown", 503, errors.StoreError, "cannot read s3://b/s/x"),
    ("list_objects_v2", "NoSuchKey", 404, errors.StoreError, "cannot list s3://b/s/x"),
    ("get_object", "ExpiredToken", 400, errors.AccessDenied, "the credentials have expired"),
    ("get_object", "SignatureDoesNotMatch", 403, errors.AccessDenied, "the secret key does not belong to"),
    ("get_object", "NoCredentialsError", 0, errors.AccessDenied, "set AWS_ACCESS_KEY_ID"),
    ("get_object", "AccessDenied", 403, errors.AccessDenied, "access denied; allow s3:GetObject on it"),
    ("head_object", "403", 403, errors.AccessDenied, "access denied; allow s3:GetObject on it"),
    ("list_objects_v2", "", 401, errors.AccessDenied, "access denied; allow s3:ListBucket on it"),
    ("get_bucket_policy", "AccessDenied", 403, errors.AccessDenied, "cannot ask about s3://b/s/x"),
    ("get_object", "PermanentRedirect", 301, errors.UsageError, "set AWS_REGION to it (the server says so)"),
    ("get_object", "302", 302, errors.StoreError, "s3://b: the server does not answer as an object store does"),
])  # fmt: skip
def test_what_the_server_says_becomes_an_error(call, code, status, kind, says):
    found = error(call, code, status)
    assert type(found) is kind and says in str(found)


def test_the_right_that_is_missing_is_that_of_the_call_and_its_parameters():
    def right(call, **what):
        return str(error(call, "AccessDenied", 403, **what)).partition("allow ")[2].partition(" on it")[0]

    assert right("get_object", Key="x", VersionId="1") == "s3:GetObjectVersion"
    assert right("delete_object", Key="x", VersionId="1") == "s3:DeleteObjectVersion"
    assert right("list_object_versions", Prefix="x", VersionId="1") == "s3:ListBucketVersions"
    assert right("put_object", Key="x", ObjectLockMode="GOVERNANCE") == "s3:PutObject and s3:PutObjectRetention"
    assert right("put_object", Key="x") == "s3:PutObject"


@pytest.mark.parametrize("call", ["get_object", "head_object", "get_object_retention", "put_object_retention"])
def test_an_object_that_does_not_exist_is_no_failure(call):
    assert type(error(call, "NoSuchKey", 404)) is Absent


@pytest.mark.parametrize("call, code, status, is_absent", [
    ("get_object_retention", "NoSuchObjectLockConfiguration", 400, True),
    ("get_object_retention", "InvalidRequest", 400, True),  # of a bucket without locks
    ("put_object_retention", "InvalidRequest", 400, False),  # here nothing is locked that has to be
    ("get_object_retention", "MethodNotAllowed", 405, True),  # a delete marker
    ("put_object_retention", "MethodNotAllowed", 405, True),
    ("get_object", "MethodNotAllowed", 405, False),
])  # fmt: skip
def test_an_object_without_a_lock(call, code, status, is_absent):
    assert (type(error(call, code, status)) is Absent) == is_absent


def test_a_place_without_a_key_is_the_bucket():
    assert str(error("list_objects_v2", "AccessDenied", 403, Prefix="")).startswith("cannot list s3://b: ")


def test_for_how_long_it_was_tried():
    assert str(error("get_object", "SlowDown", 503, tried=90.0)).endswith("; 90 s of retries did not help")
    assert "retries" not in str(error("get_object", "SlowDown", 503))


@pytest.mark.parametrize("code, kind", [
    ("PartialCredentialsError", errors.AccessDenied),
    ("ParamValidationError", errors.UsageError),
    ("SSLError", errors.StoreError),  # as with a server that has another certificate now
])  # fmt: skip
def test_a_request_that_never_leaves(code, kind):
    found = error("get_object", code, 0, "its text", is_lasting=True)
    assert type(found) is kind and str(found) == "cannot read s3://b/s/x: its text"


# -- what is tried again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code, status, is_temporary", [
    ("SlowDown", 400, True),
    ("BadDigest", 400, True),  # the data changed on its way
    ("RequestTimeout", 400, True),
    ("anything", 503, True),
    ("anything", 429, True),
    ("anything", 501, False),
    ("AccessDenied", 403, False),
    ("NoSuchKey", 404, False),
])  # fmt: skip
def test_which_answers_are_temporary(code, status, is_temporary):
    assert s3_failure.of(answer(code, status)).is_temporary is is_temporary


@pytest.mark.parametrize("names, is_temporary", [
    (["ConnectTimeoutError", "ConnectionError"], True),
    (["EndpointConnectionError", "ConnectionError"], True),
    (["ReadTimeoutError", "HTTPClientError"], True),
    (["IncompleteReadError"], True),
    (["SSLError", "ConnectionError"], False),  # a wrong certificate stays wrong
    (["NoCredentialsError"], False),
    (["ParamValidationError"], False),
])  # fmt: skip
def test_which_failures_without_an_answer_are_temporary(names, is_temporary):
    found = s3_failure.of(exception(*names))
    assert (found.code, found.status, found.is_temporary) == (names[0], 0, is_temporary)


def test_an_answer_is_quoted():
    assert s3_failure.of(answer("SlowDown", 503, " Reduce your rate. ")).text == (
        "the server says SlowDown (Reduce your rate)"
    )
    assert s3_failure.of(answer("404", 404)).text == "the server says 404"


@pytest.mark.parametrize("number, is_none", [
    (socket.EAI_NONAME, True),
    (socket.EAI_NODATA, True),
    (socket.EAI_AGAIN, False),  # no name server could be asked
])  # fmt: skip
def test_a_host_that_does_not_exist(number, is_none):
    """botocore's exception has it somewhere in its chain, as cause or context."""
    found = exception("EndpointConnectionError", "ConnectionError", text="Could not connect.")
    found.__context__ = exception("NewConnectionError")
    found.__context__.__cause__ = socket.gaierror(number, "Name or service not known")
    failure = s3_failure.of(found)
    assert (failure.code == s3_failure.NO_HOST) == is_none
    assert ("there is no host of that name" in failure.text) == is_none and failure.is_temporary
