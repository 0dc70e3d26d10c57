"""libvirt's errors as ours: by their code, whatever the text is."""

import errno

import pytest
from fake_libvirt import error_of, libvirt

from nbdpull.core import errors
from nbdpull.hypervisor import libvirt_error

OTHERWISE = (errors.NoSuchDomain, "look for it")
DENIED = (errors.AccessDenied, "ask somebody")


def translated(error, *verdicts):
    with pytest.raises(errors.NbdpullError) as caught, libvirt_error.translated("cannot do it", *verdicts):
        raise error
    return caught.value


@pytest.mark.parametrize("code, kind", [
    (libvirt.VIR_ERR_ACCESS_DENIED, errors.AccessDenied), (libvirt.VIR_ERR_AUTH_FAILED, errors.AccessDenied),
    (libvirt.VIR_ERR_AUTH_CANCELLED, errors.AccessDenied), (libvirt.VIR_ERR_OPERATION_DENIED, errors.AccessDenied),
    (libvirt.VIR_ERR_OPERATION_TIMEOUT, errors.Busy), (libvirt.VIR_ERR_NO_SUPPORT, errors.Unsupported),
    (libvirt.VIR_ERR_OPERATION_UNSUPPORTED, errors.Unsupported), (109, errors.CheckpointUnusable),
    (103, errors.NoSuchCheckpoint), (libvirt.VIR_ERR_INTERNAL_ERROR, errors.HypervisorError),
    (libvirt.VIR_ERR_SYSTEM_ERROR, errors.HypervisorError), (99999, errors.HypervisorError),
])  # fmt: skip
def test_each_code(code, kind):
    error = translated(error_of(code))
    assert type(error) is kind
    assert str(error).startswith("cannot do it: ") and str(error).endswith("(libvirt's words in lines)")
    assert libvirt_error.code_of(error) == code


def test_an_argument_that_libvirt_cannot_take():
    """Its bindings encode every text as UTF-8; a command line can contain other bytes."""
    with pytest.raises(errors.UsageError) as caught, libvirt_error.translated("cannot look for it"):
        libvirt.open("caf\udce9")
    assert str(caught.value) == r"cannot look for it: 'caf\udce9' is not text in UTF-8"


@pytest.mark.parametrize("number, kind", [
    (errno.EACCES, errors.AccessDenied), (errno.EPERM, errors.AccessDenied), (errno.ENOENT, errors.NoSuchDomain),
])  # fmt: skip
def test_a_system_error_is_what_its_errno_is(number, kind):
    assert type(translated(error_of(libvirt.VIR_ERR_SYSTEM_ERROR, number), OTHERWISE)) is kind


def test_errors_that_the_caller_knows_better():
    assert "look for it" in str(translated(error_of(libvirt.VIR_ERR_INTERNAL_ERROR), OTHERWISE))
    assert "ask somebody" in str(translated(error_of(libvirt.VIR_ERR_ACCESS_DENIED), OTHERWISE, DENIED))
    assert "ask somebody" not in str(translated(error_of(libvirt.VIR_ERR_NO_SUPPORT), OTHERWISE, DENIED))


def test_other_exceptions_pass_through():
    with pytest.raises(ZeroDivisionError), libvirt_error.translated("cannot do it"):
        raise ZeroDivisionError
    assert libvirt_error.code_of(errors.Busy("another")) is None


def test_unless():
    def gone():
        raise error_of(42)

    assert libvirt_error.unless((41, 42), gone) is None
    assert libvirt_error.unless((42,), lambda: "here") == "here"
    with pytest.raises(libvirt.libvirtError):
        libvirt_error.unless((41,), gone)


def test_a_call_that_may_still_take_effect_is_unanswered():
    error = errors.Busy("it waits")
    assert not libvirt_error.is_unanswered(error)
    error.__cause__ = errors.NoAnswer("nothing came")
    assert libvirt_error.is_unanswered(error) and libvirt_error.is_unanswered(error.__cause__)
