"""The plugin that nbdkit runs: exports of the disks of one point. nbdkit's Python loads it; nothing imports it.

Owns: the callbacks of nbdkit (exports, sizes, extents, bytes), and the first line about itself to the process that
started it. Must not know: how it is started (nbd_server.py), what a client is.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

import nbdkit

from nbdpull.core import errors, freed_memory
from nbdpull.core.choices import LATEST
from nbdpull.core.extents import ZERO, in_blocks
from nbdpull.repository import keyring, lookup, series_choice

if TYPE_CHECKING:
    from nbdpull.serving.overlay import Overlay

    Served = Union[lookup.RandomImage, Overlay]

API_VERSION = 2
MAX_EXTENTS = 4096  # in one answer; a client asks for the rest
# qemu-img convert counts in sectors, and takes a sector for zero if only its start is zero.
BLOCK = 4096
AHEAD = min(4, len(os.sched_getaffinity(0)) // 2)  # frames; the other processors are for the clients
TROUBLE = "trouble: "  # prefix of a line on standard error that is for the operator; JSON follows

_config: dict[str, list[str]] = {}
_images: dict[str, Served] = {}
_about: dict[str, Any] = {}
_complaints: set[str] = set()
_looking = ExitStack()  # as long as nbdkit runs


def config(key: str, value: str) -> None:
    _config.setdefault(key, []).append(value)


def thread_model() -> Any:
    return nbdkit.THREAD_MODEL_PARALLEL


def get_ready() -> None:
    """Open everything before nbdkit listens: a client that can connect can read."""
    freed_memory.keep()
    try:
        _open()
    except errors.NbdpullError as error:
        _write_status(code=error.code, message=str(error))
        raise
    except MemoryError:
        _write_status(code=errors.NbdpullError.code, message=errors.NO_MEMORY)
        raise


def _open() -> None:
    domain = _config["domain"][0] if "domain" in _config else None
    warn = _complain if "cached" in _config else None
    store, wanted = keyring.unlocked(_config["store"][0], _master(), warn), _config.get("point", [LATEST])[0]
    target, point = series_choice.only_point(store, domain, wanted, _looking)
    for name in _config.get("disk", point.disks):
        point.disk(name)  # NoSuchDisk
        opened = lookup.RandomImage(target, point, name, int(_config["cache"][0]), ahead=AHEAD)
        _images[name] = _writable(opened) if "writable" in _config else opened
    _about.update(domain=target.domain, point=point.id, sha256=point.sha256,
                  disks={name: image.size for name, image in _images.items()})  # fmt: skip


def _master() -> Optional[bytes]:
    """Read the key from a pipe, which nobody else can read: everybody can see arguments and the environment."""
    if "key" not in _config:
        return None
    with os.fdopen(int(_config["key"][0]), "rb") as pipe:
        return pipe.read()


def _writable(image: lookup.RandomImage) -> Overlay:
    from nbdpull.serving import overlay

    return overlay.Overlay(image)


def after_fork() -> None:
    """Report the exports: nbdkit listens from now on."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _write_status(**_about)


def _end_with_parent() -> None:
    """End as soon as the process that started nbdkit closes its end of a pipe, for example because it is killed.

    By itself nbdkit would wait until the last client disconnects.
    """
    os.read(int(_config["parent"][0]), 1)
    cleanup()
    os._exit(0)


def _write_status(**values: Any) -> None:
    with os.fdopen(int(_config["status"][0]), "w") as pipe:
        pipe.write(json.dumps(values) + "\n")


def cleanup() -> None:
    """Remove what nbdkit leaves: its socket, and a directory of ours."""
    for path in _config.get("socket", []):
        with suppress(OSError):
            os.unlink(path)
    for path in _config.get("folder", []):
        with suppress(OSError):
            os.rmdir(path)


def list_exports(readonly: bool, is_tls: bool) -> list[str]:
    return list(_images)


def default_export(readonly: bool, is_tls: bool) -> str:
    return next(iter(_images))


def open(readonly: bool) -> Served:
    name: str = nbdkit.export_name()
    if name and name not in _images:
        raise RuntimeError(f"no export {name}; there are: {', '.join(_images)}")
    return _images[name or default_export(readonly, False)]


def export_description(image: Served) -> str:
    return f"disk {image.disk} of {_about['domain']} at point {_about['point']}"


def get_size(image: Served) -> int:
    return image.size


def can_write(image: Served) -> bool:
    return "writable" in _config


def can_multi_conn(image: Served) -> bool:
    return True


def can_cache(image: Served) -> Any:
    return nbdkit.CACHE_NONE


def can_extents(image: Served) -> bool:
    return True


def pread(image: Served, buffer: bytearray, offset: int, flags: int) -> None:
    _reporting(image.read_into, offset, buffer)


def pwrite(image: Overlay, buffer: bytearray, offset: int, flags: int) -> None:
    _reporting(image.write, offset, buffer)


def zero(image: Overlay, count: int, offset: int, flags: int) -> None:
    _reporting(image.zero, offset, count)


trim = zero


def flush(image: Served, flags: int) -> None:
    """Do nothing: what is discarded at the end need not reach the medium."""


def _reporting(call: Callable[..., None], *arguments: Any) -> None:
    """Call, and turn an error into an I/O error for the client, and a line for the operator."""
    try:
        call(*arguments)
    except errors.NbdpullError as error:
        _complain(str(error))
        nbdkit.set_error(errno.ENOSPC if isinstance(error, errors.OutputFull) else errno.EIO)
        raise
    except MemoryError:
        _complain(errors.NO_MEMORY)
        raise
    except Exception as error:  # the client sees an I/O error, and a drill must not pass in spite of it
        _complain(f"internal error: {type(error).__name__}: {error}")
        raise


def _complain(text: str) -> None:
    """Print a line that serve passes on, once.

    The exception itself fills a page of nbdkit's log, each time a client tries.
    """
    if text not in _complaints:
        _complaints.add(text)
        sys.stderr.write(f"{TROUBLE}{json.dumps(text)}\n")
        sys.stderr.flush()


def extents(image: Served, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    found = image.extents(offset, count, 1 if flags & nbdkit.FLAG_REQ_ONE else MAX_EXTENTS)
    zero = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    return [(at, length, zero if kind == ZERO else 0) for at, length, kind in in_blocks(found, BLOCK).tolist()]
