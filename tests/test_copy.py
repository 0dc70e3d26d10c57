"""copy and compare on the command line: which points are copied, which are refused, and what is printed."""

import hashlib
import shutil
import signal
import subprocess
import threading
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import stores
from command import answered, answered_last
from stores import KIB, MIB, Vm, chain, daily, damaged, files, flipped, ids, resealed, restored, verify_store

from nbdpull.core import errors
from nbdpull.format.manifest import FileEntry
from nbdpull.operations.copy import Options, copy
from nbdpull.repository import half_points, incoming, removal

RESTORE_MIN = Path(__file__).parent.parent / "scripts/nbdpull-restore-min"


@pytest.fixture
def said(capsys):
    """Run a command line; return (exit code, standard output, standard error)."""
    return lambda *words: answered(capsys, *words)


@pytest.fixture
def run(capsys):
    return partial(answered_last, capsys)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("made") / "dir", 3, points=3, size=201 * KIB)


@pytest.fixture
def vm(made, tmp_path):
    return made.copy(tmp_path / "dir")


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "dest"


def over(vm, root):
    """Return the Vm as if its pulls had gone into another store."""
    other = Vm(root, vm.name, vm.uuid)
    other.images, other.points, other.disks = vm.images, [*vm.points], vm.disks
    return other


def of(found, domain="vm1"):
    """Return what a result contains about a domain."""
    [about] = [each for each in found["domains"] if each["domain"] == domain]
    return about


def copied(found, domain="vm1"):
    return [each["point"] for each in of(found, domain)["copied"]]


def pull(vm):
    """Make one more point, a day after the last one."""
    vm.write("vda", 512 * len(vm.points), bytes([len(vm.points)]) * 512)
    day = 1 + len(vm.points)
    vm.points[-1] = resealed(vm, vm.pull(), created=f"2026-12-{day:02}T19:45:00+00:00")
    return vm.points[-1]


# -- what is copied ---------------------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_a_copy_restores_as_the_original(vm, dest, tmp_path, run):
    code, found, _ = run("copy", vm.root, dest, "--dry-run")
    assert code == 0 and found["dry_run"] and copied(found) == ids(vm) and not dest.exists()
    would = of(found)["copied"]
    code, found, _ = run("copy", vm.root, dest)
    assert code == 0 and of(found) == {"domain": "vm1", "problem": None, "copied": would, "refused": [], "same": [],
                                       "older": []}  # fmt: skip
    other = over(vm, dest)
    assert (
        other.store.root == str(dest)
        and (dest / "nbdpull.json").read_bytes() != (vm.root / "nbdpull.json").read_bytes()
    )
    assert {path.relative_to(dest) for path in files(dest)} == {path.relative_to(vm.root) for path in files(vm.root)}
    for point in vm.points:
        assert restored(other, point, tmp_path / "out") == vm.images[point.id]
        subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=other.folder / point.id, check=True)
        for disk in point.disks:
            subprocess.run([RESTORE_MIN, dest, "vm1", point.id, disk, tmp_path / "min"], check=True)
            assert (tmp_path / "min").read_bytes() == vm.images[point.id][disk]
            (tmp_path / "min").unlink()
    assert not verify_store(dest).is_bad
    code, found, _ = run("copy", vm.root, dest)
    assert code == 0 and copied(found) == [] and of(found)["same"] == ids(vm)


def test_only_what_is_new_is_copied(vm, dest, tmp_path, run):
    run("copy", vm.root, dest)
    new = pull(vm)
    code, found, _ = run("copy", vm.root, dest)
    [entry] = of(found)["copied"]
    own = (
        sum(path.stat().st_size for path in files(vm.folder / new.id))
        - (vm.folder / new.id / "manifest.json").stat().st_size
    )
    assert entry["point"] == new.id and entry["copied_bytes"] == own
    assert over(vm, dest).series.point().id == new.id
    assert restored(over(vm, dest), new, tmp_path / "out") == vm.images[new.id]


