"""The manifest: it is read as it was written, and what a reader must refuse is refused by name."""

import dataclasses
import json

import pytest

from nbdpull.core import errors
from nbdpull.format import layout, manifest
from nbdpull.format.manifest import CheckpointEntry, DiskEntry, FileEntry, Manifest, ParentEntry

POINT, OLDER = "20261122T194500Z-7f3a9c04", "20261121T194500Z-00112233"


def file(path, size=10):
    return FileEntry(path, size, "ab" * 32)


def disk(name="vda", mode=manifest.INCREMENTAL):
    directory = file(f"{POINT}/{name}.directory")
    return DiskEntry(name, 1 << 40, mode, "checkpoint", "/i/ü.qcow2", True, directory, 4, 3, 2, 1)


MANIFEST = Manifest(
    point=POINT,
    sequence=2,
    created="2026-11-22T19:45:00+00:00",
    store="6fe0b9bd-7ac1-4b76-a0dd-7d2f0c1f9d2b",
    parent=ParentEntry(OLDER, "cd" * 32),
    domain="vm ü",
    uuid="3e3fce45-4f53-4fa7-bb32-11f34168b82b",
    since="chk",
    checkpoint=CheckpointEntry("chk2", 1795376700, True),
    consistency="crash-consistent",
    disks=[disk(), disk("vdb", manifest.FULL)],
    files=[file(f"{POINT}/domain.xml"), file(f"{POINT}/SHA256SUMS")],
    versions={"qemu": "7.2"},
    seconds={"copy": 0.25},
)


def sealed(document):
    document.pop("digest", None)
    return layout.seal(document)


def changed(change):
    """Return the manifest's bytes after a change of its JSON document."""
    document = json.loads(manifest.encode(MANIFEST))
    change(document)
    return sealed(document)


def refused(change):
    with pytest.raises(errors.Damaged) as caught:
        manifest.decode(changed(change), "m.json")
    text = str(caught.value)
    assert text.startswith(("m.json: not a manifest of nbdpull/2 (", "m.json: not a document of an nbdpull store;"))
    assert len(text) < 300
    return text


def test_it_survives_a_round_trip():
    assert manifest.decode(manifest.encode(MANIFEST), "m") == MANIFEST


def test_missing_members_are_read_as_none():
    bare = Manifest(**{**vars(MANIFEST), "parent": None, "checkpoint": None, "since": None, "files": []})
    assert manifest.decode(manifest.encode(bare), "m") == bare


def test_it_is_json_that_a_person_can_read():
    text = manifest.encode(MANIFEST).decode()
    assert json.loads(text)["disks"][0]["source"] == "/i/ü.qcow2"
    assert "/i/ü.qcow2" in text
    assert max(map(len, text.splitlines())) < 120


def test_members_of_a_later_writer_are_ignored():
    def add(document):
        document["added"] = {"later": 1}
        document["disks"][0]["added"] = 1
        document["disks"][0]["directory"]["added"] = 1

    assert manifest.decode(changed(add), "m") == MANIFEST


def test_a_feature_that_we_lack_is_refused():
    with pytest.raises(errors.FormatTooNew, match="m.json: needs striping"):
        manifest.decode(changed(lambda d: d["requires"].append("striping")), "m.json")


def test_disk_by_name():
    assert MANIFEST.disk("vdb").mode == manifest.FULL
    assert MANIFEST.disk("vdc") is None


def test_all_files():
    paths = [entry.path for entry in MANIFEST.all_files()]
    assert len(paths) == len(set(paths)) == 4
    assert {f"{POINT}/domain.xml", f"{POINT}/vdb.directory"} <= set(paths)


def test_partial_disks():
    def partial(document):
        document["disks"][0]["whole"] = False

    assert MANIFEST.partial == frozenset()
    assert manifest.decode(changed(partial), "m").partial == {"vda"}


def needed(kind):
    """Return all members except those that later versions added, which have a default."""
    missing = dataclasses.MISSING
    return [each.name for each in dataclasses.fields(kind) if each.default is each.default_factory is missing]


PARTS = {
    (): needed(Manifest),
    ("parent",): ["point", "sha256"],
    ("checkpoint",): ["name", "creation_time", "automatic"],
    ("disks", 1): needed(DiskEntry),
    ("disks", 1, "directory"): ["path", "size", "sha256"],
    ("files", 1): ["path", "size", "sha256"],
}


def at(document, where):
    for step in where:
        document = document[step]
    return document


@pytest.mark.parametrize("where, name", [(where, name) for where, names in PARTS.items() for name in names])
def test_every_member_is_needed(where, name):
    assert f"({name} is missing)" in refused(lambda document: at(document, where).pop(name))


