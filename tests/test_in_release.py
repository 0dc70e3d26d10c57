"""scripts/in-release refuses in one line what it cannot do. .ci/run tests that it works: a tree of another release
takes a minute, and Debian's mirror."""

import os
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


def in_release(*args, prefix=(), cache):
    return subprocess.run(
        [*prefix, PROJECT / "scripts/in-release", *args],
        env={**os.environ, "NBDPULL_BED_CACHE": str(cache)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "args, said",
    [
        (["../trixie", "true"], "../trixie is not the name of a Debian release, such as trixie"),
        (["trixie"], "no command given; to look around: scripts/in-release trixie bash"),
    ],
)
def test_a_wrong_command_line_is_refused(args, said, tmp_path):
    done = in_release(*args, cache=tmp_path / "cache")
    assert (done.returncode, done.stderr) == (1, f"scripts/in-release: {said}\n")
    assert not (tmp_path / "cache").exists()


def test_it_needs_root(tmp_path):
    prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    done = in_release("trixie", "true", prefix=prefix, cache=tmp_path / "cache")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "needs root" in done.stderr
