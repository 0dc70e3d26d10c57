"""The settings of boto3 that a store needs."""

import base64
import hashlib
import io
import random
from datetime import datetime, timezone

import object_store as object_stores
import pytest
from botocore.exceptions import DataNotFoundError
from botocore.loaders import Loader
from botocore.utils import parse_timestamp

from nbdpull.storage import s3_library
from nbdpull.storage.s3_file import _Blocks

FORMS = ("%Y-%m-%dT%H:%M:%S.{:03}Z", "%Y-%m-%dT%H:%M:%SZ", "%a, %d %b %Y %H:%M:%S GMT", "%a, %d %b %Y %H:%M:%S +0000")
OTHERS = [
    1795376700,
    1795376700.5,
    "1795376700",
    "2026-11-22T19:45:00+01:00",
    "2026-11-22T19:45:00.1234567Z",
    "20261122T194500Z",
]


@pytest.mark.parametrize("seed", range(20))
def test_a_time_is_what_botocore_says(seed):
    chance = random.Random(seed)
    when = datetime.fromtimestamp(chance.randrange(2**31), timezone.utc)
    for form in FORMS:
        text = when.strftime(form).format(chance.randrange(1000))
        assert s3_library._time(text) == parse_timestamp(text), text


@pytest.mark.parametrize("expected", OTHERS, ids=str)
def test_unusual_times_are_read_as_by_botocore(expected):
    assert s3_library._time(expected) == parse_timestamp(expected)


@pytest.mark.parametrize("expected", ["", "Z", "yesterday", None, []], ids=repr)
def test_what_is_no_time_is_refused_as_by_botocore(expected):
    with pytest.raises(ValueError):
        s3_library._time(expected)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("is_known", [True, False])
def test_the_signed_digest_of_a_body(monkeypatch, scheme, is_known):
    """Its digest, for which it is not read once more if it is known."""
    for name, value in object_stores.environment(f"{scheme}://127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    known, sent = hashlib.sha256(b"known").digest(), []

    def refused(request, **_):
        sent.append(request.headers["X-Amz-Content-SHA256"].decode())
        raise ConnectionError

    client = s3_library.client(s3_library.library()[0], 1)
    client.meta.events.register("before-send.s3.PutObject", refused)
    fields = {"ChecksumSHA256": base64.b64encode(known).decode()} if is_known else {}
    with pytest.raises(ConnectionError):
        client.put_object(Bucket="bucket", Key="key", Body=io.BytesIO(b"data"), ContentLength=4, **fields)
    assert sent == [known.hex() if is_known else hashlib.sha256(b"data").hexdigest()]


@pytest.mark.parametrize(
    ("body", "asks"), [(b"data", False), (_Blocks(io.BytesIO(b"data")), True)], ids=["bytes", "file"]
)
def test_only_a_file_is_announced_before_it_is_sent(monkeypatch, body, asks):
    """botocore makes a file object of bytes, too, and asks before it sends one: that is a round trip."""
    for name, value in object_stores.environment("http://127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    found = []

    def refused(request, **_):
        found.append("Expect" in request.headers)
        raise ConnectionError

    client = s3_library.client(s3_library.library()[0], 1)
    client.meta.events.register("before-send.s3.PutObject", refused)
    with pytest.raises(ConnectionError):
        client.put_object(Bucket="bucket", Key="key", Body=body, ContentLength=4)
    assert found == [asks]


@pytest.mark.parametrize("name", ["endpoints", "s3/2006-03-01/service-2", "s3/2006-03-01/endpoint-rule-set-1"])
def test_models_are_read_as_by_botocore(name):
    theirs = Loader()
    ours = Loader(file_loader=s3_library._Models())
    assert ours.load_data(name) == theirs.load_data(name)
    assert ours.list_api_versions("s3", "service-2") == theirs.list_api_versions("s3", "service-2")


def test_any_service_that_credentials_come_from_is_found():
    """A role's are from sts."""
    ours, theirs = Loader(), Loader()
    ours.list_available_services = s3_library._every_service
    assert ours.load_service_model("sts", "service-2") == theirs.load_service_model("sts", "service-2")
    for loader in (ours, theirs):
        with pytest.raises(DataNotFoundError):
            loader.load_service_model("none", "service-2")
