"""Disks in I/O threads: a QEMU before 9.0 aborts, together with the guest, when an NBD client of such a disk
disconnects. So no client may do that, however a run ends. The same QEMU has to run before and after each test."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from bed.address import free_port, is_listening
from bed.guest import Guest
from bed.libvirtd import version
from bed.machine import MIB, Machine, wait_for
from rig import Rig, environment

from nbdpull.hypervisor import qemu_faults

libvirt = pytest.importorskip("libvirt")

PHASES = ["beginning", "begun", "copying", "copied", "ending"]
# A QEMU that has to be guarded from a client that hangs up, and one that has not: the run's job outlives it there.
guarded = pytest.mark.qemu_before("8.2.3")
mended = pytest.mark.qemu_since("8.2.3")


@pytest.fixture(scope="module")
def rig(private_libvirt, tmp_path_factory):
    """A rig with SCSI disks: QEMU has them in the thread even while the CPUs are paused."""
    folder = tmp_path_factory.mktemp("iothreads")
    disks = {"sda": 16 * MIB, "sdb": 4 * MIB}
    with Machine(private_libvirt, folder / "images", disks, iothreads=1) as vm:
        vm.write("sda", 0, 8 * MIB, 0x11)
        rig = Rig(vm, folder)
        rig.pull()
        yield rig


@pytest.fixture(autouse=True)
def same_qemu(request):
    if "rig" not in request.fixturenames:
        yield
        return
    vm = request.getfixturevalue("rig").vm
    pid = vm.pid
    yield
    assert vm.pid == pid, f"QEMU ended:\n{vm.bed.qemu_log(vm.name).read_text(errors='replace')[-500:]}"
    assert not guards(vm), "a guard is left"


def guards(vm):
    """Return the process ids of the guards of this domain."""
    return [int(pid) for pid in subprocess.run(["pgrep", "-f", f"socket_guard.py {vm.uuid}"], capture_output=True,
                                               text=True).stdout.split()]  # fmt: skip


def change(rig, value):
    """Write without `write -z`: QEMU 7.2's own qemu-io command fails an assertion at it in an I/O thread."""
    rig.vm.write("sda", MIB, 5 * MIB, value)
    rig.vm.discard("sda", 2 * MIB, MIB)
    rig.vm.write("sdb", 65536 * (value % 16), 65536, value)


def held(pid):
    """Return how many sockets a guard holds. One that starts opens and closes files meanwhile."""
    folder, found = f"/proc/{pid}/fd", 0
    for each in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"{folder}/{each}").startswith("socket:")
    return found


def no_guard(rig):
    wait_for(lambda: not guards(rig.vm), "end of the guard")


def ended_by_its_guard(rig):
    """Wait until the guard has ended the job: it exits once QEMU has disconnected; libvirt may learn of the end a
    little later."""
    no_guard(rig)
    wait_for(lambda: not rig.vm.job_active(), "end of the job")


def test_plan_and_pull(rig):
    change(rig, 0x21)
    done = rig.run("plan", rig.vm.name, "-o", rig.store, "-c", rig.vm.bed.uri, "--json")
    assert done.returncode == 0, done.stderr
    assert [disk["mode"] for disk in json.loads(done.stdout)["disks"]] == ["incremental", "incremental"]
    made = rig.assert_next_is_right()
    assert [disk["mode"] for disk in made["details"]["disks"]] == ["incremental", "incremental"]
    rig.assert_next_is_right("--full")


def test_a_domain_that_is_off(private_libvirt, tmp_path):
    with Machine(private_libvirt, tmp_path / "images", {"sda": 4 * MIB}, iothreads=1) as vm:
        vm.write("sda", 0, 2 * MIB, 0x12)
        vm.stop()
        rig = Rig(vm, tmp_path)
        rig.pull("--offline=start-paused")
        vm.start()
        rig.assert_next_is_right()


