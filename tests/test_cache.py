"""The cache of data from a bucket: a piece exists completely or not at all, only we can read it, and the size of all
has a limit."""

import errno
import os
import random
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nbdpull.core import errors
from nbdpull.storage import cache
from nbdpull.storage.cache import Cache

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def opened(folder, limit=64 * MIB, warn=None):
    return Cache(str(folder), limit, print if warn is None else warn)


def pieces(folder):
    return [path for path in folder.glob("??/*") if path.is_file()]


def total(folder):
    return sum(path.stat().st_size for path in pieces(folder))


def test_another_process_finds_what_was_stored(folder):
    opened(folder).put(b"some bytes", "s3://bucket", "key", "tag", 0, 10)
    again = opened(folder)
    assert again.get("s3://bucket", "key", "tag", 0, 10) == b"some bytes"
    assert again.get("s3://bucket", "key", "other tag", 0, 10) is None
    again.put(b"", "empty")
    assert again.get("empty") == b""


def test_only_its_owner_can_read_it(folder):
    opened(folder).put(b"some bytes", "key")
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600) or path.name == cache.TAG


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_can_enter_is_refused(folder, mode):
    folder.mkdir(mode=0o700)
    folder.chmod(mode)
    with pytest.raises(OSError, match="chmod 700"):
        opened(folder)


def test_a_folder_with_anything_else_is_refused(folder):
    folder.mkdir(mode=0o700)
    (folder / "letters").touch()
    with pytest.raises(OSError, match="not empty"):
        opened(folder)
    (folder / "letters").unlink()
    opened(folder)
    (folder / "aa").mkdir()
    opened(folder)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"", lambda data: bytes(len(data))])
def test_a_piece_damaged_by_a_crash_does_not_count(folder, change):
    kept = opened(folder)
    kept.put(b"some bytes", "key")
    [path] = pieces(folder)
    path.write_bytes(change(path.read_bytes()))
    assert kept.get("key") is None
    kept.put(b"some bytes", "key")
    assert kept.get("key") == b"some bytes"


def test_the_limit_is_kept_by_dropping_the_least_recently_used(folder):
    """Whatever is added; a piece that is used now and then outlives those that nobody requests."""
    limit, chance, kept = 16 * MIB, random.Random(5), opened(folder, 16 * MIB)
    kept.put(b"wanted", "wanted")
    [wanted] = pieces(folder)
    for number in range(400):
        kept.put(chance.randbytes(chance.randrange(256 << 10)), number)
        if number % 20 == 0:
            os.utime(wanted, (0, time.time() - 2 * cache.STALE))  # as if hours had passed
            assert kept.get("wanted") == b"wanted"
        assert total(folder) <= limit
    assert total(folder) > limit / 2
    kept.put(bytes(2 * MIB), "too large")
    assert kept.get("too large") is None


def test_half_pieces_of_dead_processes_go(folder):
    kept = opened(folder)
    kept.put(b"some bytes", "key")
    old, new = [folder / pieces(folder)[0].parent.name / f"{'0' * 62}.{name}.new" for name in ("old", "new")]
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    opened(folder).put(b"others", "other key")
    assert not old.exists() and new.exists()


def test_where_nothing_can_be_written_nothing_is_kept(folder, monkeypatch):
    reported = []
    kept = opened(folder, warn=reported.append)
    kept.put(b"some bytes", "key")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    kept.put(b"others", "other key")
    monkeypatch.undo()
    kept.put(b"others", "third key")
    assert [kept.get(name) for name in ("key", "other key", "third key")] == [b"some bytes", None, None]
    assert reported == [f"--cache-dir {folder}: No space left on device; nothing more is kept there"]
    assert len(pieces(folder)) == 1


WORK = """
import random, sys
from nbdpull.storage.cache import Cache
kept, chance = Cache(sys.argv[1], 16 << 20, sys.exit), random.Random(int(sys.argv[2]))
for _ in range(300):
    number = chance.randrange(200)
    data = random.Random(number).randbytes(random.Random(number).randrange(300 << 10))
    assert kept.get(number) in (None, data)
    kept.put(data, number)
"""


