"""Verify: where a damage is, what counts as one, and that a restore which meets it leaves nothing."""

import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import tracemalloc

import numpy
import pytest
from command import answered
from stores import (
    KIB,
    MIB,
    SMALL,
    Vm,
    chain,
    damaged,
    directory_of,
    files,
    flipped,
    forged_store,
    index_of,
    redirected,
    resealed,
    restored,
    verify_store,
    zstd_frames,
)

from nbdpull.cli import main as cli
from nbdpull.core import errors, extents
from nbdpull.format import layout, pages, reader, stack
from nbdpull.format.directory import Directory
from nbdpull.operations import listing
from nbdpull.operations.restore import Options, restore
from nbdpull.repository.seen_frames import SeenFrames


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    """Three points, each with several chunk files of vda and one of vdb. Tests that damage it repair it."""
    return chain(tmp_path_factory.mktemp("verify") / "store", **SMALL)


@pytest.fixture
def own(vm, tmp_path):
    """A copy of it, for tests that do not repair it."""
    return vm.copy(tmp_path / "store")


def problems(vm, **how):
    return verify_store(vm.root, **how).damages


# -- a sound store ----------------------------------------------------------------------------------------------------


def test_a_sound_store(vm):
    report = verify_store(vm.root)
    assert report.damages == []
    assert report.points == 3
    own = [path for path in files(vm.folder) if path.suffix != ".directory" and path.name != "manifest.json"]
    assert report.files == len(own), "each is read once"
    frames = frames_of(vm, *vm.points)
    assert report.frames == len(frames) and report.raw_bytes == sum(frames.values())


def frames_of(vm, *points):
    """Return {(path, position): bytes} of the frames that the images of some points show."""
    found = {}
    for directory in (directory_of(vm, point, disk) for point in points for disk in point.disks):
        for window in directory.windows():
            for record in window.flat():
                if record["kind"] == extents.DATA:
                    place = directory.files[record["chunk"]].path, int(record["position"])
                    found[place] = int(record["raw"])
    return found


def test_shared_files_are_checked_once(tmp_path):
    """However many there are, and whatever part of a frame each of them shows."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 2 * MIB)
    vm.write("vda", 0, os.urandom(2 * MIB))
    vm.pull(chunk_size=256 * KIB, batch_size=64 * KIB)
    one = verify_store(vm.root)
    assert one.frames == 32
    for number in range(5):
        vm.write("vda", number * 64 * KIB + 1000, b"in the midst of a frame")
        vm.pull()
    all_of_them = verify_store(vm.root)
    assert all_of_them.frames == one.frames + 5 and all_of_them.raw_bytes == one.raw_bytes + 5 * 23
    assert all_of_them.files == one.files + 5 * 4, "domain.xml, SHA256SUMS, index and chunk file of each"
    assert verify_store(vm.root, point=vm.points[-1].id).frames == one.frames + 5
    sampled = [verify_store(vm.root, sample=0.5).frames for _ in range(20)]
    assert sum(sampled) / 20 < 0.7 * all_of_them.frames, "what all points share is not drawn again for each"


def test_a_page_is_read_once_however_many_points_have_it(tmp_path, monkeypatch):
    """And each stack of pages is checked once; nothing is laid over others for that."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, os.urandom(MIB))
    vm.pull(frame_size=4 * KIB)
    for number in range(8):
        vm.write("vda", number * 100 * KIB, b"a little")
        vm.pull()
    vm.pull()  # nothing changed
    read, proved, laid = [], [], []
    page, prove, segments = reader.page, Directory.prove, stack.segments
    monkeypatch.setattr(reader, "page", lambda *about: read.append(about[1:3]) or page(*about))
    monkeypatch.setattr(Directory, "prove", lambda *about: proved.append(about) or prove(*about))
    monkeypatch.setattr(stack, "segments", lambda *about: laid.append(about) or segments(*about))
    assert verify_store(vm.root, level="files").damages == []
    stacks = {directory_of(vm, point, "vda").pages["digest"].tobytes() for point in vm.points}
    assert len(read) == len({(path, ref["position"]) for path, ref in read}) > len(vm.points) / 2
    assert len(proved) == len(stacks) == 9 and laid == []


