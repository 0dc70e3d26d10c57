"""Checkpoints, ours and those of others: which ones a pull builds on, makes, and leaves.

Must not know: the inside of the package.
"""

import shlex

import pytest
from bed.machine import MIB, Disk
from command import nbdpull
from witness import CLUSTER, SINCE, assert_same, dirty, modes

from nbdpull.core import errors

libvirt = pytest.importorskip("libvirt")

# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_foreign_checkpoints_before_between_and_after_stay(pulled):
    witness = pulled({"vda": MIB, "vdb": MIB}, quick=True)
    vm = witness.vm
    ours = []
    for n in range(3):
        vm.create_checkpoint(f"foreign{n}", disks=[["vda"], ["vdb"], ["vda", "vdb"]][n])
        vm.write("vda", n * CLUSTER, CLUSTER, n + 1)
        vm.write("vdb", (n + 5) * CLUSTER, 100, n + 1)
        ours.append(witness.pull())
    vm.create_checkpoint("foreign3")
    witness.pull()
    latest = witness.result["details"]["checkpoint"]
    assert sorted(vm.checkpoints()) == ["foreign0", "foreign1", "foreign2", "foreign3", latest]
    assert set(vm.bitmaps("vda")) == {"foreign0", "foreign2", "foreign3", latest}
    assert [point["parent"] for point in ours] == [None, ours[0]["id"], ours[1]["id"]]
    assert [dirty(point)["vda"] for point in ours] == [MIB, CLUSTER, CLUSTER]
    # theirs still record all since their own time
    assert vm.bitmaps("vda")["foreign0"]["count"] == 3 * CLUSTER
    assert vm.bitmaps("vdb")["foreign1"]["count"] == 2 * CLUSTER
    witness.assert_restores()


def test_since_a_checkpoint_of_virsh_into_an_empty_folder(pulled):
    witness = pulled({"vda": 2 * MIB, "vdb": Disk(MIB, "raw")})
    vm = witness.vm
    vm.write("vda", 0, 2 * MIB, 0x11)
    vm.bed.virsh("checkpoint-create-as", vm.name, "chk3", "--diskspec", "vda", "--diskspec", "vdb,checkpoint=no")
    then = vm.content("vda")
    vm.write("vda", CLUSTER, 2 * CLUSTER, 0x21)
    vm.write_zeroes("vda", 7 * CLUSTER, CLUSTER)
    vm.discard("vda", 9 * CLUSTER, CLUSTER)

    held = witness.content()
    done = nbdpull(vm.name, "--since", "chk3", "-o", witness.store)
    assert done.returncode == 0, done.stderr
    assert "no whole image" in done.stdout and "chk3" in done.stdout and done.stderr == ""

    point = witness.points()[0]
    assert modes(point) == {"vda": SINCE, "vdb": ("full", "raw-has-no-bitmaps")}
    assert (point["since"], point["parent"], dirty(point)["vda"]) == ("chk3", None, 4 * CLUSTER)
    assert "chk3" in vm.checkpoints()
    assert_same({"vda": witness.change(point["id"], "vda", then)}, {"vda": held["vda"]})
    # no whole image of vda, and no attempt at one; vdb is whole
    refused = nbdpull("restore", witness.store, "-o", witness.folder / "out")
    assert refused.returncode == 11 and "since checkpoint chk3" in refused.stderr
    assert not list(witness.folder.glob("out/*"))
    assert_same(witness.restored("latest", "--disk", "vdb", "--disk", "vdb"), {"vdb": held["vdb"]})
    witness.assert_verified()


def test_series_that_begins_without_a_parent_is_sound(pulled):
    witness = pulled({"vda": MIB})
    vm = witness.vm
    vm.create_checkpoint("chk3")
    vm.write("vda", 0, CLUSTER, 0x11)
    first = witness.pull("--since", "chk3", "--checkpoint", "chk4")
    vm.write("vda", CLUSTER, CLUSTER, 0x21)
    second = witness.pull()
    assert second["parent"] == first["id"] and dirty(second) == {"vda": CLUSTER}
    witness.assert_verified()  # nothing is damaged: what there is, is as it was stored
    full = witness.pull("--full")
    vm.write("vda", 0, 512, 0x41)
    assert witness.pull()["parent"] == full["id"]
    witness.assert_restores(full["id"], witness.result["details"]["id"])
    assert sorted(vm.checkpoints()) == sorted(["chk3", "chk4", witness.result["details"]["checkpoint"]])


