"""The HTTP server: cheroot, which the extra nbdpull[http] installs, with limits. Imported only when used.

Owns: the limits for a client (bytes of a request, threads, time), and that an answer that ends early cannot be mistaken
for a complete one. Must not know: where it listens, paths, tokens, volumes.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import Any, Callable, Optional, Union

from cheroot import errors as cheroot_errors
from cheroot import server, wsgi
from cheroot.makefile import MakeFile
from cheroot.ssl import Adapter

from .message import loggable

log = logging.getLogger("nbdpull.http")

THREADS = 16  # requests handled at once
WAITING = 64  # further ones that wait for a thread; the next gets 503
IDLE = 20  # connections kept for a next request
MAX_HEAD, MAX_BODY = 16 << 10, 16 << 10  # bytes of a request
TIMEOUT = 30.0  # seconds for a request to arrive completely, with its TLS handshake; and for a piece of an answer
GOODBYE = 1.0  # seconds at the end for answers in progress
LOOK_INTERVAL = 0.5


class Connection(server.HTTPConnection):
    """arriving: since when a request is being read, None if none is."""

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
        length = request.inheaders.get(b"Content-Length", b"0")
        # cheroot accepts a length of -1, too, and reads until the connection ends.
        if length.isdigit() and not (request.chunked_read and b"Content-Length" in request.inheaders):
            with suppress(ValueError, cheroot_errors.MaxSizeExceeded):
                self.env["wsgi.input"] = io.BytesIO(request.rfile.read())
                return True
        self._refuse("400 Bad Request")
        return False

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
            self._refuse("503 Service Unavailable")

    def _refuse(self, status: str) -> None:
        self.req.close_connection = True
        self.req.simple_response(status)
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
        if os.path.lexists(bind_addr):
            self._failed = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            raise self._failed
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
