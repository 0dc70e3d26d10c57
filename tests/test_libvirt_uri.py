"""What libvirt URIs say."""

import pytest

from nbdpull.hypervisor import libvirt_uri

FACTS = {
    "qemu:///system": (False, "localhost", True, False, False),
    "qemu:///session": (False, "localhost", False, True, False),
    "qemu:///embed?root=/r": (False, "localhost", False, False, False),
    "qemu+unix:///system?socket=/s": (False, "localhost", True, False, False),
    "qemu+ssh://user:secret@hv1:2222/system?keyfile=/k": (True, "hv1", True, False, False),
    "qemu+ssh://localhost/session": (True, "localhost", False, True, False),
    "qemu://hv1/system": (True, "hv1", True, False, True),
    "qemu+tls://[fe80::1]/system": (True, "fe80::1", True, False, True),
    "qemu+tls:///system": (False, "localhost", True, False, False),
}


@pytest.mark.parametrize("uri, facts", FACTS.items())
def test_facts(uri, facts):
    every = (libvirt_uri.is_remote, libvirt_uri.host, libvirt_uri.is_system, libvirt_uri.is_session, libvirt_uri.is_tls)
    assert tuple(each(uri) for each in every) == facts


def test_no_uri_is_not_tls():
    assert not libvirt_uri.is_tls(None)


@pytest.mark.parametrize("uri, shown", [
    ("qemu+ssh://backup:geheim@hv1:2222/system?keyfile=/k", "qemu+ssh://backup@hv1:2222/system?keyfile=/k"),
    ("qemu+ssh://backup@hv1/system", "qemu+ssh://backup@hv1/system"), ("qemu:///system", "qemu:///system"),
])  # fmt: skip
def test_no_password_is_kept(uri, shown):
    assert libvirt_uri.without_password(uri) == shown
