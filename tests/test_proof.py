"""Proofs for others: parts of a verification, images against points, digests of content, rebuilt indexes."""

import json
import os
import random
import shutil
import subprocess
import tracemalloc
from types import SimpleNamespace

import numpy
import pytest
from stores import KIB, MIB, ROLLING, Vm, chain, chunks_of, damaged, files, flipped, index_of, verify_store, zstd_frames

from nbdpull.cli import main as cli
from nbdpull.core import errors
from nbdpull.format import findings, layout, reader
from nbdpull.operations import against, digest, listing, rebuild


def nbdpull(capsys, *words):
    """Return (exit code, stdout, stderr) of one command line."""
    code = cli.main(list(map(str, words)))
    return (code, *capsys.readouterr())


def result(capsys, *words):
    code, out, _ = nbdpull(capsys, *words, "--json")
    last = json.loads(out.splitlines()[-1])
    assert last["exit_code"] == code
    return last


# -- parts ------------------------------------------------------------------------------------------------------------


def test_shards_are_everything_and_nothing_twice(vm):
    whole = verify_store(vm.root)
    parts = [verify_store(vm.root, shard=(i, 3)) for i in (1, 2, 3)]
    assert sum(part.frames for part in parts) == whole.frames
    assert sum(part.raw_bytes for part in parts) == whole.raw_bytes
    assert max(part.frames for part in parts) < whole.frames
    again = verify_store(vm.root, shard=(2, 3))
    assert (again.frames, again.files) == (parts[1].frames, parts[1].files)


