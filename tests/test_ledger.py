"""Verification over time: each run continues where the last one ended, and no verdict claims more than the files
allow."""

import json
import os
import random
import shutil
import time
from datetime import datetime, timedelta, timezone

import pytest
from stores import (
    KIB,
    MIB,
    SEVERAL,
    Vm,
    chain,
    damaged,
    directory_of,
    files,
    flipped,
    forged_store,
    move,
    records_of,
    verify_store,
)

from nbdpull.cli import main as cli
from nbdpull.core import errors
from nbdpull.format import findings, layout, ledger
from nbdpull.operations import listing
from nbdpull.repository import removal, rolling
from nbdpull.repository.series import Series

pytestmark = pytest.mark.usefixtures("no_threads")


@pytest.fixture
def one_by_one(monkeypatch):
    """Make each file a batch of its own."""
    monkeypatch.setattr(rolling, "BATCH", 1)


def oldest(vm, batches=None, **options):
    """Return what a run finds that runs to its end, or has time for that many batches of files."""
    begun, clock, prove = [], time.monotonic, rolling.Rolling._prove

    def counted(self, batch):
        begun.append(batch)
        prove(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        if batches is not None:
            patch.setattr(rolling.Rolling, "_prove", counted)
            patch.setattr(time, "monotonic", lambda: clock() + 1000 * (len(begun) > batches))
            options["max_duration"] = 500
        return verify_store(vm.root, oldest=True, keep=True, **options)


def verdicts(vm):
    """Return [verdict of each point, …], as list has it."""
    return [each and each["verdict"] for each in verified(vm)]


def verified(vm):
    return [point["verified"] for point in listing.listing(listing.Options(str(vm.root))).points]


def proofs(vm):
    """Return {path: when its frames were last proved}."""
    known = ledger.proofs(ledger.load(vm.series), "9")
    return {path: proof.frames for (path, _), proof in known.items() if proof.frames}


def referred(vm):
    """Return the paths of all files of the points except their manifests."""
    return {str(path.relative_to(vm.folder)) for path in files(vm.folder)
            if path.parent != vm.folder and path.name != "manifest.json"}  # fmt: skip


# -- a run goes on ----------------------------------------------------------------------------------------------------


def test_a_run_continues_where_the_last_one_ended(vm, one_by_one):
    """Each file is proved once before any is proved again, however many points share it; the store does not grow."""
    every, looked = referred(vm), []
    while len(proofs(vm)) < len(every):
        before = proofs(vm)
        found = oldest(vm, 4)
        new = {path for path, when in proofs(vm).items() if before.get(path) != when}
        assert not found.complete or len(before) + found.files >= len(every)
        again = new & {*before}
        assert len(new) == 4 and (not again or {*proofs(vm)} == every), "nothing again while another was never"
        looked += new - again
        assert len(list(vm.folder.glob("*.ledger.json"))) == 1 and not list(vm.folder.glob("*.verify.json"))
        assert set(verdicts(vm)) <= {"ok", "partial"}
        for point, word in zip(vm.points, verdicts(vm)):
            assert (word == "ok") == (needs(vm, point) <= {*proofs(vm)}), "no point is well before all of its files are"
    assert sorted(looked) == sorted(every)
    assert verdicts(vm) == ["ok"] * 3
    times = proofs(vm)
    for point, each in zip(vm.points, verified(vm)):
        since = min(times[path] for path in needs(vm, point))
        assert (each["when"], each["level"]) == (since, "frames")
        assert each["covered"] == {"files": since, "frames": since}
    oldest(vm, 4)
    renewed = {path for path, when in proofs(vm).items() if times[path] != when}
    others = [when for path, when in times.items() if path not in renewed]
    assert len(renewed) == 4 and max(times[path] for path in renewed) <= min(others), "those proved longest ago"


def needs(vm, point):
    shared = {entry.path for disk in point.disks for entry in directory_of(vm, point, disk).files}
    return shared | {entry.path for entry in point.manifest.all_files()}


def test_a_complete_run_reads_every_file_once(vm):
    found = oldest(vm)
    assert found.complete and (found.damages, found.warnings) == ([], [])
    assert found.files == len(referred(vm))
    assert [each.verdict for each in found.verdicts] == ["ok"] * 3
    assert found.frames >= verify_store(vm.root).frames, "and at every frame that a point shows"


def test_the_end_of_the_time_is_no_error(vm, capsys):
    assert cli.main(["verify", str(vm.root), "--oldest", "--max-duration", "0.000001s", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["complete"], result["oldest"], result["files"]) == (False, True, 0)
    assert ["a single file" in text for text in result["warnings"]] == [True], "no run would ever come further"
    assert verdicts(vm) == [None] * 3 and not ledger.load(vm.series), "it proved nothing"
    assert cli.main(["verify", str(vm.root), "--oldest", "--max-duration", "0.000001s"]) == 0
    assert capsys.readouterr().out.endswith("Not all files of 3 points of 3 have been checked yet.\n")
    assert cli.main(["verify", str(vm.root), "--oldest", "--max-duration", "1h"]) == 0
    when = verified(vm)[0]["when"][:16].replace("T", " ")
    assert capsys.readouterr().out.endswith(f"no damage\nThe oldest check is from {when} UTC.\n")


def test_a_shared_file_is_looked_up_once(vm, monkeypatch):
    """Half a million look-ups made a quick run over a thousand points take half a minute."""
    looked, size_flaw = [], Series.size_flaw
    monkeypatch.setattr(Series, "size_flaw", lambda self, entry: looked.append(entry.path) or size_flaw(self, entry))
    oldest(vm, level="files")
    assert len(looked) == len({*looked}) <= len(referred(vm))


def test_new_files_come_first_and_a_run_over_everything_counts(vm, one_by_one):
    verify_store(vm.root, keep=True)
    time.sleep(0.002)  # times are in milliseconds
    vm.write("vda", 300_000, os.urandom(50_000))
    new = vm.pull()
    assert verdicts(vm) == ["ok", "ok", "ok", None]
    own = {path for path in referred(vm) if path.startswith(new.id)}
    oldest(vm, len(own))
    whole = verified(vm)[0]["when"]
    assert {path for path, when in proofs(vm).items() if when > whole} >= own
    assert verdicts(vm) == ["ok"] * 4 and verified(vm)[3]["when"] == whole, "as of the oldest of what it refers to"


def test_a_run_over_one_point_proves_nothing_about_other_points(vm):
    verify_store(vm.root, keep=True, point=vm.points[2].id)
    oldest(vm, 0)
    assert verdicts(vm) == [None, None, "ok"] and proofs(vm) == {}
    oldest(vm)
    assert verdicts(vm) == ["ok"] * 3


def test_a_part_proves_no_file(vm):
    """Or at least not by the ledger: all shards together are everything, as before."""
    for how in ({"sample": 0.9}, {"shard": (1, 2)}):
        verify_store(vm.root, keep=True, **how)
    oldest(vm, 0)
    assert proofs(vm) == {} and verdicts(vm) == ["partial"] * 3


def test_quick_proves_files_and_no_frames(vm):
    found = oldest(vm, level="files")
    assert found.frames == 0 and verdicts(vm) == ["ok"] * 3
    assert proofs(vm) == {} and {each["level"] for each in verified(vm)} == {"files"}
    first = verified(vm)[0]["when"]
    time.sleep(0.002)
    oldest(vm)
    assert {each["level"] for each in verified(vm)} == {"frames"} and verified(vm)[0]["when"] > first


def test_domains_take_turns_by_the_age_of_their_proofs(tmp_path, one_by_one):
    """Otherwise the first one would get all of the time, each time."""
    store = tmp_path / "store"
    vms = [Vm(store, name, f"3e3fce45-4f53-4fa7-bb32-11f34168b82{number}") for number, name in enumerate(("a", "b"))]
    for vm in vms:
        vm.add_disk("vda", 1000)
        vm.write("vda", 0, b"some")
        vm.pull()
    count = len(referred(vms[0]))
    for _ in range(count):
        oldest(vms[0], 2)
        left = [count - len(proofs(vm)) for vm in vms]
        if left == [0, 0]:
            break
    assert left == [0, 0]
    first = [min(proofs(vm).values()) for vm in vms]
    oldest(vms[0], 2)
    assert min(proofs(vms[first.index(min(first))]).values()) > min(first)


# -- damage -----------------------------------------------------------------------------------------------------------


def test_damage_is_kept_until_its_place_is_checked(vm, one_by_one):
    """Whatever is proved meanwhile; and a run that finds it again adds nothing to the store."""
    chunk = next(path for path in files(vm.folder) if path.suffix == ".zst" and vm.points[0].id in str(path))
    refer = [str(chunk.relative_to(vm.folder)) in needs(vm, point) for point in vm.points]
    before = chunk.read_bytes()
    chunk.write_bytes(flipped(before, 300))
    found = oldest(vm)
    bad = ["damaged" if refers else "ok" for refers in refer]
    assert found.damages and found.is_bad and verdicts(vm) == bad
    kept = [path.name for path in vm.folder.glob("*.verify.json")]
    for batches in (0, 3, None):
        assert oldest(vm, batches).is_bad and verdicts(vm) == bad
        assert [path.name for path in vm.folder.glob("*.verify.json")] == kept
    chunk.write_bytes(before)
    assert verdicts(vm) == bad, "nobody has looked yet"
    assert not oldest(vm, 0).is_bad
    assert verdicts(vm) == ["partial" if refers else "ok" for refers in refer], "the file itself is not proved again"
    oldest(vm, 1)
    assert verdicts(vm) == ["ok"] * 3


def test_a_damage_that_was_seen_before_the_end(vm, one_by_one, monkeypatch):
    """For every point that refers to the file, even if there was no time to check any of them."""
    chunk = next(path for path in files(vm.folder) if path.suffix == ".zst" and vm.points[0].id in str(path))
    refer = [str(chunk.relative_to(vm.folder)) in needs(vm, point) for point in vm.points]
    verify_store(vm.root, keep=True)
    chunk.write_bytes(flipped(chunk.read_bytes(), 300))

    def ended(*_):
        raise errors.Interrupted(15)

    monkeypatch.setattr(rolling.Rolling, "_accuse", ended)
    seen = []
    with pytest.raises(errors.Interrupted):
        verify_store(vm.root, lambda event, **_: seen.append(event), keep=True, oldest=True)
    assert seen.count("damage") == 1, "it is reported once"
    assert verdicts(vm) == ["damaged" if refers else "ok" for refers in refer]


@pytest.mark.parametrize("kind", [".zst", ".index", ".directory", "domain.xml", "SHA256SUMS"])
@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_it_finds_what_a_run_over_everything_finds(vm, kind, how):
    for path in [path for path in files(vm.folder) if path.name.endswith(kind)][:2]:
        with damaged(path, None if how == "gone" else flipped(path.read_bytes(), path.stat().st_size // 2)):
            wanted, found = verify_store(vm.root), oldest(vm)
            assert {(each.path, each.offset) for each in found.damages} >= {
                (each.path, each.offset) for each in wanted.damages if each.offset is None
            }
            assert {each.point: each.verdict for each in found.verdicts} == {
                each.point: each.verdict for each in wanted.verdicts
            }
        assert not oldest(vm).damages and verdicts(vm) == ["ok"] * 3


def test_a_frame_that_only_its_digest_reveals(tmp_path):
    vm, _ = forged_store(tmp_path / "store")
    assert not oldest(vm, level="files").damages and verdicts(vm) == ["ok"]
    for _ in range(2):
        found = oldest(vm)
        assert sorted(each.offset for each in found.damages) == [40 * 64 * KIB, 41 * 64 * KIB]
        assert verdicts(vm) == ["damaged"]


def test_a_frame_of_another_point_that_only_its_digest_reveals(tmp_path):
    """The page of a later point is wrong about it; the file and its own index are right."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, os.urandom(MIB))
    first = vm.pull(frame_size=64 * KIB)
    records, [chunk] = records_of(vm, first, "vda"), directory_of(vm, first, "vda").chunks
    wrong = records[:1].copy()
    wrong["digest"], wrong["chunk"] = records["digest"][1], 0
    second = vm.pull(handmade={"vda": lambda folder: (wrong, [chunk])})
    verify_store(vm.root, keep=True, point=first.id)
    found = oldest(vm)
    assert [(each.point, each.offset) for each in found.damages] == [(second.id, 0)]
    assert verdicts(vm) == ["ok", "damaged"]


def test_a_bad_frame_that_nothing_shows_is_no_damage(tmp_path):
    vm, first = forged_store(tmp_path / "store")
    vm.points = [first]
    vm.write("vda", 40 * 64 * KIB, os.urandom(128 * KIB))
    vm.pull(frame_size=64 * KIB)
    removal.remove(vm.series, first)
    assert verify_store(vm.root).damages == []
    found = oldest(vm)
    assert found.damages == [] and verdicts(vm) == ["ok"]


def test_files_that_were_moved(tmp_path):
    """With the frames that points show, and no others; in the new file they are checked as in the old one."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    for number in range(2):
        vm.write("vda", number * 500, os.urandom(MIB - number * 1000))
        vm.pull(frame_size=64 * KIB, chunk_size=300 * KIB)
    removal.remove(vm.series, vm.points[0])
    last = vm.points[1]
    chunks = [entry.path for entry in directory_of(vm, last, "vda").chunks]
    new = vm.folder / move(vm, last, "vda", chunks).path
    assert not oldest(vm).damages and verdicts(vm) == ["ok"]
    with damaged(new, flipped(new.read_bytes(), new.stat().st_size // 2)):
        found = oldest(vm)
        assert found.damages and verdicts(vm) == ["damaged"]
    oldest(vm)
    assert verdicts(vm) == ["ok"]


@pytest.mark.parametrize("seed", range(3))
def test_no_verdict_is_too_good(tmp_path, seed, one_by_one):
    """Files are damaged and repaired, points made and removed, and runs ended at random. A point is ok only as of when
    all of its files had been checked and were sound; what was found damaged stays damaged until it is checked again."""
    rng = random.Random(seed)
    vm = chain(tmp_path / "store", seed=seed, **SEVERAL)
    points, sound, seen = [*vm.points], {}, set()
    needed = {point.id: needs(vm, point) for point in points}
    for _ in range(14):
        path = rng.choice([path for path in files(vm.folder) if path.suffix in (".zst", ".index", ".xml")])
        name = str(path.relative_to(vm.folder))
        if name in sound and rng.random() < 0.6:
            path.write_bytes(sound.pop(name))
        elif name not in sound and rng.random() < 0.4:
            sound[name] = path.read_bytes()
            path.write_bytes(flipped(sound[name], rng.randrange(len(sound[name]))))
        if rng.random() < 0.2 and not sound:
            vm.write("vda", rng.randrange(800_000), rng.randbytes(5000))
            points.append(vm.pull())
            needed[points[-1].id] = needs(vm, points[-1])
        found = oldest(vm, rng.choice([0, 2, 5, 15, None]), level=rng.choice(["files", "frames"]))
        seen |= {*proofs(vm)}
        for point, each in zip(points, verified(vm)):
            broken = {*sound} & needed[point.id]
            if found.complete:
                assert each["verdict"] == ("damaged" if broken else "ok")
            if each and each["verdict"] == "ok":
                assert each["covered"]["frames"] is None or needed[point.id] <= {*seen}
            if any(damage.path in broken for damage in found.damages):
                assert each["verdict"] == "damaged"
    for name, before in sound.items():
        (vm.folder / name).write_bytes(before)
    assert not oldest(vm).damages and set(verdicts(vm)) == {"ok"}


# -- the file itself --------------------------------------------------------------------------------------------------


def test_two_runs_at_once_both_count(vm):
    """Each keeps its ledger, and removes only what it has read."""
    half = len(referred(vm)) // 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rolling, "BATCH", 1)
        oldest(vm, half)
    [path] = vm.folder.glob("*.ledger.json")
    before = path.read_bytes()
    oldest(vm)
    path.write_bytes(before)  # as if that had ended after the other had read what there was
    assert len(ledger.load(vm.series)) == 2 and verdicts(vm) == ["ok"] * 3
    oldest(vm, 0)
    assert len(proofs(vm)) == len(referred(vm))
    oldest(vm)
    assert len(ledger.load(vm.series)) == 1


def test_a_ledger_proves_nothing_about_other_bytes(vm):
    """Of a file with another digest, of a point with another manifest, or of a later time than now."""
    oldest(vm)
    [document] = ledger.load(vm.series)
    late = "2999-01-01T00:00:00.000+00:00"
    for change in (
        {"points": [{**about, "manifest_sha256": "0" * 64} for about in document["points"]]},
        {"points": [{**about, "files": "yesterday"} for about in document["points"]]},
        {"points": [{**about, "point": 1} for about in document["points"]]},
        {"kind": "verify"},
    ):
        with_ledger(vm, {**document, **change})
        assert verdicts(vm) == [None] * 3, change
    for group in (
        {"when": late, "level": "frames", "files": {}},
        {"when": document["when"], "level": "frames", "files": {path: "0" * 64 for path in referred(vm)}},
        {"when": "yesterday", "level": "frames", "files": {}},
    ):
        group["files"] = group["files"] or document["proofs"][0]["files"]
        with_ledger(vm, {**document, "points": [], "proofs": [group]})
        oldest(vm, 0)
        assert verdicts(vm) == [None] * 3
    for broken in (None, 1, [1], [{"when": late}], [{"when": late, "level": "frames", "files": [1]}]):
        with_ledger(vm, {**document, "points": [], "proofs": broken})
        assert oldest(vm).complete and verdicts(vm) == ["ok"] * 3


def with_ledger(vm, document):
    for path in vm.folder.glob("*.ledger.json"):
        path.unlink()
    document = {name: value for name, value in document.items() if name not in ("name", "digest")}
    vm.store.publish(f"{vm.series.folder}/{layout.new_point_id()}.ledger.json", layout.seal(document))


def test_list_shows_the_age_of_the_oldest_proof(vm, capsys):
    """For each point; and none for a point of which not everything is proved."""
    oldest(vm)
    [document] = ledger.load(vm.series)
    now = datetime.now(timezone.utc)
    days, hours = ((now - since).isoformat(timespec="milliseconds") for since in (timedelta(3), timedelta(hours=5)))
    times = [{"files": days, "frames": days}, {"files": hours, "frames": days}, {"files": None, "frames": None}]
    with_ledger(vm, {**document, "points": [{**about, **each} for about, each in zip(document["points"], times)]})
    ages = [each["age"] for each in verified(vm)]
    assert [age and round(age / 3600) for age in ages] == [72, 5, None]
    assert cli.main(["list", str(vm.root)]) == 0
    _, headings, *rows, _, _ = capsys.readouterr().out.splitlines()
    assert [row[headings.index("VERIFIED") :].split("  ")[0] for row in rows] == ["3d", "5h files", "part"]
    (vm.folder / vm.points[0].id / "domain.xml").unlink()
    assert verify_store(vm.root, keep=True).is_bad
    assert cli.main(["list", str(vm.root)]) == 0 and "DAMAGED" in capsys.readouterr().out.splitlines()[2]


def test_entries_of_removed_points_are_dropped(vm):
    oldest(vm)
    removal.remove(vm.series, vm.points[2])
    oldest(vm)
    assert {*proofs(vm)} == set().union(*(needs(vm, point) for point in vm.points[:2]))
    [document] = ledger.load(vm.series)
    assert [about["point"] for about in document["points"]] == [point.id for point in vm.points[:2]]


def test_too_many_files_for_a_ledger(vm, monkeypatch):
    """Those proved longest ago are proved again."""
    oldest(vm, level="files")
    [path] = vm.folder.glob("*.ledger.json")
    room = path.stat().st_size - 500
    monkeypatch.setattr(ledger, "MAX_BYTES", room)
    for _ in range(2):
        oldest(vm)
        [path] = vm.folder.glob("*.ledger.json")
        assert room - 1000 < path.stat().st_size <= room
        assert 4 < len(proofs(vm)) < len(referred(vm)) and verdicts(vm) == ["ok"] * 3


def test_a_ledger_is_no_larger_than_its_reader_takes(monkeypatch):
    """With both levels, different times and long names: it was 2 % larger, and the previous one was gone."""
    monkeypatch.setattr(ledger, "MAX_BYTES", 200_000)
    rng = random.Random(1)
    for _ in range(30):
        times = [f"2026-11-27T10:00:00.{number:06}+00:00" for number in range(rng.choice((1, 2, 50, 5000)))]
        known, name = {}, rng.choice(("vda", "v" * 200, "\u00fc" * 90, '"' * 90))
        for number in range(3000):
            proof = ledger.NEVER.with_one("frames", rng.choice(times)).with_one("files", rng.choice(times))
            known[f"20261122T194500Z-{number:08x}/{name}.0000.zst", f"{number:064x}"] = proof
        document = ledger.of("frames", [], known)
        size = len(layout.seal({"format": layout.FORMAT, "requires": [], **document}))
        assert 90_000 < size <= 200_000
        kept = ledger.proofs([document], "9")
        assert kept and min(proof.files for proof in kept.values()) >= max(
            proof.files for key, proof in known.items() if key not in kept
        )


def test_a_ledger_that_is_too_large_leaves_the_one_before(vm, monkeypatch):
    oldest(vm)
    before = [*vm.folder.glob("*.ledger.json")]
    monkeypatch.setattr(layout, "MAX_DOCUMENT", before[0].stat().st_size - 1)
    found = oldest(vm)
    assert ["not kept" in text for text in found.warnings] == [True]
    assert [*vm.folder.glob("*.ledger.json")] == before


def test_a_store_that_cannot_be_written_to(vm, monkeypatch):
    def full(*_):
        raise errors.OutputError("no space left")

    monkeypatch.setattr(type(vm.store), "publish", full)
    found = oldest(vm)
    assert found.warnings == ["the proofs are not kept: no space left"] and not found.damages


def test_an_interrupted_run_keeps_what_it_proved(vm, one_by_one):
    calls = []

    def report(event, **_):
        calls.append(event)

    def check():
        if len(calls) > 5:
            raise errors.Interrupted(15)

    with pytest.raises(errors.Interrupted):
        verify_store(vm.root, report, check, keep=True, oldest=True)
    assert len(proofs(vm)) >= 2 and set(verdicts(vm)) == {"partial"}


def test_usage_errors(vm, capsys):
    for words in (["--point", "latest"], ["--sample", "5%"], ["--shard", "1/2"], ["--no-record"], ["--against", "x"]):
        assert cli.main(["verify", str(vm.root), "--oldest", *words]) == 2, words
        assert "--oldest" in capsys.readouterr().err


def test_findings_are_what_they_were(vm):
    """A reader that knows only findings sees no ledger."""
    oldest(vm)
    assert findings.load(vm.series) == [] and findings.left_out(vm.series, []) == []
    shutil.rmtree(vm.folder / vm.points[1].id)
    assert oldest(vm).is_bad


@pytest.mark.parametrize("kind", [findings, ledger])
def test_a_signal_hides_no_record(vm, monkeypatch, kind):
    """A signal may arrive while a store's server is waited for."""
    verify_store(vm.root, keep=True)
    oldest(vm)
    assert kind.load(vm.series)

    def stopped(*about):
        raise errors.Interrupted(2)

    monkeypatch.setattr(type(vm.store), "read", stopped)
    with pytest.raises(errors.Interrupted):
        kind.load(vm.series)
