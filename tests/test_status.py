"""Status: which points are sound, what is wrong with a domain, and what a monitor gets."""

import json
import os
import random
import shutil
import subprocess
from datetime import datetime, timedelta, timezone

import pytest
import schemas
from command import answered
from documents import PROJECT, blocks, section
from stores import KIB, Vm, damaged, files, flipped, resealed, restored, verify_store

from nbdpull.cli import main as cli
from nbdpull.core import errors
from nbdpull.format import findings, layout
from nbdpull.operations import status
from nbdpull.pulling import base
from nbdpull.repository import soundness

MANUAL = (PROJECT / "docs/nbdpull.1.md").read_text()
UUIDS = {"vm1": "3e3fce45-4f53-4fa7-bb32-11f34168b82b", "vm2": "0d5e4ab1-22a1-4b4f-9d0c-0f6f1f2a7c11"}


def ago(hours):
    return (datetime.now(timezone.utc) - timedelta(hours=hours)).isoformat(timespec="seconds")


def domain(root, name="vm1", hours=1, **how):
    vm = Vm(root, name, UUIDS[name])
    vm.add_disk("vda", 64 * KIB)
    vm.write("vda", 0, os.urandom(KIB))
    pull(vm, hours, **how)
    return vm


def pull(vm, hours=1, created=None, **how):
    """Make a point of that many hours ago."""
    vm.write("vda", KIB * len(vm.points), os.urandom(KIB))
    point = vm.pull(**how)
    vm.points[-1] = resealed(vm, point, as_of=ago(hours), created=ago(hours if created is None else created))
    return vm.points[-1]


def drill(vm, point, verdict, when=None):
    about = {**findings.entry(point), "verdict": verdict, "seconds": 1.0, "waited_for": "agent", "reason": ""}
    findings.record(vm.series, findings.DRILL, points=[about], **({"when": when} if when else {}))


def domains(root, **options):
    """Return {name: its description}."""
    found = status.status(status.Options(str(root), **options))
    assert found.is_bad == (not found.domains or any(each["problems"] for each in found.domains))
    assert len({each["domain"] for each in found.domains}) == len(found.domains)
    printed = {"time": found.time, "ok": not found.is_bad, "max_age": None, "domains": found.domains,
               "immutable": found.immutable}  # fmt: skip
    schemas.validator("status").validate(printed)
    return {each["domain"]: each for each in found.domains}


def problems(root, **options):
    return {name: each["problems"] for name, each in domains(root, **options).items()}


def run(capsys, *words):
    """Return (exit code, lines, standard error)."""
    code = cli.main(["status", *map(str, words)])
    out, err = capsys.readouterr()
    schemas.check_output(["status", *words], out)
    return code, out.splitlines(), err


# -- ages and expectations --------------------------------------------------------------------------------------------


def test_a_sound_point_for_each_domain(tmp_path, capsys):
    one, two = domain(tmp_path, "vm1", 3), domain(tmp_path, "vm2", 50)
    newest = pull(two, 2)
    verify_store(tmp_path, keep=True)
    drill(one, one.points[0], "ok", ago(72))
    code, lines, err = run(capsys, tmp_path, "--max-age", "26h")
    assert (code, err, lines[0]) == (0, "", "ok: 2 domains")
    rows = [line.split() for line in lines[3:]]
    assert [row[0] for row in rows] == ["vm1", "vm2"] and newest.id.startswith(rows[1][1])
    assert [row[2:] for row in rows] == [["3h", "no", "0m", "3d", "ok"], ["2h", "no", "0m", "-", "ok"]]
    about = domains(tmp_path)["vm2"]
    assert about["newest"].pop("age") == pytest.approx(7200, abs=60)
    assert about["newest"] == {"id": newest.id, "as_of": newest.manifest.as_of, "created": newest.manifest.created,
                              "consistency": "crash-consistent"}  # fmt: skip
    assert (about["verified"]["point"], about["verified"]["level"], about["points"]) == (newest.id, "frames", 2)


def test_the_json(tmp_path, capsys):
    domain(tmp_path, hours=30)
    code, lines, _ = run(capsys, tmp_path, "--json", "--max-age", "1d")
    result = json.loads("\n".join(lines))
    assert (code, result["ok"], result["max_age"], result["domains"][0]["problems"]) == (
        15,
        False,
        86400.0,
        ["too-old"],
    )


