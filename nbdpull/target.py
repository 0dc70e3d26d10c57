"""Where a restored disk goes: a new raw file, or a new qcow2 file through qemu-nbd.

Owns: creating the image, writing ranges to it from several threads, making it durable, and that it carries its final
name only when it is whole. Must not know: points, frames, which disk it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
import time

from . import errors
from .store import translated

QEMU_NBD_START = 10.0  # seconds


@contextlib.contextmanager
def new_image(path, kind, size, connections, force=False):
    """Give an object with write(offset, buffer), for a fresh sparse image of `size` bytes that reads as zero.

    kind: "raw" or "qcow2". Left without an exception, the image is durable and at `path`; else there is none.
    OutputExists if there is one already and not force.
    """
    if os.path.lexists(path) and not force:
        raise errors.OutputExists(f"{path} exists; give --force to overwrite it")
    draft = f"{path}.partial"
    _claim(draft, force)
    try:
        with _KINDS[kind](draft, size, connections) as image:
            yield image
        with translated("write", path):
            _sync(draft)
            os.replace(draft, path)
            _sync(os.path.dirname(path))
    finally:
        with contextlib.suppress(OSError):
            os.unlink(draft)


def _claim(draft, force):
    """Create the draft, so that two restores of one image cannot mix their bytes."""
    try:
        with translated("create", draft):
            os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (0 if force else os.O_EXCL), 0o644))
    except errors.OutputExists:
        raise errors.OutputExists(
            f"{draft} exists: another restore writes it, or one that was killed left it; give --force to overwrite it"
        ) from None


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Raw:
    def __init__(self, path, size, _connections):
        self._path = path
        with translated("create", path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._descriptor, size)

    def write(self, offset, buffer):
        with translated("write to", self._path):
            view = memoryview(buffer)
            while view:
                done = os.pwrite(self._descriptor, view, offset)
                view, offset = view[done:], offset + done

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        os.close(self._descriptor)


class _Qcow2:
    """qemu-nbd writes the image: several connections at once, each used by one thread."""

    def __init__(self, path, size, connections):
        self._nbd = _libnbd()
        self._path = path = os.path.abspath(path)  # QEMU takes what is before a colon for a protocol's name
        self._connections = connections
        self._thread = threading.local()
        self._handles = []
        self._lock = threading.Lock()
        _run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=off", path, str(size))
        _require("qemu-nbd")
        self._folder = tempfile.mkdtemp(prefix="nbdpull-")
        self._socket = os.path.join(self._folder, "nbd")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._server = subprocess.Popen(
            # the image is a draft until it is synced as a whole, so that no flush on the way is needed
            ["qemu-nbd", "-f", "qcow2", "--cache=unsafe", "--discard=unmap", "-t", "-e", str(connections + 1),
             "-k", self._socket, path],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            start_new_session=True,  # a Ctrl-C on the terminal is for us: we end it
        )  # fmt: skip

    def write(self, offset, buffer):
        if not hasattr(self._thread, "handle"):
            self._thread.handle = self._connect()
        with self._translated():
            self._thread.handle.pwrite(buffer, offset)

    def _connect(self):
        deadline = time.monotonic() + QEMU_NBD_START
        while True:
            handle = self._nbd.NBD()
            try:
                handle.connect_unix(self._socket)
                break
            except self._nbd.Error as error:  # its socket is not there yet, or is there and does not listen yet
                if self._server.poll() is not None or time.monotonic() > deadline:
                    why = self._said() or error.string
                    raise errors.OutputError(f"qemu-nbd does not serve {self._path}: {why}") from error
            time.sleep(0.005)
        with self._lock:
            self._handles.append(handle)
        return handle

    @contextlib.contextmanager
    def _translated(self):
        try:
            yield
        except self._nbd.Error as error:
            full = error.errno == "ENOSPC"
            kind = errors.OutputFull if full else errors.OutputError
            raise kind(f"cannot write to {self._path}: {error.string} {self._said()}".rstrip()) from error

    def _said(self):
        self._log.seek(0)
        return " ".join(self._log.read().decode(errors="replace").split())

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self._finish()
        finally:
            # After an error at once: a SIGTERM that comes while qemu-nbd starts up is lost, and it would run for ever.
            self._server.kill()
            self._server.wait()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._log.close()

    def _finish(self):
        if not self._handles:  # all is zero; once it has answered it is up, and hears the signal
            self._connect()
        for handle in self._handles:
            with self._translated():
                handle.shutdown()
        self._server.terminate()
        code = self._server.wait()
        if code != 0:
            raise errors.OutputError(f"qemu-nbd failed to finish {self._path}: {self._said() or code}")


_KINDS = {"raw": _Raw, "qcow2": _Qcow2}


def _libnbd():
    """The bindings, which a restore to raw does without."""
    try:
        import nbd
    except ImportError as error:
        raise errors.MissingSoftware(
            "libnbd's Python bindings are not installed: install python3-libnbd (Debian, Ubuntu, Fedora, RHEL) and run "
            "the distribution's own python3, or restore with --format raw"
        ) from error
    return nbd


def _require(program):
    if shutil.which(program) is None:
        raise errors.MissingSoftware(
            f"{program} is not installed: install qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL), "
            "or restore with --format raw"
        )


def _run(*command):
    _require(command[0])
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise errors.OutputError(f"{command[0]} failed: {' '.join(done.stderr.split())}")
