"""What is looked at of all disks of a restore together, before the first byte is written."""

import random
from types import SimpleNamespace

import pytest

from nbdpull.core import errors
from nbdpull.restoring import fit
from nbdpull.restoring.destination import Destinations
from nbdpull.restoring.fit import Allowed
from nbdpull.targets.places import NEW, Place

MIB = 1 << 20
CAREFUL = Allowed(force=False, in_place=False, space_check=True)


def image(disk, size=MIB, data=0):
    def damaged(_):
        raise errors.Damaged("it cannot be read")

    return SimpleNamespace(
        disk=disk, size=size, head=damaged, data_bytes=(lambda block: data) if data is not None else damaged
    )


def fits(folder, taken, allowed=CAREFUL, beside=(), **images):
    places = {disk: Place(NEW, str(path)) for disk, path in taken.items()}
    found = {disk: images.get(disk) or image(disk) for disk in taken}
    return fit.require_fit(Destinations(str(folder), {}), found, places, beside, allowed, lambda: None)


@pytest.mark.parametrize("other", ["a", "./a", "link/a", "../{}/a"])
def test_no_two_disks_go_to_one_place(tmp_path, other):
    """Whatever its names are: the second one would be written over the first."""
    (tmp_path / "link").symlink_to(".")
    taken = {"vda": tmp_path / "a", "vdb": f"{tmp_path}/{other.format(tmp_path.name)}"}
    for allowed in (CAREFUL, Allowed(force=True, in_place=False, space_check=False)):
        with pytest.raises(errors.UsageError, match="two disks have the same target"):
            fits(tmp_path, taken, allowed)
    fits(tmp_path, {**taken, "vdb": tmp_path / "b"})


def test_a_file_of_the_domain_is_not_written_over_unasked(tmp_path):
    """Also one that leads nowhere."""
    beside = [str(tmp_path / "domain.xml"), str(tmp_path / "nvram")]
    fits(tmp_path, {"vda": tmp_path / "a"}, beside=beside)
    (tmp_path / "nvram").symlink_to("nowhere")
    with pytest.raises(errors.OutputExists, match="nvram exists; use --force"):
        fits(tmp_path, {"vda": tmp_path / "a"}, beside=beside)
    fits(tmp_path, {"vda": tmp_path / "a"}, Allowed(True, False, True), beside)


@pytest.mark.parametrize("seed", range(5))
def test_there_is_room_for_all_disks_together(tmp_path, monkeypatch, seed):
    """For their data: no more is needed. What of an image cannot be read is told by its proof, not here."""
    chance, seen = random.Random(seed), []

    def space(needs):
        seen.append([(most, need()) for _, need, most in needs])

    monkeypatch.setattr(fit.fit, "require_space", space)
    sizes = {f"vd{letter}": chance.randrange(1, 9) * MIB for letter in "abcd"}
    data = {disk: chance.choice([None, 0, size // 3, size]) for disk, size in sizes.items()}
    images = {disk: image(disk, size, data[disk]) for disk, size in sizes.items()}
    fits(tmp_path, {disk: tmp_path / disk for disk in sizes}, **images)
    assert seen == [[(size, data[disk] or 0) for disk, size in sizes.items()]]
    fits(tmp_path, {disk: tmp_path / disk for disk in sizes}, CAREFUL._replace(space_check=False), **images)
    assert len(seen) == 1


def test_a_preallocated_image_needs_its_full_size(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(fit.fit, "require_space", lambda needs: seen.extend(need() for _, need, _ in needs))
    for options in ("preallocation=full", "preallocation=falloc", "preallocation=metadata", ""):
        where = {"vda": Place(NEW, str(tmp_path / "a"), "qcow2", options)}
        disks = {"vda": image("vda", MIB, 5)}
        fit.require_fit(Destinations(str(tmp_path), {}), disks, where, (), CAREFUL, lambda: None)
    assert seen == [MIB, MIB, 5, 5]
