"""What one backup should be: what cannot be is refused before anything is done, and each name of a run is its own."""

import xml.etree.ElementTree as ET

import pytest

from nbdpull.core import errors, unix_socket
from nbdpull.definitions.domain_xml import Listen
from nbdpull.hypervisor.backup_spec import BackupSpec, require_name, socket_name

RUN, OTHER = "20261122T194500Z-7f3a9c04", "20261122T194500Z-7f3a9c05"
TCP = Listen("192.0.2.1", 10809)


def spec(run=RUN, **what):
    return BackupSpec(run, {"vda": None, "vdb": "chk3"}, **what)


@pytest.mark.parametrize(
    "what, socket, says",
    [
        ({"tcp": TCP, "socket": "/run/s"}, None, "--socket and --nbd cannot be combined"),
        ({"tls": True}, "/run/s", "TLS is for TCP"),
        ({"scratch_dir": "/scratch\x01"}, "/run/s", "cannot be written into libvirt's XML"),
        ({}, "/run/\ud800", "cannot be written into libvirt's XML"),
        ({}, "run/s", "give an absolute path"),
        ({}, "/" + "x" * unix_socket.PATH_MAX, "of at most"),
        ({"checkpoint": "a/b"}, "/run/s", "checkpoint name 'a/b'"),
    ],
)
def test_invalid_specs(what, socket, says):
    with pytest.raises(errors.UsageError, match=says):
        spec(**what).require_possible(socket)


@pytest.mark.parametrize(
    "what, socket", [({}, "/run/s"), ({"tcp": TCP, "tls": True}, None), ({"checkpoint": "a.b"}, None)]
)
def test_valid_specs(what, socket):
    spec(**what).require_possible(socket)


@pytest.mark.parametrize("name", ["", ".hidden", "a b", "a/../b", "ä", "a\n", "-c\0"])
def test_a_name_that_no_checkpoint_can_have(name):
    with pytest.raises(errors.UsageError, match="use letters, digits"):
        require_name(name)


def test_a_job_is_recognized_by_its_run():
    """By its scratch files, also when all that is left of the run is what libvirt says of the job."""
    jobs = [spec(run).job("/run/s") for run in (RUN, OTHER)]
    assert [job.run_id for job in jobs] == [RUN, OTHER]
    assert [job.disks["vda"].base for job in jobs] == [None, None] and jobs[0].disks["vdb"].base == "chk3"
    names = [each for job in jobs for disk in job.disks.values() for each in (disk.scratch, disk.bitmap) if each]
    assert len({*names}) == len(names), "no two disks and no two runs share a file"
    assert socket_name(RUN) != socket_name(OTHER)


def test_a_job_listens_where_it_is_asked_to():
    assert (spec(tcp=TCP, tls=True).job("/run/s").tcp, spec().job("/run/s").socket) == (None, "/run/s")
    job = spec(tcp=TCP, tls=True).job(None)
    assert (job.socket, job.tcp, job.tls) == (None, TCP, True)


def test_a_checkpoint_is_made_only_on_its_disks():
    assert spec().checkpoint_xml() is None
    made = ET.fromstring(spec(checkpoint="c", checkpoint_disks=["vdb"], description="<of ours>").checkpoint_xml())
    assert (
        made.findtext("name") == "c"
        and RUN in made.findtext("description")
        and "<of ours>" in made.findtext("description")
    )
    disks = {each.get("name"): each.get("checkpoint") for each in made.iterfind("disks/disk")}
    assert disks.get("vdb") == "bitmap" and disks.get("vda", "no") == "no"