def test_what_was_removed_there_does_not_come_back(tmp_path, dest, run, said):
    """The copy has a retention of its own; naming a point copies it nevertheless."""
    vm = daily(tmp_path / "dir", 5)
    run("copy", vm.root, dest)
    first, second, third, fourth, last = ids(vm)
    run("prune", dest, "--keep-last", 2, "--now", "--force")
    assert ids(over(vm, dest)) == [fourth, last]
    code, found, _ = run("copy", vm.root, dest)
    assert (code, copied(found), of(found)["older"]) == (0, [], [first, second, third])
    assert said("copy", vm.root, dest)[1] == (
        "vm1: 0 points copied, 2 there already, 3 older left out (--point all copies them)\n"
    )
    code, found, _ = run("copy", vm.root, dest, "--point", second)
    assert copied(found) == [second] and ids(over(vm, dest)) == [second, fourth, last]
    assert over(vm, dest).series.point().id == last, "it comes where it belongs"
    new = pull(vm)
    assert copied(run("copy", vm.root, dest)[1]) == [new.id]
    assert copied(run("copy", vm.root, dest, "--point", "all")[1]) == [first, third]
    assert ids(over(vm, dest)) == ids(vm)


def test_a_policy_says_which_are_copied(tmp_path, dest, run, said):
    vm = daily(tmp_path / "dir", 5)
    code, found, _ = run("copy", vm.root, dest, "--keep-last", 2)
    assert copied(found) == ids(vm)[-2:] and of(found)["older"] == []
    code, found, _ = run("copy", vm.root, tmp_path / "other", "--keep-within", "50h")
    assert copied(found) == ids(vm)[-3:]
    assert not verify_store(dest).is_bad
    code, _, err = said("copy", vm.root, dest, "--keep-last", 2, "--point", "all")
    assert code == 2 and "--point and --keep-" in err
    code, _, err = said("copy", vm.root, dest, "--keep-last", 0)
    assert code == 2 and "keeps nothing" in err


def test_domains_by_a_pattern(tmp_path, dest, run, said):
    for number, name in enumerate(("web1", "web2", "db")):
        daily(tmp_path / "dir", 1, name, f"3e3fce45-4f53-4fa7-bb32-11f34168b82{number}")
    code, found, _ = run("copy", tmp_path / "dir", dest, "--domain", "web*")
    assert code == 0 and [each["domain"] for each in found["domains"]] == ["web1", "web2"]
    assert sorted(path.name for path in dest.iterdir() if path.is_dir()) == ["web1", "web2"]
    code, _, err = said("copy", tmp_path / "dir", tmp_path / "other", "--domain", "nowhere")
    assert code == 10 and "no domain nowhere" in err and not (tmp_path / "other").exists()
    code, found, _ = run("compare", tmp_path / "dir", dest)
    assert code == 13 and [(each["domain"], each["behind_points"]) for each in found["domains"]] == [
        ("db", 1), ("web1", 0), ("web2", 0)
    ]  # fmt: skip


def test_a_domain_that_was_renamed(tmp_path, dest, run):
    """Its series is found by the UUID, as by a pull."""
    vm = daily(tmp_path / "dir", 2)
    run("copy", vm.root, dest)
    vm.name = "vm2"
    vm.points[-1] = vm.pull()
    code, found, _ = run("copy", vm.root, dest)
    assert copied(found, "vm2") == [vm.points[-1].id]
    assert sorted(path.name for path in dest.iterdir() if path.is_dir()) == ["vm1"]


# -- what is refused --------------------------------------------------------------------------------------------------


def test_two_stores_that_are_one(vm, tmp_path, said):
    (tmp_path / "link").symlink_to(vm.root)
    for other in (vm.root, vm.root / "copy", vm.root.parent, tmp_path / "link"):
        code, _, err = said("copy", vm.root, other)
        assert code == 2 and "are the same store, or one contains the other" in err and err.count("\n") == 1
    assert sorted(path.name for path in vm.root.iterdir()) == ["nbdpull.json", "vm1"]


def test_another_domain_of_that_name(vm, dest, run):
    Vm(dest, "vm1", "00000000-4f53-4fa7-bb32-11f34168b82b").pull_zeros("vda", MIB)
    before = files(dest)
    code, found, err = run("copy", vm.root, dest)
    assert code == 10 and "holds points of another domain" in of(found)["problem"] and copied(found) == []
    assert err == f"nbdpull: vm1: {of(found)['problem']}\n"
    assert files(dest) == before
    assert run("compare", vm.root, dest)[0] == 10


