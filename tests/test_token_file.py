"""A token's file has the previous token or the new one, whatever fails."""

import pytest

from nbdpull.core import errors, file_system
from nbdpull.pulling import token_file
from nbdpull.pulling.token import Token

OLD, NEW = (Token("uuid", f"20261122T19450{n}Z-7f3a9c04", None, {}) for n in (0, 1))


@pytest.fixture(params=[None, OLD], ids=["new", "replaced"])
def before(request):
    return request.param


@pytest.fixture
def path(tmp_path, before):
    path = tmp_path / "token"
    if before:
        path.write_text(before.dumps() + "\n")
    return path


def commit(path, before, fails=None):
    with token_file.drafted(str(path)) as draft, draft.committing(NEW, before):
        assert token_file.read(str(path)) == NEW, "durable before the commit"
        if fails:
            raise fails


def test_a_commit(path, before):
    commit(path, before)
    assert token_file.read(str(path)) == NEW and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("fails", [errors.OutputFull("no room"), KeyboardInterrupt()])
def test_a_commit_that_fails(path, before, fails):
    with pytest.raises(type(fails)):
        commit(path, before, fails)
    assert token_file.read_if_there(str(path)) == before
    assert list(path.parent.iterdir()) == ([path] if before else [])


def test_a_name_that_is_not_durable(path, before, monkeypatch):
    """Then it does not count, although the file already has it."""

    def broken(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(file_system, "sync_folder", broken)
    with pytest.raises(errors.OutputError, match="Input/output error"):
        commit(path, before)
    assert token_file.read_if_there(str(path)) == before


def test_a_file_created_meanwhile(tmp_path):
    """It is somebody else's, and stays."""
    path = tmp_path / "token"
    with token_file.drafted(str(path)) as draft:
        path.write_text(OLD.dumps())
        with pytest.raises(errors.OutputExists), draft.committing(NEW, None):
            raise AssertionError("it must not come to the commit")
    assert token_file.read(str(path)) == OLD


def test_one_file_has_two_names(tmp_path):
    (tmp_path / "link").symlink_to("token")
    assert token_file.is_same(str(tmp_path / "link"), str(tmp_path / "token"))
    assert not token_file.is_same(str(tmp_path / "token"), str(tmp_path / "other"))


def test_a_file_without_a_name(tmp_path, monkeypatch):
    """A script's variable was not set. The backup would be full each time, or fail when it is committed."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UsageError, match="the name of a token file is empty"):
        token_file.read_if_there("")
    with pytest.raises(errors.UsageError, match="the name of a token file is empty"), token_file.drafted(""):
        raise AssertionError("nothing may begin")
    assert list(tmp_path.iterdir()) == []
