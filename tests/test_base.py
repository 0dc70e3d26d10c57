"""The base is never wrong: what happens to checkpoints, bitmaps and images between two pulls, each done for real.

test_pull.py has the plainer cases (disks added, replaced, shrunk, crashed, rolled back).
"""

import json
import os

import pytest
import stores
from bed.machine import MIB, Disk
from command import nbdpull
from witness import CLUSTER, SINCE, modes

from nbdpull.format import findings, layout
from nbdpull.repository import marker, series_choice

libvirt = pytest.importorskip("libvirt")
base = pytest.importorskip("nbdpull.pulling.base")

METADATA_ONLY = 2


def test_checkpoint_that_libvirt_forgot_is_given_back(pulled):
    witness = pulled({"vda": 2 * MIB, "vdb": MIB})
    vm = witness.vm
    vm.write("vda", 0, MIB)
    first = witness.pull()
    vm.write("vda", CLUSTER, 512, 0x21)
    vm.forget_checkpoint(first["checkpoint"])
    second = witness.pull()
    assert modes(second) == {"vda": SINCE, "vdb": SINCE} and second["since"] == first["checkpoint"]
    assert any("had lost checkpoint" in text for text in witness.result["warnings"])
    assert set(vm.bitmaps("vda")) == {second["checkpoint"]}  # the superseded one is gone, not stranded
    vm.write("vda", 3 * CLUSTER, 512, 0x22)
    vm.forget_checkpoint(second["checkpoint"])
    assert modes(witness.pull("--since", second["checkpoint"])) == {"vda": SINCE, "vdb": SINCE}
    witness.assert_restores()


def test_a_store_that_is_suddenly_empty(pulled):
    """It is a mount point, and its disk is not there."""
    witness = pulled({"vda": MIB})
    first = witness.pull()
    assert witness.result["warnings"] == []
    witness.store.rename(witness.folder / "elsewhere")
    witness.pull()
    [warning] = witness.result["warnings"]
    assert first["checkpoint"] in warning and "check that the store is mounted" in warning


def test_one_bitmap_of_a_forgotten_checkpoint_is_gone(pulled):
    witness = pulled({"vda": MIB, "sdb": MIB})
    vm = witness.vm
    first = witness.pull()
    vm.forget_checkpoint(first["checkpoint"])
    node = next(
        block["inserted"]["node-name"]
        for block in vm.qmp("query-block")
        if first["checkpoint"] in [b["name"] for b in block.get("inserted", {}).get("dirty-bitmaps", [])]
    )
    vm.qmp("block-dirty-bitmap-remove", node=node, name=first["checkpoint"])
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.write("sdb", 0, CLUSTER, 0x22)
    second = witness.pull()
    assert sorted(modes(second).values()) == [("full", "bitmap-lost"), SINCE]
    witness.assert_restores()


def test_transient_domain_after_its_restart(pulled):
    """A transient domain's checkpoints end with the domain, its bitmaps do not."""
    witness = pulled({"vda": 2 * MIB})
    vm = witness.vm
    vm.write("vda", 0, MIB)
    xml = vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    vm.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    witness.pull()
    vm.write("vda", CLUSTER, CLUSTER, 0x21)
    vm.stop()
    vm.bed.connection().createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)
    vm._devices.clear()
    vm.write("vda", 3 * CLUSTER, CLUSTER, 0x22)
    second = witness.pull()
    assert modes(second) == {"vda": SINCE} and second["disks"][0]["dirty_bytes"] == 2 * CLUSTER
    witness.assert_restores()
    vm.domain.destroy()


def test_qcow2_of_version_2(pulled):
    witness = pulled({"vda": MIB, "vdb": Disk(MIB, options="compat=0.10")})
    vm = witness.vm
    vm.write("vdb", 0, CLUSTER)
    witness.pull()
    vm.write("vdb", CLUSTER, CLUSTER, 0x21)
    second = witness.pull("--on-lost-base", "fail")
    assert modes(second) == {"vda": SINCE, "vdb": ("full", "qcow2-v2-has-no-bitmaps")}
    witness.assert_restores()


def test_growth_belongs_to_the_change(pulled):
    """What the disk grew by has no bit in the bitmap; the point has to record it nevertheless, even if it records only
    changes."""
    witness = pulled({"vda": MIB + 512})
    vm = witness.vm
    vm.write("vda", 0, MIB + 512)
    first = witness.pull()
    vm.create_checkpoint("apart")
    vm.resize("vda", 3 * MIB)
    vm.write("vda", 2 * MIB, 512, 0x21)
    second = witness.pull()
    assert modes(second) == {"vda": ("incremental", "grown")}
    witness.assert_restores()
    partial = witness.pull("--since", "apart", "--no-checkpoint")
    assert modes(partial) == {"vda": SINCE}
    changed = witness.change(partial["id"], "vda", witness.frozen[first["id"]]["vda"] + b"\xff" * (2 * MIB - 512))
    assert changed == witness.frozen[partial["id"]]["vda"]