def test_a_store_that_is_pulled_into_itself(vm, dest, tmp_path, run):
    """It would be unknown which of two points is the later one."""
    run("copy", vm.root, dest)
    other = over(vm, dest)
    pull(other)
    mine = pull(vm)
    code, found, _ = run("copy", vm.root, dest)
    assert code == 10 and copied(found) == []
    problem = of(found)["problem"]
    assert run("compare", vm.root, dest)[0] == 10 and run("copy", vm.root, dest, "--point", mine.id)[0] == 10
    assert mine.id in problem and other.points[-1].id in problem and "both stores were pulled into" in problem
    assert ids(other)[-1] == other.points[-1].id


def test_pulls_that_move_to_the_copy_and_back(vm, dest, run):
    """One history: each store was pulled into after it had the other's points."""
    run("copy", vm.root, dest)
    other = over(vm, dest)
    there = pull(other)
    assert run("copy", vm.root, dest)[:1] == (0,)
    assert copied(run("copy", dest, vm.root)[1]) == [there.id]
    vm.points.append(there)
    back = pull(vm)
    assert copied(run("copy", vm.root, dest)[1]) == [back.id]
    assert ids(vm) == ids(other)


def test_a_damaged_file_is_not_copied(vm, dest, tmp_path, run):
    """Nor is any point that refers to it; all others are."""
    first, middle, last = vm.points
    path = vm.folder / middle.id / "domain.xml"
    with damaged(path, flipped(path.read_bytes(), 9)):
        code, found, err = run("copy", vm.root, dest)
        assert code == 11 and copied(found) == [first.id, last.id]
        [refused] = of(found)["refused"]
        assert refused["point"] == middle.id and str(path) in refused["problem"]
        assert err == f"nbdpull: vm1: point {middle.id} is not copied: {refused['problem']}\n"
    other = over(vm, dest)
    assert ids(other) == [first.id, last.id] and half_points.names(other.series) == []
    assert not (other.folder / middle.id / "domain.xml").exists()
    assert not verify_store(dest).is_bad
    assert copied(run("copy", vm.root, dest, "--point", middle.id)[1]) == [middle.id]
    assert restored(other, middle, tmp_path / "out") == vm.images[middle.id]


@pytest.mark.parametrize("name", ["manifest.json", "vda.directory", "vda.0000.zst"])
def test_what_cannot_be_read_hides_no_other_point(vm, dest, name, run):
    middle = vm.points[1]
    path = vm.folder / middle.id / name
    run("copy", vm.root, dest, "--point", vm.points[0].id)
    with damaged(path, flipped(path.read_bytes(), 30)):
        assert run("compare", vm.root, dest)[0] == (13 if name == "vda.0000.zst" else 11)
        code, found, err = run("copy", vm.root, dest)
        refused = [each["point"] for each in of(found)["refused"]]
        assert code == 11 and err.count("\n") == len(refused)
    needed = [point.id for point in vm.points[1:] if path.name.endswith("zst") or point == middle]
    assert refused == needed and copied(found) == [point.id for point in vm.points[1:] if point.id not in needed]
    assert not verify_store(dest).is_bad


def test_damage_on_record(vm, dest, run, said):
    """Such a point is not copied, so the damage does not spread; a verification clears the record."""
    path = vm.folder / vm.points[2].id / "vda.0000.zst"
    with damaged(path, flipped(path.read_bytes(), 120)):
        assert verify_store(vm.root, keep=True).is_bad
    code, found, _ = run("copy", vm.root, dest)
    [refused] = of(found)["refused"]
    assert code == 11 and refused["point"] == vm.points[2].id and "damage of it is recorded" in refused["problem"]
    assert said("verify", vm.root, "--point", vm.points[2].id)[0] == 0
    assert copied(run("copy", vm.root, dest)[1]) == [vm.points[2].id]


def test_damage_on_record_of_a_copy(vm, dest, run, said):
    """That both have the point is no comfort: "DEST is not behind" was all that was said."""
    assert run("copy", vm.root, dest)[0] == 0
    point, how = vm.points[2].id, f"nbdpull verify {dest} --heal-from {vm.root}"
    path = dest / "vm1" / point / "vda.0000.zst"
    path.write_bytes(flipped(path.read_bytes(), 120))
    assert verify_store(dest, keep=True).is_bad
    for words in (("copy", vm.root, dest), ("copy", vm.root, dest, "--dry-run"), ("compare", vm.root, dest)):
        code, _, err = said(*words)
        assert code == 0 and err.startswith("nbdpull: warning: damage is recorded in ")
        assert f"does not replace, {point}: {how}\n" in err
    assert said(*how.split()[1:])[0] == 0
    assert [said(*words)[2] for words in (("copy", vm.root, dest), ("compare", vm.root, dest))] == ["", ""]


