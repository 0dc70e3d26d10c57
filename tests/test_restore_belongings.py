"""What a restore brings back of a domain besides its disks. test_restore_domain.py boots it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import stores

from nbdpull.core import errors
from nbdpull.definitions import definition
from nbdpull.format import layout
from nbdpull.restoring import belongings
from nbdpull.restoring.belongings import Asked, Stored
from nbdpull.targets import places
from nbdpull.targets.places import Place

NOTHING = Asked(define=False, name=None, new_uuid=False, uri=None, force=False, trusted=False)
PLUGGED = ("<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/images/vdb'/>"
           "<target dev='vdb' bus='virtio'/></disk>")  # fmt: skip


@pytest.fixture(scope="module")
def pulled(tmp_path_factory):
    """A store with one point of vda, with variables of firmware and the state of a TPM."""
    vm = stores.Vm(tmp_path_factory.mktemp("store") / "s")
    vm.add_disk("vda", 4096)
    vm.files = {"nvram": b"variables", "tpm.state": b"sealed"}
    vm.pull()
    return vm


def plan(vm, taken, folder="/restored", asked=NOTHING, point=None, known=None):
    point = point or vm.points[-1]
    return belongings.planned(vm.series, point, known or belongings.stored(vm.series, point), taken, folder, asked)


def new(path="/restored/vda.qcow2", kind=places.NEW, form="qcow2"):
    return {"vda": Place(kind, path, form)}


def with_manifest(point, **changes):
    return SimpleNamespace(**{name: getattr(point, name) for name in ("id", "files", "disks", "file")},
                           manifest=replace(point.manifest, **changes))  # fmt: skip


# -- what a point has -------------------------------------------------------------------------------------------------


class Series:
    """Definitions as a point has them: a text, or the error of reading it."""

    def __init__(self, xml, live=None):
        self._texts = {"definition": xml, "live": live}

    def definition(self, _point):
        return self._text("definition")

    def live_definition(self, _point):
        return self._text("live")

    def _text(self, which):
        if isinstance(self._texts[which], Exception):
            raise self._texts[which]
        return self._texts[which]


def of(*disks):
    return SimpleNamespace(disks=[*disks])


XML = stores.domain_xml({"vda": "qcow2"})
LIVE = XML.replace("</devices>", PLUGGED + "<hostdev type='usb'><source/></hostdev></devices>")


def test_a_disk_that_was_plugged_in_comes_back():
    found = belongings.stored(Series(XML, LIVE), of("vda", "vdb", "vdc"))
    assert list(found.disks) == ["vda", "vdb"] and found.lost == ["vdc"] and found.name == "vm1"
    assert [each.split()[0] for each in found.extra] == ["hostdev"]


def test_a_damaged_running_definition_adds_nothing():
    found = belongings.stored(Series(XML, errors.Damaged("x")), of("vda", "vdb"))
    assert list(found.disks) == ["vda"] and found.lost == ["vdb"] and found.extra == []


@pytest.mark.parametrize("xml", [errors.Damaged("x"), XML.replace(">vm1<", "> <")])
def test_a_definition_that_is_none(xml):
    assert belongings.stored(Series(xml, LIVE), of("vda")) == Stored()
    assert Stored().name is None and Stored().disks == {}


# -- the definition to write ------------------------------------------------------------------------------------------


def test_without_a_folder_nothing_is_written(pulled):
    assert plan(pulled, new(), folder=None) == (None, [], False)
    assert belongings.beside(pulled.points[-1], None) == {}


def test_files_lie_beside_the_disks(pulled):
    assert belongings.beside(pulled.points[-1], "/r") == {
        name: f"/r/{name}" for name in ("domain.xml", "nvram", "tpm.state")
    }


def test_the_definition_names_the_new_places(pulled):
    made = plan(pulled, new())
    assert stores.disks_of(made.xml) == {"vda": ("qcow2", "/restored/vda.qcow2")}
    assert belongings.misplaced(made.xml, new()) == [] and not made.autostart
    assert belongings.misplaced(made.xml, new("/elsewhere")) == ["vda"]
    assert belongings.misplaced(made.xml, new(form="raw")) == ["vda"]
    assert belongings.misplaced(None, new()) == ["vda"]


def test_a_device_is_named_as_one(pulled):
    made = plan(pulled, new("/dev/vg/vda", places.DEVICE, "raw"))
    assert '<source dev="/dev/vg/vda"' in made.xml.replace("'", '"')


def test_an_export_cannot_be_named(pulled):
    made = plan(pulled, new("nbd://hv1/vda", places.NBD, "raw"))
    assert any("disk vda was restored to nbd://hv1/vda, which is not named here" in text for text in made.warnings)
    assert stores.disks_of(made.xml) == {"vda": ("qcow2", "/images/vda.qcow2")}


def test_what_define_does_needs_no_warning(pulled, monkeypatch):
    monkeypatch.setattr(belongings, "_for_libvirt", lambda xml, *_args: (xml, []))
    known, point = belongings.stored(pulled.series, pulled.points[-1]), with_manifest(pulled.points[-1], autostart=True)
    for define in (False, True):
        made = plan(pulled, new(), asked=replace(NOTHING, define=define), point=point, known=known)
        for text in ("the TPM's state is in the directory", "the domain started with its host"):
            assert any(text in warning for warning in made.warnings) is not define
        assert made.autostart


def test_what_only_the_running_domain_had_is_said(pulled):
    known = replace(belongings.stored(pulled.series, pulled.points[-1]), extra=["hostdev usb"], lost=["vdc"])
    warnings = plan(pulled, new(), known=known).warnings
    assert warnings[:2] == [
        "disk vdc is in no definition of the point: the domain is without it",
        f"hostdev usb was plugged into the running domain only: only {layout.LIVE_XML} has it",
    ]


@pytest.mark.parametrize("asked, starts", [
    (NOTHING, True),
    (replace(NOTHING, name="vm1"), True),
    (replace(NOTHING, name="vm2"), False),
    (replace(NOTHING, new_uuid=True), False),
])  # fmt: skip
def test_a_copy_does_not_start_with_its_host(pulled, asked, starts):
    point = with_manifest(pulled.points[-1], autostart=True)
    made = plan(pulled, new(), asked=asked, point=point, known=belongings.stored(pulled.series, pulled.points[-1]))
    assert made.autostart == starts
    assert any("autostart makes it do so again" in text for text in made.warnings) == starts


def test_a_folder_that_no_definition_can_name(pulled):
    """It is a loss only if a definition was asked for."""
    folder = "/re\x01stored"
    assert plan(pulled, new(f"{folder}/vda.qcow2"), folder).xml is not None
    with pytest.raises(errors.UsageError, match="that name cannot be written into a definition"):
        plan(pulled, new(f"{folder}/vda.qcow2"), folder, replace(NOTHING, name="vm2"))


def test_a_definition_that_cannot_be_adapted(pulled):
    asked = replace(NOTHING, name="vm2")
    assert plan(pulled, new(), known=Stored()).warnings == ["domain.xml is not a domain definition: it is unchanged"]
    with pytest.raises(errors.Damaged, match="is not a domain definition"):
        plan(pulled, new(), known=Stored(), asked=asked)
    none = SimpleNamespace(id="a-point", files={}, file=lambda _name: None)
    assert plan(pulled, new(), known=Stored(), point=none) == (None, [], False)  # the proof reports that
    with pytest.raises(errors.Damaged, match="point a-point has no domain.xml"):
        plan(pulled, new(), known=Stored(), point=none, asked=asked)


# -- the files --------------------------------------------------------------------------------------------------------


def write(vm, folder, xml=None, force=False, salvage=False):
    events = []
    found = belongings.written(vm.series, vm.points[-1], str(folder), xml, force, salvage, lambda **e: events.append(e))
    return found, events


def test_files_are_as_they_were_stored(pulled, tmp_path):
    found, events = write(pulled, tmp_path)
    assert found.paths == belongings.beside(pulled.points[-1], str(tmp_path)) and not found.lost and not events
    assert (tmp_path / "nvram").read_bytes() == b"variables"
    assert definition.identity((tmp_path / "domain.xml").read_text())[0] == "vm1"
    (tmp_path / "nvram.partial").touch()
    with pytest.raises(errors.OutputExists, match="nvram.partial exists: another restore is writing it"):
        write(pulled, tmp_path)
    write(pulled, tmp_path, "<domain/>", force=True)
    assert (tmp_path / "domain.xml").read_text() == "<domain/>"


def test_a_damaged_file_is_lost_only_with_salvage(pulled, tmp_path):
    path = pulled.root / pulled.series.folder / pulled.points[-1].id / "nvram"
    with stores.damaged(path, b"VARIABLES"):
        with pytest.raises(errors.Damaged, match="nvram"):
            write(pulled, tmp_path)
        (tmp_path / "salvage").mkdir()
        found, [event] = write(pulled, tmp_path / "salvage", salvage=True)
    assert set(found.paths) == {"domain.xml", "tpm.state"} == {each.name for each in (tmp_path / "salvage").iterdir()}
    [lost] = found.lost
    assert event == {"event": "lost", "disk": None, "offset": None, "length": None, "problem": lost.problem}
    assert "nvram" in lost.problem
