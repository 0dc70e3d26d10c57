"""Requests to a bucket: which are repeated, and how their failures are reported."""

import contextlib
import hashlib
import http.server
import random
import re
import socket
import threading
import time
from unittest import mock

import object_store as object_stores
import pytest
from bed.address import free_port
from faulty_proxy import KINDS, FaultyProxy

from nbdpull.cli import logs
from nbdpull.core import ending, errors
from nbdpull.storage import s3_library, s3_waiting
from nbdpull.storage.s3_client import Bucket
from nbdpull.storage.s3_failure import Absent, Exists

SHORT = 5.0  # seconds of patience


@pytest.fixture
def through(object_store, monkeypatch):
    """Factory: a FaultyProxy with this `decide`, and a Bucket behind it."""

    def opened(decide=lambda *_: None, patience=SHORT):
        proxy = FaultyProxy(object_store.server.port, decide)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        proxies.append(proxy)
        return proxy, Bucket(object_store.bucket, patience)

    proxies = []
    yield opened
    for proxy in proxies:
        proxy.away()


@pytest.fixture
def key(object_store):
    return object_store.key("file")


def put(bucket, key, data, fresh=True):
    bucket.put(key, data, len(data), hashlib.sha256(data).digest(), fresh)


@pytest.mark.parametrize("fault", KINDS)
def test_a_fault_is_survived(through, key, fault, tmp_path):
    """Even if the server had done it, and its answer was lost: the existing object is our own. The retry is logged."""
    proxy, bucket = through(lambda method, path, before: fault if before == 0 else None)
    with logs.kept(1, str(tmp_path / "log"), pytest.fail):
        put(bucket, key, b"data")
    again = re.search(rf"s3: put_object {key}: \w+; trying again in 0\.1 s", (tmp_path / "log").read_text())
    assert bool(again) == (fault != "delay")
    assert bucket.get(key) == b"data"
    assert bucket.head(key).size == 4
    assert [each.size for each in bucket.objects(key)] == [4]
    put(bucket, key, b"other", fresh=False)
    bucket.delete(key)
    with pytest.raises(Absent):
        bucket.get(key)
    assert len(proxy.faults()) >= 5 and sum(bucket.requests.values()) == len(proxy.requests)


def test_an_object_made_by_another_run_is_kept(through, key, object_store):
    """Our answer was lost, and the existing object is not ours."""

    def decide(method, path, before):
        if method == "PUT" and before == 0:
            object_store.client.put_object(Bucket=object_store.bucket, Key=key, Body=b"theirs")
            return "500"
        return None

    _, bucket = through(decide)
    with pytest.raises(Exists):
        put(bucket, key, b"ours")
    assert bucket.get(key) == b"theirs"


def test_nothing_is_made_twice(through, key):
    proxy, bucket = through()
    put(bucket, key, b"first")
    with pytest.raises(Exists):
        put(bucket, key, b"first")
    assert [each.method for each in proxy.requests] == ["PUT", "PUT"]


@pytest.mark.parametrize("seed", range(2))
def test_any_faults(through, object_store, seed):
    chance = random.Random(seed)
    proxy, bucket = through(lambda *_: chance.choice(KINDS) if chance.random() < 0.3 else None, patience=30)
    for number in range(15):
        put(bucket, object_store.key(f"{number}"), b"%d" % number)
        assert bucket.get(object_store.key(f"{number}")) == b"%d" % number
    assert len([*bucket.objects(object_store.key(""))]) == 15
    assert len(proxy.faults()) > 5


def test_a_server_that_is_away_for_a_while(through, key):
    proxy, bucket = through(patience=20)
    put(bucket, key, b"data")
    proxy.away()
    timer = threading.Timer(1, proxy.back)
    timer.start()
    assert bucket.get(key) == b"data"
    timer.join()


@pytest.mark.parametrize(
    "kind, call",
    [
        (errors.StoreError, lambda bucket, key: bucket.get(key)),
        (errors.OutputError, lambda bucket, key: put(bucket, key, b"data")),
        (errors.StoreError, lambda bucket, key: [*bucket.objects(key)]),
    ],
)
def test_a_server_that_stays_away(through, key, kind, call):
    proxy, bucket = through(patience=0.5)
    proxy.away()
    began = time.monotonic()
    with pytest.raises(kind, match=f"{key}: .*connect.*; 0.5 s of retries did not help"):
        call(bucket, key)
    assert time.monotonic() - began < 5


def test_a_server_that_only_says_no(through, key):
    _, bucket = through(lambda *_: "503", patience=0.5)
    with pytest.raises(errors.StoreError, match=r"the server says SlowDown \(by the proxy\); 0.5 s of retries"):
        bucket.get(key)


def test_a_stopping_process_does_not_retry(through, key):
    """Its last requests are tried once."""
    proxy, bucket = through(lambda *_: "503", patience=60)
    stop = threading.Event()

    def check():
        if stop.is_set():
            raise errors.Interrupted(15)

    timer, began = threading.Timer(0.3, stop.set), time.monotonic()
    timer.start()
    with ending.asked_by(check):
        with pytest.raises(errors.Interrupted):
            bucket.get(key)
        before = len(proxy.requests)
        with pytest.raises(errors.OutputError):
            bucket.delete(key)
    assert time.monotonic() - began < 10 and len(proxy.requests) == before + 1
    timer.join()