def test_a_damage_is_in_one_shard(vm):
    """Here there are two damages: a frame, and the digest of its file, which may be in another shard."""
    chunk = max(files(vm.folder), key=lambda path: (path.suffix == ".zst", path.stat().st_size))
    with damaged(chunk, flipped(chunk.read_bytes(), chunk.stat().st_size // 2)):
        found = [len(verify_store(vm.root, shard=(i, 4)).damages) for i in range(1, 5)]
    assert sum(found) == 2


def test_a_sample_reads_about_its_share(tmp_path):
    vm = Vm(tmp_path)
    vm.add_disk("vda", 40 * MIB)
    vm.write("vda", 0, random.Random(1).randbytes(40 * MIB))
    vm.pull(frame_size=64 * KIB)
    found = verify_store(vm.root, sample=0.1)
    assert 20 < found.frames < 140 and found.complete and not found.damages
    lost = vm.folder / chunks_of(vm, vm.points[0], "vda")[0].path
    with damaged(lost, None):  # a file that is not there is found by every sample
        assert verify_store(vm.root, sample=0.0001, level="files").damages


def test_a_time_limit_ends_it_and_the_next_run_continues(vm, capsys):
    code, out, _ = nbdpull(capsys, "verify", vm.root, "--max-duration", "0.000001s", "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["complete"] is False
    assert verify_store(vm.root, max_duration=1000).complete
    oldest = vm.points[0]
    others = [point for point in vm.points if point is not oldest]
    entries = [{**findings.entry(point), "verdict": "ok", "damages": 0} for point in others]
    findings.record(vm.series, findings.VERIFY, **findings.now(), level="frames", points=entries)
    events = []
    verify_store(vm.root, max_duration=1000, report=lambda **event: events.append(event))
    assert events[0]["point"] == oldest.id


def test_an_empty_store_is_distinguished_from_one_not_verified_in_time(vm, tmp_path):
    late = verify_store(vm.root, max_duration=-1)
    assert (late.points, late.complete, late.warnings) == (0, False, [])
    assert [each.verdict for each in late.verdicts] == [None] * 3
    empty = verify_store(Vm(tmp_path / "empty").root)
    assert "has no points: nothing was verified" in " ".join(empty.warnings) and empty.complete


def test_list_shows_when_a_point_was_verified(vm, capsys):
    assert [point["verified"] for point in listing.listing(listing.Options(str(vm.root))).points] == [None] * 3
    assert result(capsys, "verify", vm.root)["ok"]
    chunk = vm.folder / vm.points[2].id / "vda.0000.zst"
    before = chunk.read_bytes()
    points = json.loads(nbdpull(capsys, "list", vm.root, "--json")[1])
    assert [point["verified"]["verdict"] for point in points] == ["ok"] * 3
    assert points[0]["verified"]["level"] == "frames" and "@" in points[0]["verified"]["last"]["who"]
    chunk.write_bytes(flipped(before, 900))
    assert result(capsys, "verify", vm.root, "--quick", "--sample", "100%")["exit_code"] == 11
    points = listing.listing(listing.Options(str(vm.root))).points
    assert [point["verified"]["verdict"] for point in points] == ["ok", "ok", "damaged"]
    assert "DAMAGED" in nbdpull(capsys, "list", vm.root)[1]
    chunk.write_bytes(before)
    for point in vm.points:  # and coreutils still find every point whole
        subprocess.run(["sha256sum", "-c", "--quiet", layout.SUMS], cwd=vm.folder / point.id, check=True)


def test_no_record(vm, capsys):
    before = files(vm.root)
    nbdpull(capsys, "verify", vm.root, "--no-record", "--quiet")
    nbdpull(capsys, "digest", vm.root, "--no-record", "--quiet")
    assert files(vm.root) == before


def test_a_finding_is_of_one_manifest_only(vm, capsys):
    result(capsys, "verify", vm.root)
    points = [vm.points[0].__class__(vm.points[0].manifest, "0" * 64)]
    assert findings.by_point(findings.load(vm.series), points, findings.VERIFY) == {vm.points[0].id: []}
    for path in vm.folder.glob("*.verify.json"):
        path.write_bytes(flipped(path.read_bytes(), 100))
    assert findings.load(vm.series) == []


# -- against ----------------------------------------------------------------------------------------------------------


def image(path, content, kind="raw"):
    raw = path.with_suffix(".part")
    raw.write_bytes(content)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, str(raw), str(path)], check=True)
    return path


@pytest.fixture
def even(tmp_path):
    """A chain whose disk is a whole number of sectors, as QEMU's images are."""
    rng = random.Random(5)
    vm = Vm(tmp_path / "even")
    vm.add_disk("vda", 4 * MIB + 64 * KIB)
    for _ in range(3):
        vm.write("vda", rng.randrange(64) * 64 * KIB, rng.randbytes(128 * KIB))
        vm.write("vda", rng.randrange(3 * MIB), rng.randbytes(70_001))
        vm.zero("vda", rng.randrange(64) * 64 * KIB, 64 * KIB)
        vm.pull(frame_size=256 * KIB)
    return vm


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_an_image_equals_its_point_and_no_other(even, tmp_path, kind, capsys):
    for point in even.points:
        path = image(tmp_path / f"{point.id}.{kind}", even.images[point.id]["vda"], kind)
        for other in even.points:
            found = against.against(against.Options(str(even.root), str(path), point=other.id))
            assert found.differences == different(even, point, other)
    reported = result(capsys, "verify", even.root, "--against", path, "--point", even.points[0].id)
    assert not reported["ok"] and reported["exit_code"] == 13 and reported["differences"]
    reported = result(capsys, "verify", even.root, "--against", path)
    assert reported["ok"] and reported["equal"] and reported["compared_bytes"] == even.disks["vda"].size


PARTS = [["--shard", "2/2"], ["--sample", "0.01%"], ["--max-duration", "0.000001"]]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_does_not_count_as_the_whole_image(even, tmp_path, part, capsys):
    numpy.random.seed(1)  # what the sample is taken by
    content = even.images[even.points[-1].id]["vda"]
    size, wrong = len(content), bytearray(content)
    wrong[-1] ^= 1  # in the last block, which has another length, and which none of these looks at
    for path in (image(tmp_path / "same.raw", content), image(tmp_path / "wrong.raw", wrong)):
        found = result(capsys, "verify", even.root, "--against", path, *part)
        assert found["ok"] and found["exit_code"] == 0 and found["equal"] is None and not found["complete"]
        assert found["size"] == size and 0 <= found["compared_bytes"] < size
        code, said, _ = nbdpull(capsys, "verify", even.root, "--against", path, *part)
        assert code == 0 and "in the part that was checked" in said and "equals" not in said


def test_all_parts_of_an_image_together_are_the_whole(even, tmp_path, capsys):
    wrong = bytearray(even.images[even.points[-1].id]["vda"])
    wrong[-1] ^= 1
    path = image(tmp_path / "wrong.raw", wrong)
    parts = [result(capsys, "verify", even.root, "--against", path, "--shard", f"{i}/3") for i in (1, 2, 3)]
    assert [each["equal"] for each in parts].count(False) == 1
    (found,) = [each for each in parts if each["differences"]]
    assert found["exit_code"] == 13 and not found["complete"]
    assert sum(each["compared_bytes"] for each in parts) >= len(wrong)


def different(vm, one, other):
    """Must be [] for the same point; else the compare's own answer holds the ranges that really differ."""
    a, b = vm.images[one.id]["vda"], vm.images[other.id]["vda"]
    image = str(next(vm.root.parent.glob(f"{one.id}.*[w2]")))
    found = against.against(against.Options(str(vm.root), image, point=other.id)).differences
    covered = bytearray(len(a))
    for offset, length in found:
        covered[offset : offset + length] = b"\1" * length
        assert a[offset : offset + length] != b[offset : offset + length]
    assert all(covered[i] or a[i] == b[i] for i in range(len(a)))
    return found if one is not other else []


def test_against_a_served_point(even, capsys):
    from nbdpull.serving import nbd_server

    with nbd_server.Server(nbd_server.Request(str(even.root), point=even.points[1].id)) as server:
        uri = server.exports[0].uri
        assert result(capsys, "verify", even.root, "--against", uri, "--point", even.points[1].id)["equal"]
        assert not result(capsys, "verify", even.root, "--against", uri)["equal"]


def test_against_bad_input(even, vm, tmp_path, capsys):
    assert nbdpull(capsys, "verify", even.root, "--against", tmp_path / "none")[0] == 2
    small = image(tmp_path / "small.raw", bytes(MIB))
    code, _, err = nbdpull(capsys, "verify", even.root, "--against", small)
    assert code == 13 and "1048576 bytes" in err
    junk = tmp_path / "junk.qcow2"
    junk.write_bytes(b"QFI\xfb" + bytes(100))
    assert nbdpull(capsys, "verify", even.root, "--against", junk)[0] == 2
    for words in (["--disk", "vda"], ["--format", "raw"]):
        assert nbdpull(capsys, "verify", even.root, *words)[0] == 2


# -- digest -----------------------------------------------------------------------------------------------------------


def digests(vm, point="all"):
    return [disks for _, disks in digest.digest(digest.Options(str(vm.root), point=point, keep=False)).points]


@pytest.mark.parametrize("seed", range(3))
def test_a_chain_and_a_full_pull_have_the_same_digest(tmp_path, seed):
    rng = random.Random(seed)
    vm = chain(tmp_path / "chain", seed=seed, points=4, size=3 * MIB + 512, frame_size=rng.choice([64 * KIB, MIB]))
    seen = set()
    for number, (point, found) in enumerate(zip(vm.points, digests(vm))):
        for frame_size in (64 * KIB, 256 * KIB, MIB):
            full = Vm(tmp_path / f"full{number}{frame_size}")
            for disk, content in vm.images[point.id].items():
                full.add_disk(disk, len(content))
                full.write(disk, 0, content)  # zeros are data here, found by the writer
            full.pull("nothing", frame_size=frame_size, **{k: ROLLING[k] for k in ("chunk_size",)})
            assert digests(full) == [found]
        seen.add(found["vda"])
    assert len(seen) == 4


def test_the_digest_is_what_the_format_says(tmp_path):
    from blake3 import blake3

    vm = chain(tmp_path, points=2, size=3 * MIB + 5)
    content = vm.images[vm.points[-1].id]["vda"]
    expected = blake3(b"nbdpull/1 image\n" + len(content).to_bytes(8, "little"))
    for number in range(-(-len(content) // MIB)):
        block = content[number * MIB : (number + 1) * MIB]
        if any(block):
            expected.update(number.to_bytes(8, "little") + blake3(block).digest())
    assert digests(vm, "latest")[0]["vda"] == expected.hexdigest()


def test_explicit_zeros_and_growth_do_not_count(tmp_path):
    one, other = Vm(tmp_path / "1"), Vm(tmp_path / "2")
    for vm in (one, other):
        vm.add_disk("vda", 5 * MIB)
        vm.write("vda", MIB + 70_000, b"x" * 100)
    other.write("vda", 3 * MIB, bytes(1000))
    other.zero("vda", 0, 4096)
    one.pull()
    other.pull(frame_size=MIB)
    assert digests(one) == digests(other)
    assert digests(one)[0]["vda"] != digests(chain(tmp_path / "3", points=1))[0]["vda"]


def test_whole_frames_need_no_reading(tmp_path, monkeypatch):
    vm = Vm(tmp_path)
    vm.add_disk("vda", 4 * MIB)
    vm.write("vda", 0, random.Random(1).randbytes(4 * MIB))
    vm.pull(frame_size=MIB)
    expected = digests(vm)
    shutil.move(str(vm.folder / chunks_of(vm, vm.points[0], "vda")[0].path), tmp_path / "elsewhere")
    assert digests(vm) == expected


def test_a_digest_of_many_blocks_takes_no_memory():
    """An index may have 67 million of them; 80 bytes for each were kept to the end."""
    many = range(50_000)

    def opened(blocks):
        frames = ((number * MIB, MIB, number.to_bytes(32, "little")) for number in blocks)
        return SimpleNamespace(size=len(many) * MIB, records=lambda: frames)

    digest.image_digest(opened(range(1)))  # the first block of a process has one of zeros made, to know its digest
    tracemalloc.start()
    try:
        found = digest.image_digest(opened(many))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    hashed = [layout.image_digest_block(number, number.to_bytes(32, "little")) for number in many]
    assert found == reader.digest(b"".join([layout.image_digest_head(len(many) * MIB), *hashed])).hex()
    assert peak < 1 << 18, "of 4 MB, were they kept"


def test_digests_are_kept_and_listed(vm, capsys):
    found = result(capsys, "digest", vm.root, "--point", "all")["points"]
    assert [point["id"] for point in found] == [point.id for point in vm.points]
    listed = listing.listing(listing.Options(str(vm.root))).points
    assert [point["digests"] for point in listed] == [point["disks"] for point in found]
    code, out, _ = nbdpull(capsys, "digest", vm.root, "--disk", "vdb")
    assert code == 0 and found[-1]["disks"]["vdb"] in out
    assert nbdpull(capsys, "digest", vm.root, "--disk", "vdz")[0] == 3


# -- a lost index, a lost directory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [ROLLING, {}, {"frame_size": MIB}, {"dedupe": True}])
def test_a_lost_index_or_directory_is_made_again_to_the_byte(tmp_path, capsys, how):
    vm = chain(tmp_path, size=6 * MIB, **how)
    for point in vm.points:
        for disk in ("vda", "vdb"):
            index, directory = index_of(vm, point, disk), vm.folder / point.manifest.disk(disk).directory.path
            before = {path: path.read_bytes() for path in (directory, index) if path.exists()}
            for lost in [[path] for path in before] + [list(before)]:
                for path in lost:
                    path.unlink()
                code, out, _ = nbdpull(capsys, "index", vm.root, point.id, disk, "--rebuild")
                assert (code, out.splitlines()) == (0, list(map(str, lost)))
                assert {path: path.read_bytes() for path in before} == before
    assert verify_store(vm.root).damages == []


def test_a_large_lost_index(tmp_path):
    """Far more than one block of zstd."""
    vm = Vm(tmp_path)
    vm.add_disk("vda", 24 * MIB)
    for at in range(0, 24 * MIB, 2048):
        vm.write("vda", at, at.to_bytes(8, "little") * 4)
        vm.zero("vda", at + 1024, 64)
    point = vm.pull(chunk_size=MIB)
    path = index_of(vm, point, "vda")
    before = path.read_bytes()
    assert len(before) > 300_000
    path.unlink()
    rebuild.rebuild(rebuild.Options(str(vm.root), point.id, "vda"))
    assert path.read_bytes() == before


def test_a_disk_without_changes(tmp_path):
    """It has no index, and its directory has the pages of the previous point."""
    vm = chain(tmp_path, points=1)
    point = vm.pull()
    asked = rebuild.Options(str(vm.root), point.id, "vda")
    with pytest.raises(errors.OutputExists, match="nothing changed: there is no index"):
        rebuild.rebuild(asked)
    path = vm.folder / point.manifest.disk("vda").directory.path
    path.unlink()
    assert rebuild.rebuild(asked).paths == [str(path)]
    assert verify_store(vm.root).damages == []


def test_a_lost_index_beside_a_damaged_frame(vm):
    """The records at the end of the chunk file suffice."""
    point = vm.points[1]
    path, chunk = index_of(vm, point, "vda"), vm.folder / point.id / "vda.0000.zst"
    before = path.read_bytes()
    [first, *_] = [start for _, start, _ in zstd_frames(chunk.read_bytes())][1:]
    path.unlink()
    with damaged(chunk, flipped(chunk.read_bytes(), first + 20)):
        rebuild.rebuild(rebuild.Options(str(vm.root), point.id, "vda"))
    assert path.read_bytes() == before


def healed_of_lost_index(root):
    """(Vm, path of a lost index, its bytes): the last point is laid over what is left of the index's point, and has
    frames of older points."""
    vm = chain(root, points=2, size=2 * MIB, frame_size=16 * KIB)
    vm.write("vda", 0, os.urandom(MIB))
    vm.pull(frame_size=16 * KIB)
    vm.write("vda", 0, b"x" * 512)
    index = index_of(vm, vm.pull(frame_size=16 * KIB), "vda")
    before = index.read_bytes()
    index.unlink()
    vm.bad = {index.relative_to(vm.folder).as_posix()}
    vm.pull(dedupe=True, disks=["vda"], frame_size=16 * KIB)
    return vm, index, before


@pytest.mark.parametrize("lost", [["vda.index"], ["vda.directory", "vda.index"]])
def test_a_lost_index_of_a_point_that_healed_one(tmp_path, lost):
    """It was laid over what was left: so it can be rebuilt as long as the same is left; otherwise there is a clear
    error."""
    vm, index, before = healed_of_lost_index(tmp_path / "store")
    paths = [vm.folder / vm.points[-1].id / name for name in lost]
    held = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    asked = rebuild.Options(str(vm.root), vm.points[-1].id, "vda")
    index.write_bytes(before)
    with pytest.raises(errors.Damaged, match="was damaged then and is not now"):
        rebuild.rebuild(asked)
    index.unlink()
    assert rebuild.rebuild(asked).paths == [*map(str, paths)] and [path.read_bytes() for path in paths] == held


def test_what_cannot_be_rebuilt(vm, capsys):
    point = vm.points[1]
    index, chunk = index_of(vm, point, "vda"), vm.folder / point.id / "vda.0000.zst"
    parent = vm.folder / vm.points[0].id / layout.MANIFEST
    words = ("index", vm.root, point.id, "vda", "--rebuild")
    for data in (index.read_bytes(), index.read_bytes()[:-3]):
        with damaged(index, data):
            code, _, err = nbdpull(capsys, *words)
            assert code == 9 and "exist: move away what is damaged" in err
    for path, data in ((chunk, flipped(chunk.read_bytes(), -60)), (chunk, None), (parent, None)):
        with damaged(index, None), damaged(path, data):
            before = files(vm.root)
            code, _, err = nbdpull(capsys, *words)
            assert code == 11 and len(err.splitlines()) == 1
            assert files(vm.root) == before
    assert f"was laid over {vm.points[0].id}, which the store does not have" in err
    with pytest.raises(errors.NoSuchDisk):
        rebuild.rebuild(rebuild.Options(str(vm.root), point.id, "vdz"))
