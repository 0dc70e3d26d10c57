"""The HTTP server against clients that are malicious, slow, or disconnect: what one does costs the others nothing."""

import contextlib
import http.client
import io
import json
import os
import select
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
from memory_volume import heard

from nbdpull.core import errors
from nbdpull.serving.http import endpoint, message
from nbdpull.serving.http import server as limits
from nbdpull.serving.http.app import App, Route
from nbdpull.serving.http.auth import Token

pytestmark = pytest.mark.e2e  # servers

SIZE = 32 << 20  # bytes: more than sockets hold


def big(request):
    def pieces():
        for _ in range(SIZE >> 20):
            yield memoryview(bytes(1 << 20))

    return message.Response(200, {"Content-Length": str(SIZE)}, pieces())


def short(request):
    return message.Response(200, {"Content-Length": "1000"}, [b"x" * 999])


def failing(request):
    def pieces():
        yield b"x" * 500
        raise errors.SourceError("the disk cannot be read")

    return message.Response(200, {"Content-Length": "1000"}, pieces())


def unmeasured(request):
    """An answer without Content-Length, which fails after the first piece if requested."""

    def pieces():
        yield b"[" + b"1," * 1000
        if "fails" in request.query:
            raise errors.SourceError("the disk cannot be read")
        yield memoryview(b"2,3")
        yield b"]"

    return message.Response(200, {"Content-Type": message.JSON}, pieces())


def echo(request):
    return message.json_response({"path": request.path, "body": request.body.decode()})


ROUTES = [
    Route(("big",), ("GET",), big, is_open=True),
    Route(("short",), ("GET",), short, is_open=True),
    Route(("failing",), ("GET",), failing, is_open=True),
    Route(("unmeasured",), ("GET",), unmeasured, is_open=True),
    Route(("echo",), ("GET", "POST"), echo, is_open=True),
    Route(("exports", None, "map"), ("GET",), lambda request, name: message.json_response({"name": name}), True),
]
APP = App(ROUTES, Token(b"a-token-of-ours"))


@contextlib.contextmanager
def serving(tls=None, **times):
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {"TIMEOUT": 1.0, "GOODBYE": 0.3, "LOOK_INTERVAL": 0.05, **times}.items():
            patched.setattr(limits, name, value)
        with endpoint.serving(APP, endpoint.parse("127.0.0.1:0"), tls) as url:
            yield int(url.rpartition(":")[2])


@pytest.fixture
def port():
    with serving() as port:
        yield port


