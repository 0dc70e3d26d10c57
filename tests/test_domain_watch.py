"""The thread that checks whether a domain still exists: what it finds is raised wherever the run asks."""

import threading

import pytest

from nbdpull.core import errors

pytest.importorskip("libvirt")

from nbdpull.hypervisor import domain_watch  # noqa: E402


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(domain_watch, "LOOK_INTERVAL", 0.001)


def looking(watch):
    return [thread for thread in threading.enumerate() if getattr(thread, "_target", None) == watch._run]


def test_what_ends_the_run_is_raised_again_each_time():
    looks, found = [], threading.Event()

    def look():
        looks.append(len(looks))
        if len(looks) == 3:
            found.set()
            raise errors.Busy("it is gone")

    watch = domain_watch.DomainWatch(look)
    watch.check()
    with watch.watching():
        assert found.wait(30)
        for thread in looking(watch):
            thread.join(30)
        for _ in range(2):
            with pytest.raises(errors.Busy, match="it is gone"):
                watch.check()
    assert looks == [0, 1, 2], "it looks no more when it has found something"


def test_it_looks_only_while_it_is_entered():
    looked = threading.Event()
    watch = domain_watch.DomainWatch(looked.set)
    assert not looked.is_set()
    with watch.watching():
        assert looked.wait(30)
    for thread in looking(watch):
        thread.join(30)
        assert not thread.is_alive()
    watch.check()


def test_a_look_that_hangs_is_not_waited_for():
    forever, entered = threading.Event(), threading.Event()

    def look():
        entered.set()
        forever.wait(60)

    with domain_watch.DomainWatch(look).watching():
        assert entered.wait(30)
    assert not forever.is_set()
    forever.set()
