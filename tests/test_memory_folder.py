"""The directory of unit tests in memory: it is removed with its process, however that ends."""

import os
import subprocess
import sys

import memory_folder
import pytest

HOLDING = "import memory_folder\nwith memory_folder.folder() as path:\n    print(path, flush=True)\n    input()"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_folder, "MEMORY", tmp_path)
    monkeypatch.setattr(memory_folder, "ROOM", 1)


def test_it_is_removed_at_the_end(tmp_path):
    with memory_folder.folder() as path:
        (path / "folder").mkdir()
        assert path.parent == tmp_path and path.stat().st_mode & 0o777 == 0o700
    assert not list(tmp_path.iterdir())


def test_folders_of_killed_runs_are_removed_and_those_of_others_kept(tmp_path):
    program = HOLDING.replace(
        "\nwith", f"\nfrom pathlib import Path\nmemory_folder.MEMORY = Path({str(tmp_path)!r})\nwith"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": os.path.dirname(__file__)}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as other:
        theirs = tmp_path / other.stdout.readline().strip()
        (tmp_path / "no folder of ours").touch()
        with memory_folder.folder():
            assert theirs.is_dir()
        other.kill()
    assert theirs.is_dir()
    with memory_folder.folder() as path:
        assert {*tmp_path.iterdir()} == {path, tmp_path / "no folder of ours"}


def test_too_little_memory_is_not_used(tmp_path, monkeypatch):
    assert memory_folder.usable()
    monkeypatch.setattr(memory_folder, "ROOM", 1 << 60)
    assert not memory_folder.usable()
    monkeypatch.setattr(memory_folder, "MEMORY", tmp_path / "none")
    assert not memory_folder.usable()