def raw(port, sent, patience=10):
    """Return everything that is received until the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as made:
        with contextlib.suppress(ConnectionError):
            made.sendall(sent)
        return rest(made)


def rest(made):
    got = b""
    with contextlib.suppress(ConnectionError):
        while piece := made.recv(1 << 20):
            got += piece
    return got


def assert_serves(port, context=None):
    connect = http.client.HTTPSConnection if context else http.client.HTTPConnection
    made = connect("127.0.0.1", port, timeout=10, **({"context": context} if context else {}))
    with contextlib.closing(made):
        made.request("POST", "/echo", b"hello")
        assert json.loads(made.getresponse().read())["body"] == "hello"


HEAD = b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    "sent, status",
    [
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: -5\r\n\r\nhello", b"400"),
        (HEAD + b"Content-Length: x\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: +5\r\n\r\nhello", b"400"),
        (HEAD + b"Content-Length: 1_0\r\n\r\nhello", b"400"),
        (HEAD + b"Content-Length: 99999999999\r\n\r\n", b"413"),
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\nConnection: Keep-Alive\r\n\r\n" + HEAD, b"411"),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 0\r\n\r\nhello", b"400"),
        (HEAD + b"Content-Length : 5\r\n\r\nhello", b"400"),
        (HEAD + b"Content-Length: 5\r\n 0\r\n\r\nhello", b"400"),
        (b"GET /echo HTTP/1.1\r\n folded: x\r\n\r\n", b"400"),
        (HEAD + b"Host: y\r\n\r\n", b"400"),
        (HEAD + b"Authorization: Bearer a\r\nAUTHORIZATION: Bearer b\r\n\r\n", b"400"),
        (HEAD + b"X: a\rContent-Length: 5\r\n\r\nhello", b"400"),
        (HEAD + b"X: a\n\r\n", b"400"),
        (HEAD + b"X: \0\r\n\r\n", b"400"),
        (HEAD + b": x\r\n\r\n", b"400"),
        (b"GET //[ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET http://[/ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /ec\tho HTTP/1.1\r\n\r\n", b"400"),
        (b"G\x1bT /echo HTTP/1.1\r\n\r\n", b"400"),
        (b"get /echo HTTP/1.1\r\n\r\n", b"400"),
        (HEAD + b"X: " + b"x" * (20 << 10), b"413"),
        (HEAD + b"X: y\r\n" * (4 << 10), b"413"),
        (b"GET /" + b"x" * (20 << 10), b"414"),
        (b"GET / HTTP/9.9\r\n\r\n", b"505"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", b"400"),
        (b"GET /exports/..%2f..%2fetc%2fpasswd/map HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"200"),
    ],
)
def test_malformed_requests_are_refused(port, sent, status, caplog):
    """Once, as JSON, and without a warning. The last one names a disk, which is looked up unchanged."""
    with heard(caplog):
        answer = raw(port, sent)
    assert answer.split()[1] == status and answer.count(b"HTTP/1.1") == 1, answer
    if status == b"200":
        assert b"..%2F..%2Fetc%2Fpasswd" in answer
    else:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Content-Length: %d\r\n" % len(body) in head and b"Connection: close" in head
        assert json.loads(body)["code"] == "usage"
    assert [each.message for each in caplog.records if each.levelname != "INFO"] == []
    assert_serves(port)


def test_a_header_with_an_underscore_is_no_other_header():
    """WSGI has one name for both."""
    sent = io.BytesIO(b"If_Range: x\r\nRange: bytes=0-9\r\nX_Kubevirt_Export_Token: x\r\n\r\n")
    assert limits.Headers()(sent) == {b"Range": b"bytes=0-9"}


def test_a_body_that_ends_early_is_none(port):
    """The part that arrived might be valid by itself."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as made:
        made.sendall(HEAD + b"Content-Length: 50\r\n\r\n{}")
        made.shutdown(socket.SHUT_WR)
        assert rest(made).split()[1] == b"400"


@pytest.mark.parametrize("by_tls", [False, True])
def test_one_connection_too_many_is_refused_and_closed(by_tls, certificates):
    """All threads and places in the queue are taken by silent clients."""
    tls = endpoint.tls_context(str(certificates), None) if by_tls else None
    with serving(tls, TIMEOUT=60.0, THREADS=2, WAITING=1) as port, contextlib.ExitStack() as opened:
        made = [opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(4)]
        answered, _, _ = select.select(made, [], [], 30)
        head, _, body = rest(answered[0]).partition(b"\r\n\r\n")
    assert by_tls or (head.split()[1] == b"503" and json.loads(body)["code"] == "busy")
    assert bool(head) != by_tls


