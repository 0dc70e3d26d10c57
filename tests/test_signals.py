"""INT, TERM, HUP and QUIT at any time of a pull or a restore: an orderly end, and nothing left of what was begun.

Must not know: how a signal is handled.
"""

import os
import random
import signal
import subprocess
import time

import pytest
from bed.machine import MIB, Machine, wait_for
from command import last_event, next_event, start_held, start_nbdpull
from witness import SINCE, Before, Witness, assert_same, dirty, modes, stopped_in_the_middle

pytest.importorskip("libvirt")

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]
SLOW = ("--threads", "1", "--max-rate", "1M")  # it does not end by itself in the time that its end may take


@pytest.fixture(scope="module")
def running(private_libvirt, tmp_path_factory):
    """A machine whose CPU runs, with a disk that takes 47 seconds to pull slowly."""
    with Machine(private_libvirt, tmp_path_factory.mktemp("images"), {"vda": 48 * MIB}, name="signals") as vm:
        vm.create_checkpoint("foreign")
        vm.write_bytes("vda", 0, os.urandom(48 * MIB))
        vm.resume()
        yield vm


@pytest.fixture
def witness(running, tmp_path):
    yield Witness(running, tmp_path / "w")
    for name in set(running.checkpoints()) - {"foreign"}:
        running.delete_checkpoint(name)


def ended(process, seconds=15):
    """Return output and error of a process that has to end soon."""
    started = time.monotonic()
    try:
        output, problem = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - started < seconds, "the end took too long"
    return output, problem


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_in_the_middle_of_a_pull(witness, number):
    before = Before(witness)
    process = start_nbdpull(*witness.words(*SLOW))
    next_event(process, "progress")
    assert witness.vm.job_active()
    process.send_signal(number)
    output, problem = ended(process)
    assert process.returncode == 128 + number, problem
    result = last_event(output)
    assert (result["ok"], result["exit_code"], result["code"]) == (False, 128 + number, "interrupted")
    assert result["left_behind"] == []
    assert problem == f"nbdpull: {result['message']}\n" and number.name in problem  # no traceback
    before.assert_same()
    assert witness.vm.running


def test_signal_in_the_middle_of_an_incremental_pull(witness):
    """The previous point and its checkpoint remain usable."""
    vm = witness.vm
    first = witness.pull()
    vm.write_bytes("vda", MIB, os.urandom(40 * MIB))
    before = Before(witness)
    process = start_nbdpull(*witness.words(*SLOW))
    event = next_event(process, "start")
    assert event["since"] == first["checkpoint"]
    next_event(process, "progress")
    process.terminate()
    ended(process)
    assert process.returncode == 128 + signal.SIGTERM
    before.assert_same()
    vm.write("vda", 0, 512, 0x22)
    second = witness.pull()
    assert (second["parent"], modes(second)) == (first["id"], {"vda": SINCE})
    assert dirty(second)["vda"] > 40 * MIB
    witness.assert_restores()


def test_many_signals_in_a_row(witness):
    """The first one counts, and no later one interrupts the clean-up."""
    before = Before(witness)
    with stopped_in_the_middle(witness) as process:
        for number in SIGNALS:
            process.send_signal(number)
    # Which one is the first is the kernel's choice, which gives them to any of the threads.
    messages = {128 + number: f"nbdpull: stopped by {number.name}" for number in SIGNALS}
    assert process.problem.startswith(messages[process.returncode]) and process.problem.count("\n") == 1
    before.assert_same()
    process = start_nbdpull(*witness.words(*SLOW))
    next_event(process, "progress")
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, problem = ended(process)
    # A bare SIGINT after the cleaning, when Python goes down: a shell reports 130 for both.
    assert process.returncode in (128 + signal.SIGINT, -signal.SIGINT) and "Traceback" not in problem
    before.assert_same()


def test_hangup_under_nohup_is_ignored(witness):
    """So are signals that a shell ignores for a job in the background."""
    held = witness.content()
    with stopped_in_the_middle(witness, before_start=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGHUP)
    assert process.returncode == 0, process.problem
    witness.made(last_event(process.output), held)


def test_signals_at_any_instant(witness):
    """From before the first line of Python to after the last one: a whole point, or none at all."""
    vm, outcomes, attempts = witness.vm, {}, 12
    witness.pull()
    started = time.monotonic()
    witness.pull()
    whole_run = time.monotonic() - started
    for n in range(attempts):
        vm.write("vda", n * MIB, 8 * MIB, n + 1)
        held, before = witness.content(), Before(witness)
        process = start_nbdpull(*witness.words())
        time.sleep((n + random.random()) / attempts * whole_run)
        process.terminate()
        output, problem = ended(process)
        # The bare signal: Python was not yet up, or was going down.
        assert process.returncode in (0, 128 + signal.SIGTERM, -signal.SIGTERM), problem
        wait_for(lambda: not vm.job_active(), "end of the job", 5)
        committed = len(witness.points()) > len(witness.frozen)
        outcomes[(process.returncode, committed)] = outcomes.get((process.returncode, committed), 0) + 1
        if committed:
            assert process.returncode != 128 + signal.SIGTERM
            witness.made(last_event(output), held)
            assert vm.checkpoints() == ["foreign", witness.result["details"]["checkpoint"]]
        else:
            assert process.returncode != 0
            before.assert_same()
    print(outcomes)
    witness.assert_restores()
    witness.assert_verified()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_signal_in_the_middle_of_a_restore(witness, kind):
    """No image that looks complete, no draft, no server left; and the next restore is right."""
    witness.vm.write_bytes("vda", 0, os.urandom(48 * MIB))
    witness.pull()
    out = witness.folder / "out"
    words = ["restore", witness.store, "-o", out, "--format", kind, "--json", "--threads", "1"]
    gate = witness.folder / "gate"
    process = start_held("restoring", gate, *words, start_new_session=True)
    process.send_signal(signal.SIGSTOP)
    gate.touch()
    os.killpg(process.pid, signal.SIGINT)  # as a Ctrl-C on a terminal does
    process.send_signal(signal.SIGCONT)
    output, problem = ended(process)
    assert process.returncode == 128 + signal.SIGINT, problem
    assert last_event(output)["code"] == "interrupted" and "Traceback" not in problem
    assert list(out.glob("*")) == []
    servers = subprocess.run(["pgrep", "-f", f"qemu-nbd.*{out}"], capture_output=True, text=True)
    assert servers.stdout == ""
    assert_same(witness.restored(), witness.frozen[witness.result["details"]["id"]])
