"""Files of a domain on this machine: where libvirt keeps them. test_restore_domain.py brings them back."""

import pytest

from nbdpull.hypervisor import domain_files

SYSTEM, SESSION = "qemu:///system", "qemu:///session"
UUID = "3e3fce45-4f53-4fa7-bb32-11f34168b82b"
EFI = "<os firmware='efi'><type>hvm</type>{}</os>"
TPM = "<devices><tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices>"


def domain(inside):
    return f"<domain><name>vm1</name><uuid>{UUID}</uuid>{inside}</domain>"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "libvirt" / "qemu"


@pytest.fixture
def tpm(config):
    """The directory of the TPM's state of a domain in this user's session."""
    home = config / "swtpm" / UUID / "tpm2"
    home.mkdir(parents=True)
    return home


def test_where_libvirt_makes_variables(config, monkeypatch):
    system = "/var/lib/libvirt/qemu/nvram/vm1_VARS"
    assert domain_files.variables_homes("vm1", SYSTEM) == [f"{system}.fd", f"{system}.qcow2"]
    assert domain_files.variables_homes("vm1", SESSION) == [
        f"{config}/nvram/vm1_VARS{end}" for end in (".fd", ".qcow2")
    ]
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert domain_files.variables_homes("x", SESSION)[0] == "/home/me/.config/libvirt/qemu/nvram/x_VARS.fd"


def test_variables_that_no_definition_names_are_found_where_libvirt_makes_them(config):
    """<os firmware='efi'> has no path until the domain runs (libvirt before 9.2)."""
    assert domain_files.found(domain(EFI.format("")), None, UUID, SESSION) == ([], [])
    (config / "nvram").mkdir(parents=True)
    path = config / "nvram" / "vm1_VARS.fd"
    path.touch()
    assert domain_files.found(domain(EFI.format("")), None, UUID, SESSION) == ([("nvram", str(path))], [])
    assert domain_files.found(domain("<os><type>hvm</type></os>"), None, UUID, SESSION) == ([], [])  # it has none


def test_the_running_domain_knows_the_path(config):
    live = domain(EFI.format("<nvram>/vars.fd</nvram>"))
    assert domain_files.found(domain(EFI.format("")), live, UUID, SESSION) == ([("nvram", "/vars.fd")], [])


def test_the_state_of_a_tpm_without_its_lock(tpm):
    for name in ("tpm2-00.permall", ".lock", "more"):
        (tpm / name).touch()
    files, warnings = domain_files.found(domain(TPM), None, UUID, SESSION)
    assert files == [(f"tpm.{name}", str(tpm / name)) for name in ("more", "tpm2-00.permall")] and warnings == []


def test_a_tpm_whose_state_cannot_be_read_is_a_warning(config):
    assert domain_files.found(domain(TPM), None, UUID, SESSION) == (
        [], [f"the TPM's state in {config}/swtpm/{UUID}/tpm2 is not in the point: No such file or directory"]
    )  # fmt: skip


@pytest.fixture
def restored(tmp_path):
    (tmp_path / "tpm.state").write_bytes(b"sealed")
    (tmp_path / "nvram").write_bytes(b"variables")
    return {name: str(tmp_path / name) for name in ("tpm.state", "nvram")}


def test_the_state_of_a_tpm_is_nobody_elses(tpm, restored):
    assert domain_files.place_tpm(domain(TPM), UUID, SESSION, restored) == []
    [made] = tpm.iterdir()
    assert (made.name, made.read_bytes(), made.stat().st_mode & 0o777) == ("state", b"sealed", 0o600)


def test_a_domain_without_a_tpm_or_a_point_without_its_state(config, restored):
    assert domain_files.place_tpm(domain(""), UUID, SESSION, restored) == []
    assert domain_files.place_tpm(domain(TPM), UUID, SESSION, {"nvram": restored["nvram"]}) == []
    assert not config.exists()


def test_a_place_for_the_state_that_cannot_be_made(tpm, tmp_path, restored):
    """The restored file is where it is."""
    tpm.rmdir()
    tpm.parent.rmdir()
    tpm.parent.symlink_to(tmp_path / "none")
    [warning] = domain_files.place_tpm(domain(TPM), UUID, SESSION, restored)
    assert warning.startswith(f"the TPM's state could not be put into {tpm}: ") and restored["tpm.state"] in warning
    assert not (tmp_path / "none").exists()