def test_since_a_foreign_checkpoint_leaves_none_behind(pulled):
    """Nobody would ever delete it. The next pull repeats the command, according to the text and the JSON."""
    witness = pulled({"vda": MIB})
    vm = witness.vm
    vm.create_checkpoint("chk3")
    vm.write("vda", 0, CLUSTER, 0x11)
    output = nbdpull(*(word for word in witness.words("--since", "chk3") if word != "--json")).stdout
    assert "No checkpoint was made" in output and "checkpoint:" not in output
    vm.write("vda", CLUSTER, CLUSTER, 0x12)
    words = shlex.split(output.rpartition("next: ")[2])
    assert nbdpull(*words[1:], "--json").returncode == 0
    first, second = witness.points()
    assert [(point["since"], point["checkpoint"], point["partial"]) for point in (first, second)] == 2 * [
        ("chk3", None, True)
    ]
    assert (dirty(first), dirty(second)) == ({"vda": CLUSTER}, {"vda": 2 * CLUSTER})
    assert vm.checkpoints() == ["chk3"] and set(vm.bitmaps("vda")) == {"chk3"}
    third = witness.pull("--since", "chk3", "--checkpoint", "mine")
    assert (third["checkpoint"], vm.checkpoints()) == ("mine", ["chk3", "mine"])
    assert "--since mine" in witness.result["next_command"]
    fourth = witness.pull("--since", "mine")  # of a point of the store: the series goes on
    assert (fourth["parent"], fourth["checkpoint"]) == (third["id"], f"nbdpull-{fourth['id']}")


def test_since_a_checkpoint_of_no_disk_makes_a_whole_point_with_a_checkpoint(pulled):
    witness = pulled({"vda": MIB, "vdb": MIB})
    witness.vm.create_checkpoint("chk3", ["vdb"])
    point = witness.pull("--since", "chk3", "--disk", "vda")
    assert modes(point) == {"vda": ("full", "not-in-checkpoint")} and point["checkpoint"] in witness.vm.checkpoints()


def test_since_a_checkpoint_of_virsh_into_a_series(pulled):
    witness = pulled({"vda": 2 * MIB})
    vm = witness.vm
    vm.write("vda", 0, 2 * MIB, 0x11)
    first = witness.pull()
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.create_checkpoint("chk3")
    then = vm.content("vda")
    vm.write("vda", CLUSTER, CLUSTER, 0x22)
    apart = witness.pull("--since", "chk3", "--checkpoint", "chk4")
    assert (apart["since"], apart["parent"], dirty(apart)["vda"]) == ("chk3", None, CLUSTER)
    (warning,) = witness.result["warnings"]
    assert "it is partial" in warning and f"latest stays {first['id']}" in warning
    assert [(point["id"], point["partial"]) for point in witness.points()] == [
        (first["id"], False),
        (apart["id"], True),
    ]
    assert_same(witness.restored("latest"), witness.frozen[first["id"]])
    assert_same({"vda": witness.change(apart["id"], "vda", then)}, witness.frozen[apart["id"]])
    assert first["checkpoint"] in vm.checkpoints()  # still the base of what can be restored
    vm.write_zeroes("vda", 2 * CLUSTER, CLUSTER)
    third = witness.pull()
    assert (third["since"], third["parent"]) == (first["checkpoint"], first["id"])
    witness.assert_restores(first["id"], third["id"])
    witness.assert_verified()
    vm.delete_checkpoint(third["checkpoint"])
    vm.write("vda", 4 * CLUSTER, CLUSTER, 0x23)
    assert "chk4" in vm.checkpoints()
    fourth = witness.pull()  # the checkpoint of the partial one is there, and no whole image could go on from it
    assert modes(fourth) == {"vda": ("full", "checkpoint-lost")}
    assert_same(witness.restored("latest"), witness.frozen[fourth["id"]])


def test_since_a_point_that_is_not_the_newest(pulled):
    witness = pulled({"vda": 2 * MIB})
    vm = witness.vm
    vm.write("vda", 0, 2 * MIB, 0x11)
    monday = witness.pull("--checkpoint", "monday")
    vm.write("vda", 0, CLUSTER, 0x21)
    tuesday = witness.pull("--checkpoint", "tuesday")
    vm.write("vda", CLUSTER, CLUSTER, 0x31)
    again = witness.pull("--since", "monday")
    assert (again["parent"], again["since"]) == (monday["id"], "monday")
    assert dirty(again) == {"vda": 2 * CLUSTER}
    vm.write("vda", CLUSTER, 512, 0x41)
    other = witness.pull("--since", "tuesday")
    assert other["parent"] == tuesday["id"]
    witness.assert_restores()