def test_too_old(tmp_path, capsys):
    domain(tmp_path, hours=27)
    assert problems(tmp_path) == {"vm1": []}
    assert problems(tmp_path, max_age=28 * 3600.0) == {"vm1": []}
    assert problems(tmp_path, max_age=26 * 3600.0) == {"vm1": ["too-old"]}
    code, lines, _ = run(capsys, tmp_path, "--max-age", "26h")
    assert code == 15 and lines[0] == "not ok: 1 of 1 domain: vm1" and "more than 26h ago" in lines[-1]


def test_an_age_in_seconds_is_shown_in_seconds(tmp_path, capsys):
    domain(tmp_path, hours=400)
    assert run(capsys, tmp_path, "--max-age", "1234567s")[1][-1].endswith("more than 1234567s ago")


def test_a_point_is_as_old_as_what_its_disks_hold(tmp_path):
    """A resumed run has the state of the time when it began."""
    domain(tmp_path, hours=30, created=1)
    assert problems(tmp_path, max_age=26 * 3600.0) == {"vm1": ["too-old"]}


def test_a_domain_that_is_expected_and_has_no_point(tmp_path, capsys):
    domain(tmp_path)
    path = tmp_path.parent / f"{tmp_path.name}.expected"
    path.write_text("# ours\nvm1\n\n  web one \nvm1\n")
    code, lines, _ = run(capsys, tmp_path, "--expect", path)
    assert code == 15 and lines[0] == "not ok: 1 of 2 domains: web one"
    assert lines[-1] == "web one: it has no point here" and "NO POINT" in lines[4]


def test_an_unexpected_domain_may_be_old_but_not_damaged(tmp_path):
    vm = domain(tmp_path, "vm1", 900)
    two = domain(tmp_path, "vm2", 900)
    asked = {"expect": [UUIDS["vm2"].upper()], "max_age": 3600.0}
    assert problems(tmp_path, **asked) == {"vm1": [], "vm2": ["too-old"]}
    assert [each["expected"] for each in domains(tmp_path, **asked).values()] == [False, True]
    assert [each["expected"] for each in domains(tmp_path).values()] == [None, None]
    for each in (vm, two):
        path = next(path for path in files(each.folder) if path.suffix == ".zst")
        path.write_bytes(flipped(path.read_bytes(), 20))
    verify_store(tmp_path, keep=True)
    assert problems(tmp_path, **asked) == {"vm1": ["none-sound", "damaged"], "vm2": ["none-sound", "damaged"]}


def test_the_name_before_a_renaming_has_no_backup(tmp_path):
    """Another domain may have that name by now, and no backup."""
    vm = domain(tmp_path)
    vm.points[-1] = resealed(vm, vm.points[-1], domain="web")
    assert problems(tmp_path, expect=["vm1"]) == {"vm1": ["no-point"], "web": []}
    assert problems(tmp_path, expect=["web"]) == {"web": []}


def test_a_pattern(tmp_path, capsys):
    domain(tmp_path, "vm1")
    domain(tmp_path, "vm2")
    assert list(domains(tmp_path, domain="vm*")) == ["vm1", "vm2"]
    assert list(domains(tmp_path, domain="*2")) == ["vm2"] == list(domains(tmp_path, domain=UUIDS["vm2"]))
    assert problems(tmp_path, domain="web*", expect=["vm1", "web1"]) == {"web1": ["no-point"]}
    code, lines, err = run(capsys, tmp_path, "--domain", "web*")
    assert (code, lines) == (10, []) and "no domain web*" in err and "it has: vm1, vm2" in err


@pytest.mark.parametrize("content", [None, b"", b"# vm1\n\n", b"\xff\xfe\n"])
def test_a_file_that_expects_nothing(tmp_path, capsys, content):
    domain(tmp_path / "store")
    if content is not None:
        (tmp_path / "names").write_bytes(content)
    code, lines, err = run(capsys, tmp_path / "store", "--expect", tmp_path / "names")
    assert (code, lines) == (2, []) and str(tmp_path / "names") in err and len(err.splitlines()) == 1


def test_a_clock_that_was_wrong(tmp_path, capsys):
    vm = domain(tmp_path, hours=-1000)
    assert problems(tmp_path, max_age=3600.0) == {"vm1": ["future"]}
    assert domains(tmp_path)["vm1"]["newest"]["age"] < -900 * 3600
    last = pull(vm, 0.5)
    code, lines, err = run(capsys, tmp_path, "--max-age", "1h")
    assert code == 0 and "points of vm1 are from the future" in err and last.id.startswith(lines[3].split()[1])
    pull(vm, -1 / 60)
    assert problems(tmp_path, max_age=3600.0) == {"vm1": []}, "two clocks are never the same"


