"""A domain that is renamed is the same domain: its series continues under the new name, and is found by either name."""

import json
import signal

import pytest
from bed.machine import MIB, Disk
from command import last_event, nbdpull, said, start_held
from witness import CLUSTER, SINCE, assert_same, dirty, modes

libvirt = pytest.importorskip("libvirt")


def rename(vm, name):
    vm.stop()
    vm.rename(name)
    vm.start()


def restored(witness, domain, point="latest"):
    return witness.restored(point, "--domain", domain)


def folders(witness):
    return sorted(path.name for path in witness.store.iterdir() if path.is_dir())


def test_series_continues_under_the_new_name(pulled):
    """And under the old one again; a warning says so once each time."""
    witness = pulled({"vda": 4 * MIB, "vdb": MIB})
    vm, old, new = witness.vm, witness.vm.name, f"{witness.vm.name}-new"
    vm.write("vda", 0, MIB, 0x11)
    made = [witness.pull()]
    for number, name in enumerate([new, old, f"{old} \u00e9"], 1):
        before = vm.name
        rename(vm, name)
        vm.write("vda", number * CLUSTER, CLUSTER, 0x20 + number)
        plan = json.loads(said("plan", name, "-o", witness.store, "-c", vm.bed.uri, "--json"))
        assert plan["parent"] == made[-1]["id"]
        made.append(witness.pull())
        assert modes(made[-1]) == {"vda": SINCE, "vdb": SINCE} and dirty(made[-1])["vda"] == CLUSTER
        assert (made[-1]["parent"], made[-1]["domain"]) == (made[-2]["id"], name)
        message = f"domain {before} is named {name} now: its series continues in {witness.store / old}"
        assert witness.result["warnings"] == [message]
        assert vm.checkpoints() == [made[-1]["checkpoint"]] and folders(witness) == [old]
        made.append(witness.pull())
        assert witness.result["warnings"] == []
        for domain in (name, old, vm.uuid):
            assert_same(restored(witness, domain), witness.frozen[made[-1]["id"]], domain)
    assert [point["id"] for point in witness.points()] == [point["id"] for point in made]
    witness.assert_restores()
    assert last_event(said("verify", witness.store, "--json"))["warnings"] == []


def test_defined_anew_under_another_name(pulled):
    """As on another host: libvirt has lost the checkpoint, and gets it from the point."""
    witness = pulled({"vda": 4 * MIB})
    vm, old = witness.vm, witness.vm.name
    vm.write("vda", 0, MIB, 0x11)
    first = witness.pull()
    xml = vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    vm.stop()
    vm.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    vm.name = f"{old}-new"
    vm.bed.connection().defineXML(xml.replace(f"<name>{old}</name>", f"<name>{vm.name}</name>"))
    vm.start()
    vm.write("vda", CLUSTER, CLUSTER, 0x12)
    second = witness.pull()
    assert (second["parent"], modes(second), dirty(second)) == (first["id"], {"vda": SINCE}, {"vda": CLUSTER})
    assert vm.checkpoints() == [second["checkpoint"]] and folders(witness) == [old]
    witness.assert_restores()


def test_onto_the_name_of_another_series(pulled, machine):
    """That series remains what it is, and neither is taken for the other."""
    witness = pulled({"vda": MIB})
    vm, old = witness.vm, witness.vm.name
    vm.write("vda", 0, CLUSTER, 0x11)
    first = witness.pull()
    other = machine({"vda": MIB})
    other.write("vda", 0, CLUSTER, 0x77)
    words = ["-o", witness.store, "-c", vm.bed.uri, "--json"]
    of_other = last_event(said("pull", other.name, *words))["details"]
    content, name, uuid = {"vda": other.content("vda")}, other.name, other.uuid
    other.close()
    rename(vm, name)
    vm.write("vda", CLUSTER, CLUSTER, 0x12)
    second = witness.pull()
    assert (second["parent"], second["domain"], modes(second)) == (first["id"], name, {"vda": SINCE})
    done = nbdpull("restore", witness.store, "-o", witness.folder / "out", "--domain", name)
    assert done.returncode == 10 and not (witness.folder / "out").exists()
    assert f"more than one domain {name}" in done.stderr and all(each in done.stderr for each in (uuid, vm.uuid))
    assert_same(restored(witness, uuid), content)
    assert_same(restored(witness, vm.uuid), witness.frozen[second["id"]])
    assert_same(restored(witness, old), witness.frozen[second["id"]])
    assert_same(restored(witness, uuid, of_other["id"]), content)

    new = machine({"vda": Disk(MIB, path=other.disks["vda"].path)}, name=old)  # somebody gives the old name to a new VM
    done = nbdpull("pull", new.name, *words)
    assert (done.returncode, last_event(done.stdout)["code"]) == (10, "other-domain")
    assert vm.uuid in done.stderr and "choose another store" in done.stderr
    assert nbdpull("plan", new.name, *words).returncode == 10
    assert witness.pull()["parent"] == second["id"]


def test_what_a_killed_pull_left_is_removed_under_the_new_name(pulled):
    witness = pulled({"vda": MIB})
    vm = witness.vm
    witness.pull()
    process = start_held("journaled", witness.folder / "gate", *witness.words())
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    rename(vm, f"{vm.name}-new")
    done = nbdpull("cleanup", vm.name, "-o", witness.store, "-c", vm.bed.uri, "--json")
    assert done.returncode == 0 and [item["left"] for item in last_event(done.stdout)["found"]] == [""]
    assert len([*witness.store.glob("*/*/")]) == 1
    witness.pull()
    witness.assert_restores()
