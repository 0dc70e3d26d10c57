"""Drill: does a point boot? It is served, booted as a domain with another name and no network, and thrown away.

Owns: the order of steps, when the guest counts as up, the verdict, and that nothing remains. Must not know: libvirt's
API and XML (see domain_boot.py, drill_xml.py), frames, what is printed.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, Optional

from ..core import errors, work_folder
from ..core.errors import Check, Report
from ..definitions import drill_xml, hot_plug
from ..definitions.host_reach import Offer
from ..format import findings, layout
from ..hypervisor import domain_boot
from ..hypervisor.domain_boot import Boot
from ..images import qemu_img
from ..repository import series_choice
from ..repository.series import Point, Series
from ..serving.nbd_server import Export, Request, Server
from . import unlocking
from .options.restores import DrillOptions as Options

log = logging.getLogger("nbdpull.drill")
LOOK_INTERVAL = 0.1  # seconds
CONSOLE_TAIL = 2000  # characters of the console that a result contains
CONSOLE_MAX = 4 << 20  # bytes of the console that are searched
BOOT_FILES = ("nvram", "kernel", "initrd", "dtb")  # files of a point that a boot needs
PREFIX = "nbdpull-drill-"  # of the names of a drill's folder and domain

OK, FAILED = "ok", "failed"


@dataclass(frozen=True)
class Result:
    """The outcome of a drill.

    when, who: as in a finding; verdict: OK or FAILED, with the reason; seconds: from the start until the guest was up,
    or until the drill was abandoned; waited_for: "agent" or "console"; console: the end of the guest's console output;
    screenshot_path: of a picture in the store, or None.
    """

    point: Point
    when: str
    who: str
    verdict: str
    reason: str
    seconds: float
    waited_for: str
    console: str
    screenshot_path: Optional[str] = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Run:
    """What every step of a drill needs.

    xml: the definition, with the disks of the point; expect: what the console should show, None: wait for the agent.
    """

    options: Options
    series: Series
    point: Point
    xml: str
    expect: Optional[re.Pattern[str]]
    report: Report
    check: Check


class _Seen(NamedTuple):
    """The outcome of a boot. reason: why the guest did not come up, "" if it did; picture: (kind, data)."""

    reason: str
    seconds: float
    console: str
    picture: Optional[tuple[str, bytes]]


def drill(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Run one drill. HypervisorError and the like if it cannot be run: that is no verdict on the point."""
    opened = unlocking.opened(options.store, options.identities)
    target, point = series_choice.only_point(opened, options.domain, options.point)
    xml, lost = _definition(target, point)
    expect = _pattern(options.expect)
    if expect is None and not drill_xml.has_agent(xml):
        raise errors.UsageError(
            f"{target.domain} has no guest agent channel; say with --expect what its serial console shows when it is up"
        )
    report_point = partial(report, event="drill", domain=target.domain, point=point.id)
    seen = _seen(_Run(options, target, point, xml, expect, report_point, check))
    now = findings.now()
    result = Result(
        point=point,
        when=now["when"],
        who=now["who"],
        verdict=FAILED if seen.reason else OK,
        reason=seen.reason,
        seconds=seen.seconds,
        waited_for="console" if expect else "agent",
        console=seen.console,
    )
    path, warnings = _kept(target, result, seen.picture) if options.keep else (None, [])
    left_out = [f"disk {disk} is in no definition of the point: the drill was without it" for disk in lost]
    return replace(result, screenshot_path=path, warnings=[*left_out, *warnings])


def _definition(target: Series, point: Point) -> tuple[str, list[str]]:
    """Return (definition of the domain with the disks of the point, disks that are in no definition)."""
    xml, live = target.definition(point), target.live_definition(point)
    joined, _, lost = hot_plug.joined(xml, live, point.disks)
    return joined, lost


def _pattern(text: Optional[str]) -> Optional[re.Pattern[str]]:
    if text is None:
        return None
    try:
        pattern = re.compile(text, re.MULTILINE)
    except re.error as error:
        raise errors.UsageError(f"--expect {text!r} is not a regular expression: {error}") from error
    if pattern.search(""):  # it would be found before the guest has printed anything
        raise errors.UsageError(f"--expect {text!r} also matches an empty console: give a text that the guest prints")
    return pattern