@pytest.mark.parametrize("phase", PHASES[:3])
def test_terminated_by_a_signal(rig, phase):
    change(rig, 0x31 + PHASES.index(phase))
    before = len(rig.points())
    rig.start(phase=phase)
    rig.process.terminate()
    code, result, _ = rig.end()
    assert (code, result["left_behind"]) == (128 + signal.SIGTERM, []) and len(rig.points()) == before
    rig.assert_clean()
    rig.assert_next_is_right()


@guarded
@pytest.mark.parametrize("phase", PHASES)
def test_killed(rig, phase):
    """The guard ends the job; before there are connections there is nothing to guard, and the next run ends the job."""
    change(rig, 0x41 + PHASES.index(phase))
    rig.start(phase=phase)
    rig.process.kill()
    rig.process.communicate()
    if phase == "begun":
        no_guard(rig)
        assert rig.vm.job_active()
    else:
        ended_by_its_guard(rig)
    made = rig.assert_next_is_right()
    assert made["resumed"] is None


@mended
def test_killed_and_resumed(rig):
    change(rig, 0x41)
    held = rig.contents()
    rig.start(phase="copying")
    assert not guards(rig.vm)
    rig.process.kill()
    rig.process.communicate()
    assert rig.vm.job_active()
    assert rig.pull()["resumed"]
    rig.assert_restores(held)
    rig.assert_next_is_right()


@guarded
def test_killed_while_plan_samples(rig):
    rig.start(phase="sampling", words=["plan", rig.vm.name, "--full", "-c", rig.vm.bed.uri])
    rig.process.kill()
    rig.process.communicate()
    ended_by_its_guard(rig)
    rig.assert_next_is_right()


@guarded
def test_the_guard_is_killed_first_then_nbdpull(rig):
    change(rig, 0x51)
    rig.start(phase="copying", words=rig.words("--max-rate", "1M"))
    (first,) = guards(rig.vm)
    before = held(first)
    os.kill(first, signal.SIGKILL)
    rig.release()
    wait_for(lambda: [held(each) for each in guards(rig.vm) if each != first] == [before], "another guard")
    rig.process.kill()
    rig.process.communicate()
    ended_by_its_guard(rig)
    rig.assert_next_is_right()


@guarded
def test_the_guard_is_killed_and_the_pull_completes(rig):
    change(rig, 0x52)
    rig.start(phase="copying")
    (guard,) = guards(rig.vm)
    os.kill(guard, signal.SIGKILL)
    code, result, err = rig.end()
    assert code == 0 and result["ok"], err
    rig.assert_next_is_right()


@guarded
def test_killed_while_the_daemon_is_down(rig):
    """The guard holds the connections until there is a daemon that it can ask."""
    change(rig, 0x53)
    rig.start(phase="copying")
    rig.vm.bed.stop_daemon(hard=True)
    try:
        rig.process.kill()
        rig.process.communicate()
        assert guards(rig.vm)
    finally:
        rig.vm.bed.start_daemon()
    ended_by_its_guard(rig)
    rig.assert_next_is_right()


STANDING = """
import sys, threading, time
from nbdpull.cli import main as cli
from nbdpull.nbd import source_connection
source_connection.MAX_BATCH_BYTES = 1 << 20  # more than fits into a socket
first = threading.Lock()
def stand(connection, cookie, doing, failed, wait=source_connection.SourceConnection._wait):
    if doing.startswith("reading"):
        if first.acquire(blocking=False):
            print('{"event": "held"}', flush=True)
        time.sleep(600)
    wait(connection, cookie, doing, failed)
source_connection.SourceConnection._wait = stand
sys.exit(cli.main(sys.argv[1:]))
"""


@guarded
def test_killed_with_unread_answers(rig):
    """QEMU waits for room in the sockets, and would hang at the end of the job if the guard did not receive the
    answers."""
    change(rig, 0x58)
    rig.gate = rig.folder / "gate"
    rig.process = subprocess.Popen([sys.executable, "-c", STANDING, *rig.words("--full")], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, env=environment())  # fmt: skip
    rig.wait_event("held")
    rig.process.kill()
    rig.process.communicate()
    ended_by_its_guard(rig)
    rig.assert_next_is_right()


