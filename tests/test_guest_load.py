"""The processor time that a guest leaves free: the rules with numbers, the limit with threads, and a real guest that
works."""

import os
import threading
import time
import types
from contextlib import contextmanager
from pathlib import Path

import pytest
from bed.machine import MIB, wait_for

from nbdpull.core import errors
from nbdpull.hypervisor import domain, guest_load
from nbdpull.hypervisor.guest_load import Cores
from nbdpull.operations import pull

pytest.importorskip("libvirt")


class Busy:
    """A domain whose processors use `load` cores until it ends, by a clock of its own: measurements are a second
    apart."""

    is_remote = False

    def __init__(self, load=0.0):
        self.load, self.used, self.seconds, self.gone, self.asked_in_vain = load, 0.0, 0, False, 0

    def vcpu_seconds(self):
        self.seconds += 1
        self.used += self.load
        if self.gone:
            self.asked_in_vain += 1
            raise errors.SourceError("the domain is gone")
        return self.used


@pytest.fixture
def busy(monkeypatch):
    """Factory of a domain with whose clock guest_load measures, and often."""

    def make(load=0.0):
        vm = Busy(load)
        monkeypatch.setattr(guest_load, "time", types.SimpleNamespace(monotonic=lambda: vm.seconds))
        monkeypatch.setattr(guest_load, "LOOK_INTERVAL", 0.01)
        return vm

    return make


@pytest.mark.parametrize(
    "load, allowed", [(-1, 4), (0, 4), (0.2, 4), (0.3, 3), (1, 3), (1.2, 3), (1.3, 2), (3, 1), (4, 1), (9, 1)]
)
def test_cores_that_a_guest_leaves(load, allowed):
    cores = Cores(Busy(), 4)
    cores.allowed = 0
    cores._leave(load)
    assert cores.allowed == allowed


@pytest.mark.parametrize("load, allowed", [(0, 4), (8, 4), (60, 4), (61, 3), (64, 1)])
def test_a_process_that_may_use_only_some_cores(load, allowed):
    """It is unknown where the guest runs: it may use the other cores."""
    cores = Cores(Busy(), 4, 64)
    cores._leave(load)
    assert cores.allowed == allowed


def test_the_first_sample_is_taken_at_the_start(busy, monkeypatch):
    cores = Cores(busy(2), 4)
    monkeypatch.setattr(guest_load, "LOOK_INTERVAL", 3600)
    assert cores.allowed == 4
    with cores.watching():
        wait_for(lambda: cores.allowed == 2, "the first look")


def test_it_follows_the_guest(busy):
    vm = busy()
    cores = Cores(vm, 8)
    with cores.watching():
        vm.load = 2.0
        wait_for(lambda: cores.allowed == 6, "a look at two busy processors")
        vm.gone = True
        wait_for(lambda: vm.asked_in_vain > 3, "looks at a domain that is gone")
        assert cores.allowed == 6
        vm.gone, vm.load = False, 0.0
        wait_for(lambda: cores.allowed == 8, "looks at one that is back")


def test_an_unobservable_guest_leaves_all_cores(busy):
    vm = busy(4.0)
    vm.gone = True
    cores = Cores(vm, 4)
    with cores.watching():
        wait_for(lambda: vm.asked_in_vain > 3, "looks at a domain that is gone")
    assert cores.allowed == 4


class Group:
    """The calls that a Background receives."""

    def __init__(self):
        self.joined, self.wanted, self.closed = set(), [], False

    def join(self):
        self.joined.add(threading.get_native_id())

    def look(self, wanted):
        self.wanted.append(wanted)

    def close(self):
        self.closed = True

    def wait_for(self, wanted):
        """Wait for two looks with this wish: the first one may have begun before."""
        seen = len(self.wanted)
        wait_for(lambda: self.wanted[seen:][-2:] == [wanted] * 2, "two looks")


def test_threads_are_in_the_background_while_the_guest_works(busy, monkeypatch):
    group, vm = Group(), busy()
    monkeypatch.setattr(guest_load, "Background", lambda: group)
    cores = Cores(vm, 4)
    with cores.watching():
        group.wait_for(False)
        vm.load = 1.0
        group.wait_for(True)
        vm.gone = True
        wait_for(lambda: vm.asked_in_vain > 3, "measurements of a domain that is gone")
        group.wait_for(True)
        vm.gone, vm.load = False, 0.2
        group.wait_for(False)
        thread = threading.Thread(target=lambda: cores.computing().__enter__())
        thread.start()
        thread.join()
        assert len(group.joined) == 2 and threading.get_native_id() in group.joined and not group.closed
    assert group.closed