def test_shrunk_and_grown_between_two_pulls(pulled):
    """The size is the same and the bits are clean, but what was cut off reads as zero now."""
    witness = pulled({"vda": 4 * MIB})
    vm = witness.vm
    vm.write("vda", 0, 4 * MIB)
    witness.pull()
    vm.resize("vda", MIB)
    vm.resize("vda", 4 * MIB)
    vm.write("vda", 3 * MIB, CLUSTER, 0x21)
    second = witness.pull()
    assert modes(second)["vda"][0] == "incremental"
    witness.assert_restores()


@pytest.mark.parametrize("how", ["crash", "deleted"])
def test_lost_base_can_be_an_error(pulled, how):
    witness = pulled({"vda": MIB})
    vm = witness.vm
    first = witness.pull("--on-lost-base", "fail")  # the first point lost nothing
    if how == "crash":
        vm.kill()
        vm.start()
    else:
        vm.delete_checkpoint(first["checkpoint"])
    before = vm.checkpoints()
    done = nbdpull(*witness.words("--on-lost-base", "fail"))
    assert done.returncode == 4 and "--on-lost-base=full" in done.stderr and "vda (" in done.stderr
    assert vm.checkpoints() == before and not vm.job_active() and len(witness.points()) == 1
    reason = "bitmap-lost" if how == "crash" else "checkpoint-lost"
    quiet = nbdpull(*[word for word in witness.words("--quiet", "--no-checkpoint") if word != "--json"])
    assert (quiet.returncode, quiet.stdout) == (0, "") and "disk vda is read in full" in quiet.stderr
    assert modes(witness.pull()) == {"vda": ("full", reason)}
    (warning,) = witness.result["warnings"]
    assert "disk vda is read in full" in warning and f"({reason})" in warning
    witness.assert_restores()
    assert modes(witness.pull("--on-lost-base", "fail")) == {"vda": SINCE} and witness.result["warnings"] == []


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_next_pull_reads_again_what_is_damaged(pulled):
    """And nothing else. A warning says so, even to users who see only errors."""
    witness = pulled({"vda": 4 * MIB, "vdb": MIB})
    vm = witness.vm
    witness.pull()
    vm.write_bytes("vda", 0, os.urandom(2 * MIB))
    vm.write("vdb", 0, MIB, 0x12)
    second = witness.pull()
    vm.write_bytes("vda", 0, os.urandom(MIB))
    third = witness.pull()
    chunk = next(witness.store.glob(f"*/{second['id']}/vda.0000.zst"))
    before = chunk.read_bytes()
    flip(chunk)
    assert nbdpull("verify", witness.store, "--quick").returncode == 11
    vm.write("vda", 3 * MIB, CLUSTER, 0x21)
    vm.write("vdb", CLUSTER, CLUSTER, 0x22)
    fourth = witness.pull("--on-lost-base", "fail")
    assert modes(fourth) == {"vda": ("incremental", "healed"), "vdb": SINCE} and fourth["parent"] == third["id"]
    path = f"{second['id']}/vda.0000.zst"
    assert witness.result["healed"] == [{"disk": "vda", "bytes": MIB, "files": [path], "mended": [path]}]
    [vda, _] = fourth["disks"]
    assert (vda["dirty_bytes"], vda["read_bytes"]) == (CLUSTER, MIB + CLUSTER)
    assert any(third["id"] in text and "read again" in text for text in witness.result["warnings"])
    verdicts = [point["verified"] and point["verified"]["verdict"] for point in witness.points()]
    assert verdicts == ["ok", "damaged", "damaged", None]  # nobody has looked again
    assert chunk.read_bytes() == before
    assert nbdpull("verify", witness.store).returncode == 0
    witness.assert_restores()
    chunk.unlink()
    vm.delete_checkpoint(fourth["checkpoint"])
    fifth = witness.pull()
    assert modes(fifth) == {"vda": ("full", "checkpoint-lost"), "vdb": ("full", "checkpoint-lost")}
    assert witness.result["healed"] == [] and fifth["parent"] == fourth["id"]
    chunk.write_bytes(before)
    assert nbdpull("verify", witness.store, "--quick").returncode == 0
    witness.assert_restores()


def test_damage_that_is_not_listed_in_full(pulled):
    """A warning says so, even to users who see only errors, and everything that can be restored is stored."""
    witness = pulled({"vda": MIB, "vdb": MIB})
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    first = witness.pull()
    second = witness.pull()
    chunk = next(witness.store.glob(f"*/{first['id']}/vda.0000.zst"))
    before = chunk.read_bytes()
    flip(chunk)
    assert nbdpull("verify", witness.store, "--quick").returncode == 11
    record_too_much_damage(witness, second["id"], "vda")
    failed = nbdpull(*witness.words("--on-lost-base", "fail"))
    assert failed.returncode == 4 and "vda (parent-damaged)" in failed.stderr
    vm.write("vda", CLUSTER, CLUSTER, 0x21)
    vm.write("vdb", CLUSTER, CLUSTER, 0x22)
    done = nbdpull(*[word for word in witness.words("--quiet", "--no-checkpoint") if word != "--json"])
    assert done.returncode == 0 and done.stdout == ""
    assert second["id"] in done.stderr and "disk vda is read in full" in done.stderr and "vdb" not in done.stderr
    third = witness.pull()
    assert modes(third) == {"vda": ("full", "parent-damaged"), "vdb": SINCE} and third["parent"] == second["id"]
    assert any(second["id"] in text for text in witness.result["warnings"])
    witness.assert_restores(third["id"])
    assert nbdpull("verify", witness.store).returncode == 11
    reported = {point["id"]: point["verified"]["verdict"] for point in witness.points()}
    assert (reported[first["id"]], reported[second["id"]], reported[third["id"]]) == ("damaged", "damaged", "ok")
    vm.write("vda", 2 * CLUSTER, CLUSTER, 0x23)
    fourth = witness.pull()
    assert modes(fourth) == {"vda": SINCE, "vdb": SINCE} and witness.result["warnings"] == []
    chunk.write_bytes(before)
    assert nbdpull("verify", witness.store, "--quick").returncode == 0
    witness.assert_restores()