def test_only_superseded_automatic_checkpoints_are_dropped(pulled):
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    first = witness.pull()
    assert witness.result["dropped_checkpoints"] == []
    assert first["checkpoint"].startswith("nbdpull-")
    second = witness.pull("--checkpoint", "mine")
    assert (second["checkpoint"], witness.result["dropped_checkpoints"]) == ("mine", [first["checkpoint"]])
    third = witness.pull()
    assert third["since"] == "mine" and witness.result["dropped_checkpoints"] == []
    fourth = witness.pull("--full")
    assert witness.result["dropped_checkpoints"] == [third["checkpoint"]]
    assert sorted(vm.checkpoints()) == sorted(["mine", fourth["checkpoint"]])
    assert set(vm.bitmaps("vda")) == {"mine", fourth["checkpoint"]}


@pytest.mark.parametrize("options", [[], ["--full"]], ids=["incremental", "full"])
def test_a_superseded_checkpoint_that_could_not_be_deleted_is_tried_again(pulled, monkeypatch, options):
    """As during a managedsave. It was reported once, and remained forever."""
    witness = pulled({"vda": MIB, "vdb": MIB}, quick=True)
    first = witness.pull()

    def refused(self, name):
        raise errors.HypervisorError("cannot acquire state change lock")

    with monkeypatch.context() as patched:
        patched.setattr("nbdpull.hypervisor.checkpoints.Checkpoints.delete", refused)
        second = witness.pull(*options)
    (warning,) = witness.result["warnings"]
    assert f"the superseded checkpoint {first['checkpoint']} could not be deleted" in warning
    assert witness.result["dropped_checkpoints"] == []
    third = witness.pull()
    assert set(witness.result["dropped_checkpoints"]) == {first["checkpoint"], second["checkpoint"]}
    assert witness.vm.checkpoints() == [third["checkpoint"]] == list(witness.vm.bitmaps("vda"))


def test_no_checkpoint(pulled):
    """It makes none and deletes none, and the next pull starts from the last checkpoint."""
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    none = witness.pull("--no-checkpoint")
    assert none["checkpoint"] is None and vm.checkpoints() == []
    vm.write("vda", 0, CLUSTER, 0x11)
    second = witness.pull()
    assert modes(second) == {"vda": ("full", "no-checkpoint")}
    vm.write("vda", CLUSTER, CLUSTER, 0x12)
    third = witness.pull("--no-checkpoint")
    assert third["parent"] == second["id"] and vm.checkpoints() == [second["checkpoint"]]
    vm.write("vda", 2 * CLUSTER, CLUSTER, 0x13)
    fourth = witness.pull()
    assert fourth["parent"] == second["id"] and dirty(fourth) == {"vda": 2 * CLUSTER}
    assert vm.checkpoints() == [fourth["checkpoint"]]
    witness.assert_restores()


def test_some_disks_only(pulled):
    """A disk that was left out once is not forgotten: its old base remains until a new one covers it."""
    witness = pulled({"vda": MIB, "vdb": MIB, "vdc": Disk(MIB, "raw")}, quick=True)
    vm = witness.vm
    for disk in vm.disks:
        vm.write(disk, 0, MIB, 0x11)
    first = witness.pull()
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.write("vdb", 0, CLUSTER, 0x22)
    only = witness.pull("--disk", "vda", "--disk", "vda")
    assert modes(only) == {"vda": SINCE} and first["checkpoint"] in vm.checkpoints()
    without = witness.pull("--exclude", "vda", "--exclude", "vdc", "--since", first["checkpoint"])
    assert modes(without) == {"vdb": SINCE} and without["parent"] == first["id"]
    vm.write("vda", CLUSTER, CLUSTER, 0x41)
    both = witness.pull("--disk", "vda", "--disk", "vdb", "--since", first["checkpoint"])
    assert modes(both) == {"vda": SINCE, "vdb": SINCE} and dirty(both) == {"vda": 2 * CLUSTER, "vdb": CLUSTER}
    last = witness.pull()
    assert modes(last) == {"vda": SINCE, "vdb": SINCE, "vdc": ("full", "raw-has-no-bitmaps")}
    witness.assert_restores()


