"""The HTTP server: cheroot, which the extra nbdpull[http] installs, with limits. Imported only when used.

Owns: the limits for a client (bytes of a request, threads, time), that a request has one meaning for us and for every
proxy on its way, and that an answer that ends early cannot be mistaken for a complete one. Must not know: where it
listens, paths, tokens, volumes.
"""

from __future__ import annotations

import io
import logging
import os
import queue
import re
import socket
import ssl
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Callable, Optional, Union

from cheroot import server, wsgi
from cheroot.makefile import MakeFile
from cheroot.ssl import Adapter

from .message import Refused, error_response, loggable

log = logging.getLogger("nbdpull.http")

THREADS = 16  # requests handled at once
WAITING = 64  # further ones that wait for a thread; the next gets 503
IDLE = 20  # connections kept for a next request
MAX_HEAD, MAX_BODY = 16 << 10, 16 << 10  # bytes of a request
TIMEOUT = 30.0  # seconds for a request to arrive completely, with its TLS handshake; and for a piece of an answer
GOODBYE = 1.0  # seconds at the end for answers in progress
LOOK_INTERVAL = 0.5
SEND_BUFFER = 1 << 20  # bytes

_SO_SNDBUFFORCE = 32
_TARGET = re.compile(rb"[\x21-\x7e]+")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t\x20-\x7e\x80-\xff]*\r\n")
# Of two of these, cheroot uses the last one, others the first one.
_ONCE = (b"content-length", b"host", b"authorization", b"x-kubevirt-export-token", b"range", b"if-range")


class Headers(server.HeaderReader):
    """Refuses what a proxy may read differently than cheroot: for one of the two, a request could hide another."""

    def __call__(self, rfile: Any, hdict: Any = None) -> Any:
        return super().__call__(_Lines(rfile), hdict)

    def _allow_header(self, key_name: bytes) -> bool:
        return b"_" not in key_name  # WSGI cannot tell it from one with a hyphen


class _Lines:
    """The lines of a header, each checked."""

    def __init__(self, rfile: Any) -> None:
        self._rfile, self._seen = rfile, set()  # type: Any, set[bytes]

    def readline(self) -> bytes:
        line: bytes = self._rfile.readline()
        if line in (b"", b"\r\n"):
            return line
        match = _HEADER.fullmatch(line)
        if not match:  # also one that continues the line before
            raise ValueError("malformed header line")
        name = match[1].lower()
        if name in _ONCE and name in self._seen:
            raise ValueError(f"the header {name.decode()} is given twice")
        self._seen.add(name)
        return line


class Request(server.HTTPRequest):
    """Answers what never reaches the application in the application's shape, and closes the connection."""

    header_reader = Headers()
    method = b""

    def read_request_line(self) -> bool:
        try:
            is_read: bool = super().read_request_line()
        except ValueError:  # of the URL's parser
            is_read = self._refuse_line()
        return is_read and bool(_TARGET.fullmatch(self.method + self.uri) or self._refuse_line())

    def _refuse_line(self) -> bool:
        self.simple_response("400 Bad Request", "malformed request line")
        return False

    def simple_response(self, status: str, msg: str = "") -> None:
        self.close_connection = True
        with suppress(OSError):
            self.conn.wfile.write(_refusal(status, msg, self.method != b"HEAD"))


