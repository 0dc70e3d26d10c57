"""Is all fit for pulls? Each finding is good, or says what to do. Looks only, and changes nothing.

Owns: what is looked at, and the advice. Must not know: how a pull works, what is printed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from dataclasses import dataclass
from typing import Callable, Optional

from ..backup import scratch_watch, strays
from ..core import errors, software
from ..definitions import disk_choice, omissions
from ..hypervisor import qemu_faults
from ..nbd import storage_daemon
from ..repository import journal
from .options import DoctorOptions as Options

GOOD, WARN, BAD = "good", "warn", "BAD"
# What an upgrade brings to pulls; docs/faults.md has the stories.
_LATER = (
    ("QEMU", (8, 2, 3), "resumes a killed pull of disks in I/O threads, and does not crash at a lost client of them"),
    ("libvirt", (10, 8), "does not crash where QEMU refuses one of several disks"),
    ("libvirt", (10, 10), "can keep bitmaps of a raw disk, by a data file"),
    ("libvirt", (11, 10), "lets a guest that shuts down wait for the end of a pull"),
)
_PEER = "virtnbdbackup"  # its name on the command line, and how its checkpoints' names begin


@dataclass(frozen=True)
class Finding:
    """state: GOOD, WARN (a pull works, with less) or BAD; advice: what to do, empty where good."""

    state: str
    subject: str
    text: str
    advice: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Result:
    """All Findings, in the order in which a person reads them."""

    domain: Optional[str]
    findings: list[Finding]


def doctor(options: Options, report: Callable = lambda **event: None, check: Callable = lambda: None) -> Result:
    """Look at this machine, at libvirt, and at a domain where one is named."""
    return Result(options.domain, _findings(options.domain, options.uri, options.scratch_dir))


def _findings(name: Optional[str], uri: Optional[str], scratch: str) -> list[Finding]:
    found = [_good("python", f"{sys.version.split()[0]} at {sys.executable}"), _libnbd(), *_programs()]
    try:
        from ..hypervisor import connection
    except errors.MissingSoftware as error:
        return [*found, _bad("libvirt's bindings", error)]
    try:
        with connection.host(uri) as host:
            found += [_good("libvirt", f"{host.uri}, version {host.versions['libvirt']}"), _versions(host.versions)]
            found += [*_tls(host.versions), *_upgrade(host.versions)]
            found += [_note_of_remote(host)] if host.is_remote else [_scratch(scratch), *_confinement()]
            found += [_good("domains", ", ".join(host.names) or "none")]
    except errors.NbdpullError as error:
        return [*found, _bad("libvirt", error)]
    return found + (_domain(name, uri) if name else [])


def _good(subject, text):
    return Finding(GOOD, subject, text)


def _bad(subject, error):
    what, _, advice = str(error).partition(": ")
    return Finding(BAD, subject, what, advice or "see the text", error.exit_code)


# This machine


def _libnbd():
    try:
        from ..nbd import libnbd
    except errors.MissingSoftware as error:
        return _bad("libnbd's bindings", error)
    version = libnbd.library_version()
    if libnbd.tls_is_verified(version):
        return _good("libnbd", version)
    return Finding(WARN, "libnbd", f"{version}: its check of a TLS server's certificate has known gaps (CVE-2024-7383)",
                   "nothing for unix sockets; for --tls: libnbd 1.18.5, 1.20.2 or later")  # fmt: skip


def _programs():
    needs = [
        ("qemu-img", "qcow2 images at restore"),
        ("qemu-nbd", "qcow2 images at restore"),
        (storage_daemon.PROGRAM, "domains that are off and cannot be started"),
    ]
    return [
        _good(name, path)
        if (path := shutil.which(name))
        else Finding(WARN, name, f"not installed; needed for {use}", f"install {software.PACKAGES[name]}")
        for name, use in needs
    ]


def _scratch(folder):
    if not os.path.isdir(folder):
        advice = "create it, or choose another with --scratch-dir"
        return Finding(BAD, "scratch", f"{folder} is not a directory", advice, 9)
    free, kind = shutil.disk_usage(folder).free, _file_system(folder)
    text = f"{folder}: {_gib(free)} free on {kind}; what the guest overwrites during a pull goes there"
    try:
        scratch_watch.require_room(folder, scratch_watch.RESERVE)
    except errors.ScratchFull as error:
        advice = "free some space, or choose another directory with --scratch-dir"
        return Finding(BAD, "scratch", f"{text}; too little for a pull to start", advice, error.exit_code)
    if kind in ("tmpfs", "ramfs"):
        return Finding(WARN, "scratch", text, "this is host memory: choose a directory on a disk with --scratch-dir")
    if not os.stat(folder).st_mode & 0o001:
        return Finding(WARN, "scratch", text, f"QEMU's user may not be able to enter it: chmod o+x {folder}")
    return _good("scratch", text)


def _file_system(folder):
    best = ("", "unknown")
    with open("/proc/self/mounts") as mounts:
        for line in mounts:
            _, where, kind = line.split()[:3]
            if os.path.commonpath([os.path.realpath(folder), where]) == where and len(where) >= len(best[0]):
                best = (where, kind)
    return best[1]


def _gib(count):
    return f"{count / (1 << 30):.1f} GiB"


def _confinement():
    if os.path.isdir("/sys/kernel/security/apparmor"):
        yield _good("AppArmor", "on: QEMU makes sockets in /var/lib/libvirt/qemu/domain-ID-NAME/, where nbdpull puts "
                    "them; elsewhere only by a rule in /etc/apparmor.d/local/abstractions/libvirt-qemu")  # fmt: skip
    if os.path.exists("/sys/fs/selinux/enforce"):
        yield _good("SELinux", "on: sockets can be in /tmp and /var/tmp; another folder needs a label that svirt_t may "
                    "write")  # fmt: skip


# libvirt


def _versions(versions):
    libvirt, qemu = (_numbers(versions[name]) for name in ("libvirt", "qemu"))
    text = f"libvirt {versions['libvirt']}, QEMU {versions['qemu']}"
    if libvirt >= (7, 6) and qemu >= (6, 1):
        return _good("incremental", text)
    if libvirt >= (7, 2) and qemu >= (4, 2):
        return Finding(WARN, "incremental", f"{text}: full pulls only", "libvirt 7.6 and QEMU 6.1 have checkpoints")
    return Finding(BAD, "incremental", f"{text}: no backups", "upgrade to libvirt 7.6 and QEMU 6.1", 6)


def _tls(versions):
    if qemu_faults.tls_handshake(_numbers(versions["qemu"])):
        yield Finding(WARN, "TLS", f"QEMU {versions['qemu']} may crash, with its guest, while an NBD client connects "
                      "by TLS", "do without --tls: reach its socket through ssh, see --nbd; 8.2.4, 9.0.1 and 9.1 are "
                      "mended")  # fmt: skip


def _upgrade(versions):
    """In one line, what the versions here lack."""
    here = {"libvirt": _numbers(versions["libvirt"]), "QEMU": _numbers(versions["qemu"])}
    lacks = [f"{name} {'.'.join(map(str, since))} {what}" for name, since, what in _LATER if here[name] < since]
    if lacks:
        yield _good("upgrade", "; ".join(lacks))


def _numbers(version):
    return tuple(map(int, version.split(".")))


def _note_of_remote(host):
    return Finding(WARN, "remote", f"{host.uri}: sockets and scratch are on that machine, and were not looked at",
                   "run nbdpull doctor there; see --nbd for ways to its data")  # fmt: skip


# A domain


def _domain(name, uri):
    from ..hypervisor import domain

    try:
        with contextlib.ExitStack() as entered:
            vm = entered.enter_context(domain.open(name, uri))
            asked = _who_tells_of_images(vm, entered)
            looks = ((_state, vm), (_disks, asked), (_other_data, vm), (_iothreads, vm), (_checkpoints, asked))
            return [finding for look, whom in looks for finding in _told(look, whom)]
    except errors.NbdpullError as error:
        return [_bad(f"domain {name}", error)]


def _told(look, vm, *about):
    """What one look tells; where it fails, the others go on."""
    try:
        yield from look(vm, *about)
    except errors.NbdpullError as error:
        yield _bad(" ".join([look.__name__.strip("_"), *about]), error)


def _who_tells_of_images(vm, entered):
    """Of a domain that is off the images themselves, as libvirt does not look into them."""
    from ..backup import offline_read

    if not (vm.active or vm.is_remote):
        with contextlib.suppress(errors.MissingSoftware):  # which is told already
            return entered.enter_context(offline_read.opened(vm, lambda: None))
    return vm


def _state(vm):
    if not vm.active:
        yield _off(vm)
        return
    if vm.power.left_paused(journal.look(vm.uuid)):
        yield Finding(WARN, vm.name, "was off, and stands paused since a pull of it was killed",
                      f"nbdpull cleanup {vm.name}, or the next pull, ends it")  # fmt: skip
    else:
        yield _good(vm.name, "is active")
    try:
        vm.jobs.require_idle()
        yield _good("jobs", "none")
    except (errors.Busy, errors.JobStuck) as error:
        yield _bad("jobs", error)
    yield _agent(vm.agent_state)
    if not vm.supports_checkpoints:
        yield Finding(WARN, "incremental", f"{vm.name}'s emulator cannot", "full pulls work; upgrade QEMU")
    yield _socket(os.path.dirname(vm.backups.socket_path("")), vm.is_remote)


def _off(vm):
    """What a pull does with a domain that is off."""
    if vm.other_session:
        code = errors.DomainNotRunning.exit_code
        return Finding(BAD, vm.name, "is shut off, as this libvirt tells", vm.other_session, code)
    read = "a pull reads its images, and makes no checkpoint" if not vm.is_remote else "only a pull there can read it"
    if vm.has_saved_state:
        text = (
            f"is shut off with a saved state (managedsave): {read}; its disks go with that memory, which is in no point"
        )
        advice = f"virsh start {vm.name} goes on from it, virsh managedsave-remove {vm.name} drops it"
        return Finding(WARN, vm.name, text, advice)
    if vm.has_host_devices:
        text = f"is shut off, and a start takes devices from the host: {read}"
        return Finding(WARN, vm.name, text, "pull it while it runs, now and then; or see --offline=start-paused")
    return _good(vm.name, f"is shut off: a pull starts it with its CPUs paused; where that cannot be, {read}")


def _agent(state):
    if state == "connected":
        return _good("guest agent", "connected: its file systems can be frozen")
    text = "not running in the guest" if state else "no channel for it"
    return Finding(WARN, "guest agent", f"{text}: points will be crash-consistent",
                   "install qemu-guest-agent in the guest" if state else
                   "add a virtio channel org.qemu.guest_agent.0 to the domain")  # fmt: skip


def _socket(folder, remote):
    if remote or os.access(folder, os.W_OK | os.X_OK):
        return _good("NBD socket", f"will be in {folder}")
    return Finding(BAD, "NBD socket", f"will be in {folder}, which you may not enter", "run as root", 7)


def _disks(vm):
    for disk in vm.disks():
        subject, text = f"disk {disk.target}", f"{disk.format} {disk.source}"
        left_out = disk_choice.why_left_out(disk)
        if disk_choice.is_missed(disk):
            yield Finding(WARN, subject, f"{text}: not pulled, it {left_out}", "back it up by other means")
        elif left_out:
            yield _good(subject, f"{text}: not pulled, it {left_out}")
        else:
            yield _pulled(vm, disk)
            yield from _encryption(disk)


def _other_data(vm):
    """What holds data of the guest and is no disk."""
    names = [disk.target for disk in vm.disks()]
    for each in omissions.found(vm.domain_xml(), vm.live_xml(), names):
        text = f"{f'{each.path}: ' if each.path else ''}not pulled, it {each.why}"
        yield Finding(WARN if each.missed else GOOD, each.what, text,
                      "back it up by other means" if each.missed else "")  # fmt: skip


def _encryption(disk):
    if disk.encrypted:
        yield Finding(WARN, f"encryption of {disk.target}", f"the disk {disk_choice.ENCRYPTED}",
                      "keep the store and --scratch-dir where only you can read them")  # fmt: skip


def _pulled(vm, disk):
    subject = f"disk {disk.target}"
    try:
        (disk,) = vm.looked_at([disk])
    except errors.Unsupported as error:  # of an image, without QEMU
        return Finding(WARN, subject, str(error), "none, as long as the domain can be started for a pull")
    except errors.NbdpullError as error:
        return _bad(subject, error)
    text = f"{disk.format} {disk.source}, {_gib(disk.size)}"
    if disk.format != "qcow2":
        return Finding(WARN, subject, f"{text}: full pulls only", "convert it to qcow2 for incremental ones")
    if disk.bitmaps is False:
        return Finding(WARN, subject, f"{text}: qcow2 version 2, full pulls only",
                       f"with the domain off: qemu-img amend -o compat=1.1 {disk.source}")  # fmt: skip
    return _good(subject, f"{text}: full and incremental")


def _iothreads(vm):
    threaded = [disk for disk in vm.disks() if disk.iothread]
    if not threaded:
        return
    version = vm.seen_version
    targets, shown = ", ".join(disk.target for disk in threaded), ".".join(map(str, version))
    if qemu_faults.hang_up(version):
        yield Finding(WARN, "iothreads", f"disk {targets}: QEMU {shown} crashes, with its guest, when an "
                      "NBD client of such a disk hangs up; nbdpull lets QEMU hang up first, also where it is killed",
                      "use no other NBD client on a backup of this domain; QEMU 9.0 is mended")  # fmt: skip
    elif qemu_faults.tls_in_thread(version):
        yield Finding(WARN, "iothreads", f"disk {targets}: QEMU {shown} crashes, with its guest, when such a disk is "
                      "read over TLS, which nbdpull refuses",
                      "do without --tls; QEMU 9.0.1 and 8.2.5 are mended")  # fmt: skip
    moving = qemu_faults.moving(threaded)
    if moving and qemu_faults.pause(version):
        yield Finding(WARN, "pause or reset", f"disk {', '.join(moving)}: QEMU {shown} may crash, with its guest, if "
                      "that is paused or rebooted while an NBD client reads such a disk",
                      "do neither during a pull; QEMU 9.0 and 8.2.3 are mended")  # fmt: skip


def _checkpoints(vm):
    names = vm.checkpoints.names()
    for name in names:
        yield from _told(_checkpoint, vm, name)
    yield from _told(_strays, vm)
    yield from _peer(vm, names)
    if vm.has_internal_snapshots:
        when = "as long as there are checkpoints" if names else "once a pull has made a checkpoint"
        yield Finding(WARN, "snapshots", f"virsh snapshot-revert to an internal one fails {when}, and leaves a running "
                      "domain shut off", f"before a revert: nbdpull release {vm.name}")  # fmt: skip


def _peer(vm, names):
    """virtnbdbackup stops at each checkpoint that is not its own, and so at every one of nbdpull's."""
    beside = [name for name in names if name.startswith(_PEER)]
    if not beside and not shutil.which(_PEER):
        return
    ours = [checkpoint.name for checkpoint in strays.checkpoints(vm)]
    text = f"{_PEER} has checkpoints of {vm.name}" if beside else f"{_PEER} is installed"
    text += f", and refuses a domain that has one of nbdpull{', as this one' * bool(ours)}"
    advice = f"nbdpull release {vm.name}, and pull it with --no-checkpoint" if ours else "pull it with --no-checkpoint"
    yield Finding(WARN, _PEER, text, f"to go on with {_PEER}: {advice}")


