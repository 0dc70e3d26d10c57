"""Drill: does a point boot? It is served, booted as a domain of another name without a network, and thrown away.

Owns: the order of steps, what readiness is, the verdict, and that nothing is left. Must not know: libvirt's API and XML
(domain_boot.py, drill_xml.py), frames, what is printed.
"""

from __future__ import annotations

import fcntl
import glob
import os
import re
import secrets
import shutil
import tempfile
import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Callable, Optional

from ..core import errors
from ..core.os_error import translated
from ..definitions import drill_xml, hot_plug
from ..format import findings, layout
from ..hypervisor import domain_boot
from ..images import qemu_img
from ..repository import marker, series
from ..serving import nbd_server
from .options import DrillOptions as Options

LOOK_INTERVAL = 0.1  # seconds
CONSOLE_TAIL = 2000  # characters of the console that a report tells
CONSOLE_MAX = 4 << 20  # bytes of it that are searched
BOOT_FILES = ("nvram", "kernel", "initrd", "dtb")  # files of a point that a boot needs
FOLDER_PREFIX = "nbdpull-drill-"
SWEPT_AFTER = 60.0  # seconds: a drill may have made its folder, and not hold it yet

OK, FAILED = "ok", "failed"


@dataclass
class Result:
    """when, who: as in a finding; verdict: OK or FAILED, with the reason; seconds: from start to readiness, or until it
    was given up; waited_for: "agent" or "console"; console: the end of what the guest printed; screenshot: (kind,
    picture) or None."""

    point: series.Point
    when: str
    who: str
    verdict: str
    reason: str
    seconds: float
    waited_for: str
    console: str
    screenshot: Optional[tuple[str, bytes]] = None
    screenshot_path: Optional[str] = None
    warnings: list = field(default_factory=list)


def drill(options: Options, report: Callable = lambda **event: None, check: Callable = lambda: None) -> Result:
    """Hold one drill. HypervisorError and the like where it cannot be held: that is no verdict on the point."""
    target = series.only_series(marker.open_store(options.store), options.domain)
    point = target.point(options.point)
    xml, lost = _definition(target, point)
    expect = _pattern(options.expect)
    if expect is None and not drill_xml.has_agent(xml):
        raise errors.UsageError(
            f"{target.domain} has no channel of the guest agent; tell by --expect what its serial console says when it "
            "is up"
        )
    report = partial(report, domain=target.domain)
    result = _Drill(options, target, point, xml, expect, report, check).run()
    result.warnings += [f"disk {disk} is in no definition of the point: the drill was without it" for disk in lost]
    if options.keep:
        _keep(target, result)
    return result


def _definition(target, point):
    """(definition of the domain with the disks of the point, those that are in none)."""
    xml, live = target.definition(point), target.live_definition(point)
    joined, _, lost = hot_plug.joined(xml, live, point.disks)
    return joined, lost


def _pattern(text):
    try:
        return re.compile(text, re.MULTILINE) if text is not None else None
    except re.error as error:
        raise errors.UsageError(f"--expect {text!r} is not a regular expression: {error}") from error