@pytest.mark.e2e
def test_several_processes(folder):
    with ThreadPoolExecutor(3) as pool:
        words = [[sys.executable, "-c", WORK, str(folder), str(number)] for number in range(3)]
        done = [*pool.map(lambda each: subprocess.run(each, capture_output=True, cwd=Path.cwd()), words)]
    assert [each.stderr for each in done] == [b""] * 3
    assert total(folder) <= 16 * MIB * (1 + 3 / 16)


def test_the_chosen_directory(folder, monkeypatch):
    monkeypatch.delenv("NBDPULL_CACHE_DIR", raising=False)
    assert cache.chosen(pytest.fail) is None
    monkeypatch.setenv("NBDPULL_CACHE_DIR", str(folder))
    assert cache.chosen(pytest.fail) and (folder / cache.TAG).exists()
    for size, said in (("many", "not a size"), ("1M", "16.0 MiB or more")):
        monkeypatch.setenv("NBDPULL_CACHE_DIR_SIZE", size)
        with pytest.raises(errors.UsageError, match=f"NBDPULL_CACHE_DIR_SIZE: .*{said}"):
            cache.chosen(pytest.fail)


@pytest.mark.parametrize("below", [".", "below"])
def test_a_file_is_no_folder(tmp_path, monkeypatch, below):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NBDPULL_CACHE_DIR", str(tmp_path / "file" / below))
    with pytest.raises(errors.UsageError, match=f"--cache-dir {tmp_path}/file.*: Not a directory"):
        cache.chosen(pytest.fail)


def others(folder, _):
    folder.mkdir(mode=0o755)


def filled(folder, _):
    folder.mkdir(mode=0o700)
    (folder / "letters").touch()


def fails(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")


def failing(call):
    """Let that call fail as on a full or read-only disk."""
    return lambda folder, monkeypatch: monkeypatch.setattr(cache if call == "open" else os, call, fails, raising=False)


UNFIT = [
    (others, "only you may have access"),
    (filled, "not empty"),
    (failing("makedirs"), "Read-only"),
    (failing("listdir"), "Read-only"),
    (failing("open"), "Read-only"),
]


@pytest.mark.parametrize("prepare, why", UNFIT)
def test_one_that_cannot_be_used_is_a_warning(folder, monkeypatch, prepare, why):
    """The verb continues: its result is the same without a cache."""
    monkeypatch.setenv("NBDPULL_CACHE_DIR", str(folder))
    reported = []
    with monkeypatch.context() as patched:
        prepare(folder, patched)
        assert cache.chosen(reported.append) is None
    [text] = reported
    assert text.startswith(f"--cache-dir {folder}: ") and why in text and text.endswith("; it is not used")


def test_one_that_cannot_be_read_any_more_is_a_warning_once(folder, monkeypatch):
    reported = []
    opened(folder).put(b"some bytes", "key")
    kept = opened(folder, warn=reported.append)

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "read", broken)
    assert [kept.get("key"), kept.get("key")] == [None, None]
    assert reported == [f"--cache-dir {folder}: Input/output error; nothing more is kept there"]


def test_where_nothing_can_be_noted_it_can_be_read(folder, monkeypatch):
    kept = opened(folder, warn=pytest.fail)
    kept.put(b"some bytes", "key")
    os.utime(pieces(folder)[0], (0, 0))

    def refused(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    assert kept.get("key") == b"some bytes"


def test_the_folder_that_was_looked_at_is_used(folder, tmp_path):
    """Whatever has its name by now."""
    (tmp_path / "link").symlink_to(folder)
    folder.mkdir(mode=0o700)
    kept, strange = opened(tmp_path / "link", 16 * MIB), tmp_path / "strange"
    kept.put(b"some bytes", "key")
    strange.mkdir(mode=0o777)
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(strange)
    assert kept.get("key") == b"some bytes"
    for number in range(20):
        kept.put(bytes(MIB - 1), number)
    assert not list(strange.iterdir())
    assert 14 * MIB < total(folder) <= 16 * MIB


def test_it_leaves_no_descriptor(folder):
    before = len(os.listdir("/proc/self/fd"))
    kept = opened(folder)
    kept.put(b"some bytes", "key")
    assert kept.get("key") == b"some bytes"
    del kept
    assert len(os.listdir("/proc/self/fd")) == before