def _strays(vm):
    """What records for a store that may be gone, and costs the guest a little at each write."""
    ours = [checkpoint.name for checkpoint in strays.checkpoints(vm)]
    if len(ours) > 1:
        yield Finding(WARN, "checkpoints", f"{len(ours)} of nbdpull: a store needs only its newest one",
                      f"if they are not of as many stores: nbdpull release {vm.name}, or virsh checkpoint-delete "
                      f"{vm.name} for one")  # fmt: skip
    found, flaws = strays.orphans(vm)
    for each in found:
        yield Finding(WARN, f"bitmap {each.name}", f"of disk {', '.join(each.disks)}: no checkpoint owns it",
                      f"nbdpull release {vm.name}")  # fmt: skip
    for flaw in flaws:
        yield Finding(WARN, "bitmaps", flaw, "see the text")


def _checkpoint(vm, name):
    checkpoint = vm.checkpoints.get(name)
    ours = f"of nbdpull run {checkpoint.run_id}; once its store is gone, nbdpull release {vm.name} removes it"
    owner = ours if checkpoint.run_id else "not of nbdpull"
    lost = [target for target, fit in checkpoint.disks.items() if fit is False]
    subject, text = f"checkpoint {name}", f"on {', '.join(checkpoint.disks) or 'no disk'}, {owner}"
    hold = journal.look(vm.uuid)
    if checkpoint.run_id and hold and hold.previous and hold.previous.id == checkpoint.run_id:
        text = f"on {', '.join(checkpoint.disks) or 'no disk'}, left by interrupted nbdpull run {checkpoint.run_id}"
        yield Finding(WARN, subject, text, f"the next pull resumes or removes it, or nbdpull cleanup {vm.name} does")
    elif lost:
        yield Finding(WARN, subject, f"{text}; bitmap missing or broken on {', '.join(lost)}",
                      f"the next pull reads them in full; virsh checkpoint-delete {vm.name} {name}")  # fmt: skip
    else:
        yield _good(subject, text)
