"""A real guest with its real agent: frozen for the start of the job and never longer, even if the agent or nbdpull
fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bed.machine import MIB, wait_for
from command import PROJECT, nbdpull, start_held, start_nbdpull
from witness import Before, Witness

from nbdpull.core import child

libvirt = pytest.importorskip("libvirt")


@pytest.fixture
def witness(guest, tmp_path):
    return Witness(guest, tmp_path / "witness")


def pull(witness, *options):
    done = nbdpull(*witness.words(*options), timeout=90)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def state(point):
    return point["consistency"], point["consistency_reason"]


def is_frozen(guest):
    return guest.agent("guest-fsfreeze-status") != "thawed"


def is_marked(guest):
    return "urn:nbdpull:freezing" in guest.domain.XMLDesc()


def guards(guest):
    """Return the processes that guard this guest: other tests may pull other guests at the same time."""
    found = subprocess.run(["pgrep", "-f", f"domain_thaw.py .*{guest.uuid}"], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]


def needs_recovery(image):
    output = subprocess.run(["/usr/sbin/dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
    return "needs_recovery" in output


def held(witness, *options):
    """A pull that is held between the freeze and the start of the job, until `release`."""
    return start_held("frozen", witness.folder / "gate", *witness.words(*options))


def release(witness):
    (witness.folder / "gate").touch()


def test_frozen_guest_leaves_a_clean_file_system(guest, witness, tmp_path):
    guest.start_writer()
    point = pull(witness, "--quiesce=require")["details"]
    assert state(point) == ("frozen", "") and not is_frozen(guest) and not guards(guest)
    assert state(pull(witness, "--quiesce=never")["details"]) == ("crash-consistent", "not-requested")
    guest.stop_writer()
    for wanted, dirty in ((point["id"], False), ("latest", True)):
        out = tmp_path / wanted
        done = nbdpull("restore", witness.store, "-o", out, "--point", wanted, "--format", "raw", "--quiet")
        assert done.returncode == 0, done.stderr
        assert needs_recovery(out / "vda.raw") == dirty


def test_agent_stopped(guest, witness):
    guest.begin("killall qemu-ga")
    wait_for(lambda: "state='disconnected'" in guest.domain.XMLDesc(), "end of the agent")
    result = pull(witness)
    assert state(result["details"]) == ("crash-consistent", "agent-not-connected")
    (warning,) = result["warnings"]
    assert "not frozen" in warning and "agent-not-connected" in warning
    quiet = nbdpull(*[word for word in witness.words("--quiet") if word != "--json"])
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", f"nbdpull: warning: {warning}\n")
    assert pull(witness, "--quiesce=never")["warnings"] == []
    before = Before(witness)
    done = nbdpull(*witness.words("--quiesce"))
    assert done.returncode == 6 and "agent-not-connected" in done.stderr
    before.assert_same()


def test_agent_hangs(guest, witness):
    pid = guest.run("pidof qemu-ga").split()[-1]
    message = "the agent stands still"
    guest.begin(f"kill -STOP {pid}; echo {message} >/dev/ttyS0; until [ -e /sys/block/vdb ]; do sleep 0.1; done; "
                f"kill -CONT {pid}")  # fmt: skip
    wait_for(lambda: message in guest.console.read_text(errors="replace"), "the stop of the agent")
    before = Before(witness)
    done = nbdpull(*witness.words("--quiesce=require", "--freeze-timeout", "5"))
    assert done.returncode == 6 and "agent-unresponsive" in done.stderr
    before.assert_same()
    started = time.monotonic()
    assert state(pull(witness)["details"]) == ("crash-consistent", "agent-unresponsive")
    assert time.monotonic() - started < 20
    guest.attach_disk("vdb", MIB)
    guest.wait_agent()
    wait_for(lambda: not guards(guest), "end of the guards, as the guest is known to be thawed", 30)
    assert not is_frozen(guest)
    assert state(pull(witness)["details"]) == ("frozen", "")


def test_a_signal_ends_the_wait_for_an_agent_that_hangs(guest, witness):
    """The freeze may still come: then the guard thaws."""
    pid = guest.run("pidof qemu-ga").split()[-1]
    message = "the agent stands still"
    guest.begin(f"kill -STOP {pid}; echo {message} >/dev/ttyS0; until [ -e /sys/block/vdb ]; do sleep 0.1; done; "
                f"kill -CONT {pid}")  # fmt: skip
    wait_for(lambda: message in guest.console.read_text(errors="replace"), "the stop of the agent")
    before = Before(witness)
    process = start_nbdpull(*witness.words("--quiesce", "--freeze-timeout", "60"))
    wait_for(lambda: is_marked(guest), "the freeze")
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=50)
    assert process.returncode == 128 + signal.SIGTERM and time.monotonic() - started < 20
    guest.attach_disk("vdb", MIB)
    guest.wait_agent()
    wait_for(lambda: not guards(guest), "end of the guards, as the guest is known to be thawed", 30)
    assert not is_frozen(guest)
    guest.detach_disk("vdb")
    before.assert_same()


def test_guest_frozen_by_somebody_else_stays_frozen(guest, witness):
    guest.domain.fsFreeze()
    assert state(pull(witness)["details"])[0] == "crash-consistent"
    assert is_frozen(guest) and not guards(guest)
    guest.domain.fsThaw()


def test_a_guard_without_a_freeze_thaws_nothing(guest):
    """nbdpull was killed before its freeze; if the guest is frozen, somebody else did that."""
    guest.domain.fsFreeze()
    words = [sys.executable, PROJECT / "nbdpull/hypervisor/domain_thaw.py", guest.uuid, "30", "urn:x"]
    request = f"{guest.bed.uri}\n"
    subprocess.run(list(map(str, words)), input=request, text=True, timeout=30, check=True, env=child.finding_us())
    assert is_frozen(guest)
    guest.domain.fsThaw()


def test_paused_guest(guest, witness):
    guest.suspend()
    assert state(pull(witness)["details"]) == ("crash-consistent", "paused")
    assert not guest.running
    guest.resume()


def test_killed_between_freeze_and_thaw(guest, witness):
    process = held(witness)
    assert is_frozen(guest)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not is_frozen(guest), "thaw of the guest by the guard", 10)
    wait_for(lambda: not guards(guest), "end of the guard", 10)
    guest.run("echo alive > /mnt/alive; sync")
    assert state(pull(witness)["details"]) == ("frozen", "")


def test_killed_together_with_the_guard(guest, witness):
    """As when a service manager kills a group, or the kernel is short of memory: the next run thaws."""
    process = held(witness)
    [guard] = guards(guest)
    assert guest.bed.uri.encode() not in Path(f"/proc/{guard}/cmdline").read_bytes()  # there may be a password in it
    os.kill(guard, signal.SIGKILL)
    process.kill()
    process.wait()
    assert is_frozen(guest)
    words = ["cleanup", guest.name, "-c", guest.bed.uri, "-o", witness.store, "--json"]
    done = nbdpull(*words, "--dry-run")
    assert "freeze of the guest's file systems" in done.stdout and is_frozen(guest)
    done = nbdpull(*words)
    assert done.returncode == 0 and "freeze of the guest's file systems" in done.stdout and not is_frozen(guest)
    assert json.loads(nbdpull(*words).stdout.splitlines()[-1])["found"] == []
    assert state(pull(witness)["details"]) == ("frozen", "")
    assert "urn:nbdpull" not in guest.domain.XMLDesc()


def test_the_daemon_dies_between_freeze_and_thaw(guest, witness):
    before = Before(witness)
    process = held(witness)
    assert is_frozen(guest)
    guest.bed.restart(hard=True)
    release(witness)
    process.communicate(timeout=60)
    assert process.returncode == 6  # its begin was lost
    wait_for(lambda: not is_frozen(guest) and not guards(guest), "thaw of the guest, end of the guard", 15)
    before.assert_same()
    assert state(pull(witness)["details"]) == ("frozen", "")


def test_begin_that_takes_too_long_is_no_longer_frozen(guest, witness):
    process = held(witness, "--freeze-timeout", "5")
    wait_for(lambda: not is_frozen(guest), "thaw of the guest by the guard")
    release(witness)
    output = process.communicate(timeout=60)[0]
    result = json.loads(output.splitlines()[-1])
    assert state(result["details"]) == ("crash-consistent", "thawed-early") and "thawed-early" in result["warnings"][0]
    before = Before(witness)
    process = held(witness, "--freeze-timeout", "5", "--quiesce")
    wait_for(lambda: not is_frozen(guest), "thaw of the guest by the guard")
    release(witness)
    process.communicate(timeout=60)
    assert process.returncode == 6
    before.assert_same()
