"""The images of a disk of a domain that is off: its own and those below it, opened read-only, and held.

Owns: the way down a backing chain, which bitmaps record all changes, their union, and the proof that no file has
changed. Nothing is written to an image, and no format is guessed. Must not know: libvirt, domains, stores.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Optional

from ..core import errors
from ..images import image_lock
from .storage_daemon import Refused, StorageDaemon

FORMATS = ("raw", "qcow2")
MOST_LAYERS = 200  # QEMU's own limit


class Place(NamedTuple):
    """The path and format of an image, named by a definition, or by the image above."""

    path: str
    format: str


@dataclass(frozen=True)
class _Layer:
    """bitmaps: by name, whether it recorded without a gap until the image was closed; holder: of its file; info: from
    QEMU, about this image only."""

    place: Place
    holder: _Holder
    info: dict[str, Any]
    bitmaps: dict[str, bool]

    @property
    def size(self) -> int:
        size: int = self.info["virtual-size"]
        return size

    @property
    def details(self) -> dict[str, Any]:
        found: dict[str, Any] = self.info.get("format-specific", {}).get("data", {})
        return found


class Layers:
    """The images of one disk, top first.

    size: of the disk, bytes; allocation: bytes that the images take; can_hold_bitmaps: whether the format of the top
    one can store bitmaps; warnings: what could not be checked.
    """

    def __init__(self, daemon: StorageDaemon, disk: str, places: Sequence[Place], is_all: bool = False):
        """Open the images. places: the image, and those below it that are named; is_all: nothing is below the last
        one."""
        self._daemon, self._disk = daemon, disk
        self._opened = contextlib.ExitStack()
        self._layers: list[_Layer] = []
        self.warnings: list[str] = []
        try:
            for place in self._down(list(places), is_all):
                self._layers.append(self._looked_at(place))
            self._build()
        except BaseException:
            self.close()
            raise
        self.size = self._layers[0].size
        self.allocation = sum(layer.info.get("actual-size", 0) for layer in self._layers)
        top = self._layers[0]
        self.can_hold_bitmaps = top.place.format == "qcow2" and top.details.get("compat") != "0.10"

    def _down(self, places: list[Place], is_all: bool) -> Iterator[Place]:
        """Yield the places, each after those above were inspected: the definition counts, and, where it is silent, the
        image."""
        yield from places
        while not is_all and (below := self._below(self._layers[-1])):
            if len(self._layers) >= MOST_LAYERS:
                raise self._error(errors.HypervisorError, f"has a chain of more than {MOST_LAYERS} images")
            yield below

    def _below(self, layer: _Layer) -> Optional[Place]:
        name = layer.info.get("backing-filename")
        if not name:
            return None
        path, kind = layer.info.get("full-backing-filename", name), layer.info.get("backing-filename-format")
        if kind is None:  # a guess would let a guest choose: what it writes at the start of a raw disk is a header
            raise self._error(
                errors.Unsupported,
                f"cannot be read: {layer.place.path} does not name the format of its backing file {name}; "
                f"set it: qemu-img rebase -u -F FORMAT -b {name} {layer.place.path}",
            )
        if not path.startswith("/"):
            why = f"the backing file of {layer.place.path} is {name}, which is not a file"
            raise self._error(errors.Unsupported, f"cannot be read: {why}")
        return Place(path, kind)

    def _looked_at(self, place: Place) -> _Layer:
        if place.format not in FORMATS:
            form = f"format {place.format}" if place.format else "an unnamed format"
            raise self._error(errors.Unsupported, f"cannot be read: {place.path} is of {form}")
        depth = len(self._layers)
        self._open_file(depth, place.path)  # first, as it has a deadline
        holder = self._opened.enter_context(_Holder(self._disk, place.path))
        if any(holder.identity == layer.holder.identity for layer in self._layers):
            raise self._error(errors.HypervisorError, f"cannot be read: {place.path} is its own backing file")
        if not holder.locked:
            self.warnings.append(f"disk {self._disk}: the file system of {place.path} has no locks: nbdpull cannot "
                                 "check that no VM uses it")  # fmt: skip
        self._open_image(depth, place)
        nodes = self._daemon.ask("query-named-block-nodes", flat=True)
        node = next(node for node in nodes if node["node-name"] == self._name(depth))
        self._daemon.ask("blockdev-del", node_name=self._name(depth))
        layer = _Layer(place, holder, node["image"], _bitmaps(node))
        flaw = _flaw(layer)
        if flaw:
            raise self._error(errors.Unsupported, f"cannot be read: {place.path} {flaw}")
        return layer

    def _open_file(self, depth: int, path: str) -> None:
        node = {"node_name": self._name(depth, "file"), "filename": path, "read_only": True}
        with contextlib.suppress(Refused):  # it refuses what is not a regular file
            self._daemon.ask("blockdev-add", driver="file", **node)
            return
        try:
            # Not from this host's page cache: another host may have written to the device since.
            self._daemon.ask("blockdev-add", driver="host_device", cache={"direct": True}, **node)
        except Refused as error:
            with _Holder(self._disk, path):  # this may raise an error that says why
                raise self._error(errors.HypervisorError, f"cannot be read: {error}") from error

    def _open_image(self, depth: int, place: Place, below: Optional[str] = None) -> str:
        """Open an image over the node `below`, or over none; return the name of its node."""
        name = self._name(depth)
        image = {"driver": place.format, "node_name": name, "file": self._name(depth, "file"), "read_only": True}
        try:
            self._daemon.ask("blockdev-add", **image, **({} if place.format == "raw" else {"backing": below}))
        except Refused as error:
            raise self._error(
                errors.HypervisorError, f"cannot be read: {place.path} as {place.format}: {error}"
            ) from error
        return name

    def _name(self, depth: int = 0, what: str = "image") -> str:
        """Return the name of a node."""
        return f"{self._disk}-{what}-{depth}"

    def _build(self) -> None:
        """Open the images again, each over the one below it."""
        below = None
        for depth, layer in reversed(list(enumerate(self._layers))):
            below = self._open_image(depth, layer.place, below)

    # Bitmaps

    def records_since(self, bitmap: str) -> bool:
        """Return whether the bitmaps of this name record every change since the first of them was created.

        The top image has one, and so have those below without a gap, each intact. (libvirt has the same rule, except
        for sizes, where it fails.)
        """
        return bool(self._run(bitmap))

    def _run(self, bitmap: str) -> list[int]:
        """Return the depths of the layers with that bitmap; none if one of them is not sound."""
        has = [depth for depth, layer in enumerate(self._layers) if bitmap in layer.bitmaps]
        sound = [depth for depth in has if self._layers[depth].bitmaps[bitmap]]
        one_size = len({self._layers[depth].size for depth in has}) == 1
        return has if has == sound == list(range(len(has))) and one_size else []

    def export(self, bitmap: Optional[str], union: str) -> Optional[str]:
        """Serve the disk under its name; with a bitmap, also serve the union of its layers, under the name `union`.

        Return the name of the served bitmap, None without one.
        """
        top = self._name()
        if bitmap is not None:
            run = self._run(bitmap)
            if not run:
                raise errors.CheckpointUnusable(f"disk {self._disk}: the bitmaps of {bitmap} are not complete")
            self._daemon.ask("block-dirty-bitmap-add", node=top, name=union, persistent=False, disabled=True)
            parts = [{"node": self._name(depth), "name": bitmap} for depth in run]
            self._daemon.ask("block-dirty-bitmap-merge", node=top, target=union, bitmaps=parts)
        bitmaps = {} if bitmap is None else {"bitmaps": [union]}
        self._daemon.ask("block-export-add", type="nbd", id=self._disk, name=self._disk, node_name=top, **bitmaps)
        return None if bitmap is None else union

    # Their end

    def changed(self) -> str:
        """Return the path of a file that has changed since it was opened, "" if none has."""
        return next((layer.place.path for layer in self._layers if layer.holder.has_changed()), "")

    def close(self) -> None:
        """Close the files; the nodes belong to the daemon."""
        self._opened.close()

    def _error(self, kind: Callable[[str], errors.NbdpullError], text: str) -> errors.NbdpullError:
        return kind(f"disk {self._disk} {text}")


def _flaw(layer: _Layer) -> str:
    """Return why an image shows something other than its own bytes and those below; "" if it does not."""
    if layer.details.get("corrupt"):
        return "is marked as corrupt: see qemu-img check"
    return "keeps its data in another file" if layer.details.get("data-file") else ""


def _bitmaps(node: dict[str, Any]) -> dict[str, bool]:
    def is_sound(bitmap: dict[str, Any]) -> bool:
        return bool(bitmap["persistent"] and bitmap["recording"] and not bitmap.get("inconsistent"))

    return {bitmap["name"]: is_sound(bitmap) for bitmap in node.get("dirty-bitmaps", [])}


class _Holder:
    """A file that no QEMU can start to write to while this is open, and its state at the start.

    Busy if one does already; locked: False if the file system has no locks.
    """

    def __init__(self, disk: str, path: str):
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            kind = errors.AccessDenied if error.errno in (1, 13) else errors.HypervisorError
            raise kind(f"disk {disk} cannot be read: {path}: {error.strerror}") from error
        try:
            self.locked = image_lock.keep_writers_out(self._descriptor, path)
            if stat.S_ISBLK(os.fstat(self._descriptor).st_mode):
                os.fsync(self._descriptor)  # later writes count as a change
            status = os.fstat(self._descriptor)
            self.identity = (status.st_dev, status.st_ino, status.st_rdev)
            self._was = self._state(status)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _state(self, status: os.stat_result) -> tuple[Any, ...]:
        """Return what identifies the content.

        Without the times of access and status change: libvirt gives a file to QEMU's user before it knows that it
        cannot start a domain.
        """
        if stat.S_ISBLK(status.st_mode):
            return (status.st_rdev, os.lseek(self._descriptor, 0, os.SEEK_END), _writes(status.st_rdev))
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def has_changed(self) -> bool:
        """Return whether the file has changed.

        Look it up by path, as it may be another file by now; and open it, as only then NFS asks its server.
        """
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            return self._state(os.fstat(descriptor)) != self._was
        finally:
            os.close(descriptor)

    def __enter__(self) -> _Holder:
        return self

    def __exit__(self, *exc: Any) -> None:
        os.close(self._descriptor)


def _writes(device: int) -> list[str]:
    """Return the counts of writes and discards of a block device so far; nothing if the kernel has no counts.

    QEMU's locks on a device are on a name, and libvirt gives each VM a /dev of its own.
    """
    with contextlib.suppress(OSError), open(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat") as file:
        counts = file.read().split()
        return counts[4:7:2] + counts[11:14:2]
    return []
