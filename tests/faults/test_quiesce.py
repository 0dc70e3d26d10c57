"""A real guest with its real agent: frozen for the begin and never longer, also where the agent or nbdpull fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bed.machine import wait_for
from test_pull import PROJECT, Before, Witness, environment, nbdpull

libvirt = pytest.importorskip("libvirt")
libvirt_qemu = pytest.importorskip("libvirt_qemu")

# The command line with a begin that takes longer, which libvirt does not do on demand.
SLOW_BEGIN = """
import sys, time, libvirt
from nbdpull import cli
real = libvirt.virDomain.backupBegin
def slow(*args):
    print("frozen", flush=True)
    time.sleep({seconds})
    return real(*args)
libvirt.virDomain.backupBegin = slow
sys.exit(cli.main(sys.argv[1:]))
"""


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


def guards():
    found = subprocess.run(["pgrep", "-f", "domain_thaw.py"], capture_output=True, text=True).stdout.split()
    return [pid for pid in found if int(pid) != os.getpid()]


def answers(guest):
    try:
        return bool(libvirt_qemu.qemuAgentCommand(guest.domain, '{"execute": "guest-get-time"}', 1, 0))
    except libvirt.libvirtError:
        return False


def needs_recovery(image):
    told = subprocess.run(["/usr/sbin/dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
    return "needs_recovery" in told


def slowly(witness, seconds, *options):
    command = [sys.executable, "-c", SLOW_BEGIN.format(seconds=seconds), *map(str, witness.words(*options))]
    process = subprocess.Popen(command, env=environment(), cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    while process.stdout.readline() != "frozen\n":
        assert process.poll() is None
    return process


def test_frozen_guest_leaves_a_clean_file_system(guest, witness, tmp_path):
    guest.start_writer()
    point = pull(witness, "--quiesce=require")["point"]
    assert state(point) == ("frozen", "") and not is_frozen(guest) and not guards()
    assert state(pull(witness, "--quiesce=never")["point"]) == ("crash-consistent", "not-requested")
    guest.stop_writer()
    for wanted, dirty in ((point["id"], False), ("latest", True)):
        out = tmp_path / wanted
        done = nbdpull("restore", witness.store, "-o", out, "--point", wanted, "--format", "raw", "--quiet")
        assert done.returncode == 0, done.stderr
        assert needs_recovery(out / "vda.raw") == dirty


def test_agent_stopped(guest, witness):
    guest.run("(sleep 0.3; killall qemu-ga) >/dev/null 2>&1 &")
    wait_for(lambda: "state='disconnected'" in guest.domain.XMLDesc(), "end of the agent")
    result = pull(witness)
    assert state(result["point"]) == ("crash-consistent", "agent-not-connected")
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
    guest.run(f"(sleep 0.5; kill -STOP {pid}; sleep 40; kill -CONT {pid}) >/dev/null 2>&1 &")
    wait_for(lambda: not answers(guest), "silence of the agent")
    before = Before(witness)
    done = nbdpull(*witness.words("--quiesce=require"))
    assert done.returncode == 6 and "agent-unresponsive" in done.stderr
    before.assert_same()
    started = time.monotonic()
    assert state(pull(witness)["point"]) == ("crash-consistent", "agent-unresponsive")
    assert time.monotonic() - started < 20
    guest.wait_agent()
    wait_for(lambda: not guards(), "end of the guards, as the guest is known to be thawed", 30)
    assert not is_frozen(guest)
    assert state(pull(witness)["point"]) == ("frozen", "")


def test_guest_that_somebody_else_froze_stays_so(guest, witness):
    guest.domain.fsFreeze()
    assert state(pull(witness)["point"])[0] == "crash-consistent"
    assert is_frozen(guest) and not guards()
    guest.domain.fsThaw()


def test_a_guard_that_was_told_of_no_freeze_thaws_nothing(guest):
    """nbdpull was killed before it froze; that the guest is frozen is another's work."""
    guest.domain.fsFreeze()
    words = [sys.executable, PROJECT / "nbdpull/domain_thaw.py", guest.uuid, "30", "urn:x"]
    subprocess.run(list(map(str, words)), input=f"{guest.bed.uri}\n", text=True, timeout=30, check=True)
    assert is_frozen(guest)
    guest.domain.fsThaw()


def test_paused_guest(guest, witness):
    guest.suspend()
    assert state(pull(witness)["point"]) == ("crash-consistent", "paused")
    assert not guest.running
    guest.resume()


def test_killed_between_freeze_and_thaw(guest, witness):
    process = slowly(witness, 60)
    assert is_frozen(guest)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not is_frozen(guest), "thaw of the guest by the guard", 10)
    wait_for(lambda: not guards(), "end of the guard", 10)
    guest.run("echo alive > /mnt/alive; sync")
    assert state(pull(witness)["point"]) == ("frozen", "")


def guard_of(guest):
    """Others may pull other guests at the same time."""
    found = subprocess.run(["pgrep", "-f", f"domain_thaw.py .*{guest.uuid}"], capture_output=True, text=True).stdout
    [pid] = map(int, found.split())
    return pid


def test_killed_together_with_the_guard(guest, witness):
    """As a service manager kills a group, or the kernel does where memory is short: the next run thaws."""
    process = slowly(witness, 60)
    guard = guard_of(guest)
    assert guest.bed.uri.encode() not in Path(f"/proc/{guard}/cmdline").read_bytes()  # there may be a password in it
    os.kill(guard, signal.SIGKILL)
    process.kill()
    process.wait()
    assert is_frozen(guest)
    words = ["cleanup", guest.name, "-c", guest.bed.uri, "-o", witness.store, "--json"]
    done = nbdpull(*words, "--dry-run")
    assert '"frozen guest"' in done.stdout and is_frozen(guest)
    done = nbdpull(*words)
    assert done.returncode == 0 and '"frozen guest"' in done.stdout and not is_frozen(guest)
    assert json.loads(nbdpull(*words).stdout.splitlines()[-1])["found"] == []
    assert state(pull(witness)["point"]) == ("frozen", "")
    assert "urn:nbdpull" not in guest.domain.XMLDesc()


def test_the_daemon_dies_between_freeze_and_thaw(guest, witness):
    before = Before(witness)
    process = slowly(witness, 2)
    assert is_frozen(guest)
    guest.bed.restart(hard=True)
    process.communicate(timeout=60)
    assert process.returncode == 6  # its begin was lost
    wait_for(lambda: not is_frozen(guest) and not guards(), "thaw of the guest, end of the guard", 15)
    before.assert_same()
    assert state(pull(witness)["point"]) == ("frozen", "")


def test_begin_that_takes_too_long_is_no_longer_frozen(guest, witness):
    process = slowly(witness, 8, "--freeze-timeout", "5")
    time.sleep(6)
    assert not is_frozen(guest)
    output = process.communicate(timeout=60)[0]
    result = json.loads(output.splitlines()[-1])
    assert state(result["point"]) == ("crash-consistent", "thawed-early") and "thawed-early" in result["warnings"][0]
    before = Before(witness)
    process = slowly(witness, 8, "--freeze-timeout", "5", "--quiesce")
    process.communicate(timeout=60)
    assert process.returncode == 6
    before.assert_same()
