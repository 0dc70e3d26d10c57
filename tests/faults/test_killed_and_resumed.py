"""A run is killed while its job continues, and the next one resumes it. The VM has no operating system."""

import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest
from bed.machine import MIB, Machine, wait_for
from rig import Rig, environment

pytest.importorskip("libvirt")

NOISE = random.Random(1).randbytes(8 * MIB)
SMALL_CHUNKS = ("--chunk-size", "1M")


@pytest.fixture(scope="module")
def rig(private_libvirt, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    with Machine(private_libvirt, folder / "images", {"vda": 16 * MIB, "vdb": 4 * MIB}) as vm:
        vm.write_bytes("vda", 0, NOISE)
        rig = Rig(vm, folder)
        rig.pull(*SMALL_CHUNKS)
        yield rig


SEEDS = itertools.count(2)


def change(rig):
    """Write data that does not compress, data that the parent already holds, and zeroes: enough for many chunk
    files."""
    seed = next(SEEDS)
    noise = random.Random(seed).randbytes(5 * MIB)
    rig.vm.write_bytes("vda", 0, NOISE[:MIB])
    rig.vm.write_bytes("vda", MIB, noise)
    rig.vm.write_zeroes("vda", 7 * MIB, MIB)
    rig.vm.write_bytes("vda", 12 * MIB, noise[:MIB])
    rig.vm.write("vdb", 65536 * (seed % 16), 65536, 1 + seed % 255)


def journal(rig):
    """Return (path, first line, other lines) of the journal of the only uncommitted run."""
    (path,) = rig.journals()
    first, *lines = path.read_text().splitlines()
    return path, json.loads(first), [json.loads(line) for line in lines if line.strip()]


def half_point(rig):
    """Return the directory of the only uncommitted point."""
    (path,) = rig.store.glob("*/*/run.json")
    return path.parent


def killed(rig, *options, sealed=2):
    """Kill a pull that has made exactly this many chunk files durable; return {name: (inode, time)} of all chunk files,
    including those of earlier runs."""
    rig.start(*SMALL_CHUNKS, *options, phase=f"sealed:{sealed}")
    rig.process.kill()
    rig.process.communicate()
    _, run, lines = journal(rig)
    paths = [each["path"] for each in lines if each["event"] == "sealed"]
    names = [name for point, _, name in (each.partition("/") for each in paths) if point == run["id"]]
    return {name: identity(half_point(rig) / name) for name in names}


def identity(path):
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns


@pytest.mark.parametrize("options", [(), ("--full", "--no-dedupe")], ids=["incremental", "full"])
@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["of itself", "asked for"])
def test_it_equals_an_uninterrupted_run(rig, options, resume):
    change(rig)
    frozen = rig.contents()
    uninterrupted = rig.pull(*SMALL_CHUNKS, *options) if options else None
    kept = killed(rig, *options)
    (_, run, _), folder = journal(rig), half_point(rig)
    rig.vm.write("vda", 0, 16 * MIB, 0x99)  # what the guest does later is not in the point
    made = rig.pull(*SMALL_CHUNKS, *options, *resume)
    assert made["details"]["id"] == run["id"] and made["reclaimed"] == []
    assert len(made["warnings"]) == 1 and f"as of {run['begun']}" in made["warnings"][0]
    assert made["resumed"] == {"begun": run["begun"], "kept_bytes": sum((folder / n).stat().st_size for n in kept)}
    assert {name: identity(folder / name) for name in kept} == kept
    rig.assert_restores(frozen, run["id"])
    rig.assert_clean()

    if options:
        assert described(rig, made["details"]) == described(rig, uninterrupted["details"])
    rig.assert_next_is_right()


def described(rig, point):
    """Return counts and records of the disks, without the places of frames."""
    counts = ("name", "size", "dirty_bytes", "zero_bytes", "read_bytes", "deduped_bytes")
    counts_of = [{name: disk[name] for name in counts} for disk in point["disks"]]
    for disk in counts_of:
        done = rig.run("index", rig.store, point["id"], disk["name"])
        assert done.returncode == 0, done.stderr
        records = [json.loads(line) for line in done.stdout.splitlines()]
        disk["records"] = [(each["offset"], each["length"], each["kind"], each.get("digest")) for each in records]
    return counts_of


