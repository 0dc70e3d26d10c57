"""What of a domain goes into a point besides its disks, and which warnings there are about what does not."""

import errno
from types import SimpleNamespace

import pytest

pytest.importorskip("libvirt")
pytest.importorskip("nbd")

from nbdpull.core import errors  # noqa: E402
from nbdpull.definitions import omissions  # noqa: E402
from nbdpull.format import layout  # noqa: E402
from nbdpull.pulling import belongings  # noqa: E402

DISK = "<disk type='file'><source file='/{0}'/><target dev='{0}' bus='virtio'/></disk>"


def definition(*devices):
    return f"<domain><name>vm1</name><uuid>a-uuid</uuid><devices>{''.join(devices)}</devices></domain>"


VDA, VDB = DISK.format("vda"), DISK.format("vdb")
PLAIN = definition(VDA)
SHARED = "<filesystem type='mount'><source dir='/srv/home'/><target dir='home'/></filesystem>"


class Vm:
    uuid, uri = "a-uuid", "qemu:///system"

    def __init__(self, xml=PLAIN, live=None, passwords=(), is_remote=False):
        self._xml, self._live, self._passwords, self.is_remote = xml, live, passwords, is_remote

    def domain_xml(self):
        return self._xml

    def live_xml(self):
        return self._live

    def passwords(self):
        if isinstance(self._passwords, Exception):
            raise self._passwords
        return list(self._passwords)


class New(dict):
    """A NewPoint in memory."""

    def fits(self, _name, size):
        return size <= 100

    def add_file(self, name, data, parent=None):
        self[name] = data


def add(vm, last=None, checkpoint=None, asked=()):
    """Return (files of the point, what is returned) for a pull of vda. last: the newest point of the series."""
    new, subject = New(), SimpleNamespace(vm=vm, disks=[SimpleNamespace(target="vda")],
                                          points=SimpleNamespace(newest=last))  # fmt: skip
    return new, belongings.add(subject, None, new, checkpoint, None, asked, 1.0)


def point(*passwords):
    return SimpleNamespace(manifest=SimpleNamespace(passwords=[*passwords]))


@pytest.fixture(autouse=True)
def no_files(monkeypatch):
    monkeypatch.setattr(belongings.domain_files, "found", lambda *_args: ([], []))


def test_the_running_definition_is_added_only_if_it_has_more():
    live = definition(VDA, VDB)
    assert set(add(Vm(live=definition(VDA)))[0]) == {layout.DOMAIN_XML}
    new, _ = add(Vm(live=live), checkpoint=SimpleNamespace(xml="<domaincheckpoint/>"))
    assert new == {
        layout.DOMAIN_XML: definition(VDA).encode(),
        layout.LIVE_XML: live.encode(),
        layout.CHECKPOINT_XML: b"<domaincheckpoint/>",
    }


# -- its files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(monkeypatch):
    """Let a domain have these files: {name: content, or the error of reading it}."""
    known = {}

    def read(path, _seconds, _most):
        content = known[path[1:]]
        if isinstance(content, Exception):
            raise content
        return content

    monkeypatch.setattr(belongings.guest_files, "read", read)
    monkeypatch.setattr(
        belongings.domain_files, "found", lambda *_args: ([(name, f"/{name}") for name in known], ["no TPM"])
    )
    return known


def test_a_file_that_cannot_be_read_hides_no_other(files):
    files.update(kernel=b"k" * 100, initrd=b"i" * 101, dtb=TimeoutError(errno.ETIMEDOUT, "it took too long"), nvram=b"")
    new, added = add(Vm())
    assert {name: new.get(name) for name in files} == {"kernel": b"k" * 100, "initrd": None, "dtb": None, "nvram": b""}
    assert added.warnings == [
        "no TPM",
        "/initrd (initrd of the domain) is not in the point: it is too large, or its name is not possible in a store",
        "/dtb (dtb of the domain) is not in the point: it took too long",
    ]


def test_a_domain_on_another_host_has_its_files_there(files):
    files["kernel"] = b"k"
    new, added = add(Vm(is_remote=True))
    assert set(new) == {layout.DOMAIN_XML} and added.warnings == []


# -- what is missed ----------------------------------------------------------------------------------------------------


def test_a_disk_that_was_plugged_in_for_the_next_start_is_missed():
    [warning] = add(Vm(definition(VDA, VDB), definition(VDA)))[1].warnings
    assert warning.startswith("disk vdb") and "is not in the point: it " in warning and omissions.NEXT_START in warning


def test_a_disk_that_was_chosen_to_be_left_out_is_not():
    assert add(Vm(definition(VDA, VDB), definition(VDA)), asked=["vdb"])[1].warnings == []
    assert add(Vm(definition(VDA, VDB), definition(VDA, VDB)))[1].warnings == []  # disk_choice has warned


def test_a_device_is_reported_when_it_is_new(monkeypatch):
    """There is no option to acknowledge it."""
    vm = Vm(definition(VDA, SHARED))
    [warning] = add(vm)[1].warnings
    assert "/srv/home" in warning and "is not in the point" in warning
    [device] = [each for each in omissions.found(definition(VDA, SHARED), None, ["vda"]) if each.missed]
    monkeypatch.setattr(belongings.omissions, "of_point", lambda _series, _last: [device])
    assert add(vm, point())[1].warnings == []
    monkeypatch.setattr(belongings.omissions, "of_point", lambda _series, _last: None)  # it cannot be read
    assert len(add(vm, point())[1].warnings) == 1


# -- passwords ---------------------------------------------------------------------------------------------------------


def test_a_password_is_reported_when_it_is_new(monkeypatch):
    monkeypatch.setattr(belongings.omissions, "of_point", lambda _series, _last: [])
    added = add(Vm(passwords=["spice", "vnc"]), point("vnc"))[1]
    [warning] = added.warnings
    assert warning.startswith("the password of graphics spice is not in the point")
    assert added.passwords == ["spice", "vnc"]
    assert add(Vm(passwords=["vnc"]), point("vnc", "spice"))[1].warnings == []


def test_warnings_have_the_same_order_each_time():
    kinds = sorted(["dbus", "desktop", "egl-headless", "rdp", "sdl", "spice", "vnc"])
    assert [text.split()[4] for text in add(Vm(passwords=kinds))[1].warnings] == kinds


def test_who_may_not_see_passwords_is_warned_of_every_display():
    graphics = "<graphics type='vnc' port='-1'/>", "<graphics type='spice'/>"
    denied = errors.AccessDenied("permission denied")
    added = add(Vm(definition(VDA, graphics[0]), definition(VDA, graphics[1]), denied))[1]
    assert added.passwords == ["spice", "vnc"]
    assert all(", if any (permission denied), is not in the point" in text for text in added.warnings[-2:])
    assert add(Vm(passwords=denied))[1].warnings == []
