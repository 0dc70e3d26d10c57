"""What boto3's own settings say about the way to an object store: a CA, and a proxy."""

import http.server
import threading

import object_store as object_stores
import pytest
from kubevirt_stub import tls

from nbdpull.core import errors
from nbdpull.storage.s3_client import Bucket

pytestmark = pytest.mark.e2e  # openssl makes the certificate


class Handler(tls.Handler):
    """Answers every question for an object with four bytes, and notes what was asked."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.answer(200, b"data", ETag='"tag"', Last_Modified="Sat, 28 Nov 2026 12:00:00 GMT")


@pytest.fixture
def environment(monkeypatch):
    def of(endpoint, **more):
        for name, value in {**object_stores.environment(endpoint), **more}.items():
            monkeypatch.setenv(name, str(value))

    return of


@pytest.fixture
def secure():
    server = tls.Server(Handler, tls.pairs()[1][0], None)
    server.asked = []
    yield server
    server.stop()


def test_a_ca(secure, environment):
    environment(secure.url, AWS_CA_BUNDLE=secure.pair.bundle_path)
    assert Bucket("bucket", 5).get("key") == b"data" and secure.asked == ["/bucket/key"]


def test_a_server_of_an_unknown_ca_is_refused(secure, environment):
    environment(secure.url)
    with pytest.raises(errors.StoreError, match="certificate verify failed"):
        Bucket("bucket", 5).get("key")
    assert not secure.asked


def test_a_proxy(environment):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            environment("http://store.invalid", HTTP_PROXY=f"http://127.0.0.1:{server.server_port}", NO_PROXY="")
            assert Bucket("bucket", 5).get("key") == b"data"
        finally:
            server.shutdown()
    assert server.asked == ["http://store.invalid/bucket/key"]
