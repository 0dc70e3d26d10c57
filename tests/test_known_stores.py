"""What a host knows of the stores that it pulls to: by which place, and that nothing of it is lost."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from nbdpull.pulling import known_stores
from nbdpull.storage.directory import DirectoryStore

KEY = "1" * 32


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    """Where this host keeps it."""
    monkeypatch.setenv("NBDPULL_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state/known-stores"


def sealed(store, key=KEY):
    store.seal = SimpleNamespace(id=key)
    return store


def at(path, key=KEY):
    return sealed(DirectoryStore(str(path)), key)


def test_of_first_pulls_at_once_each_is_kept(file, tmp_path, monkeypatch):
    """Cron starts many in one minute."""
    real, together = DirectoryStore.replace, threading.Barrier(4)

    def slow(*about):
        time.sleep(0.02)
        real(*about)

    def note(number):
        together.wait()
        known_stores.note(at(tmp_path / f"{number}"))

    monkeypatch.setattr(DirectoryStore, "replace", slow)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(note, range(4)))
    assert sorted(file.read_text().splitlines()) == [f"{KEY} {tmp_path}/{number}" for number in range(4)]


def test_a_file_that_somebody_edited(file, tmp_path):
    """Whose editor ends no line."""
    known_stores.note(at(tmp_path / "one"))
    file.write_text(file.read_text().rstrip())
    known_stores.note(at(tmp_path / "two"))
    assert file.read_text() == f"{KEY} {tmp_path}/one\n{KEY} {tmp_path}/two\n"