# -- what is not sound ------------------------------------------------------------------------------------------------


def test_damage_until_it_is_repaired(tmp_path, capsys):
    vm = domain(tmp_path, hours=9)
    pull(vm, 8)
    last = pull(vm, 7)
    path = vm.folder / vm.points[1].id / layout.chunk_name("vda", 0)
    with damaged(path, flipped(path.read_bytes(), 20)):
        assert problems(tmp_path) == {"vm1": []}, "nobody has seen it"
        verify_store(tmp_path, keep=True)
        about = domains(tmp_path, max_age=8.5 * 3600)["vm1"]
        assert about["damaged"] == [vm.points[1].id, last.id] and about["newest"]["id"] == vm.points[0].id
        assert about["problems"] == ["damaged", "too-old"] and about["verified"]["point"] == vm.points[0].id
        code, lines, _ = run(capsys, tmp_path)
        assert code == 15 and "DAMAGED" in lines[3] and last.id in lines[-1]
    verify_store(tmp_path, keep=True)
    about = domains(tmp_path)["vm1"]
    assert (about["problems"], about["damaged"], about["newest"]["id"]) == ([], [], last.id)


def test_a_partial_point_is_never_sound(tmp_path):
    vm = domain(tmp_path, since="elsewhere")
    verify_store(tmp_path, keep=True)
    about = domains(tmp_path)["vm1"]
    assert (about["problems"], about["newest"], about["verified"]) == (["none-sound"], None, None)
    whole = pull(vm, 5, since="nothing")
    pull(vm, 1, since="elsewhere")
    assert domains(tmp_path)["vm1"]["newest"]["id"] == whole.id


def test_a_point_of_a_later_version_is_not_sound(tmp_path):
    """Those after it are."""
    vm = domain(tmp_path)
    for _ in range(3):
        pull(vm)
    path = vm.folder / vm.points[1].id / layout.MANIFEST
    path.write_bytes(layout.seal({"format": layout.FORMAT, "requires": ["tomorrow"]}))
    found = soundness.of_series(vm.series)
    sound = [point.id for number, point in enumerate(vm.points) if number != 1]
    assert [point.id for point in found.sound] == sound and found.damaged == []
    assert problems(tmp_path) == {"vm1": ["unreadable"]}


def test_the_last_drill_counts(tmp_path, capsys):
    vm = domain(tmp_path, hours=5)
    pull(vm)
    drill(vm, vm.points[0], "ok", ago(1))
    drill(vm, vm.points[1], "failed", ago(2))
    assert problems(tmp_path) == {"vm1": []}
    drill(vm, vm.points[1], "failed")
    code, lines, _ = run(capsys, tmp_path)
    assert code == 15 and lines[3].split()[-3:] == ["FAILED", "DRILL", "FAILED"]
    assert domains(tmp_path)["vm1"]["newest"]["id"] == vm.points[1].id, "its bytes are as they were"


@pytest.mark.parametrize("seed", range(3))
def test_what_is_sound_is_what_can_be_restored(tmp_path, seed):
    """After a verification of everything, confirmed by a restore of every point."""
    rng = random.Random(seed)
    vm = domain(tmp_path / "store", since=rng.choice(["nothing", "elsewhere"]))
    for _ in range(5):
        pull(vm, since=rng.choice(["last", "last", "last", "nothing", "elsewhere"]))
    spoilt = [path for path in files(vm.folder) if path.suffix in (".zst", ".index", ".json")]
    for path in rng.sample(spoilt, rng.choice([0, 1, 1, 2])):
        path.unlink() if rng.random() < 0.3 else path.write_bytes(flipped(path.read_bytes(), 20))
    verify_store(vm.root, keep=True)
    left = [point for point in vm.points if (vm.folder / point.id / layout.MANIFEST).exists()]
    whole = [point.id for point in left if restored(vm, point, tmp_path / "out")]
    assert [point.id for point in soundness.of_series(vm.series).sound] == whole


# -- what cannot be read ----------------------------------------------------------------------------------------------


def test_a_point_that_cannot_be_read_hides_no_other(tmp_path, capsys):
    domain(tmp_path, "vm1")
    two = domain(tmp_path, "vm2")
    path = two.folder / two.points[0].id / layout.MANIFEST
    with damaged(path, b"{"):
        assert problems(tmp_path) == {"vm1": [], "vm2": ["unreadable", "none-sound"]}
        code, lines, _ = run(capsys, tmp_path, "--max-age", "2h")
        assert code == 15 and "vm1" in lines[3] and lines[3].endswith("ok") and str(path) in lines[-2]


