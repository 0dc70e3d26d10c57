"""What watches a job, and when: what any watcher sees ends the run, and each ends when its time is over."""

import contextlib
from types import SimpleNamespace

import pytest

pytest.importorskip("libvirt")

from nbdpull.core import errors  # noqa: E402
from nbdpull.nbd import address  # noqa: E402
from nbdpull.pulling import lookout  # noqa: E402

PLAN = SimpleNamespace(run_id="run", scratch_dir="/scratch")


@pytest.fixture
def duties(monkeypatch):
    """What began and ended, in order; `duties.wrong[name] = error`: what that watcher has seen."""
    seen = Duties()

    def one(name, *duties):
        def check(_self):
            if name in seen.wrong:
                raise seen.wrong[name]

        def on_duty(duty):
            @contextlib.contextmanager
            def enter(_self, *_args):
                seen.append(f"{duty} begins")
                yield
                seen.append(f"{duty} ends")

            return enter

        methods = {duty: on_duty(f"{name} {duty}") for duty in duties}
        return type(name, (), {"__init__": lambda _self, *_args: None, "check": check, **methods})

    monkeypatch.setattr(lookout.scratch_watch, "ScratchWatch", one("scratch", "guarding_guest", "watching"))
    monkeypatch.setattr(lookout, "DomainWatch", one("domain", "watching"))
    keeper = one("keeper", "on_duty")
    keeper.__enter__ = lambda self: (seen.append("keeper begins"), self)[1]
    keeper.__exit__ = lambda _self, *_exc: seen.append("keeper ends")
    monkeypatch.setattr(lookout, "SocketKeeper", keeper)
    return seen


class Duties(list):
    def __init__(self):
        super().__init__()
        self.wrong = {}


class Vm:
    uri, uuid, require_there = "qemu:///system", "a-uuid", None

    def heed(self, check):
        self.heeded = check


def never():
    pass


def test_each_watch_is_active_in_its_phase(duties):
    """The guest is watched until the connections are closed: the end of the job may be what lets it run."""
    looks = lookout.Lookout(Vm(), PLAN, lookout.Checks(never), keeps_sockets=True)
    with looks.guarding(), looks.watching(None):
        pass
    assert duties == [
        "scratch guarding_guest begins", "keeper begins", "scratch watching begins", "domain watching begins",
        "domain watching ends", "scratch watching ends", "keeper ends", "scratch guarding_guest ends",
    ]  # fmt: skip


@pytest.mark.parametrize("keeps", [False, True])
def test_connections_are_kept_open_where_necessary(duties, keeps):
    looks = lookout.Lookout(Vm(), PLAN, lookout.Checks(never), keeps_sockets=keeps)
    with looks.guarding():
        kept = looks.kept("/run/socket")
    assert isinstance(kept, address.Kept) is keeps and ("keeper begins" in duties) is keeps
    assert (kept.address if keeps else kept) == "/run/socket"


@pytest.mark.parametrize("who", ["the run", "scratch", "domain", "keeper"])
def test_an_error_of_any_watch_ends_the_run(duties, who):
    """Even while the run waits for libvirt: the domain obeys the same check."""
    vm, error = Vm(), errors.Busy(who)

    def first():
        if who == "the run":
            raise error

    looks = lookout.Lookout(vm, PLAN, lookout.Checks(first), keeps_sockets=True)
    with looks.guarding():
        duties.wrong[who] = error
        for check in (looks.check, vm.heeded):
            with pytest.raises(errors.Busy, match=who):
                check()
        duties.wrong.clear()
        if who != "the run":
            looks.check()