def test_a_bad_frame_that_points_share_is_reported_once(forged):
    """With each range of the first point that shows it."""
    vm, first = forged
    vm.points = [first]
    vm.write("vda", 40 * 64 * KIB + 1000, b"in the midst")
    later = vm.pull()
    found = verify_store(vm.root)
    assert {damage.point for damage in found.damages} == {first.id} and len(found.damages) == 2
    assert {each.point: each.verdict for each in found.verdicts} == {first.id: "damaged", later.id: "damaged"}
    at = 40 * 64 * KIB
    ranges = [(at, 1000), (at + 1012, 64 * KIB - 1012), (at + 64 * KIB, 64 * KIB)]
    assert damaged_ranges(problems(vm, point=later.id)) == ranges


def test_a_bad_frame_is_read_once_however_many_points_show_it(forged, monkeypatch):
    """With 1,000 points and ten bad frames, 18,000 frames were read instead of ten."""
    vm, first = forged
    vm.points = [first]
    for number in range(3):
        vm.write("vda", (40 + number) * 64 * KIB + 1000, b"in the midst")
        vm.pull()
    reads, real = [], reader.FrameReader._proved

    def read(self, record):
        reads.append((self._entries[int(record["chunk"])].path, int(record["position"])))
        return real(self, record)

    monkeypatch.setattr(reader.FrameReader, "_proved", read)
    found = verify_store(vm.root)
    assert [each.verdict for each in found.verdicts] == ["damaged"] * 4
    assert len(reads) == len(set(reads)) == 48 + 3


def test_checked_frames_take_little_memory():
    frames = numpy.zeros(100_000, layout.RECORD)
    frames["position"], frames["raw"] = numpy.arange(100_000) * 30_000, 64 * KIB
    frames["digest"] = numpy.frombuffer(random.Random(1).randbytes(3_200_000), "V32")
    seen = SeenFrames()
    tracemalloc.start()
    for part in numpy.array_split(frames[::2], 1000):
        seen.add("file", part)
    assert seen.known("file", frames).tolist() == [True, False] * 50_000
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 64 * 50_000
    assert not seen.known("another", frames).any()
    other = frames[:2].copy()
    other["digest"][0], other["raw"][1] = frames["digest"][1], 1
    assert not seen.known("file", other).any(), "another frame is to be there"


def test_quick_does_not_decompress(vm):
    report = verify_store(vm.root, level="files")
    assert (report.damages, report.frames, report.points) == ([], 0, 3)


def test_one_point_with_all_that_it_refers_to(vm):
    for point in [*vm.points, "latest"]:
        found = verify_store(vm.root, point=getattr(point, "id", point))
        frames = frames_of(vm, vm.points[-1] if point == "latest" else point)
        assert (found.points, found.frames, found.raw_bytes) == (1, len(frames), sum(frames.values()))


def test_progress_and_damage_are_reported_as_they_are_found(vm):
    events = []
    index = index_of(vm, vm.points[1], "vda")
    with damaged(index, index.read_bytes()[:-1]):
        report = verify_store(vm.root, report=lambda **event: events.append(event))
    damages = [event for event in events if event["event"] == "damage"]
    assert [{"event": "damage", "domain": "vm1", **vars(damage)} for damage in report.damages] == damages
    assert {event["event"] for event in events} == {"damage", "progress"}


def test_it_can_be_stopped(vm):
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 3:
            raise errors.Interrupted(15)

    with pytest.raises(errors.Interrupted):
        verify_store(vm.root, check=check)


def test_domains(tmp_path):
    for name in ("vm1", "vm 2"):
        vm = Vm(tmp_path / "store", name)
        vm.add_disk("vda", 1000)
        vm.pull()
    assert verify_store(vm.root).points == 2
    assert verify_store(vm.root, domain="vm 2").points == 1
    with pytest.raises(errors.StoreError, match="no domain vm3"):
        verify_store(vm.root, domain="vm3")
    with pytest.raises(errors.NoSuchPoint):
        verify_store(vm.root, domain="vm1", point="20300101T000000Z-aaaaaa")