def test_a_point_that_is_removed_meanwhile(vm, dest, run):
    """No part of it is left, and the others are copied."""
    first, middle, last = vm.points
    real, gone = incoming.Incoming.take, []

    def take(self, point, *args):
        if point == middle:
            removal.remove(vm.series, middle)
            gone.append(removal.sweep(vm.series, 0))
        return real(self, point, *args)

    with mock.patch.object(incoming.Incoming, "take", take):
        code, found, _ = run("copy", vm.root, dest)
    assert gone and code == 10 and copied(found) == [first.id, last.id]
    [refused] = of(found)["refused"]
    assert refused["problem"] == f"it was removed from {vm.root} meanwhile; {dest} has none of it"
    assert not verify_store(dest).is_bad and half_points.names(over(vm, dest).series) == []


def test_a_point_that_is_another_one_there(vm, dest, run):
    run("copy", vm.root, dest)
    other = over(vm, dest)
    resealed(other, vm.points[1], consistency="frozen")
    pull(vm)
    code, found, _ = run("copy", vm.root, dest)
    assert code == 10 and copied(found) == [vm.points[-1].id]
    assert of(found)["refused"][0]["problem"].startswith(f"{dest} has another point with this id")
    assert run("compare", vm.root, dest)[0] == 13
    where = {each["id"]: each["where"] for each in of(run("compare", vm.root, dest)[1])["points"]}
    assert where[vm.points[1].id] == "different"


def lost(vm, dest, run):
    (vm.folder / vm.points[1].id / "vda.0000.zst").unlink()
    return 11, "the file is missing"


def cut(vm, dest, run):
    path = vm.folder / vm.points[1].id / "domain.xml"
    path.write_bytes(path.read_bytes()[:-1])
    return 11, "bytes"


def forged(vm, dest, run):
    """What a removed point of DEST needs would be replaced."""
    run("copy", vm.root, dest)
    other = over(vm, dest).series
    for point in vm.points:
        removal.remove(other, point)
    path = vm.folder / vm.points[0].id / "domain.xml"
    path.write_bytes(b"else")
    entries = [each for each in vm.points[0].manifest.files if not each.path.endswith("domain.xml")]
    entry = FileEntry(f"{vm.points[0].id}/domain.xml", 4, hashlib.sha256(b"else").hexdigest())
    resealed(vm, vm.points[0], files=[*entries, entry])
    return 10, "differs from the one of that name"


@pytest.mark.parametrize("trouble", [lost, cut, forged])
def test_a_dry_run_foresees_a_refusal(vm, dest, run, trouble):
    code, why = trouble(vm, dest, run)
    would = run("copy", vm.root, dest, "--dry-run")
    did = run("copy", vm.root, dest)
    assert would[0] == did[0] == code and would[2] == did[2] and why in would[2]
    assert copied(would[1]) == copied(did[1]) and of(would[1])["refused"] == of(did[1])["refused"]


# -- two at once, and ends ---------------------------------------------------------------------------------------------


def test_a_series_that_is_written_to(vm, dest, run):
    run("copy", vm.root, dest, "--keep-last", 1)
    pull(vm)
    with half_points.writing(over(vm, dest).series):
        code, found, err = run("copy", vm.root, dest)
    assert code == 5 and "writes to" in err and "copy vm1 when it has ended" in err and copied(found) == []
    with half_points.writing(vm.series):
        assert run("copy", vm.root, dest)[0] == 0, "the source is only read"


def test_two_at_once(vm, dest):
    """Each point is copied by one of them; the other finds the series busy, or everything copied."""
    results = []

    def work():
        results.append(copy(Options(str(vm.root), str(dest))))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.point for found in results for one in found.domains for each in one.copied) == sorted(ids(vm))
    kinds = {type(error) for found in results for error in found.errors}
    assert len(results) == 3 and kinds <= {errors.Busy}
    assert ids(over(vm, dest)) == ids(vm) and not verify_store(dest).is_bad