def test_a_record_of_damage_that_cannot_be_read_is_no_soundness(tmp_path, capsys):
    """The point looked sound to everyone, and prune counted on it."""
    vm = domain(tmp_path)
    vm.write("vda", 0, b"more")
    vm.pull()
    path = next(path for path in files(vm.folder / vm.points[0].id) if path.suffix == ".zst")
    path.write_bytes(flipped(path.read_bytes(), 20))
    verify_store(tmp_path, keep=True)
    [record] = vm.folder.glob("*.verify.json")
    record.write_bytes(flipped(record.read_bytes(), 20))
    assert problems(tmp_path) == {"vm1": ["unreadable"]}
    for words, code in (
        (["status"], 15),
        (["list"], 0),
        (["prune", "--keep-last", "1", "--force"], 10),
        (["verify"], 11),
    ):
        found, out, err = answered(capsys, words[0], tmp_path, *words[1:])
        assert found == code and f"{record} cannot be read, and may record that a point is damaged" in out + err, words
    assert len(vm.series.points()) == 2
    pull = base.Proof(vm.series, lambda: None)
    pull.looked_through(base.Base(None, vm.points[1]))
    assert f"{record} cannot be read" in pull.warnings[0]
    record.unlink()
    assert problems(tmp_path) == {"vm1": ["none-sound", "damaged"]}


def test_a_folder_that_may_not_be_read_hides_no_other(tmp_path, monkeypatch):
    """Nor a copy of what is in it."""
    domain(tmp_path, "vm1")
    two = domain(tmp_path, "vm2")
    folders = type(two.store).folders

    def fails(store, path=""):
        if path == "vm2":
            raise errors.StoreError(f"cannot read {path}: Permission denied")
        return folders(store, path)

    monkeypatch.setattr(type(two.store), "folders", fails)
    assert problems(tmp_path) == {"vm1": [], "vm2": ["unreadable", "none-sound"]}
    shutil.copytree(two.folder, tmp_path / "vm2-copy")
    about = status.status(status.Options(str(tmp_path))).domains
    assert [(each["domain"], each["problems"]) for each in about] == [
        ("vm1", []), ("vm2", ["unreadable", "none-sound"]), ("vm2", []),
    ]  # fmt: skip


def test_a_store_without_points_is_not_ok(tmp_path, capsys):
    vm = Vm(tmp_path)
    assert run(capsys, tmp_path)[:2] == (15, ["not ok: the store has no points"])
    vm.store.make_folder("vm1")
    (tmp_path / "lost+found").mkdir()
    assert run(capsys, tmp_path)[:2] == (15, ["not ok: the store has no points"])
    vm.store.make_folder(f"vm1/{layout.new_point_id()}")
    assert problems(tmp_path) == {"vm1": ["no-point"]}, "of a pull that failed"
    assert run(capsys, tmp_path / "nowhere")[0] == 10


def test_a_copy_of_a_series_is_left_out(tmp_path, capsys):
    vm = domain(tmp_path, hours=900)
    shutil.copytree(vm.folder, tmp_path / "vm1-before")
    pull(vm)
    code, lines, err = run(capsys, tmp_path, "--max-age", "2h")
    assert code == 0 and lines[0] == "ok: 1 domain" and "vm1-before holds points of domain vm1" in err


# -- how it is shown --------------------------------------------------------------------------------------------------


def test_a_long_name_is_cut_only_in_the_table(tmp_path, capsys):
    long = "a-name-that-somebody-generated-" * 3
    domain(tmp_path)
    code, lines, _ = run(capsys, tmp_path, "--expect", write(tmp_path, "vm1", long))
    assert code == 15 and max(map(len, lines[:5])) <= 80 and "..." in lines[3] and lines[-1].startswith(f"{long}: ")


def write(folder, *names):
    path = folder.parent / f"{folder.name}.names"
    path.write_text("\n".join(names))
    return path


def test_the_line_for_a_monitor():
    """The command in the manual turns 0 into OK, 15 into CRITICAL, and the others into UNKNOWN."""
    [line] = [block for block in blocks(section(MANUAL, "status"), "sh") if "case" in block]
    for code, shown in ((0, 0), (errors.NotOk.exit_code, 2), (errors.StoreError.exit_code, 3), (130, 3)):
        program = f"nbdpull() {{ return {code}; }}\n{line}"
        assert subprocess.run(["bash", "-c", program]).returncode == shown