def _refusal(status: str, message: str, with_body: bool = True) -> bytes:
    """Return a whole answer. status: number and phrase, of which cheroot has some of its own."""
    number = int(status[:3])
    code = {500: "internal", 503: "busy"}.get(number, "usage")
    answer = error_response(Refused(number, code, message or HTTPStatus(number).phrase))
    headers = {**answer.headers, "Connection": "close"}
    head = [f"HTTP/1.1 {number} {HTTPStatus(number).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*head, "", ""]).encode() + (b"".join(answer.body) if with_body else b"")


class Connection(server.HTTPConnection):
    """arriving: since when a request is being read, None if none is."""

    RequestHandlerClass = Request
    arriving: Optional[float] = None

    def communicate(self) -> Any:
        self.arriving = time.monotonic()
        self.server.busy.add(self)
        try:
            return super().communicate()
        except Exception as error:  # such as of TLS, while cheroot answers one of TLS; it would lose a thread
            log.info("a connection was closed: %r", error)
            return False
        finally:
            self.arriving = None
            self.server.busy.discard(self)

    def widen(self) -> None:
        """Let the kernel take more than 208 KiB for a client of a unix socket. For TCP it chooses the size itself."""
        if self.socket.family == socket.AF_UNIX:
            for option in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):  # the former is for root, whatever sysctl's limit is
                with suppress(OSError):
                    self.socket.setsockopt(socket.SOL_SOCKET, option, SEND_BUFFER)
                    return

    def refuse(self) -> None:
        """Answer that there are too many connections, if that is possible at once, and close this one."""
        with suppress(OSError):
            self.socket.settimeout(0)
            if not isinstance(self.socket, ssl.SSLSocket):  # it would have to shake hands first
                self.socket.sendall(_refusal("503 Service Unavailable", "too many connections"))
                self.socket.shutdown(socket.SHUT_WR)
                self.socket.recv(MAX_HEAD)  # unread bytes would make the kernel discard the answer
        self.close()

    def cut(self) -> None:
        """Cut the connection, so that whatever waits for it continues at once."""
        with suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)  # TLS's own shutdown would wait for the client


class Gateway(wsgi.Gateway_10):
    """Between a request and the application. Sends memoryviews unchanged."""

    def respond(self) -> None:
        if not self._has_body():
            return
        self.req.conn.arriving = None
        response = self.req.server.wsgi_app(self.env, self.start_response)
        try:
            self._send(response)
        except Exception as error:
            level = logging.INFO if isinstance(error, OSError) else logging.WARNING  # mostly because the client is gone
            log.log(level, "%s: the answer was cut off: %r", loggable(self.env["PATH_INFO"]), error)
            self._break_off()
        finally:
            if hasattr(response, "close"):
                response.close()

    def _has_body(self) -> bool:
        """Receive the body of the request, or answer that it is invalid."""
        request = self.req
        if b"Transfer-Encoding" in request.inheaders:
            # cheroot ignores it in HTTP/1.0, takes a negative size of a chunk for the end, and leaves trailers to the
            # next request.
            self._refuse("411 Length Required", "send the body with a Content-Length, not in chunks")
            return False
        length = request.inheaders.get(b"Content-Length", b"0")
        if not length.isdigit():  # cheroot accepts -1, too, and reads until the connection ends
            self._refuse("400 Bad Request", "malformed Content-Length")
            return False
        body = request.rfile.read()
        if len(body) < int(length):
            self._refuse("400 Bad Request", "the body is shorter than its Content-Length")
            return False
        self.env["wsgi.input"] = io.BytesIO(body)
        return True

    def _send(self, response: Any) -> None:
        sent = 0
        for piece in response:
            self.req.ensure_headers_sent()
            self.req.conn.socket.sendall(self._chunk(piece) if self.req.chunked_write else piece)
            sent += len(piece)
        if self.req.method != b"HEAD" and self.remaining_bytes_out not in (None, sent):
            raise ConnectionError("it is shorter than its Content-Length")

    @staticmethod
    def _chunk(piece: Union[bytes, memoryview]) -> bytes:
        return b"".join((b"%x\r\n" % len(piece), piece, b"\r\n"))

    def _break_off(self) -> None:
        """Show the client that the answer is incomplete: the connection ends before the announced length."""
        if self.req.sent_headers:
            self.req.close_connection, self.req.chunked_write = True, False  # cheroot would send the last chunk
            self.req.conn.cut()
        else:
            self._refuse("500 Internal Server Error")

    def _refuse(self, status: str, message: str = "") -> None:
        self.req.simple_response(status, message)
        self.req.sent_headers, self.req.ready = True, False


