"""What a host knows of the stores that it pulls to: by which place, and that no entry is lost."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from nbdpull.core import errors
from nbdpull.pulling import known_stores
from nbdpull.storage.directory import DirectoryStore
from nbdpull.storage.s3 import S3Store

KEY, OTHER = "1" * 32, "2" * 32


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    """The file in which this host keeps them."""
    monkeypatch.setenv("NBDPULL_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state/known-stores"


@pytest.fixture
def server(monkeypatch):
    """Factory: let s3://… mean that server from now on."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    return lambda url: monkeypatch.setenv("NBDPULL_S3_ENDPOINT", url)


def sealed(store, key=KEY):
    store.seal = SimpleNamespace(id=key)
    return store


def at(path, key=KEY):
    return sealed(DirectoryStore(str(path)), key)


def in_bucket(key=KEY):
    return sealed(S3Store("s3://backup/store"), key)


def refused(store):
    with pytest.raises(errors.Foreign) as caught:
        known_stores.require(store)
    return str(caught.value)


def test_one_bucket_name_at_two_servers(server, file):
    """They are different stores, and the key of one is not accepted at the other."""
    for url, key in (("http://a:1", KEY), ("http://b:1", OTHER)):
        server(url)
        assert not known_stores.has(in_bucket(key))
        known_stores.note(in_bucket(key), pytest.fail)
    assert file.read_text() == f"{KEY} s3://backup/store at http://a:1\n{OTHER} s3://backup/store at http://b:1\n"
    known_stores.require(in_bucket(OTHER))
    assert f"add the line '{KEY} s3://backup/store at http://b:1' to {file}" in refused(in_bucket(KEY))
    server("http://c:1")
    known_stores.require(in_bucket(None))  # one that is not sealed, at a third one


@pytest.mark.parametrize("url", ["HTTPS://A.example:443/", "https://usr:secretpw@a.example", "https://a.example//"])
def test_a_server_is_always_spelled_alike_and_no_password_is_kept(server, file, url):
    server(url)
    known_stores.note(in_bucket(), pytest.fail)
    assert file.read_text() == f"{KEY} s3://backup/store at https://a.example\n"


def test_concurrent_first_pulls_are_all_recorded(file, tmp_path, monkeypatch):
    """Cron starts many in one minute."""
    real, together = DirectoryStore.replace, threading.Barrier(4)

    def slow(*about):
        time.sleep(0.02)
        real(*about)

    def note(number):
        together.wait()
        known_stores.note(at(tmp_path / f"{number}"), pytest.fail)

    monkeypatch.setattr(DirectoryStore, "replace", slow)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(note, range(4)))
    assert sorted(file.read_text().splitlines()) == [f"{KEY} {tmp_path}/{number}" for number in range(4)]


def test_a_hand_edited_file(file, tmp_path):
    """With an editor that ends no line."""
    known_stores.note(at(tmp_path / "one"), pytest.fail)
    file.write_text(file.read_text().rstrip())
    known_stores.note(at(tmp_path / "two"), pytest.fail)
    assert file.read_text() == f"{KEY} {tmp_path}/one\n{KEY} {tmp_path}/two\n"


def test_one_directory_by_whatever_name(file, tmp_path, monkeypatch):
    store, link = tmp_path / "store", tmp_path / "link"
    store.mkdir()
    link.symlink_to(store)
    monkeypatch.chdir(tmp_path)
    known_stores.note(at(f"{store}/"), pytest.fail)
    for name in ("store", "./store/", link, f"{link}/"):
        assert known_stores.has(at(name)) and "is sealed with key" in refused(at(name, OTHER))
    assert file.read_text() == f"{KEY} {store}\n"


def test_a_link_that_leads_elsewhere_now(file, tmp_path):
    """Even into a store of this host that somebody else can open."""
    mine, theirs, link = (tmp_path / name for name in ("mine", "theirs", "link"))
    link.symlink_to(mine)
    known_stores.note(at(link), pytest.fail)
    known_stores.note(at(theirs, OTHER), pytest.fail)
    os.unlink(link)
    link.symlink_to(theirs)
    assert f"{link} was sealed with key {KEY}" in refused(at(link, OTHER))
    with open(file, "a") as lines:
        lines.write(f"{OTHER} {link}\n")
    known_stores.require(at(link, OTHER))


def test_advice_for_a_place_with_two_names(file, tmp_path):
    store, link = tmp_path / "store", tmp_path / "link"
    link.symlink_to(store)
    known_stores.note(at(link), pytest.fail)
    assert f"add the lines '{OTHER} {link}' and '{OTHER} {store}' to {file}" in refused(at(link, OTHER))
    assert f"remove the lines of {link} and {store} from {file}" in refused(at(link, None))


def test_a_file_that_cannot_be_written(tmp_path, monkeypatch):
    """A place that is not remembered can be replaced unnoticed: the user is warned, each time."""
    monkeypatch.setenv("NBDPULL_STATE_DIR", "/proc/nbdpull")  # where nobody can make a folder
    warnings = []
    known_stores.note(at(tmp_path / "store"), warnings.append)
    known_stores.note(at(tmp_path / "store"), warnings.append)
    [warning] = set(warnings)
    assert len(warnings) == 2
    assert warning == (
        f"this host cannot remember that {tmp_path}/store is sealed with key {KEY}: cannot create the folder "
        "/proc/nbdpull: No such file or directory (NBDPULL_STATE_DIR names another place); if somebody replaces the "
        "store, no pull will notice"
    )
