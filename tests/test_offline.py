"""A domain that is off: started with its CPUs paused, pulled, stopped so that its bitmaps are kept, never resumed."""

import os

import pytest
from bed.machine import MIB, wait_for
from command import last_event, nbdpull, start_held, unfolded
from witness import CLUSTER, SINCE, modes

libvirt = pytest.importorskip("libvirt")


def test_series_continues_while_the_domain_is_off(pulled):
    witness = pulled({"vda": 2 * MIB})
    vm = witness.vm
    vm.write("vda", 0, MIB)
    witness.pull()
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.stop()
    for pattern in (0x22, 0x23):
        vm.write_offline("vda", [f"write -q -P {pattern} {pattern * CLUSTER % MIB} 64k"])
        held = vm.content("vda")
        point = witness.pull()
        assert modes(point) == {"vda": SINCE} and not vm.active and vm.content("vda") == held
        assert point["consistency_reason"] == "paused"
    vm.start()
    vm.write("vda", 5 * CLUSTER, CLUSTER, 0x24)
    assert modes(witness.pull()) == {"vda": SINCE}
    witness.assert_restores()


def test_refused(pulled, tmp_path):
    witness = pulled({"vda": MIB})
    vm = witness.vm
    vm.stop()
    done = nbdpull(*witness.words("--offline=refuse"))
    assert done.returncode == 3 and "--offline=auto" in done.stderr and not vm.active
    assert not witness.store.exists()


def test_pull_that_fails_ends_the_domain_too(pulled):
    witness = pulled({"vda": MIB})
    vm = witness.vm
    point = witness.pull()
    vm.stop()
    assert nbdpull(*witness.words("--since", "none")).returncode == 4
    assert nbdpull(*witness.words("--scratch-dir", "/nowhere")).returncode == 6
    assert not vm.active and vm.checkpoints() == [point["checkpoint"]]
    assert modes(witness.pull()) == {"vda": SINCE}


def test_saved_state_is_not_used_up(pulled):
    witness = pulled({"vda": MIB})
    vm = witness.vm
    vm.resume()
    vm.domain.managedSave(0)
    done = nbdpull(*witness.words("--offline=start-paused"))
    assert done.returncode == 6 and "saved state" in done.stderr
    assert vm.domain.hasManagedSaveImage(0) and not vm.active


def test_domain_paused_by_its_owner_stays(pulled):
    witness = pulled({"vda": MIB})
    witness.pull()
    assert witness.vm.active


def held(witness, phase):
    return start_held(phase, witness.folder / "gate", *witness.words())


def killed(witness):
    """Kill a pull of a domain that is off, in the middle."""
    witness.vm.stop()
    process = held(witness, "copying")
    process.kill()
    process.communicate()
    assert witness.vm.active and not witness.vm.running and witness.vm.job_active()


def cleanup(witness, *options):
    words = ["cleanup", witness.vm.name, "-o", witness.store, "-c", witness.vm.bed.uri, "--json", *options]
    done = nbdpull(*words)
    return done.returncode, {item["what"]: item["left"] for item in last_event(done.stdout)["found"]}


PAUSED = "paused QEMU process of the domain, which was off before"


def test_cleanup_ends_what_a_killed_pull_started(pulled):
    witness = pulled({"vda": 40 * MIB})
    vm = witness.vm
    point = witness.pull()
    vm.write_bytes("vda", 0, os.urandom(32 * MIB))
    killed(witness)
    output = unfolded(nbdpull("doctor", vm.name, "-c", vm.bed.uri).stdout)
    assert "was off, and was left paused" in output
    code, found = cleanup(witness, "--dry-run")
    assert code == 0 and found[PAUSED] == "dry run" and vm.active and vm.job_active()
    code, found = cleanup(witness)
    assert code == 0 and found[PAUSED] == found["backup job"] == "" and not vm.active
    assert vm.checkpoints() == [point["checkpoint"]] and os.listdir(witness.scratch) == []
    assert cleanup(witness) == (0, {})
    assert modes(witness.pull()) == {"vda": SINCE}  # the bitmaps were kept
    witness.assert_restores()


def test_cleanup_leaves_a_domain_running_that_was_resumed(pulled):
    witness = pulled({"vda": 40 * MIB})
    vm = witness.vm
    vm.write_bytes("vda", 0, os.urandom(32 * MIB))
    killed(witness)
    vm.resume()
    code, found = cleanup(witness)
    assert code == 0 and PAUSED not in found and found["backup job"] == ""
    assert vm.running and not vm.job_active()


def killed_before_the_mark(witness):
    """Kill a pull of a domain that is off, before it has marked the domain."""
    process = held(witness, "started")
    process.kill()
    process.communicate()
    assert witness.vm.active and not witness.vm.running


def test_killed_before_it_could_mark_the_domain(pulled):
    witness = pulled({"vda": MIB})
    vm = witness.vm
    witness.pull()
    vm.stop()
    killed_before_the_mark(witness)
    assert cleanup(witness) == (0, {PAUSED: ""}) and not vm.active
    killed_before_the_mark(witness)
    assert modes(witness.pull()) == {"vda": SINCE} and not vm.active
    vm.start()
    assert cleanup(witness) == (0, {}) and vm.active  # it is its owner's, paused as it is


ENDLESS = b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa"  # a boot block that jumps to where it is


def test_a_domain_resumed_since_belongs_to_its_owner(pulled):
    witness = pulled({"vda": MIB})
    vm = witness.vm
    vm.write_bytes("vda", 0, ENDLESS)
    witness.pull()
    vm.stop()
    killed_before_the_mark(witness)
    vm.resume()
    wait_for(lambda: sum(cpu[2] for cpu in vm.domain.vcpus()[0]) > 100_000_000, "work of its processor")
    vm.suspend()
    assert cleanup(witness) == (0, {}) and vm.active


@pytest.mark.parametrize("resumed", [False, True])
def test_killed_meanwhile(pulled, resumed):
    """The domain is paused then. The next pull stops it, unless its owner has resumed it."""
    witness = pulled({"vda": 40 * MIB})
    vm = witness.vm
    vm.write_bytes("vda", 0, os.urandom(32 * MIB))
    vm.stop()
    content = witness.content()
    process = held(witness, "copying")
    busy = nbdpull(*witness.words("-o", witness.folder / "other"))
    assert busy.returncode == 5 and str(process.pid) in busy.stderr and vm.active and vm.job_active()
    process.kill()
    process.communicate()
    assert vm.active and not vm.running
    vm.domain.abortJob()
    wait_for(lambda: not vm.job_active(), "end of the job")
    for name in vm.checkpoints():
        vm.delete_checkpoint(name)
    if resumed:
        vm.resume()
    done = nbdpull(*witness.words())
    assert done.returncode == 0, done.stderr
    assert vm.active == resumed
    assert witness.restored()["vda"] == content["vda"]
