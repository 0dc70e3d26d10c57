"""Damaged files that are intact in another store: they are replaced and checked, and the damage is settled."""

import json
import shutil

import pytest
from stores import chunks_of, directory_of, files, flipped, move, restored

from nbdpull.cli import main as cli
from nbdpull.core import errors
from nbdpull.format import findings
from nbdpull.operations import listing
from nbdpull.operations.verify import Options, verify
from nbdpull.repository import evidence, half_points, healing, immutable, removal
from nbdpull.storage.directory import DirectoryStore
from nbdpull.storage.directory_file import DirectoryWriter

pytestmark = pytest.mark.usefixtures("no_threads")


def healed(vm, copy, **options):
    """Return (paths of the files that were healed, the result)."""
    found = verify(Options(str(vm.root), heal_from=str(copy), **options))
    return {each.path for each in found.healed}, found


def content(vm):
    return {str(path.relative_to(vm.folder)): path.read_bytes() for path in files(vm.folder)
            if path.parent != vm.folder}  # fmt: skip


def verdicts(vm):
    return [each["verified"]["verdict"] for each in listing.listing(listing.Options(str(vm.root))).points]


@pytest.mark.parametrize("how", ["flipped", "gone", "cut"])
@pytest.mark.parametrize("options", [{}, {"level": "files"}, {"oldest": True}, {"sample": 0.001}], ids=str)
def test_every_file_but_a_manifest_is_healed(original, vm, how, options):
    """All of them at once: a directory that cannot be read names nothing until it is healed itself."""
    bad = {name: vm.folder / name for name in content(vm) if not name.endswith("manifest.json")}
    for path in bad.values():
        data = path.read_bytes()
        path.write_bytes(flipped(data, len(data) // 2) if how == "flipped" else data[:-1])
        if how == "gone":
            path.unlink()
    paths, found = healed(vm, original.root, **options)
    if "sample" not in options or how != "flipped":
        assert paths == {*bad} and not found.is_bad and found.damages == []
    paths, found = healed(vm, original.root)
    assert not found.is_bad and verdicts(vm) == ["ok"] * 3
    assert content(vm) == content(original)


def test_it_restores_again(original, vm, tmp_path):
    chunk = max(files(vm.folder), key=lambda path: (path.suffix == ".zst", path.stat().st_size))
    chunk.write_bytes(flipped(chunk.read_bytes(), 500))
    healed(vm, original.root)
    for point in vm.points:
        assert restored(vm, point, tmp_path / point.id) == vm.images[point.id]


def test_what_the_copy_has_not_whole_stays_as_it_is(original, vm, tmp_path):
    """Two files are damaged, one of them also in the copy, and another one that is sound here."""
    copy = original.copy(tmp_path / "copy")
    one, two, three = [name for name, data in content(vm).items() if name.endswith(".zst") and len(data) > 300][:3]
    for name in (one, two):
        (vm.folder / name).write_bytes(flipped((vm.folder / name).read_bytes(), 100))
    for name in (two, three):
        (copy.folder / name).write_bytes(flipped((copy.folder / name).read_bytes(), 200))
    before = content(vm)
    paths, found = healed(vm, copy.root)
    assert paths == {one} and found.is_bad and {damage.path for damage in found.damages} == {two}
    assert found.warnings == [f"{copy.root} does not have an intact {two} of vm1"]
    assert content(vm) == {**before, one: content(original)[one]}, "nothing half is left, and nothing else was touched"
    (copy.folder / two).unlink()
    assert healed(vm, copy.root)[0] == set() and content(vm)[two] == before[two]
    assert healed(vm, vm.root)[0] == set()


def test_a_file_of_a_removed_point_whose_folder_is_gone(original, vm, tmp_path):
    first, last = vm.points[0], vm.points[2]
    removal.remove(vm.series, first)
    left = [(point, disk) for point in vm.points[1:] for disk in point.disks]
    needed = {entry.path for point, disk in left for entry in directory_of(vm, point, disk).files}
    shutil.rmtree(vm.folder / first.id)
    paths, found = healed(vm, original.root)
    assert paths == {path for path in needed if path.startswith(first.id)} != set() and not found.is_bad
    assert half_points.names(vm.series) == [], "it is no half point, which a pull would remove"
    assert restored(vm, last, tmp_path / "out") == vm.images[last.id]


@pytest.mark.parametrize("error", [errors.OutputError("no space left"), errors.Interrupted(15)], ids=["full", "signal"])
def test_an_interruption_leaves_the_damaged_file(original, vm, monkeypatch, error):
    """What was found is reported, unless the user ended it."""
    chunk = next(path for path in files(vm.folder) if path.suffix == ".zst")
    chunk.write_bytes(flipped(chunk.read_bytes(), 100))
    before, write = content(vm), DirectoryWriter.write

    def failing(self, data):
        write(self, data[: len(data) // 2])
        if ".zst" in self.path:
            raise error

    monkeypatch.setattr(DirectoryWriter, "write", failing)
    if isinstance(error, errors.Interrupted):
        with pytest.raises(errors.Interrupted):
            healed(vm, original.root)
    else:
        paths, found = healed(vm, original.root)
        assert paths == set() and [each.path for each in found.damages] == [str(chunk.relative_to(vm.folder))]
        assert found.warnings == ["a damaged file was not healed: no space left"]
    monkeypatch.undo()
    assert content(vm) == before
    assert healed(vm, original.root)[0] and content(vm) == content(original)


def test_a_lock_that_is_refused_ends_nothing(original, vm, monkeypatch):
    """The rest was not checked, and what had been healed was not reported."""
    chunks = [path for path in files(vm.folder) if path.suffix == ".zst"][:2]
    for path in chunks:
        path.write_bytes(flipped(path.read_bytes(), 100))

    def refused(*about):
        raise errors.AccessDenied("no s3:PutObjectRetention")

    monkeypatch.setattr(immutable, "_keep_promises", refused)
    paths, found = healed(vm, original.root)
    assert paths == {str(path.relative_to(vm.folder)) for path in chunks} and not found.is_bad
    assert len(found.warnings) == 2 and all("is not locked, although" in each for each in found.warnings)


def test_a_directory_in_the_place_of_a_file_hides_no_damage_and_no_other_file(original, vm):
    one, two = [vm.folder / name for name, data in content(vm).items() if name.endswith(".zst") and len(data) > 300][:2]
    for path in (one, two):
        path.unlink()
    one.mkdir()
    paths, found = healed(vm, original.root)
    name = str(one.relative_to(vm.folder))
    assert paths == {str(two.relative_to(vm.folder))} and {each.path for each in found.damages} == {name}
    [warning] = found.warnings
    assert "not healed" in warning and str(one) in warning


@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_a_file_that_frames_were_moved_to(vm, tmp_path, how):
    last = vm.points[-1]
    for point in vm.points[:-1]:
        removal.remove(vm.series, point)
    removal.sweep(vm.series, 0)
    paths = [entry.path for entry in chunks_of(vm, last, "vda") if not entry.path.startswith(last.id)]
    moved = vm.folder / move(vm, last, "vda", paths).path
    copy = vm.copy(tmp_path / "copy")
    data = moved.read_bytes()
    moved.write_bytes(flipped(data, len(data) // 2))
    if how == "gone":
        shutil.rmtree(moved.parent)
    found, result = healed(vm, copy.root)
    assert found and found <= {*paths} and not result.is_bad and moved.read_bytes() == data
    assert verdicts(vm) == ["ok"] and restored(vm, last, tmp_path / "out") == vm.images[last.id]
    assert half_points.names(vm.series) == []


def shared(vm):
    """A chunk file that all points share."""
    [first, *others] = [{entry.path for entry in directory_of(vm, point, "vda").chunks} for point in vm.points]
    return vm.folder / min(path for path in first.intersection(*others) if (vm.folder / path).stat().st_size > 300)


@pytest.mark.parametrize("first", [{}, {"oldest": True}, {"level": "files"}], ids=str)
def test_more_damages_than_a_finding_lists_are_all_healed(original, vm, monkeypatch, first):
    """None was healed, however often it was tried: a finding without all places names no file."""
    monkeypatch.setattr(evidence, "MAX_PLACES", 2)
    names = [name for name in content(vm) if name.endswith(".zst")]
    for name in names:
        (vm.folder / name).unlink()
    assert len(names) > 5 and verify(Options(str(vm.root), **first)).is_bad
    paths, found = healed(vm, original.root, **first)
    assert paths == {*names} and found.damages == [] and content(vm) == content(original)
    assert not healed(vm, original.root)[1].is_bad and verdicts(vm) == ["ok"] * 3


@pytest.mark.parametrize("is_well", [True, False])
def test_files_healed_by_another_run_are_checked_again(original, vm, monkeypatch, is_well):
    """A pull repairs what the verification has just found. It was reported as damaged, with nothing healed."""
    path, real = shared(vm), healing.heal
    good, name = path.read_bytes(), str(path.relative_to(vm.folder))
    path.write_bytes(flipped(good, 100))
    looked = []

    def after(*args):
        path.write_bytes(good)
        yield from real(*args)
        if not is_well:
            path.write_bytes(flipped(good, 100))
        looked.append(path)
        assert len(looked) < 5

    monkeypatch.setattr(healing, "heal", after)
    paths, found = healed(vm, original.root)
    assert paths == set() and found.is_bad == (not is_well) and verdicts(vm) == ["ok" if is_well else "damaged"] * 3
    assert [name in warning and "is intact now" in warning for warning in found.warnings] == [True] * is_well


def test_a_medium_that_reads_wrong_is_written_once(original, vm, monkeypatch):
    """It used to continue forever."""
    path, written, real, read = shared(vm), [], healing._healed, DirectoryStore.sha256

    def once(*args):
        written.append(args[2].path)
        assert len(written) < 10
        return real(*args)

    def wrong(self, name, *args):
        return "0" * 64 if self.path(name) == str(path) else read(self, name, *args)

    monkeypatch.setattr(healing, "_healed", once)
    monkeypatch.setattr(DirectoryStore, "sha256", wrong)
    name = str(path.relative_to(vm.folder))
    for _ in range(2):
        paths, found = healed(vm, original.root)
        assert paths == set() and {each.path for each in found.damages} == {name} and found.is_bad
    assert written == [name] * 2, "once in each run"


@pytest.mark.parametrize("is_on_record", [False, True])
def test_other_points_that_share_a_healed_file_are_sound_too(original, vm, is_on_record):
    path, last = shared(vm), vm.points[-1]
    healed(vm, original.root)
    path.write_bytes(flipped(path.read_bytes(), 100))
    if is_on_record:
        assert verify(Options(str(vm.root))).is_bad
    paths, found = healed(vm, original.root, point=last.id)
    assert paths == {str(path.relative_to(vm.folder))} and not found.is_bad
    assert [each.point for each in found.verdicts] == [last.id]
    assert verdicts(vm) == ["ok"] * 3


def test_warnings_of_the_first_check_are_kept(original, vm, monkeypatch):
    """Even if the second check does not see it any more."""
    shared(vm).unlink()
    real, first = findings.kept, ["not kept"]
    monkeypatch.setattr(findings, "kept", lambda *a, **b: [first.pop()] if first else real(*a, **b))
    paths, found = healed(vm, original.root)
    assert len(paths) == 1 and found.warnings == ["not kept"]


def test_a_time_limit_holds_for_the_healing_too(original, vm):
    """Recorded damage comes first, so that each run makes progress."""
    path = shared(vm)
    path.write_bytes(flipped(path.read_bytes(), 100))
    before = content(vm)
    verify(Options(str(vm.root)))
    paths, found = healed(vm, original.root, max_duration=1e-9)
    assert (paths, found.complete, found.is_bad, content(vm)) == (set(), False, True, before)
    paths, found = healed(vm, original.root, oldest=True, max_duration=100.0)
    assert paths == {str(path.relative_to(vm.folder))} and found.complete and not found.is_bad


def test_the_command_line(original, vm, tmp_path, capsys):
    chunk = next(path for path in files(vm.folder) if path.suffix == ".zst")
    chunk.write_bytes(flipped(chunk.read_bytes(), 100))
    words = ["verify", str(vm.root), "--heal-from", str(original.root)]
    with half_points.writing(vm.series):
        assert cli.main(words) == 11
    out, err = capsys.readouterr()
    assert out.startswith("DAMAGE ") and err.count("\n") == 1 and "verify vm1 when it has ended" in err
    assert cli.main(["verify", str(vm.root), "--heal-from", str(tmp_path)]) == 10
    assert cli.main([*words, "--no-record"]) == 2 and cli.main([*words, "--against", "x"]) == 2
    capsys.readouterr()
    name = str(chunk.relative_to(vm.folder))
    assert cli.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["ok"], result["healed"], result["damages"]) == (True, [{"domain": "vm1", "path": name}], [])
    chunk.unlink()
    assert cli.main(words) == 0
    assert f"HEALED {name} of vm1\n" in capsys.readouterr().out
