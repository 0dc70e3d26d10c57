"""What doctor reports about the versions of libvirt and QEMU."""

import re

import pytest

from nbdpull.readiness import versions


def found_at(libvirt, qemu, subject):
    return [each for each in versions.found({"libvirt": libvirt, "qemu": qemu}) if each.subject == subject]


@pytest.mark.parametrize(
    "libvirt, qemu, state, code",
    [
        ("7.6.0", "6.1.0", "good", 0),
        ("7.5.0", "6.1.0", "warn", 0),
        ("7.6.0", "6.0.1", "warn", 0),
        ("7.2.0", "4.2.0", "warn", 0),
        ("7.1.0", "6.1.0", "BAD", 6),
        ("11.3.0", "4.1.1", "BAD", 6),
    ],
)
def test_which_versions_have_checkpoints_and_backups(libvirt, qemu, state, code):
    [found] = found_at(libvirt, qemu, "incremental")
    assert (found.state, found.exit_code) == (state, code)
    assert found.text.startswith(f"libvirt {libvirt}, QEMU {qemu}") and bool(found.advice) == (state != "good")


@pytest.mark.parametrize("version", ["7.2.22", "8.2.3", "8.2.4", "9.0.0", "10.0.13"])
def test_a_qemu_that_a_tls_handshake_can_crash(version):
    assert [each.state for each in found_at("10.0.0", version, "TLS")] == ["warn"] * (version in ("8.2.3", "9.0.0"))


@pytest.mark.parametrize(
    "libvirt, qemu, lacking",
    [
        ("9.0.0", "7.2.22", ["QEMU 8.2.3", "libvirt 10.8", "libvirt 10.10", "libvirt 11.10"]),
        ("10.9.0", "10.0.13", ["libvirt 10.10", "libvirt 11.10"]),
        ("11.3.0", "10.0.13", ["libvirt 11.10"]),
        ("11.10.0", "9.0.0", []),
    ],
)
def test_each_thing_that_an_upgrade_would_bring_is_a_finding(libvirt, qemu, lacking):
    found = [each.text for each in found_at(libvirt, qemu, "upgrade")]
    assert [re.match(r"\w+ [\d.]+", text).group() for text in found] == lacking
