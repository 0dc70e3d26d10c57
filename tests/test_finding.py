"""How an error becomes a finding of doctor."""

import pytest

from nbdpull.core import errors
from nbdpull.readiness.finding import BAD, Finding, bad, good, guarded


def looks(error):
    yield good("disk vda", "qcow2")
    raise error


def test_an_error_says_what_and_what_to_do():
    error = errors.AccessDenied("cannot connect to libvirt: join the group libvirt: or run as root")
    assert bad("libvirt", error) == Finding(
        BAD, "libvirt", "cannot connect to libvirt", "join the group libvirt: or run as root", error.exit_code
    )
    assert bad("libvirt", errors.AccessDenied("it says no")).advice == "see the text"


def test_what_was_found_before_an_error_stays():
    found = list(guarded("disks", looks(errors.SourceError("disk vdb: no answer"))))
    assert [(each.subject, each.state) for each in found] == [("disk vda", "good"), ("disks", "BAD")]


def test_a_signal_is_no_finding():
    with pytest.raises(errors.Interrupted):
        list(guarded("disks", looks(errors.Interrupted(15))))
