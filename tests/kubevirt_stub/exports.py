"""The export server: maps, data, /exportready; with the proxy in front that has the outside paths.

Owns: their HTTP, as virt-exportserver and virt-exportproxy speak it. Must not know: how a backup was created.
"""

import json
import re
from hmac import compare_digest
from urllib.parse import parse_qs, urlsplit

from .tls import Handler

TOKEN = "x-kubevirt-export-token"
PIECE = 256 << 10
PAGE = 512
OUTSIDE = re.compile(r"/api/export[.]kubevirt[.]io/(?:v1|v1beta1|v1alpha1)/namespaces/([^/]+)"
                     r"/virtualmachineexports/([^/]+)/(.*)")  # fmt: skip
INSIDE = re.compile(r"/exports/([^/]+)/(map|data)")
NUMBER = re.compile(r"[0-9]+")
MOST = (1 << 64) - 1


class Bad(Exception):
    """A parameter that is refused with 400."""


def half(length):
    return max(512, length // 2 // 512 * 512)


# Maps that cannot be true, by the word of a fault: (page, next_offset, arguments of the fault), a page having extents
# as in disks.py. "gap" is what v1.9 can tell by itself: it goes on after the longer of two contexts. So is "null".
LIES = {
    "null": lambda page, following: ([], None),
    "gap": lambda page, following: ([page[0], *page[2:]] if len(page) > 2 else page[1:], following),
    "late": lambda page, following: ([(page[0][0] + 4096, page[0][1] - 4096, *page[0][2:]), *page[1:]], following),
    "short": lambda page, following: ([*page[:-1], (page[-1][0], half(page[-1][1]), *page[-1][2:])], following),
    "overlap": lambda page, following: ([page[0], *page], following),
    "stuck": lambda page, following: (page[:1], page[0][0]),
    "backwards": lambda page, following: (page, max(0, page[0][0] - 65536)),
    "beyond": lambda page, following, *kind: ([*page, (page[-1][0] + page[-1][1], 65536, *kind)], following),
    "type": lambda page, following: ([(*page[0][:2], 4, "unknown"), *page[1:]], following),
    "empty": lambda page, following: ([(page[0][0], 0, *page[0][2:]), *page], following),
}


class ExportHandler(Handler):
    """The handler of the proxy if the cluster is reached from outside, otherwise of the pod itself."""

    def _any(self):
        cluster = self.server.cluster
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        path, job = parts.path, cluster.current_job()
        if cluster.reach == "outside":
            match = OUTSIDE.fullmatch(path)
            if not match:
                return self.answer(400)
            namespace, name, rest = match.groups()
            path, job = f"/{rest}", cluster.job_of(namespace, name)
            if job is None or job.ended or job.export is None:
                return self.answer(404)
            if not job.export.ready:
                return self.answer(503)
        elif job is None or job.ended or job.export is None:
            return self.reset()  # the pod is gone
        if path == "/exportready":
            return self._ready()
        match = INSIDE.fullmatch(path)
        if not match or match[1] not in job.volumes:
            return self._error(404, "404 page not found")
        return self._serve(match[2], job, job.volumes[match[1]], query)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = _any

    def answer(self, status, body=b"", kind=None, **headers):
        super().answer(status, b"" if self.command == "HEAD" else body, kind, **headers)

    def _error(self, status, message):
        self.answer(status, f"{message}\n".encode(), "text/plain; charset=utf-8", X_Content_Type_Options="nosniff")

    def _ready(self):
        word, _ = self.server.cluster.faults.take("ready")
        return self._error(word, "not ready") if word else self.answer(200, b"OK", "text/plain; charset=utf-8")

    def _serve(self, kind, job, frozen, query):
        word, arguments = self.server.cluster.faults.take(kind)
        if word in (401, 500, 503):
            return self._error(word, "Backup source not connected") if word != 401 else self.answer(401)
        if word == "reset" or job.ended or job.export is None:
            return self.reset()
        if not self._may(job.export.token, query):
            self.server.cluster.complain(f"{kind}: wrong or no token")
            return self.answer(401)
        if self.command != "GET":
            self.server.cluster.complain(f"{kind}: {self.command}")
            return self.answer(405)
        try:
            offset, length, page_size = self._range(kind, query)
        except Bad as error:
            self.server.cluster.complain(f"{kind}: {error}")
            return self._error(400, error)
        wanted = length or max(0, frozen.size - offset)
        largest = self.server.cluster.largest
        largest[kind] = max(largest[kind], wanted)
        if kind == "map":
            return self._map(frozen, offset, length, page_size, word, arguments)
        return self._data(job, frozen, offset, length, word, arguments)

    def _may(self, token, query):
        given = [*query.get(TOKEN, [""])[:1], self.headers.get(TOKEN, "")]
        return any(compare_digest(each.encode(), token) for each in given)

    def _range(self, kind, query):
        known = {"offset", "length", TOKEN, *(["page_size"] if kind == "map" else [])}
        for name in set(query) - known:
            raise Bad(f"unknown parameter {name!r}")  # the real one takes no notice
        if self.headers.get("Range"):
            raise Bad("a Range, which the real one takes no notice of")
        values = []
        for name, default in (("offset", 0), ("length", 0), ("page_size", PAGE)):
            text = query.get(name, [""])[0]
            if text and (not NUMBER.fullmatch(text) or int(text) > MOST):
                raise Bad(f"invalid {name} {text!r}")
            values.append(int(text) if text else default)
        if values[2] <= 0:
            raise Bad("invalid page_size")
        return values

    # -- map

    def _map(self, frozen, offset, length, page_size, word, arguments):
        limit = self.server.cluster.longest
        if limit and (length or frozen.size) > limit:
            return self.answer(504, b"<html>Gateway Time-out</html>", "text/html")
        if offset >= frozen.size:
            return self._error(500, "Failed to collect map extents for export")
        stop = frozen.size if length == 0 else min(frozen.size, offset + length)
        reported = frozen.extents(offset, stop)
        page, rest = reported[:page_size], reported[page_size:]
        following = rest[0][0] if rest else None
        if word in LIES:
            page, following = LIES[word](page, following, *arguments)
        names = ("offset", "length", "type", "description")
        extents = [dict(zip(names, each)) for each in page] if page else None
        body = json.dumps({"extents": extents, "next_offset": following}, separators=(",", ":")) + "\n"
        if word == "cut":
            return self._cut_map(body.encode(), *arguments)
        return self.answer(200, body.encode(), "application/json")

    def _cut_map(self, body, size):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%b\r\n" % (size, body[:size]))
        self.reset()

    # -- data

    def _data(self, job, frozen, offset, length, word, arguments):
        if offset >= frozen.size:
            return self.reset()
        stop = frozen.size if length == 0 else min(frozen.size, offset + length)
        cut = arguments[0] if word == "cut" else None
        limit = self.server.cluster.longest
        cut = limit if limit and stop - offset > limit and cut is None else cut
        stop = min(stop, offset + arguments[0]) if word == "short" else stop  # the end of the body, as if all were well
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(offset, stop, PIECE):
            piece = frozen.content[at : min(stop, at + PIECE)].tobytes()
            if cut is not None and at + len(piece) > offset + cut:
                self._piece(piece[: offset + cut - at])
                return self.reset()
            if job.ended or job.export is None:
                return self.reset()
            self._piece(piece)
        return self.wfile.write(b"0\r\n\r\n")

    def _piece(self, piece):
        if piece:
            self.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