def test_a_server_that_never_answers(through, key, seaweedfs):
    _, bucket = through(patience=1)
    put(bucket, key, b"data")
    with seaweedfs.paused(), pytest.raises(errors.StoreError, match="did not help"):
        bucket.get(key)
    assert bucket.get(key) == b"data"


def test_missing_rights(object_store, key, monkeypatch):
    """The message names the missing right, and no key."""
    for name, value in object_store.environment(keys=object_stores.NOBODY).items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(object_store.bucket, SHORT)
    for right, call in {
        "s3:GetObject": lambda: bucket.get(key),
        "s3:PutObject": lambda: put(bucket, key, b"data"),
        "s3:DeleteObject": lambda: bucket.delete(key),
        "s3:ListBucket": lambda: [*bucket.objects(key)],
    }.items():
        with pytest.raises(errors.AccessDenied, match=f"access denied; allow {right} on it") as caught:
            call()
        assert not {*object_stores.NOBODY} & {*str(caught.value).split()}


@pytest.mark.parametrize(
    "variables, kind, message",
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, errors.AccessDenied, "the secret key does not belong to the access key"),
        ({"AWS_ACCESS_KEY_ID": "stranger"}, errors.AccessDenied, "the server does not know the access key"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, errors.AccessDenied, "there are no credentials"),
        ({"NBDPULL_S3_ENDPOINT": "nonsense"}, errors.UsageError, "NBDPULL_S3_ENDPOINT: Invalid endpoint: nonsense"),
        ({"AWS_ENDPOINT_URL_S3": "nonsense"}, errors.UsageError, "^AWS_ENDPOINT_URL_S3: Invalid endpoint: nonsense"),
        (
            {"AWS_DEFAULT_REGION": "no region!"},
            errors.UsageError,
            "^AWS_REGION, or region in ~/.aws/config: Provided reg",
        ),
        ({"AWS_PROFILE": "nobody"}, errors.UsageError, r"profile \(nobody\) could not be found"),
    ],
)
def test_unknown_credentials(object_store, key, monkeypatch, variables, kind, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(kind, match=message):
        Bucket(object_store.bucket, SHORT).get(key)


@pytest.mark.unit
def test_a_password_in_the_url_is_not_shown(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://usr:secretpw@127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(errors.StoreError, match="127.0.0.1") as caught:
        Bucket("bucket", 0.1).get("key")
    assert "usr" not in str(caught.value) and "secretpw" not in str(caught.value)


@pytest.fixture
def silent(monkeypatch):
    """The socket of a server that accepts requests, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.getsockname()[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "key")
        yield server


@pytest.mark.unit
@pytest.mark.parametrize("call", [lambda bucket: bucket.get("key"), lambda bucket: put(bucket, "key", bytes(8 << 20))])
def test_a_stopping_process_does_not_wait_for_an_answer(silent, call):
    bucket, taken = Bucket("bucket", 60), []
    silent.setblocking(False)

    def check():
        """Ask the process to end once the request is in progress."""
        with contextlib.suppress(BlockingIOError):
            taken.append(silent.accept())
        if taken:
            raise errors.Interrupted(15)

    with ending.asked_by(check):
        bucket._connected()
        began = time.monotonic()
        with pytest.raises(errors.Interrupted):
            call(bucket)
        with (
            mock.patch.object(s3_waiting, "LAST", 0.1),
            pytest.raises(errors.StoreError, match="no answer in 0.1 s, and"),
        ):
            bucket.head("key")
    assert time.monotonic() - began < 15, "less than a read times out"
    for connection, _ in taken:
        connection.close()


@pytest.mark.unit
def test_silence_counts_towards_the_time_limit(silent, monkeypatch):
    """Otherwise a silent server is waited for the duration of one try longer, and the message does not say so."""
    monkeypatch.setattr(s3_library, "silence", lambda _: 0.2)
    bucket = Bucket("bucket", 0.3)
    bucket._connected()
    began = time.monotonic()
    with pytest.raises(errors.StoreError, match="0.3 s of retries did not help"):
        bucket.get("key")
    assert time.monotonic() - began > 0.2
    assert bucket.requests["get_object"] <= 2


@pytest.mark.unit
@pytest.mark.parametrize("number, passes", [(socket.EAI_NONAME, False), (socket.EAI_AGAIN, True)])
def test_an_unknown_host(silent, monkeypatch, number, passes):
    """A mistyped name is reported at once; one that cannot be resolved now may be resolved soon."""

    def unknown(*_, **__):
        raise socket.gaierror(number, "unknown")

    bucket, began = Bucket("bucket", 0.5), time.monotonic()
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(errors.StoreError) as caught:
        bucket.head("key")
    assert bucket.requests["head_object"] in ((2, 3) if passes else (1,)) and time.monotonic() - began < 5
    assert ("there is no host of that name" in str(caught.value)) is not passes
    assert ("0.5 s of retries did not help" in str(caught.value)) is passes


def test_a_host_that_was_reached_before(object_store, key, monkeypatch):
    """It may be known again later."""
    bucket = Bucket(object_store.bucket, 0.5)
    put(bucket, key, b"data")
    bucket._client = None
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://no-such-host.invalid")
    with pytest.raises(errors.StoreError, match="0.5 s of retries did not help"):
        bucket.get(key)


@pytest.fixture
def website(monkeypatch):
    """Factory: a server that answers every request with a page, and this status."""

    def opened(status):
        def answer(handler):
            asked.append(handler.command)
            handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
            handler.send_response(status)
            handler.send_header("Content-Length", "13")
            handler.end_headers()
            handler.wfile.write(b"<html></html>" if handler.command != "HEAD" else b"")

        calls = {f"do_{method}": answer for method in ("GET", "HEAD", "PUT", "DELETE")}
        calls["protocol_version"] = "HTTP/1.1"  # else boto3 waits a second for "100 Continue" before each body
        kind = type("Page", (http.server.BaseHTTPRequestHandler,), {**calls, "log_message": lambda *_: None})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        servers.append(server)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
        return Bucket("bucket", 0.1)

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    servers, asked = [], []
    opened.asked = asked
    yield opened
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.unit
@pytest.mark.parametrize("status", [200, 301, 404])
def test_a_server_that_is_not_an_object_store_is_named_as_such(website, status):
    bucket = website(status)
    calls = [lambda: bucket.head("key"), lambda: [*bucket.objects("key")], lambda: put(bucket, "key", b"data"),
             lambda: bucket.delete("key")]  # fmt: skip
    for call in calls:
        with contextlib.suppress(errors.NbdpullError, Absent):
            call()
    with pytest.raises(errors.NbdpullError) if status != 404 else pytest.raises(Absent):
        bucket.head("key")
    if status == 404:
        with pytest.raises(errors.OutputError):
            put(bucket, "key", b"data")
        with pytest.raises(errors.StoreError):
            [*bucket.objects("key")]


@pytest.mark.unit
def test_a_server_that_sends_every_request_away(website):
    """It is asked once in which region the bucket is."""
    with pytest.raises(errors.StoreError, match="s3://bucket: the server does not answer as an object store does"):
        [*website(301).objects("key")]
    assert website.asked == ["GET", "HEAD"]


@pytest.mark.unit
def test_a_program_for_the_credentials_that_is_not_there(website, tmp_path, monkeypatch):
    bucket, config = website(200), tmp_path / "config"
    config.write_text("[default]\ncredential_process = /nonexistent\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with pytest.raises(errors.AccessDenied, match="cannot run /nonexistent, which should supply the credentials"):
        bucket.head("key")


def test_a_bucket_that_is_not_there(object_store):
    for call in (lambda bucket: bucket.get("file"), lambda bucket: put(bucket, "file", b"")):
        with pytest.raises(errors.StoreError, match="s3://no-such-bucket: there is no such bucket; create it"):
            call(Bucket("no-such-bucket", SHORT))


def test_the_endpoint_for_nbdpull_takes_precedence(object_store, key, monkeypatch):
    monkeypatch.setenv("NBDPULL_S3_ENDPOINT", object_store.server.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    put(Bucket(object_store.bucket, SHORT), key, b"data")
    assert object_store.read("file") == b"data"


def test_age_is_by_the_clock_of_the_server(object_store, key, monkeypatch):
    bucket = Bucket(object_store.bucket, SHORT)
    put(bucket, key, b"data")
    monkeypatch.setattr(time, "time", lambda: 0.0)  # else than that no clock is read here
    assert 0 <= bucket.head(key).age < 60
    assert 0 <= next(bucket.objects(key)).age < 60


def test_many_objects_come_page_by_page(through, object_store):
    """A thousand each; the proxy makes that fewer."""
    for number in range(5):
        object_store.client.put_object(Bucket=object_store.bucket, Key=object_store.key(f"d/{number}"), Body=b"")
    proxy, bucket = through()
    real = bucket._once
    bucket._once = lambda call, what: real(call, {**what, "MaxKeys": 2})
    start = object_store.key("")
    assert [each.key for each in bucket.objects(start)] == [f"{start}d/{number}" for number in range(5)]
    assert bucket.level(f"{start}d/") == ([], [f"{number}" for number in range(5)])
    assert len(proxy.requests) == 6


def test_a_library_that_is_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(errors.MissingSoftware, match=r"needs the library boto3 from 1.36 on: pip install"):
        Bucket("bucket")


def test_a_library_that_is_too_old(monkeypatch):
    import botocore

    monkeypatch.setattr(botocore, "__version__", "1.26.27")
    with pytest.raises(errors.MissingSoftware, match=r"1.36 on: .* \(this one is 1.26.27\)"):
        Bucket("bucket")