def test_a_guest_of_another_host_leaves_all_cores_and_is_not_observed(busy):
    vm = busy(4.0)
    vm.is_remote = True
    cores = Cores(vm, 4)
    with cores.watching():
        pass
    assert cores.allowed == 4 and vm.seconds == 0


def test_as_many_compute_as_are_allowed_and_no_more():
    cores, running, most = Cores(Busy(), 3), [], []
    all_three = threading.Barrier(3)

    def work():
        with cores.computing():
            running.append(1)
            all_three.wait(30)
            most.append(len(running))
            all_three.wait(30)
            running.pop()

    threads = [threading.Thread(target=work) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [3] * 9


class Stop(Exception):
    """The exception that a check raises."""


def test_a_waiting_thread_is_stopped_at_the_end():
    stopped = threading.Event()

    def check():
        if stopped.is_set():
            raise Stop

    cores, ended = Cores(Busy(), 1, check=check), []

    def work():
        try:
            with cores.computing():
                ended.append("computed")
        except Stop:
            ended.append("stopped")

    thread = threading.Thread(target=work)
    with cores.computing():
        thread.start()
        stopped.set()
        thread.join(10)
    assert ended == ["stopped"] and cores._computing == 0


def test_an_error_releases_the_core():
    cores = Cores(Busy(), 1)
    with pytest.raises(ZeroDivisionError), cores.computing():
        raise ZeroDivisionError
    with cores.computing():
        pass


def test_a_waiting_thread_continues_when_the_guest_rests():
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


def name(task):
    """Return the name of a thread, "" if it has ended meanwhile."""
    try:
        return (task / "comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def without_waits(pid):
    """Return a clock that is stopped while the guest's only processor waits for one of the host.

    However busy the machine is, by this clock a guest that never rests uses a whole core. A priority would not do: all
    guests of a host may share one cgroup, which weighs as much as a single process outside.
    """
    (processor,) = (task for task in Path(f"/proc/{pid}/task").iterdir() if "CPU" in name(task))
    return lambda: time.monotonic() - int((processor / "schedstat").read_text().split()[1]) / 1e9


def test_a_real_guest_that_works(guest, monkeypatch):
    monkeypatch.setattr(guest_load, "time", types.SimpleNamespace(monotonic=without_waits(guest.pid)))
    guest.run("while :; do :; done >/dev/null 2>&1 & echo $! >/run/busy.pid")
    with domain.open(guest.name, guest.bed.uri) as vm:
        cores = Cores(vm, 4)
        with cores.watching():
            wait_for(lambda: cores.allowed == 3, "a look at a guest that works")
            guest.run("kill $(cat /run/busy.pid)")
            wait_for(lambda: cores.allowed == 4, "a look at a guest that rests")


class Counted(Cores):
    """One core, and how many threads compute at once."""

    def __init__(self, *about, **how):
        super().__init__(*about, **how)
        self.allowed, self.entered, self.most, self.watched = 1, 0, 0, False
        self._leave = lambda load: None

    @contextmanager
    def computing(self):
        with super().computing():
            self.entered, self.most = self.entered + 1, max(self.most, self._computing)
            yield

    @contextmanager
    def watching(self):
        with super().watching():
            self.watched = True
            yield


def test_a_pull_compresses_on_what_is_left(machine, tmp_path, monkeypatch):
    vm = machine({"vda": 8 * MIB})
    vm.write_bytes("vda", 0, os.urandom(8 * MIB))
    made = []
    monkeypatch.setattr(pull, "Cores", lambda *about, **how: made.append(Counted(*about, **how)) or made[-1])
    request = pull.Options(
        vm.name, str(tmp_path / "store"), uri=vm.bed.uri, full=True, make_checkpoint=False, threads=4
    )
    pull.pull(request)
    (cores,) = made
    assert cores.watched and (cores.entered, cores.most) == (4, 1)