def record_too_much_damage(witness, point, disk):
    """Record that a disk of a point has more damage than is listed."""
    target = series_choice.only_series(marker.open_store(str(witness.store)))
    place = {"disk": disk, "path": None, "offset": None, "length": None, "problem": "more than 10000 damages"}
    about = {**findings.entry(target.point(point)), "verdict": "damaged", "damages": 1, "places": [place]}
    findings.record(target, findings.VERIFY, level="files", points=[about])


@pytest.fixture
def unequal_layers(pulled):
    """The Witness of a machine with a point, whose vda was resized after a snapshot: the bitmap of the lower layer
    keeps its size, and QEMU does not merge the two."""
    witness = pulled({"vda": 2 * MIB, "sdb": 2 * MIB})
    vm = witness.vm
    vm.write("vda", 0, MIB)
    witness.pull()
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.write("sdb", 0, CLUSTER, 0x22)
    vm.bed.virsh("snapshot-create-as", vm.name, "s", "--disk-only", "--no-metadata", "--diskspec", "sdb,snapshot=no")
    vm.domain.blockResize("vda", 3 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    vm.write("vda", 2 * MIB, CLUSTER, 0x23)
    vm.disks["vda"].path, vm.disks["vda"].format = vm.disks["vda"].path.with_suffix(".s"), "qcow2"
    return witness


def test_bitmaps_of_different_sizes(unequal_layers):
    witness = unequal_layers
    second = witness.pull()
    assert modes(second) == {"vda": ("full", "bitmap-lost"), "sdb": SINCE}
    assert witness.vm.bed.alive
    assert modes(witness.pull()) == {"vda": SINCE, "sdb": SINCE}
    witness.assert_restores()


def test_bitmaps_of_different_sizes_hide_no_other_disk(unequal_layers):
    witness = unequal_layers
    vm = witness.vm
    where = ["-c", vm.bed.uri, "--scratch-dir", witness.scratch, "--json"]
    result = json.loads(nbdpull("plan", vm.name, "-o", witness.store, *where).stdout)
    assert modes(result) == {"vda": ("full", "bitmap-lost"), "sdb": SINCE}
    found = {each["subject"]: each for each in json.loads(nbdpull("doctor", vm.name, *where).stdout)}
    (checkpoint,) = [found[subject] for subject in found if subject.startswith("checkpoint ")]
    assert checkpoint["state"] == "warn" and "broken on vda" in checkpoint["text"]
    assert {"disk vda", "disk sdb"} <= set(found)
    assert modes(witness.pull("--exclude", "vda")) == {"sdb": SINCE}


CHECKPOINT = """<domaincheckpoint><name>nbdpull-{0}</name><description>nbdpull run {0}</description>
<creationTime>1795376700</creationTime><disks><disk name='vda' checkpoint='bitmap'/></disks></domaincheckpoint>"""


@pytest.mark.parametrize(
    "change, good",
    [
        (lambda xml: xml, True),
        (lambda xml: None, False),
        (lambda xml: xml.replace("nbdpull run", "somebody's"), False),
        (lambda xml: xml.replace("<name>", "<name>other"), False),
        (lambda xml: xml.replace("1795376700", "1795376701"), False),
        (lambda xml: xml.replace("1795376700", "yesterday"), False),
        (lambda xml: xml.replace("domaincheckpoint>", "domain>"), False),
        (lambda xml: xml[:-1], False),
        (lambda xml: "<!DOCTYPE a [<!ENTITY b 'c'>]>" + xml, False),
        (lambda xml: "\xff", False),
        (lambda xml: "", False),
        (lambda xml: "<a>" * 100_000, False),
    ],
)
def test_only_its_own_checkpoint_is_taken_from_a_point(tmp_path, change, good):
    """Anyone who can write to the store can put any definition there, and libvirt would get it."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 4096)
    point_id = layout.new_point_id()
    xml = change(CHECKPOINT.format(point_id))
    vm.files = {} if xml is None else {"checkpoint.xml": xml.encode("latin-1")}
    found = base.stored_checkpoint(vm.series, vm.pull(point_id=point_id))
    assert (found is not None) is good