class _Drill:
    def __init__(self, options, target, point, xml, expect, report, check):
        self._options, self._series, self._point, self._xml = options, target, point, xml
        self._expect, self._report, self._check = expect, report, check

    def run(self):
        with ExitStack() as stack:
            folder = stack.enter_context(_work_folder(self._options.work_dir))
            connection = stack.enter_context(domain_boot.connected(self._options.uri))
            offer = domain_boot.offer(connection, self._xml)
            server = stack.enter_context(self._served(folder))
            images = {export.disk: _overlay(folder, export) for export in server.exports}
            console = os.path.join(folder, "console")
            xml = self._definition(folder, images, console, offer)
            _give(folder, domain_boot.qemu_user(connection))
            self._tell("boot")
            started = time.monotonic()
            boot = stack.enter_context(domain_boot.booted(connection, xml))
            reason = self._wait(boot, server, console, started)
            seconds = round(time.monotonic() - started, 3)
            picture = boot.screenshot() if drill_xml.has_display(self._xml) and boot.active else None
            return Result(self._point, **findings.now(), verdict=FAILED if reason else OK, reason=reason,
                          seconds=seconds, waited_for=self._waited_for, console=_read(console)[-CONSOLE_TAIL:],
                          screenshot=picture)  # fmt: skip

    @property
    def _waited_for(self):
        return "console" if self._expect else "agent"

    def _tell(self, step):
        self._report(event="drill", step=step, point=self._point.id)

    def _served(self, folder):
        disks = [disk.name for disk in self._point.manifest.disks if disk.name in drill_xml.disks(self._xml)]
        if not disks:
            raise errors.NoSuchDisk(f"point {self._point.id} has no disk of the domain's definition")
        self._tell("serve")
        socket = os.path.join(folder, "nbd.sock")
        request = nbd_server.Request(self._options.store, self._point.manifest.uuid, self._point.id, disks, socket)
        return nbd_server.Server(request, self._check)

    def _definition(self, folder, images, console, offer):
        files = {}
        for name in BOOT_FILES:
            data = self._series.read_file(self._point, name)
            if data is not None:
                files[name] = os.path.join(folder, name)
                with open(files[name], "wb") as file:
                    file.write(data)
        files.setdefault("nvram", os.path.join(folder, "nvram"))  # which libvirt makes; at a place of its own it stays
        return drill_xml.adapted(self._xml, f"nbdpull-drill-{secrets.token_hex(4)}", str(uuid.uuid4()), images, console,
                                 files, offer)  # fmt: skip

    def _wait(self, boot, server, console, started):
        """Wait for readiness; return why it did not come, "" if it did."""
        while True:
            self._check()
            ready = self._expect.search(_read(console)) if self._expect else boot.agent_answers()
            if ready:
                return ""
            for trouble in server.troubles():
                return f"the point cannot be read: {trouble}"
            if not boot.active:
                return "the guest ended before it was up"
            if time.monotonic() - started > self._options.timeout:
                missed = "the console did not show what was expected" if self._expect else "the agent did not answer"
                return f"{missed} within {self._options.timeout:g} s"
            time.sleep(LOOK_INTERVAL)


@contextmanager
def _work_folder(parent):
    """A folder of our own in one that nobody can list."""
    _sweep(parent)
    with translated("create a folder in", parent):
        outer = tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, outer, ignore_errors=True)
        with suppress(OSError):  # a file system without locks: then nothing is swept there either
            stack.enter_context(_held(outer))
        os.chmod(outer, 0o711)
        inner = os.path.join(outer, secrets.token_hex(8))
        os.mkdir(inner, 0o700)
        yield inner


def _give(folder, user):
    """Let QEMU use what was made in the folder, by the number of its user: it has the disks in it, as the guest does.

    Where it cannot be given to that user alone, anybody can use it who knows the folder's name, which every list of
    processes shows.
    """
    paths = [os.path.join(folder, name) for name in os.listdir(folder)]
    modes = 0o711, 0o666
    with suppress(PermissionError):
        if user is not None:
            for path in (folder, *paths):
                os.chown(path, user, -1)
            modes = 0o700, 0o600
    for path, mode in ((folder, modes[0]), *((path, modes[1]) for path in paths)):
        os.chmod(path, mode)


def _sweep(parent):
    """Remove what drills that were killed have left: folders of ours that no process holds."""
    for path in glob.glob(os.path.join(glob.escape(parent), f"{FOLDER_PREFIX}*")):
        with suppress(OSError), _held(path) as status:
            if status.st_uid == os.geteuid() and time.time() - status.st_mtime > SWEPT_AFTER:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _held(folder):
    """Hold a folder, so that it is seen to be in use as long as this process lives; BlockingIOError where another one
    does. Gives its status."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _overlay(folder, export):
    """A new qcow2 image over the export."""
    path = os.path.join(folder, f"{layout.encoded(export.disk)}.qcow2")
    size = -(-export.size // 512) * 512
    qemu_img.create(path, size, "-F", "raw", "-b", export.uri)
    return path


def _read(console):
    try:
        with open(console, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - CONSOLE_MAX))
            return file.read().decode(errors="replace").replace("\r", "")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise errors.AccessDenied(f"cannot read the guest's console: {error.strerror}; run as root") from error


def _keep(target, result):
    """Keep the result in the store; a store that cannot be written to is no failure of the drill."""
    about = {**findings.entry(result.point), "verdict": result.verdict, "reason": result.reason,
             "seconds": result.seconds, "waited_for": result.waited_for}  # fmt: skip
    try:
        path = findings.record(target, findings.DRILL, when=result.when, who=result.who, points=[about])
        if result.screenshot is not None:
            kind, picture = result.screenshot
            result.screenshot_path = target.store.path(findings.attach(target, path, kind, picture))
    except (errors.OutputError, errors.StoreError) as error:
        result.warnings.append(f"the result is not kept: {error}")
