"""remove, prune, pin, unpin and diff on the command line: what is removed, what remains, and what is printed."""

import os
import subprocess
from contextlib import suppress
from unittest import mock

import numpy
import pytest
from command import answered as said
from command import answered_json as run
from stores import KIB, Vm, chain, daily, damaged, files, ids, restored, small_disk

from nbdpull.format import findings
from nbdpull.operations.options.points import PinOptions
from nbdpull.operations.pin import pin
from nbdpull.repository import half_points, removal, retention
from nbdpull.storage.directory import DirectoryStore

# -- remove -----------------------------------------------------------------------------------------------------------


def test_a_point_is_removed_at_once_and_its_space_freed_a_day_later(tmp_path, capsys):
    vm = chain(tmp_path / "store")
    first, middle, last = ids(vm)
    code, found, _ = run(capsys, "remove", vm.root, middle, "--dry-run")
    assert code == 0 and found["points"] == [middle] and ids(vm) == [first, middle, last]
    would = found["waiting_bytes"]
    code, found, _ = run(capsys, "remove", vm.root, middle)
    assert code == 0 and found["freed_bytes"] == 0 and 0 < found["waiting_bytes"] < would
    assert ids(vm) == [first, last]
    code, found, _ = run(capsys, "remove", vm.root, first, "--now")
    assert code == 0 and found["freed_bytes"] > 0 and found["waiting_bytes"] == 0
    assert restored(vm, vm.points[2], tmp_path / "out") == vm.images[last]


def test_nothing_is_removed_if_one_point_cannot_be(tmp_path, capsys):
    vm = chain(tmp_path / "store")
    first, middle, last = ids(vm)
    for reason, flaw in (("caf\udce9", "is not text in UTF-8"), ("x" * 4097, "has more than 4096 characters")):
        expected = f"nbdpull: --reason {flaw}\n"
        assert said(capsys, "pin", vm.root, first, "--reason", reason) == (2, "", expected)
    assert run(capsys, "pin", vm.root, first, "--reason", "before the upgrade")[:2] == (
        0,
        {"point": first, "pinned": True, "changed": True},
    )
    assert "pinned:      before the upgrade\n" in said(capsys, "show", vm.root, first)[1]
    code, _, err = said(capsys, "remove", vm.root, middle, first)
    assert code == 2 and err == (
        f"nbdpull: point {first} is pinned: before the upgrade; to remove it, run nbdpull unpin first\n"
    )
    assert said(capsys, "remove", vm.root, middle, "20991231T000000Z-00000000")[0] == 10
    assert ids(vm) == [first, middle, last]
    assert run(capsys, "unpin", vm.root, first)[1] == {"point": first, "pinned": False, "changed": True}
    assert run(capsys, "unpin", vm.root, first)[1]["changed"] is False
    assert said(capsys, "remove", vm.root, middle, first)[0] == 0
    assert ids(vm) == [last]


def just_before(monkeypatch, owner, name, call):
    """Let something happen just before the next call of a function."""
    real, todo = getattr(owner, name), [call]

    def both(*args, **others):
        if todo:
            todo.pop()()
        return real(*args, **others)

    monkeypatch.setattr(owner, name, both)


@pytest.mark.parametrize("owner, name", [(retention, "decided"), (removal, "remove"), (DirectoryStore, "rename")])
def test_a_point_pinned_during_a_prune_is_kept(tmp_path, capsys, monkeypatch, owner, name):
    """Even at the moment when its manifest is renamed: the pin was a success."""
    vm = daily(tmp_path / "store", 10)
    victim = vm.points[0].id
    just_before(monkeypatch, owner, name, lambda: pin(PinOptions(str(vm.root), victim, reason="evidence")))
    code, found, _ = run(capsys, "prune", vm.root, "--keep-last", 6)
    (domain,) = found["domains"]
    assert code == 10 and f"point {victim} is pinned: evidence; to remove it" in str(domain["problem"])
    assert domain["removed"] == [] and ids(vm) == [each.id for each in vm.points]
    code, found, _ = run(capsys, "prune", vm.root, "--keep-last", 6)
    assert code == 0 and ids(vm) == [victim, *(each.id for each in vm.points[4:])]


def test_pinning_a_point_that_was_just_removed_fails(tmp_path, capsys, monkeypatch):
    vm = daily(tmp_path / "store", 2)
    just_before(monkeypatch, DirectoryStore, "publish", lambda: removal.remove(vm.series, vm.points[0]))
    code, _, err = said(capsys, "pin", vm.root, vm.points[0].id)
    assert code == 10 and err == f"nbdpull: point {vm.points[0].id} of vm1 was removed meanwhile\n"
    assert ids(vm) == [vm.points[1].id] and "pinned.json" not in os.listdir(vm.folder / vm.points[0].id)