def test_references_to_the_parent_survive_the_kill(rig):
    rig.vm.write_bytes("vda", 0, NOISE)
    rig.pull(*SMALL_CHUNKS, "--full")
    rig.vm.write_bytes("vda", 0, NOISE[: 2 * MIB])
    rig.vm.write_bytes("vda", 2 * MIB, random.Random(77).randbytes(MIB))
    rig.vm.write_bytes("vda", 3 * MIB, NOISE[3 * MIB :])
    frozen = rig.contents()
    rig.start(*SMALL_CHUNKS, phase="copied")
    rig.process.kill()
    rig.process.communicate()
    _reopen(rig)
    made = rig.pull(*SMALL_CHUNKS)
    assert made["resumed"]["kept_bytes"] and made["details"]["disks"][0]["deduped_bytes"] == 7 * MIB
    rig.assert_restores(frozen, made["details"]["id"])
    rig.assert_next_is_right()


def _reopen(rig):
    """Change the journal as if the kill had come just before the end of the reading was recorded."""
    path, _, _ = journal(rig)
    lines = path.read_text().splitlines(keepends=True)
    assert json.loads(lines[-1]) == {"event": "ending"}
    path.write_text("".join(lines[:-1]) + lines[-1][:5])  # a torn line


def test_killed_again_and_again(rig):
    change(rig)
    frozen = rig.contents()
    kept = killed(rig)
    more = killed(rig)
    assert (len(kept), len(more)) == (2, 4) and {name: more[name] for name in kept} == kept
    made = rig.pull(*SMALL_CHUNKS)
    assert made["resumed"]["kept_bytes"]
    rig.assert_restores(frozen, made["details"]["id"])
    rig.assert_next_is_right()


@pytest.mark.parametrize("when", ["before", "after"])
def test_damage_of_the_base_that_is_found_before_or_after_the_kill(rig, when):
    """The run that knows of the damage reads the data again, even where the earlier run had already read past it."""
    rig.vm.write_bytes("vda", 0, NOISE)
    old = rig.pull("--full", "--no-dedupe", *SMALL_CHUNKS)["details"]["id"]
    [victim] = rig.store.glob(f"*/{old}/vda.0001.zst")
    rig.vm.write_bytes("vda", 4 * MIB, random.Random(78).randbytes(4 * MIB))
    frozen, before = rig.contents(), victim.read_bytes()
    if when == "before":
        victim.write_bytes(flipped(victim))
        assert rig.run("verify", rig.store, "--point", old).returncode == 11
    killed(rig)
    if when == "after":
        victim.write_bytes(flipped(victim))
        assert rig.run("verify", rig.store, "--point", old).returncode == 11
    made = rig.pull(*SMALL_CHUNKS)
    assert bool(made["resumed"]["kept_bytes"]) == (when == "before")
    paths = [f"{old}/vda.0001.zst"]
    assert made["healed"] == [{"disk": "vda", "bytes": MIB, "files": paths, "mended": paths}]
    assert rig.run("verify", rig.store, "--point", made["details"]["id"]).returncode == 0
    assert victim.read_bytes() == before
    rig.assert_restores(frozen, made["details"]["id"])
    rig.assert_clean()
    rig.assert_next_is_right()


