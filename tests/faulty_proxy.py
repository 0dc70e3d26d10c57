"""A proxy between a client and its HTTP server that causes a fault in some requests.

Owns: the faults, which request gets one, and the list of all requests. Must not know: S3, except the form of its
errors. The server behind the proxy is real, so the effect of a fault there is real, too.
"""

import collections
import contextlib
import hashlib
import http.client
import http.server
import itertools
import random
import socket
import struct
import threading
import time

from bed.address import free_port

KINDS = ("delay", "reset", "500", "503", "lost", "cut")
DELAY = 0.05  # seconds
ERRORS = {"500": (500, "InternalError"), "503": (503, "SlowDown")}
NAMED = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>by the proxy</Message></Error>"

Request = collections.namedtuple("Request", "method path fault")  # path: with the query, as it was asked


class FaultyProxy:
    """Before the server on a port of 127.0.0.1. `requests` are all that came, as Request, in the order of arrival.

    decide: called with method, path and how many times the two came before; the kind of the fault, or None.

    - delay: the request waits a moment
    - reset: the connection is reset before the request has reached the server
    - 500, 503: an answer of the proxy's own, the request has not reached the server
    - lost: the server has done it, and the connection is reset instead of an answer
    - cut: the answer ends in the middle of its body, by a reset; one without a body is lost
    """

    def __init__(self, port, decide=lambda method, path, before: None):
        self.decide, self.requests, self.server_port = decide, [], port
        self.unconditional = []  # paths of what may have overwritten something
        self._count, self._lock = collections.Counter(), threading.Lock()
        self._open = set()
        self.port = free_port()
        self._listen()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def _listen(self):
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", self.port), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.away()

    def away(self):
        """From now on, refuse connections and reset the open ones."""
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            with contextlib.suppress(OSError):
                _reset(connection)

    def back(self):
        self._listen()

    @contextlib.contextmanager
    def gone(self):
        """Be away inside the block."""
        self.away()
        try:
            yield
        finally:
            self.back()

    def fault_of(self, method, path):
        with self._lock:
            fault = self.decide(method, path, self._count[method, path])
            self._count[method, path] += 1
            self.requests.append(Request(method, path, fault))
        return fault

    def faults(self):
        return [request for request in self.requests if request.fault]


def at_random(seed, share, kinds=KINDS):
    """Return a `decide` that gives that share of the requests a fault. The choice depends on what is requested and how
    often it was requested before, not on the order of requests of several threads."""

    def decide(method, path, before):
        digest = hashlib.sha256(f"{seed} {method} {path} {before}".encode()).digest()
        chance = random.Random(digest)
        return chance.choice(kinds) if chance.random() < share else None

    return decide


def in_turn(every, kinds=KINDS):
    """Return a `decide` that gives each `every`th request a fault, of each kind in turn."""
    counted, faults = itertools.count(1), itertools.cycle(kinds)
    return lambda *_: None if next(counted) % every else next(faults)


def once(fault, method, part, times=1):
    """Return a `decide` that gives a fault to the first requests of a method whose path contains that part."""
    left = [times]

    def decide(asked, path, _before):
        if asked != method or part not in path or left[0] <= 0:
            return None
        left[0] -= 1
        return fault

    return decide


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """Ignore errors: a client that disconnects is none here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy = None
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        with self.proxy._lock:
            self.proxy._open.add(self.connection)

    def finish(self):
        with self.proxy._lock:
            self.proxy._open.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_):
        pass

    def _handle(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == "PUT" and "If-None-Match" not in self.headers:
            self.proxy.unconditional.append(self.path)
        fault = self.proxy.fault_of(self.command, self.path)
        if fault == "delay":
            time.sleep(DELAY)
        if fault == "reset":
            return self._reset()
        if fault in ERRORS:
            status, name = ERRORS[fault]
            text = NAMED.format(name).encode() if self.command != "HEAD" else b""
            return self._answer(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))], text)
        try:
            status, headers, answer = self._ask(body)
        except (OSError, http.client.HTTPException):
            return self._reset()  # the server is not there
        if self.connection not in self.proxy._open or fault == "lost" or fault == "cut" and len(answer) < 2:
            return self._reset()
        if fault != "cut":
            return self._answer(status, headers, answer)
        self._answer(status, headers, answer[: len(answer) // 2])
        return self._reset()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle

    def _ask(self, body):
        """Return the server's answer: (status, headers, body)."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.proxy.server_port)) as server:
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    server.putheader(name, value)
            server.endheaders(body or None)
            answer = server.getresponse()
            data = answer.read()
        kept = [each for each in answer.getheaders() if each[0].lower() not in ("transfer-encoding", "connection")]
        if "content-length" not in {name.lower() for name, _ in kept}:
            kept.append(("Content-Length", str(len(data))))
        return answer.status, kept, data

    def _answer(self, status, headers, body):
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _reset(self):
        self.close_connection = True
        _reset(self.connection)


def _reset(connection):
    """Reset a connection (RST), instead of ending the stream: this also reaches a client that only writes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
    connection.close()