# -- where the damage is ----------------------------------------------------------------------------------------------


def damaged_ranges(found, disk="vda"):
    return sorted((d.offset, d.length) for d in found if d.disk == disk and d.offset is not None)


def test_the_range_of_a_damaged_frame_is_reported(vm):
    for point in vm.points:
        shown, paths = shown_by(vm, point)
        records = shown[[paths[number].startswith(point.id) for number in shown["chunk"]]]
        for record in records[numpy.unique(records["position"], return_index=True)[1]]:
            path = vm.folder / paths[record["chunk"]]
            same = shown[(shown["chunk"] == record["chunk"]) & (shown["position"] == record["position"])]
            with damaged(path, flipped(path.read_bytes(), int(record["position"] + record["stored"] // 2))):
                found = problems(vm)
            assert damaged_ranges(found) == same[["offset", "length"]].tolist()
            assert {damage.point for damage in found} == {point.id}
            text = [damage.problem for damage in found if damage.offset == record["offset"]][0]
            assert f"bytes {record['offset']} to {record['offset'] + record['length']} of the disk" in text


def shown_by(vm, point, disk="vda"):
    """Return (records of data that a point shows, paths that their chunk numbers refer to)."""
    directory = directory_of(vm, point, disk)
    [window] = directory.windows()
    records = window.flat()
    return records[records["kind"] == extents.DATA], [entry.path for entry in directory.files]


def test_every_range_behind_a_cut_is_reported(vm):
    point = vm.points[0]
    records, paths = shown_by(vm, point)
    number = int(records["chunk"][0])
    mine = records[records["chunk"] == number]
    size = int(mine["position"][0]) + 5
    with damaged(vm.folder / paths[number], (vm.folder / paths[number]).read_bytes()[:size]):
        assert damaged_ranges(problems(vm, point=point.id)) == mine[["offset", "length"]].tolist()


def test_a_page_that_is_not_what_was_stored_is_reported_once(tmp_path):
    """With its window."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 2 * MIB)
    vm.write("vda", 0, os.urandom(2 * MIB))
    for number in range(3):
        vm.write("vda", number * 4 * KIB, b"a little")
        vm.pull(frame_size=4 * KIB)
    index = index_of(vm, vm.points[0], "vda")
    with damaged(index, flipped(index.read_bytes(), 60)):
        found = verify_store(vm.root)
    assert [(each.point, each.offset, each.length) for each in found.damages] == [
        (vm.points[0].id, None, None), (vm.points[0].id, 0, 2 * MIB)
    ]  # fmt: skip
    assert [each.verdict for each in found.verdicts] == ["damaged"] * 3


def test_a_directory_that_is_not_what_was_stored(own):
    """It is a damage of its own point only."""
    directory = own.folder / own.points[1].manifest.disk("vda").directory.path
    for data in (flipped(directory.read_bytes(), 60), None):
        with damaged(directory, data):
            found = verify_store(own.root)
        assert [(each.point, each.disk, str(directory) in each.problem) for each in found.damages] == [
            (own.points[1].id, "vda", True)
        ]
        assert [each.verdict for each in found.verdicts] == ["ok", "damaged", "ok"]


@pytest.mark.parametrize("level", ["files", "frames"])
@pytest.mark.parametrize("what", ["lacks a file", "names another place"])
def test_pages_that_another_point_has_prove_nothing_of_a_directory(tmp_path, level, what):
    """The directory names the files that its pages point into, and where they are."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, os.urandom(MIB))
    vm.pull()
    middle, _ = vm.pull(), vm.pull()  # nothing changed
    found = directory_of(vm, middle, "vda")
    files, live, refs = found.files, found.live, found.pages.copy()
    if what == "lacks a file":
        [gone] = [number for number, entry in enumerate(files) if entry in found.chunks]
        refs["file"] -= refs["file"] > gone
        files, live = [entry for entry in files if entry not in found.chunks], numpy.delete(live, gone)
    else:
        refs["position"], refs["stored"] = 1, refs["stored"] - 1
    redirected(vm, middle, "vda", pages.Directory(files, live, refs))
    result = verify_store(vm.root, level=level)
    assert result.verdicts[1].verdict == "damaged"
    assert {(each.point, each.offset, each.length) for each in result.damages} == {(middle.id, 0, MIB)}


def test_every_damage_is_reported_not_only_the_first(vm):
    one = index_of(vm, vm.points[0], "vda")
    two = vm.folder / vm.points[1].id / "domain.xml"
    three = vm.folder / vm.points[2].id / "SHA256SUMS"
    with damaged(one, b""), damaged(two, b"x"), damaged(three, None):
        found = problems(vm)
    for path in (one, two, three):
        assert any(str(path) in damage.problem for damage in found)
    assert {damage.point for damage in found} == {point.id for point in vm.points}


# -- points and their folders -----------------------------------------------------------------------------------------


def test_a_parent_that_was_removed_with_its_files(own):
    """A point that refers to these files lacks them; one that does not is ok."""
    shutil.rmtree(own.folder / own.points[1].id)
    found = verify_store(own.root)
    assert {damage.point for damage in found.damages} == {own.points[2].id}
    assert all(f"/{own.points[1].id}/" in damage.problem for damage in found.damages)
    assert problems(own, point=own.points[0].id) == []


def test_a_parent_that_is_no_longer_a_point(own, tmp_path):
    """Or is another one: it is only a note."""
    resealed(own, own.points[0], created="2030-01-01T00:00:00+00:00")
    assert problems(own) == []
    for point in own.points[:2]:
        (own.folder / point.id / "manifest.json").unlink()
    assert problems(own) == []
    assert restored(own, own.points[2], tmp_path / "out") == own.images[own.points[2].id]


def test_a_renamed_folder(own, tmp_path):
    os.rename(own.folder / own.points[2].id, own.folder / "20300101T000000Z-aaaaaa")
    assert any("renamed" in damage.problem for damage in problems(own))
    with pytest.raises(errors.Damaged, match="renamed"):
        restore(Options(str(own.root), str(tmp_path / "out")))


def later_format(vm, point):
    (vm.folder / point.id / "manifest.json").write_bytes(layout.seal({"format": "nbdpull/3", "requires": []}))


def test_a_point_of_a_later_format(own, tmp_path, capsys):
    """It is no damage: verify and restore agree on the exit code, and what does not need it is unaffected."""
    later_format(own, own.points[2])
    found = verify_store(own.root)
    assert found.damages == [] and [each.point for each in found.too_new] == [own.points[2].id]
    assert "needs nbdpull/3" in found.too_new[0].problem
    for words in (["verify"], ["verify", "--point", own.points[2].id], ["restore", "-o", str(tmp_path / "out")]):
        assert cli.main([words[0], str(own.root), *words[1:], "--json"]) == 10, words
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["point"], each["problem"]) for each in events if each["event"] == "too-new"][0] == (
        own.points[2].id, found.too_new[0].problem
    )  # fmt: skip
    assert events[-1]["code"] == "format-too-new"
    assert not (tmp_path / "out").exists()
    assert restored(own, own.points[1], tmp_path / "out") == own.images[own.points[1].id]
    with damaged(index_of(own, own.points[0], "vda"), b""):
        assert cli.main(["verify", str(own.root)]) == 11
    assert f"TOO NEW {own.points[2].id}: " in capsys.readouterr().out


def test_a_point_after_one_of_a_later_format(own):
    later_format(own, own.points[1])
    found = verify_store(own.root)
    assert found.damages == [] and [each.point for each in found.too_new] == [own.points[1].id]
    by_point = {each.point: each.verdict for each in found.verdicts}
    assert by_point == {own.points[0].id: "ok", own.points[1].id: None, own.points[2].id: "ok"}, (
        "nothing is proved of it"
    )


@pytest.mark.parametrize("verb", ["verify", "list", "restore"])
def test_a_store_of_a_format_that_was_never_released(own, tmp_path, capsys, verb):
    marker = own.root / "nbdpull.json"
    marker.write_bytes(layout.seal({"format": "nbdpull/1", "requires": [], "uuid": own.uuid, "created": "2026"}))
    assert cli.main([verb, str(own.root), *(["-o", str(tmp_path / "out")] if verb == "restore" else [])]) == 10
    assert capsys.readouterr().err == (
        f"nbdpull: {marker}: written by a development version of nbdpull, in format nbdpull/1, which no release reads; "
        "pull into a new directory\n"
    )


def test_a_folder_of_another_name(own, capsys):
    """Renamed: a pull finds it by the UUID. A copy beside it: no damage, but no pull continues there."""
    aside = own.folder.rename(own.root / "vm2")
    assert verify_store(own.root).warnings == []
    shutil.copytree(aside, own.folder)
    found = verify_store(own.root)
    assert found.damages == [] and len(found.warnings) == 1
    assert all(text in found.warnings[0] for text in ("vm1", str(own.root / "vm2")))
    assert cli.main(["verify", str(own.root), "--json"]) == 0
    assert found.warnings[0] in json.loads(capsys.readouterr().out.splitlines()[-1])["warnings"]
    with pytest.raises(errors.StoreError, match="no domain vm2"):  # it is the name of a folder, and of no point
        verify_store(own.root, domain="vm2")


def test_a_point_without_a_parent_is_no_damage(tmp_path):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 100_000)
    vm.write("vda", 5, b"abc")
    point = vm.pull(since="elsewhere")
    assert problems(vm) == []
    assert restored(vm, point, tmp_path / "out") == {}