def test_requests_one_after_the_other(port):
    """Pipelined: the body of one is not taken for the next."""
    answers = raw(port, b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nGET" * 3 + HEAD + b"\r\n")
    assert answers.count(b"HTTP/1.1 200") == 4 and answers.count(b'"body":"GET"') == 3


def test_a_head_has_no_body(port):
    answer = raw(port, b"HEAD /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % SIZE in head and body == b""


@pytest.mark.parametrize("path", ["short", "failing"])
def test_a_truncated_answer_is_recognizable(port, path):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as made:
        made.request("GET", f"/{path}")
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            made.getresponse().read()
    assert_serves(port)


def test_an_answer_of_unknown_length_is_complete_or_recognizably_truncated(port):
    """The connection remains for the next request; and HTTP/1.0, which has no chunks, gets none."""
    whole = [1] * 1000 + [2, 3]
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as made:
        for _ in range(2):
            made.request("GET", "/unmeasured")
            answer = made.getresponse()
            assert answer.headers["Transfer-Encoding"] == "chunked" and json.loads(answer.read()) == whole
        sock = made.sock
        made.request("HEAD", "/unmeasured")
        assert made.sock is sock and made.getresponse().read() == b""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as made:
        made.request("GET", "/unmeasured?fails")
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            made.getresponse().read()
    for path in ("/unmeasured", "/unmeasured?fails"):
        head, _, body = raw(port, b"GET %s HTTP/1.0\r\n\r\n" % path.encode()).partition(b"\r\n\r\n")
        assert b"chunked" not in head and body.startswith(b"[1,1,") and body.endswith(b"]") == ("?" not in path)
    assert_serves(port)


def trickle(made, stopped):
    with contextlib.suppress(OSError):
        for byte in b"GET / HTTP/1.1\r\nX: " + b"x" * 10000:
            made.sendall(bytes([byte]))
            if stopped.wait(0.05):
                return


def test_a_client_that_sends_a_byte_at_a_time_is_cut_off(port):
    """All threads are busy with such clients, and still the next one is served."""
    stopped = threading.Event()
    with contextlib.ExitStack() as opened:
        made = [opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(limits.THREADS)]
        threads = [threading.Thread(target=trickle, args=(each, stopped)) for each in made]
        opened.callback(stopped.set)
        for each in threads:
            each.start()
        assert_serves(port)
        for each in threads:
            each.join(10)
        assert not any(each.is_alive() for each in threads), "each was cut off"


def test_a_client_that_reads_no_answer_is_cut_off(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as made:
        made.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.5)
        assert len(rest(made)) < SIZE
    assert_serves(port)


def test_the_end_waits_for_no_client():
    with serving(TIMEOUT=60.0) as port:
        made = socket.create_connection(("127.0.0.1", port), timeout=20)
        made.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        made.recv(1)
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    with made:
        assert len(rest(made)) < SIZE
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_connection_that_could_be_kept_when_the_server_ends_is_closed():
    made = limits.Server(APP, ("127.0.0.1", 0), None)
    made.prepare()
    near, far = socket.socketpair()
    try:
        made._connections.close()  # as stop() does, between two steps of put_conn
        made.put_conn(limits.Connection(made, near))
    finally:
        made.stop()
    with far:
        assert near.fileno() == -1 and rest(far) == b""


# -- where ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "8080", "host", "host:", ":80", "host:x", "host:65536", "::1:80", ".:80", "a..b:80", "x" * 64 + ":80", "unix:",
     "unix:" + "x" * 200],
)  # fmt: skip
def test_a_wrong_address_is_refused(text):
    with pytest.raises(errors.UsageError, match="--listen"):
        endpoint.parse(text)


@pytest.mark.parametrize(
    "text, local",
    [("127.0.0.1:0", True), ("127.9.9.9:80", True), ("[::1]:80", True), ("localhost:80", True), ("unix:/x", True),
     ("0.0.0.0:80", False), ("[::]:80", False), ("10.0.0.1:80", False), ("backup.example:80", False)],
)  # fmt: skip
def test_local_addresses(text, local):
    assert endpoint.parse(text).is_local == local


def test_a_unix_socket_is_private_and_nothing_is_removed_for_it(tmp_path):
    path = tmp_path / "sock"
    path.write_text("precious")
    where = endpoint.parse(f"unix:{path}")
    with pytest.raises(errors.OutputExists, match="remove it or choose another"), endpoint.serving(APP, where):
        pass
    assert path.read_text() == "precious"
    path.unlink()
    with endpoint.serving(APP, where):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()
    lost = endpoint.parse(f"unix:{tmp_path}/none/sock")
    with pytest.raises(errors.OutputError, match=f"there is no directory {tmp_path}/none"), endpoint.serving(APP, lost):
        pass