def test_a_series_that_is_written_to_is_left_alone(tmp_path, capsys):
    vm = chain(tmp_path / "store")
    with half_points.writing(vm.series):
        code, _, err = said(capsys, "remove", vm.root, vm.points[0].id)
        assert code == 5 and err.endswith("; remove points of vm1 when it has ended\n")
        code, _, err = said(capsys, "prune", vm.root, "--keep-last", "2")
        assert code == 10 and "; prune vm1 when it has ended" in err
    assert len(ids(vm)) == 3


def test_a_store_that_cannot_be_written_to(tmp_path, capsys):
    """Nothing is reported that was not done."""
    with small_disk(tmp_path / "disk", "4m") as disk:
        vm = daily(disk / "store", 3)
        first, second, last = ids(vm)
        run(capsys, "remove", vm.root, first)
        run(capsys, "pin", vm.root, last)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for words, path in [
            (["remove", vm.root, second, "--now"], f"rename {vm.folder / second / 'manifest.json'}"),
            (["prune", vm.root, "--keep-last", "9", "--now"], f"remove {vm.folder / first}/"),
            (["unpin", vm.root, last], f"remove {vm.folder / last / 'pinned.json'}"),
        ]:
            code, out, err = said(capsys, *words)
            assert code == ERRORS[words[0]] and f"cannot {path}" in err and "Read-only file system" in err, words
            assert err.count("\n") == 1
        assert ids(vm) == [second, last] and "pinned:" in said(capsys, "show", vm.root, last)[1]


def test_points_go_where_nothing_is_free(tmp_path, capsys):
    """Neither a byte nor an inode: on tmpfs, a second name of a file takes one."""
    with small_disk(tmp_path / "disk", "4m,nr_inodes=200") as disk:
        vm = daily(disk / "store", 3)
        with suppress(OSError), open(disk / "filling", "wb") as file:
            while True:
                file.write(bytes(4096))
        with suppress(OSError):
            for number in range(200):
                (disk / str(number)).touch()
        assert os.statvfs(disk).f_bavail == os.statvfs(disk).f_ffree == 0
        last = ids(vm)[-1]
        code, found, err = run(capsys, "prune", vm.root, "--keep-last", "1", "--force", "--now")
        assert (code, err) == (0, "") and found["domains"][0]["freed_bytes"] > 0
        assert ids(vm) == [last] and restored(vm, vm.points[2], tmp_path / "out") == vm.images[last]


ERRORS = {"remove": 9, "prune": 10, "unpin": 9}  # of prune one for all that is wrong with a domain


def test_a_dry_run_leaves_what_was_removed_before(tmp_path, capsys):
    """Even if nothing more is to be removed, and its time has come."""
    vm = daily(tmp_path / "store", 3)
    assert run(capsys, "remove", vm.root, vm.points[0].id)[0] == 0
    before = files(vm.root)
    with mock.patch("time.time", return_value=10**11):
        code, found, _ = run(capsys, "prune", vm.root, "--keep-last", "9", "--dry-run")
    assert code == 0 and found["domains"][0]["removed"] == [] and found["domains"][0]["freed_bytes"] == 0
    assert found["domains"][0]["waiting_bytes"] > 0 and files(vm.root) == before


# -- prune ------------------------------------------------------------------------------------------------------------


def test_points_that_no_rule_keeps_are_removed(tmp_path, capsys):
    vm = daily(tmp_path / "store", 9)
    before = ids(vm)
    code, found, _ = run(capsys, "prune", vm.root, "--keep-daily", "5", "--dry-run")
    [domain] = found["domains"]
    assert code == 0 and domain["removed"] == before[:4] and ids(vm) == before
    assert [each["id"] for each in domain["points"] if each["kept_by"]] == before[4:]
    code, found, _ = run(capsys, "prune", vm.root, "--keep-daily", "5", "--now")
    assert code == 0 and found["domains"][0]["freed_bytes"] > 0 and ids(vm) == before[4:]
    expected = {"in_store": False, "domain": None, "keep_daily": 5, "time_zone": "UTC"}
    assert found["domains"][0]["policy"] == expected
    for point in vm.points[4:]:
        assert restored(vm, point, tmp_path / "out") == vm.images[point.id]


def test_pinned_and_proved_points_are_kept(tmp_path, capsys):
    vm = daily(tmp_path / "store", 6)
    before = ids(vm)
    run(capsys, "pin", vm.root, before[0])
    about = {**findings.entry(vm.points[1]), "verdict": "ok", "seconds": 1.0, "waited_for": "agent", "reason": ""}
    findings.record(vm.series, findings.DRILL, points=[about])
    about = {**about, **findings.entry(vm.points[3]), "verdict": "failed"}
    findings.record(vm.series, findings.DRILL, points=[about])
    assert said(capsys, "verify", vm.root, "--point", before[2])[0] == 0
    code, out, _ = said(capsys, "prune", vm.root, "--keep-last", "1")
    assert code == 0 and ids(vm) == [*before[:3], before[5]]
    assert f"{before[3]}  -" in out and "pinned" in out and "the newest drilled one" in out
    assert "2 of 6 points removed (--keep-last 1)" in out


