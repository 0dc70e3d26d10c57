"""From a token to a token: what is requested, which file is written, and what a failed commit means."""

import pytest

from nbdpull.core import errors
from nbdpull.operations import between_tokens
from nbdpull.operations.options.exports import ExposeOptions, RunOptions
from nbdpull.pulling import token_file
from nbdpull.pulling.token import Token

OLD, NEW = (Token("uuid", f"20261122T19450{n}Z-7f3a9c04", None, {}) for n in (0, 1))


class Job:
    """A job whose commit raises an exception, before or after it is done."""

    token = NEW

    def __init__(self, committed):
        self.committed = committed

    def commit(self):
        raise errors.HypervisorError("libvirt went away")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "token"
    path.write_text(OLD.dumps() + "\n")
    return path


def test_a_failure_after_the_commit_does_not_undo_it(path):
    """Whoever was told that nothing has changed would read the same again, from a base that is gone."""
    tokens = between_tokens.between(OLD, str(path), str(path))
    assert between_tokens.commit(Job(True), tokens) == ["the backup is committed, and then: libvirt went away"]
    assert token_file.read(str(path)) == NEW


def test_a_failure_before_the_commit_leaves_the_old_token(path):
    tokens = between_tokens.between(OLD, str(path), str(path))
    with pytest.raises(errors.HypervisorError):
        between_tokens.commit(Job(False), tokens)
    assert token_file.read(str(path)) == OLD and list(path.parent.iterdir()) == [path]


def test_only_the_token_that_was_read_is_replaced(path, tmp_path):
    for since, since_path in ((None, None), (OLD, str(tmp_path / "other"))):
        with pytest.raises(errors.OutputExists):
            between_tokens.between(since, since_path, str(path))
    with pytest.raises(errors.OutputError, match="nowhere"):
        between_tokens.between(None, None, "/nowhere/token")


def test_fields_of_the_same_name_are_passed_on():
    """Except for those that mean something else."""
    tokens = between_tokens.between(OLD, None, None)
    asked = ExposeOptions("vm1", "unix:s", "secret", since="file", tls="dir", disks=["vdb"], quiesce="never")
    wanted = between_tokens.wanted(asked, tokens, tls=None)
    assert (wanted.domain, wanted.since, wanted.tls, wanted.checkpoint) == ("vm1", OLD, None, True)
    assert (wanted.disks, wanted.quiesce) == (["vdb"], "never")
    asked = RunOptions("vm1", ["true"], tls="dir", max_duration=5.0, nbd="tcp:127.0.0.1:1")
    wanted = between_tokens.wanted(asked, tokens, checkpoint=False)
    assert (wanted.tls, wanted.max_duration, wanted.nbd, wanted.checkpoint) == ("dir", 5.0, "tcp:127.0.0.1:1", False)
