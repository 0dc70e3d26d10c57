"""Credentials that end while a bucket is in use: a pull may take longer than they last."""

import hashlib
import http.server
import threading

import object_store as object_stores
import pytest

from nbdpull.core import errors
from nbdpull.storage import s3_client, s3_library
from nbdpull.storage.s3_client import Bucket

CALLS = {
    "get": lambda bucket: bucket.get("key"),
    "head": lambda bucket: bucket.head("key"),
    "put": lambda bucket: bucket.put("key", b"data", 4, hashlib.sha256(b"data").digest(), fresh=True),
}


class Server(http.server.ThreadingHTTPServer):
    """Answers requests with the keys `good`; others are refused with an error code, as AWS does. asked: all keys."""

    daemon_threads = True
    request_queue_size = 16

    def __init__(self):
        self.good, self.asked = "first", []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        keys = self.headers["Authorization"].partition("Credential=")[2].partition("/")[0]
        assert self.headers["x-amz-security-token"] == f"token of {keys}"
        self.server.asked.append(keys)
        is_good = keys == self.server.good
        body = (b"data" if self.command == "GET" else b"") if is_good else b"<Error><Code>ExpiredToken</Code></Error>"
        self.send_response(200 if is_good else 400)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", self.date_time_string())
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    do_PUT = do_HEAD = do_GET


@pytest.fixture
def server(monkeypatch, tmp_path):
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        for name, value in object_stores.environment(f"http://127.0.0.1:{made.server_port}").items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        yield made
        made.shutdown()
        thread.join()


def note(tmp_path, keys):
    lines = [f"aws_access_key_id={keys}", "aws_secret_access_key=secret", f"aws_session_token=token of {keys}"]
    (tmp_path / "credentials").write_text("\n".join(["[default]", *lines, ""]))


@pytest.mark.parametrize("call", CALLS)
def test_those_that_somebody_renewed_are_read_again(server, tmp_path, call):
    """boto3 does not know when those in its file end. The answer to HEAD has no error code."""
    note(tmp_path, "first")
    bucket = Bucket("bucket", 0.1)
    CALLS[call](bucket)
    note(tmp_path, "second")
    server.good = "second"
    CALLS[call](bucket)
    assert server.asked.count("second") == 1


@pytest.mark.parametrize("call", ["get", "head"])
def test_those_that_nobody_renewed_are_read_again_once(server, tmp_path, monkeypatch, call):
    note(tmp_path, "first")
    bucket, read, real = Bucket("bucket", 0.1), [], s3_library.client
    monkeypatch.setattr(s3_library, "client", lambda *args: read.append(1) or real(*args))
    CALLS[call](bucket)
    server.good = "second"
    for _ in range(2):
        with pytest.raises(errors.AccessDenied, match="credentials (that )?have expired"):
            CALLS[call](bucket)
        assert len(read) == 2
    note(tmp_path, "second")
    monkeypatch.setattr(s3_client, "_RENEWAL", 0.0)
    CALLS[call](bucket)


def test_threads_whose_requests_are_refused_at_once(server, tmp_path):
    """Only one of them reads the credentials again, and all go on."""
    note(tmp_path, "first")
    bucket, together, found = Bucket("bucket", 0.1), threading.Barrier(8), []
    bucket.get("key")
    note(tmp_path, "second")
    server.good = "second"
    real = bucket._made

    def made(call, what):
        if len(server.asked) == 1:
            together.wait(10)
        return real(call, what)

    bucket._made = made
    threads = [threading.Thread(target=lambda: found.append(bucket.get("key"))) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == [b"data"] * 8 and server.asked.count("second") == 8