# -- a store that agrees with itself, and is wrong all the same -------------------------------------------------------


@pytest.fixture
def forged(tmp_path):
    return forged_store(tmp_path / "store")


def test_a_wrong_frame_in_files_that_fit(forged, tmp_path):
    vm, point = forged
    assert problems(vm, level="files") == []
    assert damaged_ranges(problems(vm)) == [(40 * 64 * KIB, 64 * KIB), (41 * 64 * KIB, 64 * KIB)]
    assert restored(vm, point, tmp_path / "out") == {}


def test_the_number_of_reported_damages_is_bounded(own, tmp_path, monkeypatch):
    """Nobody reads a million lines about a disk that is lost as a whole; and an attacker can make any number of
    them."""
    monkeypatch.setattr("nbdpull.repository.inspection.MAX_DAMAGES", 3)
    for path in files(own.folder / own.points[0].id):
        if path.suffix == ".zst":
            path.write_bytes(bytes(path.stat().st_size))
    found = [damage for damage in problems(own, keep=True) if damage.offset is not None]
    assert len([damage for damage in found if (damage.point, damage.disk) == (own.points[0].id, "vda")]) == 3
    assert "more than 3 damages: the rest of this disk is not checked" in [damage.problem for damage in problems(own)]
    assert listing.listing(listing.Options(str(own.root))).points[0]["verified"]["verdict"] == "damaged"


