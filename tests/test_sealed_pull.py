"""Pulls of a real domain into a sealed store: full, incremental, killed and resumed; nothing of it can be read."""

import random

import pytest
from command import said, start_held
from identities import data, path, recipient
from sealed import SECRET, contains_secret
from stores import MIB, files
from witness import Witness, assert_same

from nbdpull.crypto import identity_files
from nbdpull.repository import key_changes, keyring, marker

libvirt = pytest.importorskip("libvirt")

MINE = ("--identity", path("age1"))
SMALL_CHUNKS = ("--chunk-size", "1M")
NOISE = random.Random(5).randbytes(4 * MIB)


@pytest.fixture
def witness(machine, tmp_path):
    """The Witness of a VM whose disk and definition contain the secret, and a sealed store that age1 opens."""
    vm = machine({"vda": 16 * MIB})
    vm.write_bytes("vda", 0, NOISE + SECRET * 100)
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
    vm.domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_DESCRIPTION, SECRET.decode(), None, None, flags)
    found = Witness(vm, tmp_path / "witness")
    marker.create(str(found.store), seal=key_changes.new([recipient("age1")], None))
    return found


def assert_no_secret_in(witness, *others):
    tried = identity_files.given([path("age1")])
    secrets = [keyring.open_master(marker.open_store(str(witness.store)), tried).master, data("age1").strip()]
    for each in [*files(witness.store), *others]:
        found = each.read_bytes()
        assert not contains_secret(found) and not any(
            secret in found or secret.hex().encode() in found for secret in secrets
        )


def test_full_and_incremental(witness, tmp_path):
    log = tmp_path / "log"
    how = (*MINE, *SMALL_CHUNKS, "-vv", "--log-file", log)
    witness.pull(*how)
    witness.vm.write_bytes("vda", MIB, SECRET * 1000)
    witness.vm.write_zeroes("vda", 3 * MIB, MIB)
    second = witness.pull(*how)
    third = witness.pull(*how)  # of which nothing changed
    assert [disk["mode"] for point in (second, third) for disk in point["disks"]] == ["incremental"] * 2
    assert third["disks"][0]["stored_bytes"] < 1000
    for point, held in witness.frozen.items():
        assert_same(witness.restored(point, *MINE), held, point)
    said("verify", witness.store, *MINE)
    definition = said("show", witness.store, second["id"], "--xml", *MINE)
    assert SECRET.decode() in definition
    assert log.stat().st_size and contains_secret(definition.encode())
    assert_no_secret_in(witness, log)


def test_killed_and_resumed(witness, tmp_path):
    """What was sealed before the kill is kept; it is not sealed again with other nonces."""
    held = witness.content()
    process = start_held("sealed:2", tmp_path / "gate", *witness.words(*MINE, *SMALL_CHUNKS))
    process.kill()
    process.communicate()
    before = {each.name: each.read_bytes() for each in witness.store.glob("*/*/vda.*.zst")}
    assert len(before) >= 2
    assert_no_secret_in(witness)
    witness.vm.write("vda", 0, 4 * MIB, 0x99)  # what the guest does later is not in the point
    made = witness.pull(*MINE, *SMALL_CHUNKS)
    assert witness.result["resumed"]["kept_bytes"] > MIB
    kept = {each.name: each.read_bytes() for each in witness.store.glob("*/*/vda.*.zst")}
    assert sum(kept[name] == before[name] for name in before) == 2
    assert_same(witness.restored(made["id"], *MINE), held)
    said("verify", witness.store, *MINE)
    assert_no_secret_in(witness)
    witness.pull(*MINE)
    assert_same(witness.restored("latest", *MINE), witness.content())