def test_ended_by_a_signal_or_a_limit(vm, dest, run, said):
    """Every point that exists is whole, and the next copy continues."""
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 24:
            raise errors.Interrupted(signal.SIGINT)

    with pytest.raises(errors.Interrupted):
        copy(Options(str(vm.root), str(dest)), check=check)
    there = ids(over(vm, dest))
    assert 0 < len(there) < 3 and there == ids(vm)[: len(there)] and not verify_store(dest).is_bad
    with mock.patch("nbdpull.core.deadline.time.monotonic", side_effect=range(0, 10**9, 10)):
        code, found, err = said("copy", vm.root, dest, "--max-duration", "5s")
    assert code == 12 and "the copy took longer than --max-duration (5 s)" in err
    assert copied(run("copy", vm.root, dest)[1]) == ids(vm)[len(there) :]
    assert not verify_store(dest).is_bad


def test_progress_reaches_its_total(vm, dest):
    reported = []
    found = copy(Options(str(vm.root), str(dest)), report=lambda **event: reported.append(event))
    points = [each for each in reported if each["event"] == "copied"]
    assert [(each["point"], each["copied_bytes"]) for each in points] == [(p, b) for p, _, b in found.domains[0].copied]
    moved = [each for each in reported if each["event"] == "progress"]
    assert moved[-1]["position"] == moved[-1]["size"] == sum(each["copied_bytes"] for each in points)
    assert [each["position"] for each in moved] == sorted(each["position"] for each in moved)


def test_a_rate(vm, dest, run):
    with mock.patch("nbdpull.operations.copy.Throttle") as throttle:
        assert run("copy", vm.root, dest, "--max-rate", "64M")[0] == 0
    assert throttle.call_args.args == (64 * MIB,)


def test_a_store_that_is_full(vm, tmp_path, said):
    """It fails with the error of the store; what was copied of the point is removed, and there is room for a
    removal."""
    with stores.small_disk(tmp_path / "disk", "260k") as disk:
        code, _, err = said("copy", vm.root, disk / "dest")
        assert code == 9 and "No space left on device" in err and err.count("\n") == 1
        other = over(vm, disk / "dest")
        assert len(ids(other)) < 3 and half_points.names(other.series) == []
        assert not verify_store(other.root).is_bad


def test_what_cannot_be_written_hides_no_other_domain(vm, dest, run):
    """Here, a directory is in the place of a file."""
    other = daily(vm.root, 1, "aaa", "00000000-4f53-4fa7-bb32-11f34168b82c")
    dest.mkdir()
    (dest / "nbdpull.json").write_bytes((vm.root / "nbdpull.json").read_bytes())
    (dest / "aaa" / other.points[0].id / "vda.0000.zst").mkdir(parents=True)
    code, found, err = run("copy", vm.root, dest)
    assert code == 9 and "vda.0000.zst" in of(found, "aaa")["problem"] and err.startswith("nbdpull: aaa: ")
    assert copied(found) == ids(vm) == ids(over(vm, dest))


def test_leftovers_of_a_copy_that_is_not_repeated(vm, dest, run):
    """It is removed after a day, as after a removal."""
    run("copy", vm.root, dest)
    other, name = over(vm, dest), "20200101T000000Z-00000000"
    half_points.set_apart(other.series, name)
    (other.folder / name / "vda.0000.zst").write_bytes(b"x")
    pull(vm)
    assert run("copy", vm.root, dest)[0] == 0 and (other.folder / name).exists()
    pull(vm)
    with mock.patch("nbdpull.storage.directory.time.time", return_value=10**11):
        assert run("copy", vm.root, dest)[0] == 0
    assert not (other.folder / name).exists() and ids(other) == ids(vm)


def test_a_later_point_is_not_left_out_as_an_older_one(vm, dest, run):
    """Its number is that of a removed point; a copy that left it out reported success."""
    run("copy", vm.root, dest)
    with half_points.writing(over(vm, dest).series):
        removal.remove(over(vm, dest).series, vm.points[1])
    number = vm.points[1].manifest.sequence
    while len(vm.points) > 1:
        shutil.rmtree(vm.folder / vm.points.pop().id)
    new = resealed(vm, pull(vm), sequence=number, created="2031-01-01T00:00:00+00:00")
    code, found, _ = run("copy", vm.root, dest)
    assert code == 10 and of(found)["older"] == [] and [each["point"] for each in of(found)["refused"]] == [new.id]
    code, found, _ = run("compare", vm.root, dest)
    assert code == 10 and new.id in of(found)["problem"] and not found["differs"]
    assert copied(run("copy", vm.root, dest, "--point", new.id)[1]) == [new.id]


