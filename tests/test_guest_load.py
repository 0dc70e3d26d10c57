"""The cores that a guest leaves: the rule against figures, the bound with threads, and a real guest that works."""

import threading
import time

import pytest
from bed.machine import wait_for

from nbdpull import domain, errors, guest_load
from nbdpull.guest_load import Cores

pytest.importorskip("libvirt")


class Busy:
    """A domain whose processors use `load` cores from when it was made, until it is gone."""

    is_remote = False

    def __init__(self, load=0.0):
        self.load, self._began, self.gone = load, time.monotonic(), False

    def vcpu_seconds(self):
        if self.gone:
            raise errors.SourceError("the domain is gone")
        return self.load * (time.monotonic() - self._began)


@pytest.mark.parametrize(
    "load, allowed", [(0, 4), (0.2, 4), (0.3, 3), (1, 3), (1.2, 3), (1.3, 2), (3, 1), (4, 1), (9, 1)]
)
def test_what_a_guest_leaves(load, allowed):
    cores = Cores(Busy(load), 4)
    assert cores.allowed == 4
    with cores.watching():
        wait_for(lambda: cores.allowed == allowed, "the first look")


def test_one_core_is_always_ours():
    cores = Cores(Busy(1), 1)
    with cores.watching():
        time.sleep(0.1)
        with cores.computing():
            assert cores.allowed == 1


def test_it_follows_the_guest(monkeypatch):
    monkeypatch.setattr(guest_load, "LOOK_INTERVAL", 0.02)
    vm = Busy()
    cores = Cores(vm, 8)
    with cores.watching():
        vm.load = 2.0  # all that was used since the begin seems to be used now
        wait_for(lambda: cores.allowed < 8, "a look at a guest that works")
        wait_for(lambda: cores.allowed == 6, "a look at two busy processors")
        vm.gone = True
        time.sleep(0.1)
    assert cores.allowed == 6


@pytest.mark.parametrize("how", ["remote", "gone"])
def test_a_guest_that_cannot_be_looked_at_leaves_all(how):
    vm = Busy(4.0)
    vm.is_remote, vm.gone = how == "remote", how == "gone"
    cores = Cores(vm, 4)
    with cores.watching():
        time.sleep(0.1)
    assert cores.allowed == 4


def test_no_more_compute_than_are_allowed():
    cores, running, most = Cores(Busy(), 3), [], []

    def work():
        for _ in range(20):
            with cores.computing():
                running.append(1)
                most.append((len(running), cores.allowed))
                time.sleep(0.001)
                running.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(count for count, _ in most) == 3 and len(most) == 160


def test_an_error_gives_the_core_back():
    cores = Cores(Busy(), 1)
    with pytest.raises(ZeroDivisionError), cores.computing():
        raise ZeroDivisionError
    with cores.computing():
        pass


def test_who_waits_goes_on_when_the_guest_rests():
    cores, got = Cores(Busy(), 2), threading.Event()
    cores._leave(1.0)

    def work():
        with cores.computing():
            got.set()

    with cores.computing():
        thread = threading.Thread(target=work)
        thread.start()
        assert not got.wait(0.1)
        cores._leave(0.0)
        assert got.wait(5)
    thread.join()


def test_a_real_guest_that_works(guest):
    guest.run("while :; do :; done >/dev/null 2>&1 & echo $! >/run/busy.pid")
    with domain.open(guest.name, guest.bed.uri) as vm:
        cores = Cores(vm, 4)
        with cores.watching():
            wait_for(lambda: cores.allowed == 3, "a look at a guest that works")
            guest.run("kill $(cat /run/busy.pid)")
            wait_for(lambda: cores.allowed == 4, "a look at a guest that rests")