@pytest.mark.parametrize(
    "where, name, value, message",
    [
        ((), "point", "../20261122T194500Z-7f3a9c04", "point id '../2026"),
        ((), "point", "", "point id ''"),
        ((), "point", 5, "point is 5"),
        ((), "passwords", "vnc", "passwords is 'vnc'"),
        ((), "passwords", [5], "passwords is 5"),
        ((), "sequence", "2", "sequence is '2'"),
        ((), "sequence", True, "sequence is True"),
        ((), "sequence", None, "sequence is None"),
        ((), "sequence", -1, "sequence is -1"),
        ((), "sequence", 1.0, "sequence is 1.0"),
        ((), "uuid", None, "uuid is None"),
        ((), "since", 5, "since is 5"),
        ((), "versions", [], "versions is []"),
        ((), "disks", None, "disks is None"),
        ((), "disks", {"vda": 1}, "disks is {'vda': 1}"),
        ((), "disks", ["vda"], "disks is 'vda'"),
        ((), "files", "x", "files is 'x'"),
        ((), "parent", [], "parent is []"),
        ((), "parent", "x", "parent is 'x'"),
        (("parent",), "point", "..", "point id '..'"),
        (("checkpoint",), "automatic", 1, "automatic is 1"),
        (("disks", 1), "name", "vda", "a disk twice"),
        (("disks", 0), "mode", "differential", "mode 'differential'"),
        (("disks", 0), "name", "vdz", "directory path"),
        (("disks", 0), "size", "1G", "size is '1G'"),
        (("disks", 0), "size", -1, "size is -1"),
        (("disks", 0), "size", 1.5, "size is 1.5"),
        (("disks", 0), "directory", None, "directory is None"),
        (("disks", 0), "whole", 1, "whole is 1"),
        (("disks", 0), "whole", None, "whole is None"),
        (("disks", 1), "whole", False, "read in full, and is not whole"),
        (("disks", 0, "directory"), "path", f"{OLDER}/vda.directory", "directory path"),
        (("disks", 0, "directory"), "path", f"{POINT}/vdb.directory", "directory path"),
        (("disks", 0, "directory"), "path", f"{POINT}/vda.index", "directory path"),
        (("disks", 0, "directory"), "path", f"{POINT}/vda.directory\n", "directory path"),
        (("disks", 0, "directory"), "path", "../../etc/passwd", "directory path '../../etc/passwd'"),
        (("disks", 0, "directory"), "size", -1, "size is -1"),
        (("disks", 0, "directory"), "size", "10", "size is '10'"),
        (("disks", 0, "directory"), "sha256", "ab", "without digest"),
        (("disks", 0, "directory"), "sha256", None, "sha256 is None"),
        (("files", 0), "path", f"{POINT}/../x", "file path"),
        (("files", 0), "path", f"{POINT}/..", "file path"),
        (("files", 0), "path", f"{POINT}/.", "file path"),
        (("files", 0), "path", f"{POINT}/", "file path"),
        (("files", 0), "path", "domain.xml", "file path"),
        (("files", 0), "path", "/etc/passwd", "file path '/etc/passwd'"),
        (("files", 0), "sha256", "", "without digest"),
        (("files", 0), "sha256", "AB" * 32, "without digest"),
        (("files", 0), "sha256", "ab" * 31 + "\u0662" * 2, "without digest"),
        (("parent",), "sha256", "ab", "without digest"),
        ((), "sequence", 1 << 64, "not a document"),
        ((), "created", "yesterday", "created is 'yesterday'"),
        ((), "created", "2026-11-22T19:45:00", "created is"),
        ((), "as_of", "yesterday", "as_of is 'yesterday'"),
        ((), "versions", {"qemu": 7.2}, "versions is 7.2"),
        ((), "seconds", {"copy": "0.5"}, "seconds is '0.5'"),
        ((), "seconds", {"copy": True}, "seconds is True"),
        ((), "domain", "x" * 5000, "domain is 'xxx"),
        ((), "domain", "vm\0", r"domain is 'vm\x00'"),
        ((), "since", [[["deep"] * 99] * 99] * 99, "since is [[["),
        ((), "disks", [], "no disk"),
        ((), "created", "2026-13-22T19:45:00+00:00", "created is"),
        ((), "versions", {"x" * 5000: "1"}, "versions is"),
        (("disks", 0), "size", (1 << 50) + 1, "size of a disk"),
        (("disks", 1), "name", "VDA", "a disk twice"),
        (("disks", 0), "name", "", "disk name ''"),
        (("disks", 0), "name", "ü" * 34, "disk name 'üüü"),
        (("files", 0), "path", f"{POINT}/SHA256SUMS", "a file twice"),
        (("files", 0), "path", f"{OLDER}/SHA256SUMS", "a file twice"),
        (("files", 0), "path", f"{POINT}/tpm.\n", "file path"),
        (("files", 0), "path", f"{POINT}/{'x' * 256}", "file path"),
        *(
            (("files", 0), "path", f"{OLDER}/{name}", "file path")
            for name in (
                "manifest.json",
                "MANIFEST.json",
                "manifest.removed",
                "manifest.swept",
                "run.json",
                "pinned.json",
                "repacked.json",
                "vda.0000.zst.moved",
                ".moved",
                "domain.xml.draft",
            )
        ),
    ],
)
def test_invalid_manifests(where, name, value, message):
    assert message in refused(lambda document: at(document, where).update({name: value}))