def test_disks_in_turn(pulled):
    """Each continues from its own last point, although the newest one does not have it."""
    witness = pulled({"vda": MIB, "vdb": MIB}, quick=True)
    vm, last = witness.vm, {}
    for n in range(6):
        disk = ("vda", "vdb")[n % 2]
        point = witness.pull("--disk", disk)
        assert modes(point)[disk][0] == ("incremental" if disk in last else "full")
        assert point["parent"] == last.get(disk)
        last[disk] = point["id"]
        vm.write(disk, n * CLUSTER, CLUSTER, n + 1)
    assert len(vm.checkpoints()) == 2
    witness.assert_restores()


def test_checkpoint_deleted_by_the_user(pulled):
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    first = witness.pull("--checkpoint", "kept")
    vm.write("vda", 0, CLUSTER, 0x21)
    second = witness.pull()
    vm.delete_checkpoint(second["checkpoint"])
    vm.write("vda", CLUSTER, CLUSTER, 0x31)
    third = witness.pull()  # from the older one, which still records all
    assert (third["parent"], dirty(third)) == (first["id"], {"vda": 2 * CLUSTER})
    for name in vm.checkpoints():
        vm.delete_checkpoint(name)
    vm.write("vda", 2 * CLUSTER, CLUSTER, 0x41)
    assert modes(witness.pull()) == {"vda": ("full", "checkpoint-lost")}
    witness.assert_restores()


def test_one_bitmap_deleted_behind_libvirts_back(pulled):
    witness = pulled({"vda": MIB, "vdb": MIB})
    vm = witness.vm
    vm.write("vdb", 0, MIB, 0x11)
    first = witness.pull()
    block = next(each for each in vm.qmp("query-block") if "vdb" in each["inserted"]["image"]["filename"])
    vm.qmp("block-dirty-bitmap-remove", node=block["inserted"]["node-name"], name=first["checkpoint"])
    vm.write("vdb", 0, CLUSTER, 0x21)
    named = witness.pull("--since", first["checkpoint"])
    assert modes(named) == {"vda": SINCE, "vdb": ("full", "bitmap-lost")}
    assert vm.checkpoints() == [named["checkpoint"]]  # the broken one is gone, with the bitmap it still had
    assert set(vm.bitmaps("vda")) == {named["checkpoint"]}
    witness.assert_restores()


@pytest.mark.parametrize("how", ["default", "since"])
def test_checkpoint_of_our_name_from_another_time(pulled, how):
    """Created again within the same second, the resolution of libvirt's creation time."""
    witness = pulled({"vda": MIB})
    vm, name = witness.vm, "daily"
    first = witness.pull("--checkpoint", name)
    vm.write("vda", 0, CLUSTER, 0x21)
    made = creation_time(vm, name)
    vm.delete_checkpoint(name)
    vm.create_checkpoint(name)
    set_creation_time(vm, name, made)
    assert creation_time(vm, name) == made
    vm.write("vda", 9 * CLUSTER, 512, 0x22)
    second = witness.pull(*(["--since", name] if how == "since" else []))
    if how == "default":
        assert modes(second) == {"vda": ("full", "checkpoint-replaced")}
        assert second["parent"] == first["id"], "what is read in full is stored as what changed"
        witness.assert_restores()
    else:  # what the user named is what the user gets: a change by itself
        assert (second["parent"], dirty(second)) == (None, {"vda": CLUSTER})
        words = ("restore", witness.store, "-o", witness.folder / "out", "--point", second["id"])
        assert nbdpull(*words).returncode == 11
    assert name in vm.checkpoints()


def creation_time(vm, name):
    xml = vm.domain.checkpointLookupByName(name).getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN)
    return xml.split("<creationTime>")[1].split("<")[0]


def set_creation_time(vm, name, seconds):
    """Set the creation time of a checkpoint with its bitmaps: libvirt takes it from a redefinition, as after a
    migration."""
    checkpoint = vm.domain.checkpointLookupByName(name)
    xml = checkpoint.getXMLDesc().replace(creation_time(vm, name), seconds)
    checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    vm.domain.checkpointCreateXML(xml, libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)


def test_named_checkpoint_again_after_the_user_deleted_it(pulled):
    """A name is used for a second point: each point remains tied to the checkpoint of its own time."""
    witness = pulled({"vda": MIB})
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    witness.pull("--checkpoint", "daily")
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.delete_checkpoint("daily")
    second = witness.pull("--checkpoint", "daily")
    assert modes(second) == {"vda": ("full", "checkpoint-lost")}
    vm.write("vda", CLUSTER, CLUSTER, 0x31)
    third = witness.pull("--since", "daily")
    assert (third["parent"], dirty(third)) == (second["id"], {"vda": CLUSTER})
    witness.assert_restores()