# -- compare ----------------------------------------------------------------------------------------------------------


def test_what_each_store_has(tmp_path, dest, run, said):
    vm = daily(tmp_path / "dir", 4)
    code, _, err = said("compare", vm.root, dest)
    assert code == 10 and "no such directory" in err
    run("copy", vm.root, dest, "--keep-last", 2)
    with half_points.writing(vm.series):
        removal.remove(vm.series, vm.points[3])
    new = pull(vm)
    first, second, third, fourth = (point.id for point in vm.points[:4])
    code, found, _ = run("compare", vm.root, dest)
    assert code == 13 and found["differs"]
    assert [(each["id"], each["where"], each["behind"]) for each in of(found)["points"]] == [
        (first, "dir", False), (second, "dir", False), (third, "both", False), (fourth, "dest", False),
        (new.id, "dir", True),
    ]  # fmt: skip
    would = run("copy", vm.root, dest, "--dry-run")[1]
    assert of(found)["behind_points"] == 1 and of(found)["behind_bytes"] == of(would)["copied"][0]["copied_bytes"]
    code, out, _ = said("compare", vm.root, dest)
    assert code == 13 and f"{new.id}  only in DIR, to be copied\n" in out and f"{fourth}  only in DEST\n" in out
    assert "DEST is 1 point behind (" in out
    run("copy", vm.root, dest)
    code, found, _ = run("compare", vm.root, dest)
    assert code == 0 and not found["differs"], "what each store keeps is its own"
    assert of(found)["behind_bytes"] == 0 and "DEST is not behind\n" in said("compare", vm.root, dest)[1]


def test_the_name_of_a_domain_is_no_pattern_in_the_other_store(tmp_path, dest, run):
    """Only DIR has the domain: its name was taken for a pattern in DEST, and matched a domain of another name there."""
    vm = daily(tmp_path / "dir", 1, "vm[1]")
    daily(dest, 1, "vm1", "0d5e4ab1-22a1-4b4f-9d0c-0f6f1f2a7c11")
    code, found, _ = run("compare", vm.root, dest, "--domain", "vm[1]")
    assert code == 13 and [each["domain"] for each in found["domains"]] == ["vm[1]"]


def test_a_domain_that_only_the_copy_has(tmp_path, dest, run, said):
    vm = daily(tmp_path / "dir", 1)
    run("copy", vm.root, dest)
    daily(tmp_path / "dir", 1, "vm2", "00000000-4f53-4fa7-bb32-11f34168b82b")
    shutil.rmtree(vm.folder)
    code, found, _ = run("compare", tmp_path / "dir", dest)
    assert code == 13 and [each["where"] for each in of(found, "vm1")["points"]] == ["dest"]
    assert of(found, "vm2")["behind_points"] == 1
    code, found, _ = run("compare", tmp_path / "dir", dest, "--domain", "vm1")
    assert code == 0
    assert said("compare", tmp_path / "dir", dest, "--domain", "vm3")[0] == 10


def test_an_unknown_lag_is_not_reported_as_none(vm, dest, said, run):
    Vm(dest, "vm1", "00000000-4f53-4fa7-bb32-11f34168b82b").pull_zeros("vda", MIB)
    code, out, _ = said("compare", vm.root, dest)
    assert code == 10 and "not behind" not in out and "It is unknown whether DEST is behind\n" in out


@pytest.mark.parametrize("name", ["vda.directory", "domain.xml"])
def test_what_a_copy_would_refuse_is_not_behind(vm, dest, name, said, run):
    """Because a directory cannot be read, or because of recorded damage."""
    run("copy", vm.root, dest, "--point", vm.points[0].id)
    middle, last = vm.points[1:]
    path = vm.folder / middle.id / name
    path.write_bytes(flipped(path.read_bytes(), 30))
    assert run("verify", vm.root)[0] == 11
    code, found, err = run("compare", vm.root, dest)
    assert code == 11 and f"copy would refuse point {middle.id}: " in err
    assert [each["id"] for each in of(found)["points"] if each["behind"]] == [last.id]
    would = run("copy", vm.root, dest, "--dry-run")[1]
    assert copied(would) == [last.id] and of(would)["copied"][0]["copied_bytes"] == of(found)["behind_bytes"] > 0
    assert (
        "DEST is 1 point behind (" in (out := said("compare", vm.root, dest)[1]) and "to copy), and perhaps more" in out
    )