@contextlib.contextmanager
def open_files(limit):
    """Let this process open as many files as one that is started after `ulimit -n LIMIT`."""
    taken = [int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
    free = (number for number in itertools.count() if number not in taken)
    [last] = itertools.islice(free, limit - 4, limit - 3)  # three are standard input, output and errors
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def many_files(tmp_path_factory):
    """A disk of 256 GB has a thousand chunk files, usually as many as a process may have open."""
    vm = Vm(tmp_path_factory.mktemp("many") / "store")
    vm.add_disk("vda", 200 * KIB * 64)
    vm.write("vda", 0, os.urandom(200 * KIB * 64))
    vm.pull(chunk_size=64 * KIB, batch_size=64 * KIB)
    return vm


@pytest.mark.parametrize("limit, code", [(150, 0), (5, 10)], ids=["few", "too few"])
def test_open_files_are_few_and_a_lack_of_descriptors_is_no_damage(many_files, tmp_path, capsys, limit, code):
    root = many_files.root
    for words in (["verify", root], ["restore", root, "-o", tmp_path / "out"], ["digest", root]):
        with open_files(limit):
            found, output, said = answered(capsys, *words)
        assert found == code and "DAMAGE" not in output, output + said
        assert code == 0 or "Too many open files; allow more (ulimit -n)" in said
    assert [path.name for path in tmp_path.glob("out/*.partial")] == []


def test_open_files_are_as_few_with_many_disks(tmp_path, capsys):
    vm, disks = Vm(tmp_path / "store"), [f"vd{letter}" for letter in "abcdefghijklmnopqrst"]
    for disk in disks:
        vm.add_disk(disk, 12 * 64 * KIB)
        vm.write(disk, 0, os.urandom(12 * 64 * KIB))
    vm.pull(chunk_size=64 * KIB, batch_size=64 * KIB)
    with open_files(150):
        assert answered(capsys, "restore", vm.root, "-o", tmp_path / "out")[::2] == (0, "")
    assert all((tmp_path / f"out/{disk}.qcow2").exists() for disk in disks)


def test_open_files_are_as_few_with_many_domains(tmp_path, capsys):
    """Each one was held until the command ended, with a descriptor."""
    for number in range(60):
        vm = Vm(tmp_path / "store", name=f"vm{number}", uuid=f"3e3fce45-4f53-4fa7-bb32-{number:012}")
        vm.add_disk("vda", 64 * KIB)
        vm.write("vda", 0, b"data")
        vm.pull()
    with open_files(50):
        assert answered(capsys, "restore", vm.root, "--domain", "vm1", "-o", tmp_path / "out")[::2] == (0, "")


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_restore_that_finds_it_late_leaves_no_image(forged, tmp_path, kind):
    vm, _ = forged
    with pytest.raises(errors.Damaged, match="not what was stored"):
        restore(Options(str(vm.root), str(tmp_path / "out"), kind=kind))
    assert not (tmp_path / "out").exists()


def test_an_image_that_is_there_survives_a_failed_restore(forged, tmp_path):
    vm, _ = forged
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "vda.raw").write_bytes(b"mine")
    with pytest.raises(errors.Damaged):
        restore(Options(str(vm.root), str(tmp_path / "out"), kind="raw", force=True))
    assert os.listdir(tmp_path / "out") == ["vda.raw"]
    assert (tmp_path / "out" / "vda.raw").read_bytes() == b"mine"