def test_the_store_is_full(rig):
    """Our own error, while many reads are in flight."""
    change(rig, 0x54)
    words = [sys.executable, "-c", FULL_STORE, *rig.words("--full")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment())
    assert done.returncode == 9 and json.loads(done.stdout.splitlines()[-1])["left_behind"] == []
    rig.assert_clean()
    rig.assert_next_is_right()


FULL_STORE = """
import errno, sys
from nbdpull.pulling import disk_copy
from nbdpull.cli import main as cli
from nbdpull.core import errors
def full(*args):
    raise errors.OutputFull("full")
disk_copy.DiskCopy.add = full
sys.exit(cli.main(sys.argv[1:]))
"""


def test_somebody_else_ends_the_job(rig):
    change(rig, 0x55)
    rig.start(phase="copying")
    rig.vm.domain.abortJob()
    wait_for(lambda: not rig.vm.job_active(), "end of the job")
    code, result, _ = rig.end()
    assert (code, result["code"]) == (6, "job-lost")
    rig.assert_next_is_right()


def test_by_tcp(rig):
    change(rig, 0x56)
    rig.assert_next_is_right("--nbd", f"tcp:127.0.0.1:{free_port()}")


@guarded
def test_killed_by_tcp(rig):
    change(rig, 0x57)
    rig.start("--nbd", f"tcp:127.0.0.1:{free_port()}", phase="copying")
    rig.process.kill()
    rig.process.communicate()
    ended_by_its_guard(rig)
    rig.assert_next_is_right()


@guarded
def test_with_tls_it_is_refused(rig, tmp_path):
    (tmp_path / "ca-cert.pem").touch()
    done = rig.run(*rig.words("--nbd", "tcp:127.0.0.1:10809", "--tls", tmp_path))
    result = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, result["code"]) == (6, "unsupported")
    assert "disk sda, sdb of domain" in result["message"] and "(iothread)" in result["message"]
    rig.assert_clean()


def test_a_read_error(rig, tmp_path):
    """At an error in the middle of an answer in several pieces, QEMU would disconnect by itself, in the I/O thread."""
    broken, socket = tmp_path / "broken", tmp_path / "nbd"
    nbdkit = subprocess.Popen(["nbdkit", "-f", "-U", socket, "--filter=error", "--filter=cow", "pattern", "2M",
                               "error-pread=EIO", "error-pread-rate=100%", f"error-file={broken}"])  # fmt: skip
    try:
        wait_for(lambda: is_listening(socket), "nbdkit listens")
        xml = (f"<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name=''>"
               f"<host transport='unix' socket='{socket}'/></source><target dev='sdc' bus='scsi'/></disk>")  # fmt: skip
        rig.vm.domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        rig.start(phase="begun")
        broken.touch()
        code, result, _ = rig.end()
        assert (code, result["code"]) == (6, "source") and "cannot be read" in result["message"]
        rig.assert_clean()
        rig.vm.domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        wait_for(lambda: "dev='sdc'" not in rig.vm.domain.XMLDesc(), "detached disk")
    finally:
        nbdkit.kill()
        nbdkit.wait()


def test_doctor_warns(rig):
    done = rig.run("doctor", rig.vm.name, "-c", rig.vm.bed.uri, "--json")
    findings = {each["subject"]: each for each in json.loads(done.stdout)}
    assert ("iothreads" in findings) == qemu_faults.hang_up(version("qemu"))
    if "iothreads" in findings:
        assert findings["iothreads"]["state"] == "warn" and "sda, sdb" in findings["iothreads"]["text"]
    assert "pause or reset" not in findings


def test_doctor_warns_about_a_disk_that_changes_its_thread(private_libvirt, tmp_path):
    with Machine(private_libvirt, tmp_path / "images", {"vda": MIB, "sda": MIB}, iothreads=1) as vm:
        found = json.loads(Rig(vm, tmp_path).run("doctor", vm.name, "-c", vm.bed.uri, "--json").stdout)
    findings = {each["subject"]: (each["state"], each["text"].partition(":")[0]) for each in found}
    if "iothreads" in findings:  # the QEMU here is not mended
        assert (findings["iothreads"], findings["pause or reset"]) == (("warn", "disk vda, sda"), ("warn", "disk vda"))


