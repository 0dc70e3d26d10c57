"""The fuzz of hostile stores: some of them in each run of the tests, and it finds planted faults."""

import os

import fuzz
import pytest

from nbdpull.cli import terminal
from nbdpull.core import members
from nbdpull.format import layout, pages
from nbdpull.storage import beneath


@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_stores(seed):
    """Always the same ones; scripts/fuzz makes others for as long as you like."""
    assert fuzz.campaign(seed, count=8) == {}


def opened(root, path, flags, mode=0, held=None):
    """Open whatever is there, as beneath.open_known opens regular files."""
    descriptor = os.open(f"{root}/{path}" if held is None else path, flags, mode, dir_fd=held and held.descriptor)
    return descriptor, os.fstat(descriptor)


# Promises of the readers, each broken: (module, name, what is there instead), and the kind of change that shows it:
# among all kinds it would be luck whether one of a hundred stores does.
BROKEN = {
    "types are not looked at": (members, "_refuse", lambda name, value: value, "json"),
    "records are not looked at": (layout, "records_flaw", lambda *_: None, "index"),
    "directories are not looked at": (pages, "_refs_flaw", lambda *_: None, "directory"),
    "names are shown as they are": (terminal, "plain", lambda line: line, "words"),
    "files are not looked at": (beneath, "open_known", opened, "kind"),
}


@pytest.mark.timeout_seconds(300)
@pytest.mark.parametrize("what", BROKEN)
def test_it_finds_a_broken_promise(monkeypatch, what):
    *promise, only = BROKEN[what]
    monkeypatch.setattr(*promise)
    monkeypatch.setattr(fuzz, "SECONDS", 4)
    monkeypatch.setattr(fuzz, "WALL", 6)
    assert fuzz.campaign(3, count=100, enough=1, only=only), "nothing was found in 100 stores"
