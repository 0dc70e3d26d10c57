"""What the owner of a store should know about its bucket."""

import pytest

from nbdpull.storage.probed import Probed

PLAIN = {"when": "2026-11-28T12:00:00+00:00", "server": "", "checks_sha256": True, "clock_ahead": 0.0}


def warnings(**found):
    return Probed(**{**PLAIN, **found}).warnings()


@pytest.mark.parametrize("found", [
    {},
    {"object_lock": True},  # locks nothing by itself
    {"versions": ""},
    {"versions": "Suspended"},
    {"versions": "Enabled", "old_expire": 30},
    {"clock_ahead": 300.0},
    {"clock_ahead": -300.0},
])  # fmt: skip
def test_a_bucket_that_is_fit(found):
    assert warnings(**found) == []


@pytest.mark.parametrize("found, says", [
    ({"default_retention": 0}, "locks each object for 0 days"),
    ({"default_retention": 30}, "locks each object for 30 days"),
    ({"expires": 90}, "deletes objects after 90 days, and points would lose files"),
    ({"versions": "Enabled"}, "keeps old versions"),
    ({"clock_ahead": 301.4}, "the clock of this host is 301 s ahead of that of the server"),
    ({"clock_ahead": -4000.0}, "the clock of this host is 4000 s behind that of the server"),
])  # fmt: skip
def test_a_bucket_with_a_peculiarity(found, says):
    [warning] = warnings(**found)
    assert says in warning


def test_each_peculiarity_has_a_warning_of_its_own():
    found = warnings(default_retention=1, expires=2, old_expire=2, versions="Enabled", clock_ahead=600.0)
    assert len(found) == 3  # a rule for old versions exists
