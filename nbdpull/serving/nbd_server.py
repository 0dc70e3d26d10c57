"""The disks of a point as NBD exports, read from its compressed frames, by an nbdkit with our plugin.

Owns: nbdkit's command line, its start and its guaranteed end, and the URIs at which clients find the exports. nbdkit
does the work (nbdkit_plugin.py): this module loads nothing that would delay the first byte. Must not know: frames,
libvirt, who the clients are.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional, cast
from urllib.parse import quote

from ..core import child, errors, software, temporary, unix_socket
from ..core.choices import CACHE_BYTES, LATEST
from ..core.errors import Check
from ..storage import place

PLUGIN = Path(__file__).with_name("nbdkit_plugin.py")
LOOK_INTERVAL = 0.2  # seconds between checks of the stop flag
END_TIMEOUT = 5.0  # seconds for nbdkit to end by itself
TROUBLE = "trouble: "  # as the plugin writes it


@dataclass(frozen=True)
class Request:
    """What to serve.

    point: an id or "latest"; disks empty: all; without socket and port: a socket in a new directory; master: the key of
    a sealed store; cached: what is read of an object store may come from this host.
    """

    store: str
    domain: Optional[str] = None
    point: str = LATEST
    disks: list[str] = field(default_factory=list)
    socket: Optional[str] = None
    port: Optional[int] = None
    writable: bool = False
    cache_bytes: int = CACHE_BYTES
    master: Optional[bytes] = field(default=None, repr=False)
    cached: bool = False


@dataclass(frozen=True)
class Export:
    """disk: its name; size: bytes; uri: where it is; overlay: a command that creates a writable image over it."""

    disk: str
    size: int
    uri: str
    overlay: str


class Server:
    """A running nbdkit. exports: [Export]; domain, point: what is served; sha256: of the point's manifest."""

    def __init__(self, request: Request, check: Check = lambda: None) -> None:
        if request.socket is not None and request.port is not None:
            raise errors.UsageError("give --socket or --port, not both")
        self._request, self._check = request, check
        self._folder: Optional[str] = None
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._alive: Optional[int] = None
        self._log = temporary.file()
        self._log_read = 0
        try:
            self._socket = self._place()
            self._process, status = self._start()
            about = self._await(status)
        except BaseException:
            self.close()
            raise
        self.domain, self.point, self.sha256 = about["domain"], about["point"], about["sha256"]
        self.exports = [self._export(disk, size) for disk, size in about["disks"].items()]

    def _place(self) -> Optional[str]:
        """Return the path of the socket, None for a port."""
        if self._request.port is not None:
            return None
        if self._request.socket is None:
            self._folder = temporary.folder()
            return os.path.join(self._folder, "nbd.sock")
        path = os.path.abspath(self._request.socket)
        if not unix_socket.fits(path):
            raise errors.UsageError(f"socket {path}: give a path of at most {unix_socket.PATH_MAX} bytes")
        if os.path.lexists(path):
            raise errors.OutputExists(f"socket {path} exists: remove it or choose another")
        return path

    def _start(self) -> tuple[subprocess.Popen[bytes], int]:
        software.require("nbdkit")
        status, reporting = os.pipe()
        parent, self._alive = os.pipe()  # the pipe ends when we do, for whatever reason
        key = _in_pipe(self._request.master)
        passed = [reporting, parent, *key]
        try:
            process = subprocess.Popen(
                self._command(reporting, parent, *key), env=_environment(), pass_fds=passed,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._log,
                start_new_session=True,  # a Ctrl-C is for us: we end it
            )  # fmt: skip
        except BaseException:
            os.close(status)
            raise
        finally:
            for descriptor in passed:
                os.close(descriptor)
        return process, status

    def _command(self, reporting: int, parent: int, *key: int) -> list[str]:
        request = self._request
        where = ["-U", self._socket] if self._socket else ["-i", "127.0.0.1", "-p", str(request.port)]
        how = [] if request.writable else ["-r"]
        wanted = [("store", place.whole(request.store)), ("point", request.point), ("status", reporting),
                  ("cache", request.cache_bytes), *(("disk", disk) for disk in request.disks)]  # fmt: skip
        wanted += [("domain", request.domain)] if request.domain is not None else []
        wanted += [(name, 1) for name in ("writable", "cached") if getattr(request, name)]
        wanted += [("key", each) for each in key]
        ours = {"parent": parent, "socket": self._socket, "folder": self._folder}  # for its end, if we are killed
        wanted += [(name, value) for name, value in ours.items() if value is not None]
        options = [f"{name}={value}" for name, value in wanted]
        # One thread for each connection: with more, nbdkit 1.32 aborts if a client is killed while it has several
        # requests in flight (an assertion in raw_send_socket), and all other clients lose their disks.
        return ["nbdkit", "-t", "1", "-f", "--exit-with-parent", *where, *how, "python", str(PLUGIN), *options]

    def _await(self, status: int) -> dict[str, Any]:
        """Return what the plugin reports about itself; raise its error if it could not start."""
        with os.fdopen(status, "rb") as pipe:
            while not select.select([pipe], [], [], LOOK_INTERVAL)[0]:
                self._check()
            line = pipe.readline()
        if not line:
            raise self._failed()
        about: dict[str, Any] = json.loads(line)
        if "code" in about:
            raise _error(about["code"], about["message"])
        return about

    def _failed(self) -> errors.NbdpullError:
        self._started.wait()
        said = child.said(self._log)
        if "nbdkit-python-plugin" in said:
            return software.missing("nbdkit", "nbdkit has no Python plugin")
        if "ModuleNotFoundError" in said or "ImportError" in said:
            return errors.MissingSoftware(
                "nbdkit's Python cannot load the packages of this one: run nbdpull with the distribution's own "
                f"python3, as scripts/install sets it up ({said})"
            )
        where = self._socket or f"port {self._request.port}"
        return errors.OutputError(f"nbdkit cannot serve at {where}: {said or self._started.returncode}")

    def troubles(self) -> list[str]:
        """Return what could not be read for a client since the last call, one text each."""
        self._log.seek(self._log_read)
        whole, _, _ = self._log.read().rpartition(b"\n")
        self._log_read += len(whole)
        lines = whole.decode(errors="replace").splitlines()
        found = [_trouble(line) for line in lines if line.startswith(TROUBLE)]
        return [text for text in found if text is not None]

    def _export(self, disk: str, size: int) -> Export:
        if self._socket:
            uri = f"nbd+unix:///{quote(disk, safe='')}?socket={quote(self._socket)}"
        else:
            uri = f"nbd://127.0.0.1:{self._request.port}/{quote(disk, safe='')}"
        overlay = ["qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", uri, f"{quote(disk, safe='')}-overlay.qcow2"]
        return Export(disk, size, uri, shlex.join(overlay))

    def wait(self, report: Callable[[str], None]) -> NoReturn:
        """Wait until `check` raises, or until nbdkit ends by itself (OutputError). report gets each of `troubles`."""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._started.wait(LOOK_INTERVAL)
            for trouble in self.troubles():
                report(trouble)
            self._check()
            if not self.alive:
                raise self._failed()

    @property
    def alive(self) -> bool:
        return self._started.poll() is None

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        """The process; only `close` may run before it is started."""
        return cast("subprocess.Popen[bytes]", self._process)

    def close(self) -> None:
        """End nbdkit, and remove its socket."""
        if self._alive is not None:
            os.close(self._alive)
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._socket and os.path.lexists(self._socket):
                os.unlink(self._socket)
        self._log.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _in_pipe(data: Optional[bytes]) -> list[int]:
    """Return the read end of a pipe that contains these few bytes, if there are any."""
    if data is None:
        return []
    end, begin = os.pipe()
    os.write(begin, data)
    os.close(begin)
    return [end]


def _environment() -> dict[str, str]:
    """Return the environment for nbdkit, whose Python is the distribution's: it finds this package, and its
    dependencies.

    nbdkit's threads share one arena of memory. With one arena each, the memory of a frame that the cache drops belongs
    to another thread than the one that needs room for the next frame, and the process grew to three times the cache.
    """
    found = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    return {"MALLOC_ARENA_MAX": "1", **child.finding_us(*found)}


def _trouble(line: str) -> Optional[str]:
    """Return the text of a line that starts with TROUBLE; None if it only looks like a line of the plugin."""
    with contextlib.suppress(ValueError):
        return str(json.loads(line[len(TROUBLE) :]))
    return None


def _error(code: str, message: str) -> errors.NbdpullError:
    """Return the error of that code, as the other process raised it."""
    return _by_code(errors.NbdpullError).get(code, errors.NbdpullError)(message)


def _by_code(kind: type[errors.NbdpullError]) -> dict[str, type[errors.NbdpullError]]:
    found = {kind.code: kind}
    for below in kind.__subclasses__():
        for code, each in _by_code(below).items():
            found.setdefault(code, each)
    return found