def test_more_than_half_needs_force(tmp_path, capsys):
    vm = daily(tmp_path / "store", 5)
    code, _, err = said(capsys, "prune", vm.root, "--keep-last", "2")
    assert code == 10 and "more than half of its points would be removed: check with --dry-run, then add --force" in err
    assert len(ids(vm)) == 5
    assert said(capsys, "prune", vm.root, "--keep-last", "2", "--force")[0] == 0
    assert len(ids(vm)) == 2


def test_a_domain_that_cannot_be_read_stops_no_other(tmp_path, capsys):
    vm = daily(tmp_path / "store", 4)
    other = daily(tmp_path / "store", 4, "vm2", "0d5e4ab1-22a1-4b4f-9d0c-0f6f1f2a7c11")
    with damaged(vm.folder / vm.points[1].id / "manifest.json", b"{}"):
        code, found, err = run(capsys, "prune", vm.root, "--keep-last", "2", "--now")
        assert code == 10 and not found["ok"]
        assert [bool(each["problem"]) for each in found["domains"]] == [True, False]
        assert err.startswith("nbdpull: vm1: nothing was removed, as a point cannot be read: ")
    assert (len(ids(vm)), len(ids(other))) == (4, 2)
    code, found, _ = run(capsys, "prune", vm.root, "--keep-last", "3", "--domain", "*1")
    assert [each["domain"] for each in found["domains"]] == ["vm1"] and (len(ids(vm)), len(ids(other))) == (3, 2)
    assert said(capsys, "prune", vm.root, "--keep-last", "3", "--domain", "web*")[0] == 10


def test_a_policy_that_keeps_nothing(tmp_path, capsys):
    vm = daily(tmp_path / "store", 2)
    for words in [[], ["--keep-last", "0"], ["--keep-last", "1", "--time-zone", "Mars/Olympus"]]:
        code, _, err = said(capsys, "prune", vm.root, *words)
        assert code == 2 and err.count("\n") == 1 and "say what to keep" in err
    assert len(ids(vm)) == 2


# -- diff -------------------------------------------------------------------------------------------------------------


def test_the_ranges_that_differ(tmp_path, capsys):
    vm = chain(tmp_path / "store", 3, points=4)
    for before, after in [(0, 1), (1, 3), (0, 3), (3, 0), (2, 2)]:
        one, other = vm.points[before], vm.points[after]
        code, found, _ = run(capsys, "diff", vm.root, one.id, other.id)
        assert code == 0 and (found["before"], found["after"]) == (one.id, other.id)
        for disk in vm.disks:
            assert patched(vm, one, found["ranges"], other, disk) == vm.images[other.id][disk]
    assert found["ranges"] == []
    code, found, _ = run(capsys, "diff", vm.root, vm.points[0].id, "latest", "--disk", "vdb")
    assert {each["disk"] for each in found["ranges"]} == {"vdb"}
    assert "to" in said(capsys, "diff", vm.root, vm.points[0].id, "latest")[1].splitlines()[-1]


def patched(vm, one, ranges, other, disk):
    """Return the image of one point, with the differences of the other applied."""
    wanted = numpy.frombuffer(vm.images[other.id][disk], "u1")
    found = numpy.zeros(len(wanted), "u1")
    before = numpy.frombuffer(vm.images[one.id][disk], "u1")[: len(wanted)]
    found[: len(before)] = before
    for each in ranges:
        if each["disk"] == disk:
            part = slice(each["offset"], each["offset"] + each["length"])
            found[part] = wanted[part] if each["kind"] == "data" else 0
    return found.tobytes()


def test_a_disk_that_only_one_point_has(tmp_path, capsys):
    vm = Vm(tmp_path / "store")
    for name in ("vda", "vdb"):
        vm.add_disk(name, 64 * KIB)
    vm.pull(disks=["vda"])
    vm.pull(disks=["vda", "vdb"])
    code, found, _ = run(capsys, "diff", vm.root, vm.points[0].id, vm.points[1].id)
    assert (code, found["only_before"], found["only_after"], found["ranges"]) == (0, [], ["vdb"], [])
    code, _, err = said(capsys, "diff", vm.root, vm.points[0].id, vm.points[1].id, "--disk", "vdb")
    assert code == 3 and "has no disk vdb" in err
