"""The proxy that causes faults in requests, in front of a server that counts what reaches it."""

import http.client
import http.server
import threading

import pytest
from faulty_proxy import KINDS, FaultyProxy, Request, at_random, in_turn, once

pytestmark = pytest.mark.e2e  # servers


class Counting(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_it(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.reached.append((self.command, self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"x" * 1000)

    do_GET = do_PUT = do_HEAD = handle_it

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting) as made:
        made.daemon_threads, made.reached = True, []
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.shutdown()


def proxy_before(server, *decide):
    return FaultyProxy(server.server_address[1], *decide)


def ask(proxy, method="GET", path="/a", body=None, headers=()):
    """Return (status, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    try:
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_without_a_fault_everything_is_forwarded(server):
    with proxy_before(server) as proxy:
        assert ask(proxy, "PUT", "/a?x=%2F", b"data", {"Expect": "100-continue"}) == (200, b"x" * 1000)
        assert ask(proxy, "HEAD") == (200, b"")
    assert server.reached == [("PUT", "/a?x=%2F", b"data"), ("HEAD", "/a", b"")]
    assert proxy.requests == [Request("PUT", "/a?x=%2F", None), Request("HEAD", "/a", None)]
    assert proxy.faults() == []


@pytest.mark.parametrize("fault", KINDS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_each_fault(server, fault, method):
    with proxy_before(server, once(fault, method, "/a")) as proxy:
        if fault in ("500", "503"):
            status, body = ask(proxy, method)
            assert status == int(fault) and ((b"<Code>" in body) == (method != "HEAD"))
        elif fault == "delay":
            assert ask(proxy, method)[0] == 200
        else:
            with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
                ask(proxy, method)
        assert len(server.reached) == (fault in ("delay", "lost", "cut"))
        assert ask(proxy, method)[0] == 200  # only once
    assert [each.fault for each in proxy.requests] == [fault, None]


def test_away_and_back(server):
    with proxy_before(server) as proxy:
        kept = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
        kept.request("GET", "/a")
        assert len(kept.getresponse().read()) == 1000
        with proxy.gone():
            with pytest.raises(ConnectionRefusedError):
                ask(proxy)
            with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
                kept.request("GET", "/a")
                kept.getresponse()
        assert ask(proxy)[0] == 200
        kept.close()


def test_a_server_that_is_not_there_resets(server):
    server.shutdown()
    server.server_close()
    with proxy_before(server) as proxy, pytest.raises(ConnectionResetError):
        ask(proxy)


def test_each_third_request_has_a_fault():
    decide = in_turn(3, ("reset", "cut"))
    assert [decide("GET", "/", 0) for _ in range(9)] == [None, None, "reset", None, None, "cut", None, None, "reset"]


def test_a_seed_makes_the_same_faults_in_any_order():
    asked = [(method, f"/{name}", before) for method in ("GET", "PUT") for name in range(200) for before in (0, 1)]
    first, second = at_random(7, 0.2), at_random(7, 0.2)
    there = {each: first(*each) for each in asked}
    assert there == {each: second(*each) for each in reversed(asked)}
    assert there != {each: at_random(8, 0.2)(*each) for each in asked}
    assert {*there.values()} == {None, *KINDS}
    assert 80 < sum(fault is not None for fault in there.values()) < 240
