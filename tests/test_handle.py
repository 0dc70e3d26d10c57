"""Where an error of libvirt becomes one of ours: for a domain that ended meanwhile, every error means that end."""

import pytest
from fake_libvirt import Meddled, error_of, libvirt, raising

from nbdpull.core import errors
from nbdpull.hypervisor import domain_start, handle
from nbdpull.hypervisor.libvirt_error import code_of

RUNNING, PAUSED = (libvirt.VIR_DOMAIN_RUNNING, 1), (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
SHUT_DOWN = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN)
CRASHED = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED)
TRANSIENT_GONE = error_of(libvirt.VIR_ERR_NO_DOMAIN)
OF_ANYTHING = [libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_OPERATION_FAILED]


class Vm(handle.Handle):
    """A handle of a domain whose states come from a list, the last one forever; `looks`: how often it was asked."""

    def __init__(self, *states, uri="qemu:///system", **methods):
        methods.setdefault("blockStatsFlags", raising(error_of(libvirt.VIR_ERR_INTERNAL_ERROR)))  # no monitor
        dom = {"name": lambda: "vm1", "UUIDString": lambda: "a-uuid", "state": self._next_state, **methods}
        super().__init__(Meddled(getURI=lambda: uri), Meddled(**dom), None)
        self._states, self.looks = states, 0

    def _next_state(self):
        state = self._states[min(self.looks, len(self._states) - 1)]
        self.looks += 1
        if isinstance(state, Exception):
            raise state
        return state


def fails(vm, error, through="seam"):
    """Return the error that a call raises if libvirt answers it with this error."""
    with pytest.raises(errors.NbdpullError) as caught, getattr(vm, through)("do it"):
        raise error
    return caught.value


def seen_to_run(*states, **options):
    vm = Vm(*states, isActive=lambda: 1, **options)
    assert vm.active
    return vm


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(handle, "END_INTERVAL", 0)


# -- a call that fails as its domain ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("code", OF_ANYTHING)
@pytest.mark.parametrize("through", ["seam", "live"])
@pytest.mark.parametrize(
    "end, kind, says",
    [
        (SHUT_DOWN, errors.DomainStopped, "domain 'vm1' was shut down by its guest"),
        (CRASHED, errors.DomainCrashed, "QEMU of domain 'vm1' crashed or was killed"),
        (TRANSIENT_GONE, errors.DomainStopped, "domain 'vm1' ended"),
    ],
)
def test_a_call_fails_before_the_state_says_that_the_domain_is_off(brief, code, through, end, kind, says):
    """QEMU's monitor ends first: a call fails with an internal error while libvirt still reports the domain as
    running."""
    vm = seen_to_run(RUNNING, RUNNING, RUNNING, end)
    error = fails(vm, error_of(code), through)
    assert type(error) is kind and str(error).startswith(says)
    assert code_of(error.__cause__) == code


@pytest.mark.parametrize("code", OF_ANYTHING)
@pytest.mark.parametrize(
    "answer", [lambda _: {}, raising(errors.NoAnswer("libvirt does not answer"))], ids=["qemu", "no libvirt"]
)
def test_no_wait_for_a_domain_whose_qemu_answers(monkeypatch, code, answer):
    monkeypatch.setattr(handle, "time", Meddled(monotonic=lambda: 100.0, sleep=raising(AssertionError("it waits"))))
    assert type(fails(seen_to_run(RUNNING, blockStatsFlags=answer), error_of(code))) is errors.HypervisorError