def _seen(run: _Run) -> _Seen:
    """Serve the point, boot it, and wait until the guest is up; everything is removed at the end."""
    with ExitStack() as stack:
        folder = stack.enter_context(work_folder.made(run.options.work_dir, PREFIX))
        connection = stack.enter_context(domain_boot.connected(run.options.uri))
        offer = domain_boot.offer(connection, run.xml)
        server = stack.enter_context(_served(run, folder))
        images = {export.disk: _overlay(folder, export) for export in server.exports}
        console = os.path.join(folder, "console")
        xml = _adapted(run, folder, images, console, offer)
        work_folder.give(folder, domain_boot.qemu_user(connection))  # who runs the guest, and so can read its disks
        run.report(step="boot")
        started = time.monotonic()
        boot = stack.enter_context(domain_boot.booted(connection, xml))
        reason = _missing(run, boot, server, console, started)
        seconds = round(time.monotonic() - started, 3)
        log.info("%s (%.1f s)", reason or "the guest is up", seconds)
        picture = boot.screenshot() if drill_xml.has_display(run.xml) and boot.active else None
        return _Seen(reason, seconds, _read(console)[-CONSOLE_TAIL:], picture)


def _served(run: _Run, folder: str) -> Server:
    disks = [disk.name for disk in run.point.manifest.disks if disk.name in drill_xml.disks(run.xml)]
    if not disks:
        raise errors.NoSuchDisk(f"point {run.point.id} has no disk of the domain's definition")
    run.report(step="serve")
    socket = os.path.join(folder, "nbd.sock")
    return Server(Request(run.options.store, run.point.manifest.uuid, run.point.id, disks, socket,
                          master=unlocking.master(run.options.store, run.options.identities)), run.check)  # fmt: skip


def _adapted(run: _Run, folder: str, images: dict[str, str], console: str, offer: Offer) -> str:
    """Return the definition of the drill's domain, having written the other files that it needs to the folder."""
    files = {}
    for name in BOOT_FILES:
        data = run.series.read_file(run.point, name)
        if data is not None:
            files[name] = os.path.join(folder, name)
            with open(files[name], "wb") as file:
                file.write(data)
    files.setdefault("nvram", os.path.join(folder, "nvram"))  # libvirt creates it; elsewhere it would be left behind
    name = f"{PREFIX}{secrets.token_hex(4)}"
    return drill_xml.adapted(run.xml, name, str(uuid.uuid4()), images, console, files, offer)


def _missing(run: _Run, boot: Boot, server: Server, console: str, started: float) -> str:
    """Wait until the guest is up; return why it did not come up, "" if it did.

    A guest that is up in spite of data that could not be read is no proof of the point.
    """
    while True:
        run.check()
        is_up = run.expect.search(_read(console)) if run.expect else boot.agent_answers()
        for trouble in server.troubles():
            return f"the point cannot be read: {trouble}"
        if is_up:
            return ""
        if not boot.active:
            return "the guest ended before it was up"
        if time.monotonic() - started > run.options.timeout:
            missed = "the console did not show what was expected" if run.expect else "the agent did not answer"
            return f"{missed} within {run.options.timeout:g} s"
        time.sleep(LOOK_INTERVAL)


def _kept(target: Series, result: Result, picture: Optional[tuple[str, bytes]]) -> tuple[Optional[str], list[str]]:
    """Record the result in the store; return (path of the picture or None, warnings).

    A store that cannot be written to does not fail the drill.
    """
    about = {**findings.entry(result.point), "verdict": result.verdict, "reason": result.reason,
             "seconds": result.seconds, "waited_for": result.waited_for}  # fmt: skip
    try:
        path = findings.record(target, findings.DRILL, when=result.when, who=result.who, points=[about])
        if picture is None or target.store.seal.id is not None:  # it shows what is on the guest's screen
            return None, []
        return target.store.path(findings.attach(target, path, *picture)), []
    except (errors.OutputError, errors.StoreError) as error:
        return None, [f"the result is not kept: {error}"]


def _overlay(folder: str, export: Export) -> str:
    """Create a qcow2 image over the export; return its path."""
    path = os.path.join(folder, f"{layout.encoded(export.disk)}.qcow2")
    size = -(-export.size // 512) * 512
    qemu_img.create(path, size, "-F", "raw", "-b", export.uri)
    return path


def _read(console: str) -> str:
    try:
        with open(console, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - CONSOLE_MAX))
            return file.read().decode(errors="replace").replace("\r", "")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise errors.AccessDenied(f"cannot read the guest's console: {error.strerror}; run as root") from error