class Server(wsgi.Server):
    """The server. address: path of a unix socket, or (host, port)."""

    ConnectionClass = Connection
    max_request_header_size, max_request_body_size = MAX_HEAD, MAX_BODY
    keep_alive_conn_limit = IDLE
    expiration_interval = 0.1  # seconds, which delay the end

    def __init__(
        self, app: Callable[..., Any], address: Union[str, tuple[str, int]], tls: Optional[ssl.SSLContext]
    ) -> None:
        super().__init__(
            address,
            app,
            numthreads=THREADS,
            max=THREADS,
            server_name="nbdpull",
            request_queue_size=WAITING,
            timeout=TIMEOUT,
            shutdown_timeout=2 * GOODBYE,
            accepted_queue_size=WAITING,
            accepted_queue_timeout=0.1,
        )
        self.gateway = Gateway
        self.ssl_adapter = Tls(tls) if tls else None
        self.busy: set[Connection] = set()

    @property
    def port(self) -> int:
        return 0 if isinstance(self.bind_addr, str) else int(self.bind_addr[1])

    def process_conn(self, conn: Connection) -> None:
        """Give a connection to a thread, or refuse it.

        cheroot would answer it in one thread, where an unfinished TLS handshake delays all others, and leave it open.
        """
        conn.widen()
        try:
            self.requests.put(conn)
        except queue.Full:
            conn.refuse()

    def put_conn(self, conn: Connection) -> None:
        """Keep a connection for its next request.

        If the server ends meanwhile, cheroot's error would end the thread with a traceback.
        """
        try:
            super().put_conn(conn)
        except (OSError, ValueError, KeyError):
            conn.close()

    def begin(self) -> None:
        """Start to serve. OSError if it cannot listen."""
        os.environ.pop("LISTEN_PID", None)  # else cheroot would take descriptor 3 for a socket of systemd's
        try:
            self.prepare()
        except OSError as error:
            raise self._failed or error from None  # cheroot's own error has no number
        for work in (self.serve, self._look):
            threading.Thread(target=work, daemon=True).start()

    def end(self) -> None:
        """Stop. Answers in progress have GOODBYE seconds."""
        self._cut_at = time.monotonic() + GOODBYE
        self.stop()

    _cut_at = float("inf")
    _failed: Optional[OSError] = None

    def bind(self, family: int, type: int, proto: int = 0) -> Any:
        try:
            return super().bind(family, type, proto)
        except OSError as error:
            self._failed = error
            raise

    def _look(self) -> None:
        """Cut off clients that take too long for a request, as cheroot's timeout applies to each byte; at the end cut
        all."""
        while self.ready or self.busy:
            now = time.monotonic()
            for each in list(self.busy):
                if now > min(self._cut_at, (each.arriving or now) + TIMEOUT):
                    each.cut()
            time.sleep(LOOK_INTERVAL)

    def bind_unix_socket(self, bind_addr: str) -> Any:
        """Create the socket for our user only. Unlike cheroot, remove nothing that has its name."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            self.socket.bind(bind_addr)
        except OSError as error:
            self._failed = error
            raise
        finally:
            os.umask(before)
        return self.socket

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        log.log(min(level, logging.WARNING), "%s", msg)


class Tls(Adapter):
    """Leaves the handshake to the first read of a request, in its thread.

    cheroot would do it where it accepts connections, and one slow client would block all others.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context

    def bind(self, sock: Any) -> Any:
        return sock

    def wrap(self, sock: Any) -> tuple[Any, dict[str, str]]:
        return self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), {}

    def get_environ(self) -> dict[str, str]:
        return {}

    def makefile(self, sock: Any, mode: str = "r", bufsize: int = -1) -> Any:
        return MakeFile(sock, mode, bufsize)