def test_a_port_that_is_taken_is_one_clear_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = endpoint.parse(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(errors.OutputError, match="Address already in use"), endpoint.serving(APP, where):
            pass


def test_a_descriptor_of_systemds_is_left_alone(monkeypatch):
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    with serving() as port:
        assert_serves(port)


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-keyout",
                        folder / f"{name}-key.pem", "-out", folder / f"{name}-cert.pem"],
                       check=True, capture_output=True)  # fmt: skip
    return folder


def client_context(folder, certificate=False):
    context = ssl.create_default_context(cafile=folder / "server-cert.pem")
    if certificate:
        context.load_cert_chain(folder / "client-cert.pem", folder / "client-key.pem")
    return context


def test_tls_and_a_client_of_the_ca(certificates):
    """An unfinished handshake keeps nobody out; nor does plain HTTP to that port."""
    tls = endpoint.tls_context(str(certificates), str(certificates / "client-cert.pem"))
    with serving(tls) as port, socket.create_connection(("127.0.0.1", port)) as idle:
        assert_serves(port, client_context(certificates, certificate=True))
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            assert_serves(port, client_context(certificates))
        for _ in range(limits.THREADS + 1):
            assert b"200" not in raw(port, HEAD + b"\r\n")
        idle.sendall(b"\x16")
        assert_serves(port, client_context(certificates, certificate=True))


def test_a_body_over_tls_is_complete_or_recognizably_truncated(certificates):
    with serving(endpoint.tls_context(str(certificates), None)) as port:
        for path, size in (("big", SIZE), ("failing", None)):
            made = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=client_context(certificates))
            with contextlib.closing(made):
                made.request("GET", f"/{path}")
                answer = made.getresponse()
                if size:
                    assert len(answer.read()) == size
                else:
                    with pytest.raises((http.client.IncompleteRead, OSError)):
                        answer.read()


def test_certificates_that_cannot_be_used_are_named(certificates, tmp_path):
    with pytest.raises(errors.UsageError, match="server-cert.pem"):
        endpoint.tls_context(str(tmp_path), None)
    with pytest.raises(errors.UsageError, match="--client-ca"):
        endpoint.tls_context(str(certificates), str(tmp_path / "none"))
    encrypt = ["openssl", "pkey", "-in", certificates / "server-key.pem", "-aes256", "-passout", "pass:secret"]
    subprocess.run([*encrypt, "-out", tmp_path / "server-key.pem"], check=True, capture_output=True)
    shutil.copy(certificates / "server-cert.pem", tmp_path)
    with pytest.raises(errors.UsageError, match="server-key.pem is encrypted"):
        endpoint.tls_context(str(tmp_path), None)
    (tmp_path / "bad").write_text("no certificate")
    with pytest.raises(errors.UsageError, match="--client-ca"):
        endpoint.tls_context(str(certificates), str(tmp_path / "bad"))


class Options:
    """A socket that notes its options, and refuses some. family: of addresses."""

    def __init__(self, family, *refused):
        self.family, self._refused, self.set = family, refused, []

    def setsockopt(self, level, option, value):
        if option in self._refused:
            raise PermissionError
        self.set.append((level, option, value))


@pytest.mark.parametrize(
    "family, refused, options",
    [
        (socket.AF_UNIX, [], [limits._SO_SNDBUFFORCE]),
        (socket.AF_UNIX, [limits._SO_SNDBUFFORCE], [socket.SO_SNDBUF]),
        (socket.AF_UNIX, [limits._SO_SNDBUFFORCE, socket.SO_SNDBUF], []),
        (socket.AF_INET, [], []),
        (socket.AF_INET6, [], []),
    ],
)
def test_more_is_under_way_to_a_client_of_a_unix_socket(family, refused, options):
    connection = limits.Connection.__new__(limits.Connection)
    connection.socket = Options(family, *refused)
    connection.widen()
    assert connection.socket.set == [(socket.SOL_SOCKET, each, limits.SEND_BUFFER) for each in options]
