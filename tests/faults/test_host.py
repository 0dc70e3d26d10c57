"""What pulls depend on fails: the libvirt daemon, QEMU, the guest, the disk below it, the NBD server."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress

import pytest
from bed.address import is_listening
from bed.machine import MIB, wait_for
from command import unfolded
from rig import Rig

from nbdpull.core import errors
from nbdpull.nbd import source

libvirt = pytest.importorskip("libvirt")


@pytest.fixture
def rig(machine, tmp_path):
    vm = machine({"vda": 16 * MIB, "vdb": 4 * MIB})
    vm.write("vda", 0, 8 * MIB, 0x11)
    rig = Rig(vm, tmp_path)
    rig.pull()
    vm.write("vda", MIB, 5 * MIB, 0x22)
    return rig


# The daemon


@pytest.mark.timeout_seconds(200)
@pytest.mark.parametrize(
    "phase, hard",
    [
        ("journaled", False),
        ("begun", True),
        ("copying", False),
        ("copied", True),
        ("ending", False),
        ("ended", True),
        ("dropping", False),
    ],
)
def test_the_daemon_restarts(rig, phase, hard):
    """The run continues: the data does not pass through the daemon, and nbdpull reconnects to it."""
    rig.start(phase=phase)
    rig.vm.bed.restart(hard)
    rig.vm.write("vdb", 0, 65536, 0x33)
    code, result, err = rig.end()
    if phase == "ending" and code:  # a daemon that forgot the request to end it reports a cancelled job
        assert result["code"] == "job-lost" and result["left_behind"] == []
    else:
        assert code == 0, (result, err)
    rig.assert_clean()
    rig.assert_next_is_right()


def test_the_daemon_is_killed_while_it_begins_the_job(rig):
    """libvirt then holds the domain for a job that it no longer knows. QEMU is stopped, so that the start takes long
    enough."""
    rig.start(phase="beginning")
    status = rig.vm.bed.run / f"qemu/{rig.vm.name}.xml"
    os.kill(rig.vm.pid, signal.SIGSTOP)
    rig.release()
    wait_for(lambda: "async='backup'" in status.read_text(), "a job that is being begun")
    rig.vm.bed.stop_daemon(hard=True)
    os.kill(rig.vm.pid, signal.SIGCONT)
    rig.vm.bed.start_daemon()
    code, result, _ = rig.end()
    assert code == 6
    done = rig.run(*rig.words())
    report = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, report["code"]) == (6, "job-stuck") and "restart the daemon" in report["message"]
    done = rig.run("doctor", rig.vm.name, "-c", rig.vm.bed.uri, "--json")
    report = {each["subject"]: each for each in json.loads(done.stdout)}
    assert (done.returncode, report["jobs"]["state"]) == (6, "BAD") and "disk vda" in report
    done = rig.run("cleanup", rig.vm.name, "-c", rig.vm.bed.uri, "-o", rig.store, "--json")
    [*_, lost] = json.loads(done.stdout.splitlines()[-1])["found"]
    assert (done.returncode, lost["what"]) == (5, "job that libvirt has lost") and "restart the daemon" in lost["left"]
    rig.vm.stop()
    rig.vm.bed.restart()
    rig.vm.start()
    rig.assert_next_is_right()


def test_the_daemon_stays_away_for_a_while(rig):
    rig.start(phase="copied+missed")
    rig.vm.bed.stop_daemon()
    rig.release()
    rig.wait_event("missed")
    rig.vm.bed.start_daemon()
    assert rig.end()[0] == 0
    rig.assert_next_is_right()


def daemon_pid(bed):
    return int((bed.run / "libvirtd.pid").read_text())


@pytest.fixture
def daemon_gone(rig):
    """Factory: take the daemon away, by killing it or by letting it hang, until the test ends; `daemon_gone.back()`
    brings it back at once."""
    undo = []

    def take(how):
        bed = rig.vm.bed
        if how == "dead":
            bed.stop_daemon(hard=True)
            undo.append(bed.start_daemon)
        else:
            pid = daemon_pid(bed)
            os.kill(pid, signal.SIGSTOP)
            undo.append(lambda: os.kill(pid, signal.SIGCONT))

    def back():
        while undo:
            undo.pop()()

    take.back = back
    yield take
    back()


STALL = 5  # seconds


@pytest.mark.parametrize(
    "how, says", [("dead", "did not come back within 5 s"), ("hangs", "did not answer within 5 s")]
)
@pytest.mark.parametrize("phase", ["begun", "copying", "copied", "ending"])
def test_the_daemon_is_gone_for_good(rig, daemon_gone, how, says, phase):
    """This is noticed once, within --stall-timeout: no further call waits."""
    rig.start("--stall-timeout", STALL, phase=phase)
    daemon_gone(how)
    started = time.monotonic()
    code, result, err = rig.end()
    took = time.monotonic() - started
    assert (code, result["code"]) == (6, "no-answer") and STALL - 1 < took < STALL + 8, (took, result)
    assert says in result["message"] and "it was last seen paused (by its owner) at " in result["message"]
    assert any("the backup job, with its scratch in" in each for each in result["left_behind"])
    assert all("next pull" in each for each in result["left_behind"])
    daemon_gone.back()
    assert rig.vm.active
    made = rig.assert_next_is_right()
    assert made["resumed"] or made["reclaimed"]


def test_the_daemon_is_gone_while_much_is_still_to_be_read(rig, daemon_gone):
    """The run does not continue for hours with a job that it cannot end."""
    rig.start("--stall-timeout", 2, "--max-rate", "64K", "--full", phase="reading")
    daemon_gone("dead")
    started = time.monotonic()
    code, result, _ = rig.end()
    assert (code, result["code"]) == (6, "no-answer") and time.monotonic() - started < 12
    daemon_gone.back()
    rig.assert_next_is_right()


@pytest.mark.parametrize("how", ["dead", "hangs"])
def test_a_signal_ends_the_wait_for_the_daemon(rig, daemon_gone, how):
    rig.start(phase="copied")
    daemon_gone(how)
    rig.release()
    rig.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    code, result, _ = rig.end(timeout=100)
    assert code == 128 + signal.SIGTERM and result["left_behind"] and time.monotonic() - started < 20
    daemon_gone.back()
    rig.assert_next_is_right()


def test_the_daemon_is_gone_under_a_plan(rig, daemon_gone):
    words = ["plan", rig.vm.name, "-c", rig.vm.bed.uri, "--scratch-dir", rig.scratch]
    rig.start(phase="sampling", words=words)
    daemon_gone("dead")
    rig.process.send_signal(signal.SIGINT)
    code, _, err = rig.end(timeout=100)
    assert code == 130 and "the backup job" in err
    daemon_gone.back()
    rig.assert_next_is_right()


@pytest.mark.parametrize("hard", [False, True])
def test_the_daemon_restarts_under_a_pull_of_a_domain_that_is_off(rig, hard):
    """The domain is stopped nevertheless."""
    rig.vm.stop()
    rig.start(phase="copying")
    rig.vm.bed.restart(hard)
    code, result, err = rig.end()
    assert code == 0, (result, err)
    assert not rig.vm.active
    rig.vm.start()
    rig.assert_clean()
    rig.assert_next_is_right()


# QEMU and the guest


@pytest.mark.parametrize("phase", ["beginning", "begun", "copying", "copied", "ending", "committing"])
def test_qemu_is_killed(rig, phase):
    rig.start(phase=phase)
    rig.vm.kill()
    code, result, _ = rig.end()
    if phase == "committing":
        assert code == 0, "it needs QEMU no longer"
    elif code or phase != "ending":  # then the end may have been done, or not
        assert (code, result["code"]) == (6, "domain-crashed")
        assert "crashed or was killed" in result["message"] and "start it first" not in str(result)
    rig.vm.start()
    made = rig.assert_next_is_right()
    assert [disk["reason"] for disk in made["details"]["disks"]] == ["bitmap-lost", "bitmap-lost"]


def test_the_guest_shuts_down(rig):
    """The new checkpoint can be deleted only when the domain runs again: the journal keeps that."""
    rig.start(phase="copying")
    orphans = set(rig.vm.checkpoints())
    rig.vm.stop()
    code, result, _ = rig.end()
    assert (code, result["code"]) == (6, "domain-stopped") and "was destroyed" in result["message"]
    assert any("checkpoint" in each for each in result["left_behind"])
    assert len(rig.journals()) == 1
    assert rig.cleanup()[0] == 5
    rig.vm.start()
    assert set(rig.vm.checkpoints()) == orphans and len(orphans) == 2
    made = rig.assert_next_is_right()
    assert {disk["mode"] for disk in made["details"]["disks"]} == {"incremental"}
    assert made["reclaimed"]


def test_the_guest_itself_shuts_down(guest, tmp_path):
    """A libvirt that supports it keeps the guest paused until the end of the job; before 11.10 the job ends with the
    guest."""
    rig = Rig(guest, tmp_path)
    guest.run("dd if=/dev/urandom of=/mnt/big bs=1M count=20 conv=fsync")
    rig.start("--quiesce=never", phase="copying")
    guest.ask_to_shut_down()
    if libvirt.getVersion() >= 11_010_000:
        wait_for(lambda: guest.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED, "end of the guest, not of QEMU")
        assert rig.end()[0] == 0
        wait_for(lambda: not guest.active, "end of QEMU")
        return
    wait_for(lambda: not guest.active, "end of the guest")
    code, result, _ = rig.end()
    assert (code, result["code"]) == (6, "domain-stopped"), result["message"]
    assert f"domain '{guest.name}' was shut down by its guest during the run" in result["message"]


def test_a_transient_domain_ends(rig):
    """The domain is gone then, and libvirt does not say why."""
    xml = rig.vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    rig.vm.stop()
    rig.vm.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    rig.vm.bed.connection().createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)
    rig.start(phase="copying")
    rig.vm.domain.destroy()
    code, result, _ = rig.end()
    assert (code, result["code"]) == (6, "domain-stopped") and "ended during the run" in result["message"]


def test_qemu_is_killed_under_a_plan(rig):
    rig.start(phase="sampling", words=["plan", rig.vm.name, "-c", rig.vm.bed.uri, "--scratch-dir", rig.scratch])
    rig.vm.kill()
    code, _, err = rig.end()
    assert code == 6 and "crashed or was killed" in err


def test_qemu_is_killed_under_a_pull_of_a_domain_that_is_off(rig):
    rig.vm.stop()
    rig.start(phase="copying")
    rig.vm.kill()
    code, result, _ = rig.end()
    assert (code, result["code"]) == (6, "domain-crashed")
    rig.vm.start()
    rig.assert_next_is_right()


def test_qemu_hangs(rig, monkeypatch):
    monkeypatch.setenv("HELD_DAEMON_WAIT", "1")
    rig.start("--stall-timeout", "1", phase="copying")
    os.kill(rig.vm.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        code, result, _ = rig.end()
        assert time.monotonic() - started < 20
    finally:
        os.kill(rig.vm.pid, signal.SIGCONT)
    # By what waited first, the read of a disk or a call of libvirt's.
    assert code == 6 and ("silent" in result["message"] or "did not answer" in result["message"])
    assert result["left_behind"]
    wait_for(lambda: rig.cleanup()[0] == 0, "cleaned")
    rig.assert_clean()
    rig.assert_next_is_right()


def test_qemu_hangs_for_a_moment(rig):
    rig.start(phase="reading+waited")
    os.kill(rig.vm.pid, signal.SIGSTOP)
    rig.release()
    rig.wait_event("waited")
    os.kill(rig.vm.pid, signal.SIGCONT)
    code, result, said = rig.end()
    assert code == 0, said
    rig.assert_next_is_right()


# The server and the disk

BAD = 3 * MIB + 8192  # 4 KiB that cannot be read

SERVED = f"""if [ $4 -lt {BAD + 4096} ] && [ $(($4 + $3)) -gt {BAD} ]; then echo EIO bad block >&2; exit 1; fi
head -c $3 /dev/zero | tr '\\0' '\\7'"""


@pytest.fixture
def nbdkit(tmp_path):
    if not shutil.which("nbdkit"):
        pytest.skip("nbdkit is not installed")
    started = []

    def start(*words):
        address = tmp_path / f"nbdkit{len(started)}"
        address.unlink(missing_ok=True)
        words = ["nbdkit", "-f", "-U", address, *map(str, words)]
        started.append(subprocess.Popen(words, env={**os.environ, "TMPDIR": str(tmp_path)}, start_new_session=True))
        wait_for(lambda: is_listening(address), "nbdkit listens")
        return str(address), started[-1]

    yield start
    for each in started:
        # With its scripts, which wait for what no longer comes. At SIGTERM it would wait for its clients, too: QEMU
        # may keep a connection for as long as the domain runs.
        with suppress(ProcessLookupError):
            os.killpg(each.pid, signal.SIGKILL)
        each.wait()


def test_a_bad_block_is_named(rig, nbdkit):
    """QEMU breaks the connection at a read error in the middle: small reads, each with an answer of its own, find the
    block."""
    address, _ = nbdkit("eval", "get_size=echo 8M", f"pread={SERVED}", "pwrite=cat >/dev/null")
    rig.vm.domain.attachDevice(
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd'>"
        f"<host transport='unix' socket='{address}'/></source><target dev='vdc' bus='virtio'/></disk>"
    )
    rig.start()
    code, result, _ = rig.end()
    assert code == 6 and result["code"] == "source"
    assert result["message"].startswith("disk vdc: reading at byte")
    assert result["message"].endswith(f"these bytes cannot be read: {BAD} to {BAD + 4095}")
    rig.assert_clean()
    rig.assert_next_is_right("--exclude", "vdc")


def test_a_bad_block_behind_a_server_that_answers(nbdkit):
    address, _ = nbdkit("-r", "eval", "get_size=echo 8M", f"pread={SERVED}")
    with source.Source(address, "") as opened:
        assert opened.read(0, 4 * 65536) == b"\7" * 4 * 65536
        with pytest.raises(errors.SourceError, match=f"{BAD} to {BAD + 4095}$"):
            opened.read(3 * MIB, MIB)


def test_transient_errors_are_retried(nbdkit, tmp_path):
    trouble = tmp_path / "trouble"
    trouble.touch()
    fails_once = f"if rm {trouble}; then echo EIO >&2; exit 1; fi; head -c $3 /dev/zero | tr '\\0' '\\7'"
    address, _ = nbdkit("-r", "eval", "get_size=echo 8M", f"pread={fails_once}")
    with source.Source(address, "") as opened, opened.reading() as reader:
        assert bytes(reader.read_batch([(0, 65536)])[0]) == b"\7" * 65536
    assert not trouble.exists()


def test_a_lost_connection_is_made_again(nbdkit):
    alive = []
    address, server = nbdkit("-r", "pattern", "8M")
    with source.Source(address, "", require_alive=lambda: alive.append(1)) as opened:
        before = opened.read(MIB, 65536)
        server.kill()
        server.wait()
        os.unlink(address)
        nbdkit_again = subprocess.Popen(["nbdkit", "-f", "-r", "-U", address, "pattern", "8M"])
        try:
            wait_for(lambda: is_listening(address), "nbdkit listens")
            assert opened.read(MIB, 65536) == before and alive
            assert sum(int(extent["length"]) for found in opened.extents() for extent in found) == 8 * MIB
        finally:
            nbdkit_again.kill()
            nbdkit_again.wait()


def test_a_connection_that_remains_lost(nbdkit):
    address, server = nbdkit("-r", "pattern", "8M")
    with source.Source(address, "") as opened:
        opened.read(MIB, 65536)
        server.kill()
        server.wait()
        with pytest.raises(errors.SourceError, match="connecting failed"):
            opened.read(MIB, 65536)


def test_no_second_try_where_the_job_is_lost(nbdkit):
    def lost():
        raise errors.JobLost("gone")

    address, server = nbdkit("-r", "pattern", "8M")
    with source.Source(address, "", require_alive=lost) as opened:
        opened.read(MIB, 65536)
        server.kill()
        server.wait()
        with pytest.raises(errors.JobLost):
            opened.read(MIB, 65536)


def test_a_signal_ends_the_wait_for_a_slow_server(nbdkit, tmp_path):
    asked, heard = tmp_path / "asked", tmp_path / "heard"

    def check():
        if asked.exists():
            raise errors.Interrupted(15)

    address, _ = nbdkit(
        "-r", "eval", "get_size=echo 8M", f"pread=touch {asked}; until [ -e {heard} ]; do sleep 1; done"
    )
    with source.Source(address, "", check=check) as opened, pytest.raises(errors.Interrupted):
        opened.read(0, 65536)
    heard.touch()


# Storage that hangs


@pytest.fixture
def hang(tmp_path):
    """Factory: from now on, anyone who opens a file in this directory waits forever; open files stay usable."""
    libc, mounted = ctypes.CDLL(None, use_errno=True), []

    def mount(folder):
        server = os.open("/dev/fuse", os.O_RDWR)  # and nobody answers what the kernel asks there
        options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        assert libc.mount(b"hang", os.fsencode(folder), b"fuse", 0, options) == 0, os.strerror(ctypes.get_errno())
        mounted.append((server, folder))

    yield mount
    for server, folder in mounted:
        os.close(server)
        assert libc.umount2(os.fsencode(folder), 2) == 0


def on_storage_of_its_own(vm, folder):
    """Give a running machine one more disk, with its image in this directory."""
    folder.mkdir()
    image = folder / "vdc.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    vm.domain.attachDevice(
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image}'/>"
        "<target dev='vdc' bus='virtio'/></disk>"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may mount")
def test_a_hanging_disk_that_is_excluded_is_left_alone(rig, hang, tmp_path):
    on_storage_of_its_own(rig.vm, tmp_path / "slow")
    hang(tmp_path / "slow")
    started = time.monotonic()
    rig.assert_next_is_right("--exclude", "vdc")
    assert time.monotonic() - started < 30


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may mount")
def test_a_disk_that_hangs_ends_the_run(rig, hang, tmp_path, monkeypatch):
    monkeypatch.setenv("HELD_DAEMON_WAIT", "1")
    on_storage_of_its_own(rig.vm, tmp_path / "slow")
    hang(tmp_path / "slow")
    started = time.monotonic()
    rig.start("--stall-timeout", 2, phase="committed", reached=False)
    code, result, _ = rig.end()
    assert (code, result["code"]) == (6, "no-answer") and "disk vdc" in result["message"]
    assert time.monotonic() - started < 20


# A domain that is off


@pytest.fixture
def hanging_server(tmp_path):
    """(address, process) of an NBD server that is stopped."""
    image, address = tmp_path / "served.raw", tmp_path / "served"
    image.write_bytes(bytes(MIB))
    server = subprocess.Popen(["qemu-nbd", "-t", "-e", "9", "-f", "raw", "-k", address, image])
    wait_for(lambda: is_listening(address), "qemu-nbd listens")
    os.kill(server.pid, signal.SIGSTOP)
    yield str(address), server
    server.kill()
    server.wait()


def test_a_start_that_was_not_answered_is_not_forgotten(rig, hanging_server, monkeypatch):
    """The start happens later, once the storage answers again: only nbdpull would stop the domain then."""
    monkeypatch.setenv("HELD_DAEMON_WAIT", "1")
    address, server = hanging_server
    vm = rig.vm
    vm.stop()
    vm.domain.attachDeviceFlags(
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd'>"
        f"<host transport='unix' socket='{address}'/></source><target dev='vdc' bus='virtio'/></disk>",
        libvirt.VIR_DOMAIN_AFFECT_CONFIG,
    )
    rig.start("--exclude", "vdc", "--stall-timeout", 1, phase="committed", reached=False)
    code, result, _ = rig.end()
    assert (code, result["code"]) == (6, "no-answer")
    assert any("may still start, paused" in each for each in result["left_behind"])
    os.kill(server.pid, signal.SIGCONT)
    wait_for(lambda: vm.active and vm.domain.state()[1] != libvirt.VIR_DOMAIN_PAUSED_STARTING_UP, "the start")
    output = unfolded(rig.run("doctor", vm.name, "-c", vm.bed.uri).stdout)
    assert "was off, and was left paused by a pull that was killed" in output
    code, found = rig.cleanup()
    assert code == 0 and [item["what"] for item in found["found"]] == [
        "paused QEMU process of the domain, which was off before"
    ]
    assert not vm.active
    rig.pull("--exclude", "vdc")
    assert not vm.active