@pytest.mark.parametrize("code", OF_ANYTHING)
def test_the_wait_for_the_end_is_bounded(monkeypatch, code):
    now, slept = [100.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(handle, "time", Meddled(monotonic=lambda: now[0], sleep=sleep))
    error = fails(seen_to_run(RUNNING), error_of(code))
    assert type(error) is errors.HypervisorError and "cannot do it" in str(error)
    assert set(slept) == {0.05} and 30 <= sum(slept) < 30.1


@pytest.mark.parametrize(
    "vm, code",
    [
        (seen_to_run(RUNNING), libvirt.VIR_ERR_OPERATION_INVALID),
        (seen_to_run(RUNNING), libvirt.VIR_ERR_INVALID_ARG),
        (Vm(RUNNING), libvirt.VIR_ERR_INTERNAL_ERROR),  # its end would be no news
    ],
)
def test_no_wait_where_no_end_is_expected(monkeypatch, vm, code):
    monkeypatch.setattr(handle, "time", Meddled(sleep=raising(AssertionError("it waits"))))
    assert type(fails(vm, error_of(code))) is errors.HypervisorError


def test_an_end_that_libvirt_reports_at_once():
    vm = seen_to_run(SHUT_DOWN)
    assert type(fails(vm, error_of(libvirt.VIR_ERR_OPERATION_INVALID))) is errors.DomainStopped
    assert vm.looks == 1


def test_an_end_between_two_checks():
    """And no advice to start a domain that this run has seen running."""
    vm = seen_to_run(RUNNING, SHUT_DOWN)
    assert type(fails(vm, error_of(libvirt.VIR_ERR_OPERATION_INVALID), "live")) is errors.DomainStopped


def test_the_state_is_unavailable():
    """Then nothing is known of an end."""
    vm = seen_to_run(error_of(libvirt.VIR_ERR_RPC))
    assert type(fails(vm, error_of(libvirt.VIR_ERR_OPERATION_INVALID))) is errors.HypervisorError
    assert vm.ended() is None


@pytest.mark.parametrize("through, kind", [("seam", errors.HypervisorError), ("live", errors.DomainNotRunning)])
def test_a_domain_that_was_never_seen_to_run(through, kind):
    """Its end is no news; that it is off is reported when QEMU is needed."""
    vm = Vm(SHUT_DOWN, hasManagedSaveImage=lambda _flags: 0)
    assert type(fails(vm, error_of(libvirt.VIR_ERR_OPERATION_INVALID), through)) is kind
    assert vm.ended() is None


def test_an_error_of_another_kind_passes():
    vm = seen_to_run(SHUT_DOWN)
    assert type(fails(vm, errors.Busy("another job"), "live")) is errors.Busy
    assert type(fails(vm, error_of(libvirt.VIR_ERR_ACCESS_DENIED), "live")) is errors.AccessDenied
    assert vm.looks == 0


# -- what is reported ------------------------------------------------------------------------------------------------


def test_no_answer_reports_the_last_known_state(monkeypatch):
    monkeypatch.setattr(handle, "time", Meddled(strftime=lambda _format: "19:45:00"))
    vm = Vm(PAUSED)
    silent = errors.NoAnswer("libvirt did not answer within 5 s")
    assert str(fails(vm, silent)) == "domain 'vm1': cannot do it: libvirt did not answer within 5 s"
    vm.guest_state()
    assert str(fails(vm, silent, "live")) == (
        "domain 'vm1': cannot do it: libvirt did not answer within 5 s; "
        "it was last seen paused (by its owner) at 19:45:00"
    )


@pytest.mark.parametrize(
    "session, saved, advice",
    [
        ("", 0, "start it first"),
        ("", 1, "it has a saved state (managedsave), from which virsh start continues"),
        ("another session may run it", 0, "another session may run it"),
        ("another session may run it", 1, "another session may run it"),
    ],
)
def test_what_to_do_about_a_domain_that_is_off(monkeypatch, session, saved, advice):
    monkeypatch.setattr(domain_start, "other_session", lambda _uri: session)
    vm = Vm(SHUT_DOWN, isActive=lambda: 0, hasManagedSaveImage=lambda _flags: saved)
    with pytest.raises(errors.DomainNotRunning) as caught:
        vm.require_running()
    assert str(caught.value) == f"domain 'vm1' is not running: {advice}"


@pytest.mark.parametrize(
    "uri, remote",
    [
        ("qemu:///system", False),
        ("qemu+unix:///system?socket=/run/x", False),
        ("qemu+ssh://root@host/system", True),
        ("qemu+ssh://localhost:2222/system", True),
        ("qemu+tls://host/system", True),
    ],
)
def test_remote(uri, remote):
    assert Vm(RUNNING, uri=uri).is_remote is remote


def test_seconds_of_all_processors():
    cpus = [(0, 1, 1_500_000_000, 0), (1, 1, 250_000_000, 2), (2, 0, 0, -1)]
    assert Vm(RUNNING, vcpus=lambda: (cpus, [(True,)] * 3)).vcpu_seconds() == 1.75
