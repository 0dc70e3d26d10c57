"""Verdicts: a damage stays recorded until its place was checked again, for every point that refers to the file.

The damages are real, the verifications run on the command line, and the results are what programs read.
"""

import json
import os
import random
import time
from dataclasses import replace

import numpy
import pytest
from stores import (
    KIB,
    SEVERAL,
    Vm,
    chain,
    chunks_of,
    damaged,
    directory_of,
    files,
    flipped,
    forged_store,
    index_of,
    records_of,
    replaced,
    resealed,
    verify_store,
)

from nbdpull.cli import main as cli
from nbdpull.core import errors
from nbdpull.format import findings, layout, ledger, pages
from nbdpull.operations import listing
from nbdpull.repository import evidence, verdict
from nbdpull.repository.part import Part

pytestmark = pytest.mark.usefixtures("no_threads")


def run(capsys, *words):
    """Return (exit code, result object) of a verify."""
    code = cli.main(["verify", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def verified(vm):
    """Return what list reports of each point, in order; None for one that was not checked."""
    return [point["verified"] for point in listing.listing(listing.Options(str(vm.root))).points]


def words(vm):
    return [each and each["verdict"] for each in verified(vm)]


def largest_chunk(vm, point, disk="vda"):
    """Return the largest chunk file that the pull of the point made."""
    return max((vm.folder / point.id).glob(f"{disk}.*.zst"), key=lambda path: path.stat().st_size)


def referring(vm, path):
    """Return for each point whether it refers to the file at that path; the store is sound."""
    return [str(path.relative_to(vm.folder)) in paths_of(vm, point) for point in vm.points]


def paths_of(vm, point):
    shared = [entry for disk in point.disks for entry in directory_of(vm, point, disk).files]
    return {entry.path for entry in [*point.manifest.all_files(), *shared]}


def damaged_if(flags):
    return ["damaged" if flag else "ok" for flag in flags]


def flip(path):
    """Flip a bit in the middle of a file; return its former bytes."""
    before = path.read_bytes()
    path.write_bytes(flipped(before, len(before) // 2))
    return before


# -- a damage stays on record -----------------------------------------------------------------------------------------

PARTS = [["--sample", "1%"], ["--quick", "--sample", "0.001%"], *(["--shard", f"{i}/3"] for i in (1, 2, 3))]


@pytest.mark.parametrize("part", PARTS, ids=" ".join)
def test_a_partial_verify_wipes_a_known_damage(vm, capsys, part):
    flip(largest_chunk(vm, vm.points[0]))
    assert run(capsys, vm.root)[0] == 11
    assert words(vm) == ["damaged"] * 3
    for _ in range(2):
        code, result = run(capsys, vm.root, *part)
        assert code == 11 and result["damages"], "it looks again where a damage is known"
        assert words(vm) == ["damaged"] * 3


@pytest.mark.parametrize("how", [[], ["--quick"], *PARTS], ids=" ".join)
def test_a_mended_file_is_recognized_by_every_pass_that_reads_it(vm, capsys, how):
    path = largest_chunk(vm, vm.points[0])
    before = flip(path)
    assert run(capsys, vm.root)[0] == 11
    path.write_bytes(before)
    assert run(capsys, vm.root, "--point", vm.points[0].id, *how)[0] == 0
    assert words(vm) == ["ok", "damaged", "damaged"], "all the rest of the first was looked at by the first pass"
    assert run(capsys, vm.root, *how)[0] == 0
    assert words(vm) == ["ok"] * 3


def test_damage_of_an_unchecked_point_is_kept(vm, capsys):
    path = largest_chunk(vm, vm.points[2])
    before = flip(path)
    assert run(capsys, vm.root)[0] == 11
    path.write_bytes(before)
    assert run(capsys, vm.root, "--point", vm.points[1].id)[0] == 0
    code, result = run(capsys, vm.root, "--max-duration", "0.000001s")
    assert code == 11 and result["damages"] == [] and result["complete"] is False
    assert {each["point"]: each["verdict"] for each in result["verdicts"]}[vm.points[2].id] == "damaged"
    assert cli.main(["verify", str(vm.root), "--max-duration", "0.000001s"]) == 11
    assert f"DAMAGED {vm.points[2].id}: refers to damaged data" in capsys.readouterr().out
    assert words(vm) == ["ok", "ok", "damaged"]


def test_a_frame_that_only_its_digest_reveals(tmp_path, capsys):
    """The files are what the manifest says, but a frame is not what the index says: a quick run would not notice it."""
    vm, point = forged_store(tmp_path / "store")
    assert run(capsys, vm.root, "--quick")[0] == 0 and words(vm) == ["ok"]
    code, result = run(capsys, vm.root)
    [chunk] = chunks_of(vm, point, "vda")
    assert code == 11 and [damage["path"] for damage in result["damages"]] == [chunk.path] * 2
    for how in (["--quick"], ["--sample", "0.001%"], ["--shard", "1/50"]):
        code, result = run(capsys, vm.root, *how)
        assert code == 11 and {d["offset"] for d in result["damages"]} == {40 * 64 * KIB, 41 * 64 * KIB}, how
        assert words(vm) == ["damaged"]


def test_recorded_damage_of_unreadable_frames_is_kept(tmp_path, capsys):
    """Their index broke, too: repairing that does not repair them."""
    vm, point = forged_store(tmp_path / "store")
    assert run(capsys, vm.root)[0] == 11
    with damaged(index_of(vm, point, "vda"), b""):
        assert run(capsys, vm.root)[0] == 11
    code, result = run(capsys, vm.root, "--sample", "0.001%")
    assert code == 11 and len(result["damages"]) == 2 and words(vm) == ["damaged"]


def test_files_of_an_unread_directory_count_as_unchecked(vm, capsys):
    """The run reported only the directory; once that was repaired, the point counted as checked, and could not be
    restored."""
    point = vm.points[1]
    directory, chunk = vm.folder / point.manifest.disk("vda").directory.path, largest_chunk(vm, point)
    others = damaged_if([point.id != each.id and refers for each, refers in zip(vm.points, referring(vm, chunk))])
    flip(chunk)
    with damaged(directory, flipped(directory.read_bytes(), 30)):
        for _ in range(2):
            assert run(capsys, vm.root)[0] == 11
            assert verified(vm)[1]["damages"] == 1, "a place that was checked again is reported once"
    run(capsys, vm.root, "--shard", "1/1000000")
    assert words(vm)[1] != "ok" and words(vm)[2] == others[2]
    assert verified(vm)[1]["covered"] == {"files": None, "frames": None}
    assert run(capsys, vm.root, "--oldest")[0] == 11 and words(vm)[1] == "damaged"


@pytest.mark.parametrize("how", [[], ["--shard", "1/1000000"], ["--oldest"]], ids=" ".join)
def test_damage_hidden_by_an_unread_directory_is_kept(vm, capsys, how):
    """Its digest was not checked: no directory names the file for that point."""
    point = vm.points[1]
    directory, chunk = vm.folder / point.manifest.disk("vda").directory.path, largest_chunk(vm, point)
    before = flip(chunk)
    assert run(capsys, vm.root)[0] == 11
    chunk.write_bytes(before)
    with damaged(directory, b""):
        for _ in range(2):
            count = len([*vm.folder.glob("*.verify.json")])
            assert run(capsys, vm.root, *how)[0] == 11
        assert how != ["--oldest"] or len([*vm.folder.glob("*.verify.json")]) == count, "nothing new, nothing kept"
    assert {place["path"] for each in recorded_of(vm, point) for place in each.places} == {
        str(path.relative_to(vm.folder)) for path in (directory, chunk)
    }
    assert words(vm) == ["damaged" if each.id == point.id else "ok" for each in vm.points]
    assert run(capsys, vm.root, "--shard", "1/1000000")[0] == 0 and words(vm) == ["ok"] * 3


def recorded_of(vm, point):
    points, _ = vm.series.load()
    return verdict.Known(points, findings.load(vm.series)).recorded(point)


def test_a_lost_index_that_was_made_again(vm, capsys):
    index = index_of(vm, vm.points[1], "vda")
    bad = damaged_if(referring(vm, index))
    assert bad[:2] == ["ok", "damaged"]
    index.unlink()
    assert run(capsys, vm.root)[0] == 11 and words(vm) == bad
    assert cli.main(["index", "--rebuild", str(vm.root), vm.points[1].id, "vda"]) == 0
    assert capsys.readouterr().out == f"{index}\n"
    assert words(vm) == bad, "nobody has looked yet"
    assert run(capsys, vm.root, "--sample", "1%")[0] == 0
    assert words(vm) == ["partial" if word == "damaged" else "ok" for word in bad], "nobody has seen all frames"
    assert run(capsys, vm.root)[0] == 0 and words(vm) == ["ok"] * 3


def test_frames_hidden_by_an_unread_index_count_as_unchecked(tmp_path, capsys):
    """The run reported only the index; once that was repaired, the point counted as checked, and could not be
    restored."""
    vm, point = forged_store(tmp_path / "store")
    with damaged(index_of(vm, point, "vda"), b""):
        assert run(capsys, vm.root)[0] == 11
    assert run(capsys, vm.root, "--shard", "1/1000000")[0] == 0
    assert words(vm) == ["partial"] and verified(vm)[0]["covered"] == {"files": None, "frames": None}
    assert run(capsys, vm.root)[0] == 11 and words(vm) == ["damaged"]


def test_more_damages_than_a_finding_lists(tmp_path, capsys, monkeypatch):
    """Then a partial run cannot check all of them again, and does not clear what it did not check."""
    vm, point = forged_store(tmp_path / "store")
    monkeypatch.setattr(evidence, "MAX_PLACES", 1)
    assert run(capsys, vm.root)[0] == 11
    chunk = vm.folder / chunks_of(vm, point, "vda")[0].path
    data = bytearray(chunk.read_bytes())
    (a, b), size = (
        records_of(vm, point, "vda")["position"][[40, 41]].tolist(),
        int(records_of(vm, point, "vda")["stored"][40]),
    )
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    with damaged(chunk, bytes(data)):
        for how in (["--sample", "50%"], ["--shard", "1/2"], ["--quick"]):
            run(capsys, vm.root, *how)
            assert words(vm) == ["damaged"], how
    assert verified(vm)[0]["damages"] == 3  # two frames, and the sum of the file


def test_a_finding_of_an_earlier_version(vm, capsys):
    """It has the number of damages, but not their places: a run over everything, at least as deep, settles it."""
    about = [{**findings.entry(point), "verdict": "damaged", "damages": 2} for point in vm.points[:1]]
    findings.record(vm.series, findings.VERIFY, **findings.now(), level="frames", points=about)
    assert words(vm) == ["damaged", None, None]
    for how in (["--quick"], ["--sample", "99%"], ["--shard", "1/2"]):
        assert run(capsys, vm.root, *how)[0] == 11, "by what is on record"
    assert words(vm) == ["damaged", "ok", "ok"]
    assert run(capsys, vm.root)[0] == 0 and words(vm) == ["ok"] * 3


def test_two_verifications_at_once(vm, capsys):
    """One that began before a damage was found has not checked it since, whichever ends first."""
    early = evidence.Evidence(vm.series, "frames", Part())
    looks = [early.look(point) for point in vm.points]
    flip(largest_chunk(vm, vm.points[0]))
    assert run(capsys, vm.root)[0] == 11
    for look in looks:
        look.ended = True
    findings.record(vm.series, findings.VERIFY, **early.conclude(set()))
    assert words(vm) == ["damaged"] * 3


@pytest.mark.parametrize("end", ["signal", "time"])
def test_a_damage_that_was_seen_before_the_end(vm, monkeypatch, end):
    """Even if the run ends in the middle of a point, what it has found there is recorded."""
    flip(largest_chunk(vm, vm.points[0]))
    seen = []

    def report(event, **_):
        seen.append(event)

    def check():
        if "damage" in seen and end == "signal":
            raise errors.Interrupted(15)

    if end == "signal":
        with pytest.raises(errors.Interrupted):
            verify_store(vm.root, report=report, check=check, keep=True)
    else:
        clock = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 1000 * ("damage" in seen))
        assert not verify_store(vm.root, report=report, max_duration=500, keep=True).complete
    monkeypatch.undo()
    assert words(vm) == ["damaged"] * 3
    assert verified(vm)[0]["covered"] == {"files": None, "frames": None}, "it did not come to its end"


def test_a_finding_that_cannot_be_read(vm, capsys):
    """It may have reported a damage."""
    run(capsys, vm.root)
    (path,) = vm.folder.glob("*.verify.json")
    path.write_bytes(flipped(path.read_bytes(), 300))
    code, result = run(capsys, vm.root, "--no-record")
    assert code == 0 and [text for text in result["warnings"] if str(path) in text] == result["warnings"] != []
    path.unlink()
    assert run(capsys, vm.root)[1]["warnings"] == []


# -- what was looked at -----------------------------------------------------------------------------------------------


def test_a_part_is_never_a_clean_verdict_of_the_whole(vm, capsys):
    for how in (["--sample", "60%"], ["--shard", "1/2"]):
        assert run(capsys, vm.root, *how)[0] == 0
        assert words(vm) == ["partial"] * 3
    assert verified(vm)[0]["last"]["shard"] == [1, 2]
    for verb in (["list", str(vm.root)], ["show", str(vm.root), "latest"]):
        assert cli.main(verb) == 0 and " part\n" in f"{capsys.readouterr().out}\n".replace(" part  ", " part\n")
    recorded = [about["verdict"] for document in findings.load(vm.series) for about in document["points"]]
    assert set(recorded) == {"partial"}


def test_all_shards_together_are_everything(vm, capsys):
    """As of the oldest of them."""
    for number in (2, 1, 3):
        assert words(vm) == ([None] * 3 if number == 2 else ["partial"] * 3)
        assert run(capsys, vm.root, "--shard", f"{number}/3")[0] == 0
    oldest = findings.load(vm.series)[0]
    assert oldest["shard"] == [2, 3]
    assert [each["when"] for each in verified(vm)] == [oldest["when"]] * 3 and words(vm) == ["ok"] * 3
    assert verified(vm)[0]["covered"] == {"files": oldest["when"], "frames": oldest["when"]}
    run(capsys, vm.root, "--shard", "2/3")
    assert verified(vm)[0]["when"] == findings.load(vm.series)[1]["when"], "now another one is the oldest"


def test_impossible_shards(vm):
    about = [{**findings.entry(point), "verdict": "ok", "damages": 0} for point in vm.points]
    for shard in ([0, 2], [1, 2], [3, 2]):
        findings.record(vm.series, findings.VERIFY, **findings.now(), level="frames", shard=shard, points=about)
    assert words(vm) == ["partial"] * 3


def test_a_later_part_leaves_the_date_of_the_whole(vm, capsys):
    run(capsys, vm.root)
    run(capsys, vm.root, "--quick")
    run(capsys, vm.root, "--sample", "5%")
    whole, quick, part = findings.load(vm.series)
    for each in verified(vm):
        assert (each["verdict"], each["when"], each["level"]) == ("ok", quick["when"], "files")
        assert each["covered"] == {"files": quick["when"], "frames": whole["when"]}
        assert (each["last"]["when"], each["last"]["sample"]) == (part["when"], 0.05)


def test_a_verdict_is_as_old_as_the_check_of_its_point(vm, capsys):
    """Whatever was checked for others since."""
    run(capsys, vm.root, "--point", vm.points[0].id)
    assert words(vm) == ["ok", None, None]
    run(capsys, vm.root, "--point", vm.points[2].id)
    first, second = findings.load(vm.series)
    assert [each and each["when"] for each in verified(vm)] == [first["when"], None, second["when"]]


# -- what several points refer to -------------------------------------------------------------------------------------


def test_damage_counts_for_every_point_that_refers_to_it_and_is_reported_once(vm, capsys):
    path = largest_chunk(vm, vm.points[1])
    bad, ids = damaged_if(referring(vm, path)), [point.id for point in vm.points]
    assert bad[:2] == ["ok", "damaged"]
    flip(path)
    code, result = run(capsys, vm.root)
    assert code == 11 and not result["ok"]
    assert {damage["point"] for damage in result["damages"]} == {ids[1]}
    assert len([damage for damage in result["damages"] if damage["offset"] is None]) == 1
    assert [(each["point"], each["verdict"]) for each in result["verdicts"]] == [*zip(ids, bad)]
    (document,) = findings.load(vm.series)
    assert [about["verdict"] for about in document["points"]] == bad
    entries = [[place["path"] for place in about.get("places", [])] for about in document["points"]]
    name = str(path.relative_to(vm.folder))
    assert entries == [[name] if word == "damaged" else [] for word in bad]
    assert cli.main(["verify", str(vm.root), "--no-record"]) == 11
    out = capsys.readouterr().out
    assert out.count(f"DAMAGE {ids[1]} vda: {path}: the file is damaged") == 1
    assert (f"DAMAGED {ids[2]}: refers to damaged data, found at " in out) is (bad[2] == "damaged")
    cli.main(["list", str(vm.root), "--wide"])
    rows = [line for line in capsys.readouterr().out.splitlines() if any(name in line for name in ids)]
    assert ["DAMAGED" in row for row in rows] == [word == "damaged" for word in bad]


def test_damage_spreads_from_the_only_point_that_was_checked(vm, capsys):
    """It is settled for all once all were checked."""
    path = largest_chunk(vm, vm.points[0])
    assert referring(vm, path) == [True] * 3
    before = flip(path)
    assert run(capsys, vm.root, "--point", vm.points[1].id)[0] == 11
    assert words(vm) == ["damaged"] * 3
    assert [each["covered"]["files"] is None for each in verified(vm)] == [True, False, True], "it was not looked at"
    path.write_bytes(before)
    for number, point in enumerate(vm.points):
        assert run(capsys, vm.root, "--point", point.id)[0] == 0
        assert words(vm) == ["ok"] * (number + 1) + ["damaged"] * (2 - number)


def test_damage_spreads_to_a_point_that_was_checked_without_it(vm, capsys):
    """A partial run leaves the file out, except for the point for which damage is recorded."""
    path = largest_chunk(vm, vm.points[0])
    name = str(path.relative_to(vm.folder))
    flip(path)
    place = {"disk": "vda", "path": name, "problem": "it was"}
    about = [{**findings.entry(vm.points[2]), "verdict": "damaged", "damages": 1, "places": [place]}]
    findings.record(vm.series, findings.VERIFY, **findings.now(), level="frames", points=about)
    assert words(vm) == [None, None, "damaged"]
    assert run(capsys, vm.root, "--sample", "0.000001%")[0] == 11
    assert words(vm) == ["damaged"] * 3


def test_a_bad_frame_spreads_to_those_that_show_it(tmp_path, capsys):
    """Its file has the right digest: points that refer to it for other frames are ok."""
    vm, first = forged_store(tmp_path / "store")
    vm.points = [first]
    kept = vm.pull()
    assert run(capsys, vm.root, "--point", first.id)[0] == 11
    assert words(vm) == ["damaged"] * 2
    vm.write("vda", 40 * 64 * KIB, bytes(2 * 64 * KIB))
    other = vm.pull()
    assert run(capsys, vm.root, "--point", kept.id)[0] == 11
    assert [chunk.path for chunk in chunks_of(vm, other, "vda")][0] == chunks_of(vm, first, "vda")[0].path
    assert words(vm) == ["damaged", "damaged", None]
    code, result = run(capsys, vm.root)
    assert code == 11 and words(vm) == ["damaged", "damaged", "ok"]
    assert [(damage["point"], damage["offset"]) for damage in result["damages"]] == [
        (first.id, 40 * 64 * KIB), (first.id, 41 * 64 * KIB)
    ]  # fmt: skip


def test_what_is_read_in_full_does_not_need_what_was_before(tmp_path, capsys):
    vm = Vm(tmp_path / "store")
    for disk in ("vda", "vdb"):
        vm.add_disk(disk, 300 * KIB)
        vm.write(disk, 0, os.urandom(200 * KIB))
    first = vm.pull()
    last = vm.pull("nothing")
    second = vm.pull()  # of the point in full
    flip(largest_chunk(vm, first, "vdb"))
    assert run(capsys, vm.root)[0] == 11
    assert words(vm) == ["damaged", "ok", "ok"]
    known = verdict.Known(vm.points, findings.load(vm.series))
    assert known.damaged_files(first, "vda") == frozenset()
    assert known.damaged_files(first, "vdb") == {largest_chunk(vm, first, "vdb").relative_to(vm.folder).as_posix()}
    assert not any(known.damaged_files(point, disk) for point in (last, second) for disk in ("vda", "vdb"))


@pytest.mark.parametrize("place, expected", [
    ({"disk": "vda", "path": "P/vda.0000.zst", "offset": 512, "length": 512}, {"P/vda.0000.zst"}),
    ({"disk": None, "path": "P/vda.0000.zst"}, {"P/vda.0000.zst"}),
    ({"disk": "vdb", "path": "P/vdb.0000.zst"}, set()),
    ({"disk": "vda", "offset": 0, "length": 512}, None),
    ({"disk": "vda"}, None),
    (None, None),
])  # fmt: skip
def test_files_of_recorded_damage(place, expected):
    places = None if place is None else [{"problem": "", **place}]
    assert verdict.Recorded("id", "when", "files", 1, places).files("vda") == expected


def test_a_window_that_leads_nowhere_belongs_to_no_file_and_is_not_built_on(vm, capsys):
    """All files are what was stored, but the directory lacks one of them: a pull finds nothing to leave out."""
    [point, *_] = vm.points
    found, entry = directory_of(vm, point, "vda"), point.manifest.disk("vda")
    keep = [not layout.CHUNK_PATH.match(each.path) for each in found.files]
    refs = found.pages.copy()
    refs["file"] = numpy.cumsum(keep)[refs["file"]] - 1
    files = [each for each, is_kept in zip(found.files, keep) if is_kept]
    encoded = pages.encode_directory(pages.Directory(files, found.live[numpy.array(keep)], refs))
    written = replaced(vm, entry.directory.path, pages.compressed(encoded))
    point = resealed(vm, point, disks=[replace(entry, directory=written)])
    assert run(capsys, vm.root)[0] == 11
    [recorded] = verdict.Known([point], findings.load(vm.series)).recorded(point)
    assert [(place["path"], place["offset"]) for place in recorded.places] == [(None, 0)]
    assert verdict.Known([point], findings.load(vm.series)).damaged_files(point, "vda") is None


def test_a_damaged_file_of_the_domain(vm, tmp_path, capsys):
    """A restore of that point checks it, too; other points are not affected."""
    (vm.folder / vm.points[0].id / "domain.xml").write_bytes(b"x")
    assert run(capsys, vm.root)[0] == 11 and words(vm) == ["damaged", "ok", "ok"]
    assert cli.main(["restore", str(vm.root), "-o", str(tmp_path / "out"), "--point", vm.points[0].id]) == 11
    assert cli.main(["restore", str(vm.root), "-o", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("what", [None, b"", layout.seal({"format": "nbdpull/3", "requires": []})],
                         ids=["gone", "unreadable", "later"])  # fmt: skip
def test_the_loss_of_a_parent_hurts_no_other_point(vm, capsys, what):
    verify_store(vm.root, keep=True)
    manifest = vm.folder / vm.points[0].id / "manifest.json"
    manifest.unlink() if what is None else manifest.write_bytes(what)
    assert words(vm) == ["ok", "ok"]
    recorded = {each["point"]: each["verdict"] for each in run(capsys, vm.root)[1]["verdicts"]}
    assert [recorded[point.id] for point in vm.points[1:]] == ["ok", "ok"]


# -- whatever is done -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_no_verdict_is_too_good(tmp_path, capsys, seed):
    """Files are damaged and repaired, and points checked, at random. What was reported as damaged stays in the list of
    each point that refers to it until that point was checked again, and an unchecked point is not ok."""
    rng = random.Random(seed)
    vm = chain(tmp_path / "store", seed=seed, **SEVERAL)
    refer = {path: referring(vm, path) for path in files(vm.folder)
             if path.suffix in (".zst", ".index") or path.name == "domain.xml"}  # fmt: skip
    sound, recorded, looked = {}, [set(), set(), set()], set()  # recorded: of each point
    for _ in range(25):
        path = rng.choice([*refer])
        if path in sound and rng.random() < 0.6:
            path.write_bytes(sound.pop(path))
        elif path not in sound and rng.random() < 0.3:
            sound[path] = path.read_bytes()
            path.write_bytes(flipped(sound[path], rng.randrange(len(sound[path]))))
        parts = [[], ["--quick"], ["--sample", f"{rng.randrange(1, 99)}%"], ["--shard", f"{rng.randrange(1, 4)}/3"]]
        how, number = rng.choice(parts), rng.randrange(3)
        code, result = run(capsys, vm.root, *how, "--point", vm.points[number].id)
        recorded[number] &= {*sound}
        for found in (path for path in sound for damage in result["damages"] if str(path) in damage["problem"]):
            for each, refers in zip(recorded, refer[found]):
                each.update([found] if refers else [])
        looked |= {number} if how in ([], ["--quick"]) else set()
        assert code == (11 if recorded[number] else 0)
        for each, word in enumerate(words(vm)):
            if recorded[each]:
                assert word == "damaged"
            elif word == "ok":
                assert each in looked or shards_seen(vm, each)
            else:
                assert word in (None, "partial") and each not in looked
    for path, before in sound.items():
        path.write_bytes(before)
    assert run(capsys, vm.root)[0] == 0 and words(vm) == ["ok"] * 3


def shards_seen(vm, number):
    """Return whether the three shards together checked that point."""
    about = [(document, each["point"]) for document in findings.load(vm.series) for each in document["points"]
             if each.get("complete", True)]  # fmt: skip
    return {document["shard"][0] for document, point in about
            if point == vm.points[number].id and "shard" in document} == {1, 2, 3}  # fmt: skip


def test_a_finding_is_no_larger_than_its_reader_takes(vm, monkeypatch):
    """In a store that lost everything, what the finding cannot list place by place, it records as a whole."""
    monkeypatch.setattr(evidence, "MAX_ALL_PLACES", 3)
    monkeypatch.setattr(evidence, "MAX_PROBLEM", 20)
    for path in files(vm.folder):
        if path.suffix == ".zst":
            path.unlink()
    verify_store(vm.root, keep=True)
    [finding] = findings.load(vm.series)
    recorded = [about.get("places", []) for about in finding["points"]]
    assert 0 < sum(map(len, recorded)) <= 3 and all(
        len(place["problem"]) == 20 for places in recorded for place in places
    )
    assert all(about.get("more") for about, places in zip(finding["points"], recorded) if not places)
    assert words(vm) == ["damaged"] * 3


LATE = "2999-01-01T00:00:00.000+00:00"


def after_now(vm, kind, *, of=lambda document: {}):
    """Keep findings as a run with a wrong clock would."""
    for path in vm.folder.glob(f"*.{kind}.json"):
        document = layout.unseal(path.read_bytes(), path.name)
        path.write_bytes(layout.seal({**document, "when": LATE, **of(document)}))


@pytest.mark.parametrize("how", [[], ["--shard", "1/1"], ["--oldest"]], ids=" ".join)
def test_a_clock_that_was_wrong_proves_nothing(vm, capsys, how):
    """It would be the newest of all proofs for years: no run would check these files again."""
    assert run(capsys, vm.root, *how)[0] == 0
    late = {"files": LATE, "frames": LATE}
    after_now(vm, "verify")
    after_now(
        vm,
        "ledger",
        of=lambda expected: {
            "points": [{**about, **late} for about in expected["points"]],
            "proofs": [{**group, "when": LATE} for group in expected["proofs"]],
        },
    )
    assert words(vm) == [None] * 3
    assert run(capsys, vm.root, "--oldest")[0] == 0 and words(vm) == ["ok"] * 3
    [document] = ledger.load(vm.series)
    assert LATE not in json.dumps(document)
    assert max(each["covered"]["frames"] for each in verified(vm)) < LATE


def test_damage_counts_whatever_the_clock_says(vm, capsys):
    path = largest_chunk(vm, vm.points[0])
    before = flip(path)
    assert run(capsys, vm.root)[0] == 11
    after_now(vm, "verify")
    assert words(vm) == ["damaged"] * 3
    path.write_bytes(before)
    assert run(capsys, vm.root)[0] == 0 and words(vm) == ["ok"] * 3


def test_a_drill_in_the_future_does_not_count(vm):
    for when, word in (("2026-01-01T00:00:00.000+00:00", "failed"), (LATE, "ok")):
        about = {**findings.entry(vm.points[0]), "verdict": word}
        document = {"format": layout.FORMAT, "requires": [], "kind": "drill", **findings.now(), "when": when}
        path = f"{vm.series.folder}/{layout.new_point_id()}.drill.json"
        vm.store.publish(path, layout.seal({**document, "points": [about]}))
    [drilled, *_] = [point["drilled"] for point in listing.listing(listing.Options(str(vm.root))).points]
    assert drilled["verdict"] == "failed"


def test_findings_of_any_form_are_read(vm):
    """Anyone who can write to a store can write these: an invalid one counts as missing."""
    sound = {**findings.entry(vm.points[0]), "verdict": "damaged", "damages": 1}
    documents = [{"when": 5}, {"points": "abc"}, {"points": [5]}, {"points": [{}]}, {"level": None}, {"shard": [1]},
                 {"shard": "1/2"}, {"shard": ["1", 2]}, {"kind": ["verify"]}, {"kind": "drill"}, {"when": "yesterday"},
                 {"who": None}, {"sample": "5%"}]  # fmt: skip
    places = [5, ["x"], [{"path": 5}], [{"disk": []}], [{"offset": "x"}], [{"offset": -1}], [{"offset": 1 << 70}]]
    entries = [{"damages": "5"}, {"damages": None}, {"point": None}, {"manifest_sha256": 5}, {"settles": [[]]},
               {"settles": "x"}, {"verdict": 5}, {"more": 1}, {"disks": {"vda": 5}},
               *({"places": each} for each in places)]  # fmt: skip
    documents += [{"points": [{**sound, **each}]} for each in entries]
    for changed in [*documents, {}]:
        document = {"kind": "verify", **findings.now(), "level": "frames", "points": [sound], **changed}
        sealed = layout.seal({"format": layout.FORMAT, "requires": [], **document})
        vm.store.publish(f"{vm.series.folder}/{layout.new_point_id()}.verify.json", sealed)
        assert words(vm) == ["damaged" if changed == {} else None, None, None], changed
