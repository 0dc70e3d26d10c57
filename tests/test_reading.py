"""How many threads read a store."""

import os
from types import SimpleNamespace

import pytest

from nbdpull.operations import reading

HERE, BEHIND_A_SERVER = SimpleNamespace(is_remote=False), SimpleNamespace(is_remote=True)


@pytest.mark.parametrize(
    "cores, store, wanted, threads",
    [
        (1, HERE, None, 2),
        (2, HERE, None, 3),
        (15, HERE, None, 16),
        (64, HERE, None, 16),
        (1, BEHIND_A_SERVER, None, 8),
        (7, BEHIND_A_SERVER, None, 8),
        (8, BEHIND_A_SERVER, None, 9),
        (64, BEHIND_A_SERVER, None, 16),
        (2, HERE, 1, 1),
        (2, BEHIND_A_SERVER, 1, 1),
        (2, HERE, 64, 64),
    ],
)
def test_threads(monkeypatch, cores, store, wanted, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert reading.threads(store, wanted) == threads