def test_pull_and_plan_warn_of_a_pause_that_they_cannot_prevent(private_libvirt, tmp_path):
    """Even with --quiet. A domain that is off is paused for its pull."""
    expected = ["vda: QEMU"] * qemu_faults.pause(version("qemu"))
    with Machine(private_libvirt, tmp_path / "images", {"vda": MIB, "sda": MIB}, iothreads=1) as vm:
        rig = Rig(vm, tmp_path)
        quiet = [word for word in rig.words("--quiet") if word != "--json"]
        warnings = rig.pull()["warnings"]
        for done in (rig.run(*quiet), rig.run("plan", vm.name, "-c", vm.bed.uri)):
            assert done.returncode == 0
            warnings += done.stderr.splitlines()
        found = re.findall(r"disk (.*QEMU) .* may crash, with its guest, if the guest is paused", "\n".join(warnings))
        assert found == 3 * expected
        vm.stop()
        assert not any("may crash" in each for each in rig.pull("--offline=start-paused")["warnings"])


def test_twelve_disks_in_two_threads(private_libvirt, tmp_path):
    """Virtio disks: QEMU has them in the threads once the firmware has used them."""
    disks = {f"vd{letter}": 2 * MIB for letter in "abcdefghijkl"}
    with Machine(private_libvirt, tmp_path / "images", disks, iothreads=2, paused=False) as vm:
        for number, name in enumerate(disks):
            vm.write(name, 65536 * number, MIB, 0x61 + number)
        pid, rig = vm.pid, Rig(vm, tmp_path)
        rig.assert_next_is_right()
        vm.write("vdl", 0, 65536, 0x7F)
        rig.assert_next_is_right()
        assert vm.pid == pid


@pytest.fixture
def busy(private_libvirt, guest_parts, tmp_path):
    """A Linux guest that writes all the time, with its disk in an I/O thread."""
    with Guest(private_libvirt, tmp_path / "guest", guest_parts, writer=True, iothreads=1) as vm:
        vm.wait_agent()
        yield Rig(vm, tmp_path)


def test_a_busy_guest(busy):
    """It is pulled twice, and the second pull is killed: the guest keeps running, and the last point is right. It is
    neither paused nor reset during a read: then a QEMU before 8.2.3 may abort with virtio disks, whoever reads."""
    pid = busy.vm.pid
    assert busy.pull()["details"]["consistency"] == "frozen"
    assert busy.pull()["details"]["disks"][0]["mode"] == "incremental"
    busy.start(phase="copying:1")
    busy.process.kill()
    busy.process.communicate()
    if qemu_faults.hang_up(version("qemu")):
        ended_by_its_guard(busy)
    else:
        assert busy.cleanup()[0] == 0
    busy.vm.suspend()  # so that its disk is what it is
    busy.assert_next_is_right()
    assert busy.vm.pid == pid


def test_reset_in_mid_pull(rig):
    change(rig, 0x59)
    held = {disk: rig.vm.content(disk) for disk in rig.vm.disks}
    rig.start(phase="copying")
    rig.vm.domain.reset(0)
    code, _, err = rig.end()
    assert code == 0, err
    assert held == {disk: rig.vm.content(disk) for disk in rig.vm.disks}
    rig.assert_next_is_right()


def test_power_off_in_mid_pull(private_libvirt, tmp_path):
    """QEMU ends in an orderly way, as its log says."""
    with Machine(private_libvirt, tmp_path / "images", {"sda": 16 * MIB}, iothreads=1, paused=False) as vm:
        vm.write("sda", 0, 8 * MIB, 0x11)
        rig = Rig(vm, tmp_path)
        rig.start(phase="copying")
        vm.stop()
        code, result, _ = rig.end()
        assert (code, result["code"]) == (6, "domain-stopped") and not vm.active
        assert "Assertion" not in vm.bed.qemu_log(vm.name).read_text(errors="replace")
        wait_for(lambda: not guards(vm), "end of the guard")
        vm.start()
        rig.assert_next_is_right()