@pytest.mark.parametrize("how", ["flipped", "cut", "removed"])
def test_a_chunk_file_that_is_not_what_it_was_is_made_again(rig, how):
    change(rig)
    frozen = rig.contents()
    killed(rig)
    first, second = sorted(half_point(rig).glob("vda.*.zst"))[:2]
    data = flipped(second)
    second.unlink()
    if how != "removed":
        second.write_bytes(data if how == "flipped" else data[: len(data) // 2])
    assert_goes_on_behind(rig, first, frozen)


def flipped(path):
    """Return the content of a file with one bit in its middle flipped."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    return data


def assert_goes_on_behind(rig, first, frozen):
    """Require that only this chunk file of the dead run was kept, and that the point is right."""
    made = rig.pull(*SMALL_CHUNKS)
    assert made["resumed"]["kept_bytes"] == first.stat().st_size
    rig.assert_restores(frozen, made["details"]["id"])
    rig.assert_next_is_right()


def test_a_line_that_the_journal_has_lost_ends_what_is_kept(rig):
    change(rig)
    frozen = rig.contents()
    killed(rig, sealed=3)
    path, _, _ = journal(rig)
    first, *_ = sorted(half_point(rig).glob("vda.*.zst"))
    lines = path.read_text().splitlines(keepends=True)
    sealed = [number for number, line in enumerate(lines) if '"sealed"' in line and '"vda"' in line]
    lines[sealed[1]] = "{}\n"
    path.write_text("".join(lines))
    assert_goes_on_behind(rig, first, frozen)


def test_a_file_made_again_by_a_run_that_is_killed_too_counts_once(rig):
    change(rig)
    frozen = rig.contents()
    killed(rig, sealed=3)
    second = sorted(half_point(rig).glob("vda.*.zst"))[1]
    second.write_bytes(flipped(second))
    assert len(killed(rig, sealed=3)) == 4
    made = rig.pull(*SMALL_CHUNKS)
    rig.assert_restores(frozen, made["details"]["id"])
    rig.assert_next_is_right()


def test_a_journal_that_cannot_be_written_to(rig):
    """As in a full store: the job is ended nevertheless, and nothing of it remains."""
    change(rig)
    killed(rig)
    path, run, _ = journal(rig)
    size = path.stat().st_size

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    words = [sys.executable, "-m", "nbdpull", *map(str, rig.words(*SMALL_CHUNKS))]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), preexec_fn=limited)
    assert done.returncode == 9, done.stderr
    rig.assert_clean()
    rig.assert_next_is_right()


def test_another_parent(rig):
    """The point of the base is removed between the runs: nothing may refer to its data."""
    rig.pull(*SMALL_CHUNKS, "--full", "--checkpoint", "kept")
    parent = rig.points()[-1]["id"]
    rig.vm.write_bytes("vda", MIB, random.Random(99).randbytes(6 * MIB))
    killed(rig, "--since", "kept")
    shutil.rmtree(half_point(rig).parent / parent)
    made = rig.pull(*SMALL_CHUNKS, "--since", "kept")
    assert made["resumed"] is None and "another point" in made["warnings"][0] and made["details"]["parent"] is None
    assert rig.run("verify", rig.store).returncode == 0
    rig.vm.delete_checkpoint("kept")
    rig.assert_next_is_right("--full")


def test_a_run_is_resumed_in_a_moved_store_but_not_in_a_copied_one(rig, tmp_path):
    change(rig)
    killed(rig)
    shutil.copytree(rig.store, tmp_path / "copy", copy_function=shutil.copy2)
    mine, rig.store = rig.store, tmp_path / "copy"
    made = rig.pull(*SMALL_CHUNKS)
    assert made["resumed"] is None
    rig.vm.delete_checkpoint(made["details"]["checkpoint"])
    shutil.rmtree(rig.store)
    rig.store = mine
    change(rig)
    frozen = rig.contents()
    killed(rig)
    os.rename(rig.store, tmp_path / "moved")
    rig.store = tmp_path / "moved"
    made = rig.pull(*SMALL_CHUNKS)
    assert made["resumed"]["kept_bytes"]
    rig.assert_restores(frozen, made["details"]["id"])
    change(rig)
    killed(rig)
    rig.vm.domain.abortJob()
    wait_for(lambda: not rig.vm.job_active(), "the job's end")
    os.rename(rig.store, mine)
    rig.store = mine
    made = rig.pull()
    assert made["warnings"] == [] and any("checkpoint" in item["what"] for item in made["reclaimed"])
    rig.assert_next_is_right()


@pytest.mark.parametrize("original", ["finished", "half", "away"])
def test_the_half_point_of_a_copied_store_is_never_cleaned(rig, tmp_path, original):
    """The announcement names another place, where the point was completed, is half as well, or cannot be accessed. What
    the completed point needs of the domain remains."""
    change(rig)
    killed(rig)
    run = journal(rig)[1]
    mine, copy = rig.store, tmp_path / "copy"
    shutil.copytree(mine, copy, copy_function=shutil.copy2)
    if original != "half":
        finished = rig.pull(*SMALL_CHUNKS)["details"]
        assert finished["id"] == run["id"]
    if original == "away":
        os.rename(mine, tmp_path / "away")
    rig.store = copy
    frozen = rig.contents()
    made = rig.pull(*SMALL_CHUNKS)
    assert made["resumed"] is None and any("partial files" in item["what"] for item in made["reclaimed"])
    rig.assert_restores(frozen, made["details"]["id"])
    assert not (copy / rig.vm.name / run["id"]).exists()
    assert (run["checkpoint"] in rig.vm.checkpoints()) == (original != "half")
    assert rig.journals() == []
    if original == "away":
        os.rename(tmp_path / "away", mine)
    rig.vm.delete_checkpoint(made["details"]["checkpoint"])
    rig.store = mine
    rig.assert_next_is_right()


def test_the_store_of_the_run_is_unreachable(rig, tmp_path):
    """It is unknown then whether a committed point needs the checkpoint of the dead run: it stays, with a warning."""
    change(rig)
    rig.start(*SMALL_CHUNKS, phase="committed")
    rig.process.kill()
    rig.process.communicate()
    made, mine = rig.points()[-1], rig.store
    os.rename(mine, tmp_path / "away")
    rig.store = tmp_path / "another"
    result = rig.pull()
    assert any(made["checkpoint"] in text and "is missing" in text for text in result["warnings"])
    assert made["checkpoint"] in rig.vm.checkpoints() and len(rig.journals()) == 1
    rig.vm.delete_checkpoint(result["details"]["checkpoint"])
    os.rename(tmp_path / "away", mine)
    rig.store = mine
    assert rig.pull()["details"]["since"] == made["checkpoint"] and rig.journals() == []
    rig.assert_next_is_right()


@pytest.mark.parametrize("place", ["a copy", "shared"])
def test_the_half_point_of_another_machine(rig, tmp_path, place):
    """No run works in a copy. If both machines access the same place, the run may be alive."""
    change(rig)
    sealed = set(killed(rig))
    path, run, _ = journal(rig)
    path.unlink()  # that machine has it
    path = half_point(rig) / "run.json"
    announced = json.loads(path.read_text())
    announced["process"].update(machine="another", host="another")
    path.write_text(json.dumps(announced))
    rig.vm.domain.abortJob()
    wait_for(lambda: not rig.vm.job_active(), "the job's end")
    rig.vm.delete_checkpoint(run["checkpoint"])
    mine = rig.store
    if place == "a copy":
        rig.store = tmp_path / "copy"
        shutil.copytree(mine, rig.store, copy_function=shutil.copy2)
    files = {each.name for each in rig.store.glob(f"*/{run['id']}/*")}
    assert files >= sealed and len(sealed) == 2
    code, result = rig.cleanup("--dry-run")
    left = [item for item in result["found"] if item["run"] == run["id"]]
    assert path.exists() and {each.name for each in rig.store.glob(f"*/{run['id']}/*")} == files
    code, done = rig.cleanup()
    if place == "a copy":
        assert code == 0 and ["partial files" in item["what"] for item in left] == [True]
        assert not list(rig.store.glob(f"*/{run['id']}"))
        rig.store = mine
    assert path.exists()
    if place == "shared":
        assert code == 5 and "it ran on another" in done["found"][0]["left"]
    shutil.rmtree(path.parent)
    rig.assert_next_is_right()


def _older(rig, begun="2020-01-01T00:00:00+00:00"):
    path, run, _ = journal(rig)
    rest = path.read_text().partition("\n")[2]
    path.write_text(json.dumps({**run, "begun": begun}) + "\n" + rest)


@pytest.mark.parametrize(
    "options, why",
    [
        (("--full",), "another base"),
        (("--disk", "vda"), "another checkpoint"),
        (("--no-checkpoint",), "another checkpoint"),
        (("--checkpoint", "mine"), "another checkpoint"),
        (("--quiesce=require",), "its guest was not frozen"),
        (("--resume=never",), None),
    ],
)
def test_a_run_that_does_not_match_is_started_anew(rig, options, why):
    change(rig)
    killed(rig)
    _, run, _ = journal(rig)
    rig.vm.write("vda", 9 * MIB, MIB, 0x31)
    if why == "its guest was not frozen":
        done = rig.run(*rig.words(*options))
        assert done.returncode == 6 and not rig.vm.job_active()
    else:
        made = rig.pull(*options)
        assert made["resumed"] is None and made["details"]["id"] != run["id"]
        assert [item["what"] for item in made["reclaimed"] if item["run"] == run["id"]][0] == "backup job"
        assert [why in warning for warning in made["warnings"]] == [True] * bool(why)
    if "mine" in rig.vm.checkpoints():
        rig.vm.delete_checkpoint("mine")
    rig.assert_next_is_right()


def test_a_resumed_point_is_reported_as_such(rig):
    """Even to users who see only errors and warnings, and in list and show, permanently."""
    change(rig)
    killed(rig)
    _older(rig, f"{datetime.now(timezone.utc) - timedelta(minutes=50):%FT%T+00:00}")
    begun = journal(rig)[1]["begun"]
    done = rig.run(*(word for word in rig.words("--quiet") if word != "--json"))
    assert (done.returncode, done.stdout) == (0, "") and f"as of {begun}" in done.stderr
    listed = rig.run("list", rig.store, "--wide").stdout.splitlines()
    assert listed[0].split()[2:4] == ["AS", "OF"] and listed[-3].split()[2] == begun
    shown = rig.run("show", rig.store, "latest")
    assert f"as_of:       {begun}" in shown.stdout


def test_an_old_run_is_resumed_only_on_request(rig):
    change(rig)
    frozen = rig.contents()
    killed(rig)
    _older(rig)
    rig.vm.write("vda", 9 * MIB, MIB, 0x41)
    made = rig.pull("--resume")
    assert made["resumed"]["begun"] == made["details"]["as_of"] == "2020-01-01T00:00:00+00:00"
    assert made["details"]["created"] > made["details"]["as_of"], "it was finished now"
    rig.assert_restores(frozen, made["details"]["id"])
    change(rig)
    killed(rig)
    _older(rig)
    made = rig.pull()
    assert made["resumed"] is None and "more than an hour ago" in made["warnings"][0]
    change(rig)
    killed(rig)
    _older(rig, f"{datetime.now(timezone.utc) + timedelta(days=1):%FT%T+00:00}")
    made = rig.pull()
    assert made["resumed"] is None and "later than now: a clock was set" in made["warnings"][0]
    rig.assert_next_is_right()


@pytest.mark.parametrize(
    "options, spoil, why",
    [
        (("--scratch-limit", "4M"), lambda rig, run: rig.vm.write("vda", 0, 16 * MIB, 0x77), "--scratch-limit"),
        ((), lambda rig, run: os.unlink(run["socket"]), "its socket"),
        ((), lambda rig, run: [os.unlink(path) for path in rig.scratch.iterdir()], "its scratch is gone"),
    ],
)
def test_a_job_that_could_not_be_read_to_its_end_is_not_resumed(rig, options, spoil, why):
    change(rig)
    killed(rig)
    spoil(rig, journal(rig)[1])
    made = rig.pull(*options)
    assert made["resumed"] is None and why in made["warnings"][0]
    rig.assert_next_is_right()


def test_a_job_that_somebody_ended_is_not_resumed(rig):
    change(rig)
    killed(rig)
    rig.vm.domain.abortJob()
    wait_for(lambda: not rig.vm.job_active(), "the job's end")
    rig.vm.write("vda", 9 * MIB, MIB, 0x51)
    made = rig.pull("--resume")
    assert made["resumed"] is None
    rig.assert_next_is_right()


def test_a_run_that_lives_is_left_alone(rig):
    change(rig)
    rig.start(*SMALL_CHUNKS, phase="copying")
    done = rig.run(*rig.words("--resume"))
    assert done.returncode == 5 and f"process {rig.process.pid}" in done.stderr
    assert rig.end()[0] == 0
    rig.assert_next_is_right()


@pytest.mark.parametrize("phase", ["copying", "copied"])
def test_a_resumed_run_that_is_stopped_leaves_nothing(rig, phase):
    change(rig)
    killed(rig)
    rig.start(*SMALL_CHUNKS, phase=phase)
    rig.process.send_signal(signal.SIGTERM)
    assert rig.end()[0] == (0 if phase == "copied" else 128 + signal.SIGTERM)  # all was read by then
    rig.assert_clean()
    rig.assert_next_is_right()