# -- exit codes -------------------------------------------------------------------------------------------------------


def test_exit_codes(own, tmp_path, capsys):
    assert cli.main(["verify", str(own.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ok"] is True
    path = next((own.folder / own.points[1].id).glob("vda.*.zst"))
    frame = next(start for magic, start, _ in zstd_frames(path.read_bytes()) if magic == 0xFD2FB528)
    path.write_bytes(flipped(path.read_bytes(), frame + 10))
    for options in ([], ["--quick"], ["--point", own.points[1].id], ["--domain", "vm1"]):
        assert cli.main(["verify", str(own.root), "--json", *options]) == 11
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (result["ok"], result["exit_code"], result["points"]) == (False, 11, 1 if "--point" in options else 3)
        assert result["damages"][0]["point"] == own.points[1].id
        assert cli.main(["verify", str(own.root), *options]) == 11
        assert f"DAMAGE {own.points[1].id} vda: {path}" in capsys.readouterr().out
    restore = ["restore", str(own.root), "--point", own.points[1].id, "-o", str(tmp_path / "out")]
    assert [cli.main(restore), cli.main(["index", str(own.root), "latest", "vda"])] == [11, 0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", [["verify"], ["restore", "-o", "OUT"], ["list"], ["show", "latest"]])
def test_a_damaged_marker(own, tmp_path, capsys, verb):
    marker = own.root / "nbdpull.json"
    marker.write_bytes(flipped(marker.read_bytes(), 20))
    command = [verb[0], str(own.root), *(str(tmp_path / "out") if word == "OUT" else word for word in verb[1:])]
    assert cli.main(command) == 11
    assert str(marker) in capsys.readouterr().err
