"""The places of stores: which words are URLs, the names of a place, and places in each other."""

import os
import random
from datetime import datetime, timezone

import pytest

from nbdpull.core import errors
from nbdpull.storage import folders, place
from nbdpull.storage.access import Access
from nbdpull.storage.directory import DirectoryStore

NOW = datetime(2026, 11, 28, tzinfo=timezone.utc)


@pytest.mark.parametrize("word, is_url", [
    ("s3://bucket/x", True), ("S3://bucket", True), ("s3:bucket", True), ("./s3:x", False), ("/a/s3:b", False),
    ("s3", False), ("", False),
])  # fmt: skip
def test_which_words_are_urls(word, is_url):
    assert place.is_url(word) is is_url
    assert (place.whole(word) == word) == (is_url or os.path.isabs(word))


def test_a_directory_has_no_past_and_no_locks(tmp_path):
    with pytest.raises(errors.UsageError, match="--as-of: /s is a directory"):
        place.as_of("/s", NOW)
    with pytest.raises(errors.UsageError, match="/s is a directory, and only a bucket that keeps old versions has any"):
        place.versioned("/s")
    store = DirectoryStore(str(tmp_path))
    with pytest.raises(errors.StoreError, match="the files of a directory cannot be locked"):
        place.require_locks(store)
    assert place.probed(store) is None and place.server(store) is None


def test_a_directory_is_known_by_its_name_and_by_what_that_means(tmp_path):
    """Either can change without the other: a link can be moved, and what it points to can be mounted elsewhere."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    real, link = str((tmp_path / "real").resolve()), str(tmp_path / "link")
    assert place.names(DirectoryStore(link)) == [link, real]
    assert place.names(DirectoryStore(real)) == [real]


def test_places_in_each_other(tmp_path, monkeypatch):
    """Against the rule on the parts of their names. Some names have links, and dots, and end with a slash."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "l").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    chance = random.Random(5)

    def some():
        parts = [chance.choice(["a", "l", "b", "ab", "."]) for _ in range(chance.randint(1, 4))]
        return "/".join(parts), [part for part in ("a" if n == 0 and p == "l" else p for n, p in enumerate(
            part for part in parts if part != ".")) if part]  # fmt: skip

    for _ in range(300):
        (one, parts), (two, others) = some(), some()
        shorter = min(len(parts), len(others))
        assert place.are_apart(one, two) == (parts[:shorter] != others[:shorter]), (one, two)
        assert place.are_apart(one, "s3://bucket/a")


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_folder_is_made_with_its_parents_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        made = folders.make(str(tmp_path / "a" / "b" / "c"), Access(0o711))
    finally:
        os.umask(before)
    assert made == [str(tmp_path / name) for name in ("a", "a/b", "a/b/c")]
    assert {os.stat(path).st_mode & 0o777 for path in made} == {0o711}
    assert folders.make(str(tmp_path / "a" / "b"), Access(0o700)) == []
    assert os.stat(tmp_path / "a" / "b").st_mode & 0o777 == 0o711  # it is not ours


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "file/x", "file/x/y"):
        with pytest.raises(errors.NbdpullError, match=f"cannot create the folder .*{name}"):
            folders.make(str(tmp_path / name), Access())
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]


@pytest.mark.parametrize("filled, left", [(None, []), ("a/b/x", ["a", "a/b", "a/b/x"]), ("a/x", ["a", "a/x"])])
def test_what_was_made_for_nothing_goes_unless_somebody_uses_it(tmp_path, filled, left):
    with pytest.raises(KeyError), folders.made(str(tmp_path / "a" / "b"), Access()):
        if filled:
            (tmp_path / filled).touch()
        raise KeyError
    assert sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")) == left


def test_what_was_there_before_stays(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyError), folders.made(str(tmp_path / "a"), Access()):
        raise KeyError
    assert (tmp_path / "a").is_dir()
    with folders.made(str(tmp_path / "b"), Access()):
        pass
    assert (tmp_path / "b").is_dir()
