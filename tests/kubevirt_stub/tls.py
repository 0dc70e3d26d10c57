"""Certificates, made once a process with openssl, and an HTTPS server whose certificate can change while it runs.

A pair is published in two forms: `bundle`, the CA (what KubeVirt publishes for its in-cluster service), and `leaf`, the
server's own certificate (what it publishes for an Ingress: the certificate whose name matches, without its issuer).
"""

import contextlib
import functools
import socketserver
import ssl
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
EXTENSIONS = """subjectAltName=DNS:localhost,IP:127.0.0.1
extendedKeyUsage=serverAuth
keyUsage=critical,digitalSignature
basicConstraints=critical,CA:FALSE
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
"""


class Pair:
    def __init__(self, folder, name):
        self.folder = folder / name
        self.folder.mkdir()
        at = {each: self.folder / f"{each}.pem" for each in ("ca-key", "ca", "key", "request", "leaf", "extensions")}
        at["extensions"].write_text(EXTENSIONS)
        _openssl("req", "-x509", *KEY, "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
                 "-keyout", at["ca-key"], "-out", at["ca"])  # fmt: skip
        _openssl("req", *KEY[:-2], "-subj", "/CN=localhost", "-keyout", at["key"], "-out", at["request"])
        _openssl("x509", "-req", "-in", at["request"], "-CA", at["ca"], "-CAkey", at["ca-key"], "-CAcreateserial",
                 "-days", "2", "-extfile", at["extensions"], "-out", at["leaf"])  # fmt: skip
        self.bundle_path, self.leaf_path, self.key_path = at["ca"], at["leaf"], at["key"]
        self.bundle, self.leaf = at["ca"].read_text(), at["leaf"].read_text()

    def context(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.leaf_path, self.key_path)
        return context


def _openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@functools.cache
def pairs():
    """Return the pairs of the API server, of the export server, and of a replaced export server."""
    folder = tempfile.TemporaryDirectory(prefix="kubevirt-stub-")
    made = [Pair(Path(folder.name), name) for name in ("api", "export", "export-anew")]
    return folder, made  # the folder lives as long as the process


class Server(ThreadingHTTPServer):
    """One port of the cluster. `pair` may be replaced: new connections get the new certificate."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, handler, pair, cluster):
        super().__init__(("127.0.0.1", 0), handler)
        self.pair, self.cluster = pair, cluster
        self._open = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def server_bind(self):
        socketserver.TCPServer.server_bind(self)  # without a look for the host's name
        self.server_port = self.server_address[1]

    @property
    def url(self):
        """The URL with an address: where no file has both addresses of localhost, that name is slowly resolved by a
        name server."""
        return f"https://127.0.0.1:{self.server_port}"

    def finish_request(self, request, client_address):
        with contextlib.suppress(OSError):  # a client that goes away, or that does not trust us
            request.settimeout(30)
            wrapped = self.pair.context().wrap_socket(request, server_side=True)
            self._open.add(wrapped)
            try:
                self.RequestHandlerClass(wrapped, client_address, self)
            finally:
                self._open.discard(wrapped)
                wrapped.close()

    def cut_all(self):
        for each in list(self._open):
            abort(each)

    def stop(self):
        self.shutdown()
        self.server_close()
        self.cut_all()


def abort(connection):
    """End a connection as a killed server does: without the end of the body, and without closing TLS."""
    with contextlib.suppress(OSError):
        connection.shutdown(2)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        """Log nothing."""

    def answer(self, status, body=b"", kind=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def reset(self):
        self.close_connection = True
        abort(self.connection)
