"""The plan of a pull's job: its checkpoint, and whether it resumes a dead run. Real domains are in test_pull.py."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("libvirt")
pytest.importorskip("nbd")

from nbdpull.core import errors  # noqa: E402
from nbdpull.core.choices import OnLostBase, Resume  # noqa: E402
from nbdpull.definitions import domain_xml  # noqa: E402
from nbdpull.definitions.domain_xml import Checkpoint, Listen  # noqa: E402
from nbdpull.format.manifest import FULL, INCREMENTAL  # noqa: E402
from nbdpull.pulling import preparation  # noqa: E402
from nbdpull.pulling.base import Base, Choice  # noqa: E402
from nbdpull.pulling.preparation import Asked, Subject  # noqa: E402
from nbdpull.pulling.route import Route  # noqa: E402

RUN = "20261128T120000Z-0000000a"
IN_FULL = Choice(None, {"vda": (FULL, "requested"), "vdb": (FULL, "requested")})


class Vm:
    """A domain, which is its own `checkpoints`, `backups` and `jobs`."""

    name, uuid, host, is_remote = "vm1", "a-uuid", "hv1", False
    image_warnings = ("its image is odd",)
    likely_version = (7, 2, 0)
    has_internal_snapshots = True

    def __init__(self, reads_images=False, supports_checkpoints=True, names=()):
        self.reads_images, self.supports_checkpoints, self._names = reads_images, supports_checkpoints, names
        self.checkpoints = self.backups = self

    def has(self, name):
        return name in self._names

    def missing(self, name):
        return errors.NoSuchCheckpoint(name)

    def taken(self, name):
        return errors.CheckpointExists(name)

    def socket_path(self, run_id):
        return f"/run/{run_id}.sock"

    def disks(self):
        return DISKS

    def looked_at(self, disks):
        return list(disks)


def disk(target, kind="qcow2", bitmaps=True, thread=""):
    xml = (f"<disk type='file' device='disk'><driver type='{kind}' {thread}/><source file='/{target}'/>"
           f"<target dev='{target}' bus='virtio'/></disk>")  # fmt: skip
    [found] = domain_xml.parse_disks(f"<domain><devices>{xml}</devices></domain>")
    return replace(found, bitmaps=bitmaps)


DISKS = [disk("vda", thread="iothread='1'"), disk("vdb", "raw", None)]
NONE_CAN = [disk("vdb", "raw", None), disk("vdc", bitmaps=False)]  # raw, and qcow2 of version 2


def subject(vm=None, disks=DISKS, route=None, **more):
    return Subject(vm or Vm(), route or Route(), disks, **more)


def plan(asked, of=None, choice=IN_FULL):
    return preparation.prepared(of or subject(), asked, choice, RUN).plan


def foreign():
    """Return the choice of a pull since a checkpoint of which only the name is known."""
    checkpoint = Checkpoint("theirs", 1, "", {"vda": True}, "")
    return Choice(Base(checkpoint, None), {"vda": (INCREMENTAL, "checkpoint"), "vdb": (FULL, "raw-has-no-bitmaps")})


# -- the checkpoint ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_has_the_name_of_its_run_and_the_disks_that_can_have_one():
    made = plan(Asked(make_checkpoint=True))
    assert (made.checkpoint, made.checkpoint_disks) == (f"nbdpull-{RUN}", ["vda"])
    assert plan(Asked(make_checkpoint=True, checkpoint="mine")).checkpoint == "mine"


@pytest.mark.parametrize("of, why", [
    (subject(Vm(reads_images=True)), "the domain is off, and its images are only read"),
    (subject(disks=NONE_CAN), "no disk here can have one"),
    (subject(Vm(supports_checkpoints=False)), "this libvirt or QEMU is too old"),
])  # fmt: skip
def test_where_none_can_be_made_only_a_named_one_is_missed(of, why):
    every = Choice(None, {each.target: (FULL, "requested") for each in of.disks})
    made = plan(Asked(make_checkpoint=True), of, every)
    assert (made.checkpoint, [*made.checkpoint_disks]) == (None, [])
    for call in (
        lambda: plan(Asked(make_checkpoint=True, checkpoint="mine"), of, every),
        lambda: preparation.require_names(of, None, "mine"),
    ):
        with pytest.raises(errors.Unsupported, match=f"--checkpoint mine cannot be made: {why}"):
            call()


def test_a_pull_without_a_checkpoint():
    assert plan(Asked()).checkpoint is None
    with pytest.raises(errors.Unsupported, match="mine cannot be made: this pull makes no checkpoint"):
        plan(Asked(checkpoint="mine"))


def test_a_checkpoint_that_nobody_would_delete_is_made_only_if_named():
    """The next pull starts from the same foreign checkpoint."""
    assert plan(Asked(make_checkpoint=True), choice=foreign()).checkpoint is None
    assert plan(Asked(make_checkpoint=True, checkpoint="mine"), choice=foreign()).checkpoint == "mine"


def test_names_are_checked_before_there_are_points():
    vm = Vm(names=["old"])
    preparation.require_names(subject(vm), "old", "new")
    with pytest.raises(errors.NoSuchCheckpoint):
        preparation.require_names(subject(vm), "new", None)
    with pytest.raises(errors.CheckpointExists):
        preparation.require_names(subject(vm), None, "old")
    with pytest.raises(errors.UsageError, match=r"checkpoint name '\.x'"):
        preparation.require_names(subject(vm), None, ".x")
    preparation.require_names(subject(Vm(supports_checkpoints=False)), "new", None)  # its own error comes later


@pytest.mark.parametrize("has_snapshots, points, warns", [
    (True, [], True),
    (True, [None, None], True),  # points without a checkpoint
    (True, ["a-checkpoint", None], False),  # it was said when that one was made
    (False, [], False),
    (errors.AccessDenied("may not list snapshots"), [], False),
    (errors.HypervisorError("libvirt says no"), [], False),
])  # fmt: skip
def test_what_a_checkpoint_does_to_snapshots_is_said_once(has_snapshots, points, warns):
    class Snapshots(Vm):
        @property
        def has_internal_snapshots(self):
            if isinstance(has_snapshots, Exception):
                raise has_snapshots
            return has_snapshots

    made = [SimpleNamespace(manifest=SimpleNamespace(checkpoint=each)) for each in points]
    known = SimpleNamespace(newest_first=lambda: iter(made))
    found = preparation.snapshot_warnings(subject(Snapshots(), points=known))
    assert [("nbdpull release vm1" in text) for text in found] == [True] * warns


# -- the rest of the job ----------------------------------------------------------------------------------------------


def test_each_disk_starts_where_its_choice_says():
    assert plan(Asked(), choice=foreign()).disks == {"vda": "theirs", "vdb": None}
    assert plan(Asked()).disks == {"vda": None, "vdb": None}


@pytest.mark.parametrize(
    "reads_images, is_tcp, wanted", [*itertools.product([False, True], [False, True], [None, "/s"])]
)
def test_the_socket(reads_images, is_tcp, wanted):
    route = Route(Listen("hv1", 10809), "/certificates") if is_tcp else Route()
    made = plan(Asked(socket=wanted), subject(Vm(reads_images), route=route))
    default = None if is_tcp else f"/run/{RUN}.sock"
    assert made.socket == (None if reads_images else wanted or default)
    assert (made.tcp, made.tls) == (route.listen, is_tcp)


def test_a_guest_that_cannot_be_paused_meanwhile_is_not_warned_of():
    """QEMU 7.2 crashes if a guest with a disk in an I/O thread is paused while the disk is read."""
    images, *faults = preparation.chosen(Vm(), Route(), [], []).warnings
    assert images == "its image is odd" and "if the guest is paused" in faults[0]
    assert preparation.chosen(Vm(), Route(), [], [], stands_paused=True).warnings == [images]
    assert [each.target for each in preparation.chosen(Vm(), Route(), ["vdb"], []).disks] == ["vdb"]


# -- a dead run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def resumed(monkeypatch):
    """Return resumed(how, obstacle, …) of a pull that finds a dead run; `resumed.opened`: the journals it took over."""

    def call(
        how=Resume.AUTO, obstacle="", freeze=("crash-consistent", ""), found=True, unsafe="", unfit="", error=None,
        on_lost_base=OnLostBase.FULL, choice=IN_FULL,
    ):  # fmt: skip
        dead = SimpleNamespace(id=RUN, freeze=freeze, whose="run 7")

        def choose(*_args):
            if error:
                raise error
            return choice

        monkeypatch.setattr(preparation.base, "choose", choose)
        monkeypatch.setattr(preparation.resume, "find", lambda _vm, _series: dead if found else None)
        monkeypatch.setattr(preparation.resume, "unsafe", lambda _series, _dead: unsafe)
        monkeypatch.setattr(preparation.resume, "obstacle", lambda *_args: unfit)
        monkeypatch.setattr(preparation.journal_files, "resume", lambda run: call.opened.append(run) or "the journal")
        return preparation.resumed(
            subject(), None, Asked(make_checkpoint=True, on_lost_base=on_lost_base), how, obstacle, None, lambda: None
        )

    call.opened = []
    return call


def test_a_dead_run_is_resumed_under_its_own_name(resumed):
    warned = Choice(None, IN_FULL.decisions, ["a disk is read in full"])
    made, warnings = resumed(choice=warned)
    assert (made.plan.run_id, made.plan.checkpoint) == (RUN, f"nbdpull-{RUN}") and warnings == warned.warnings
    assert (made.dead.freeze, made.dead.journal) == (("crash-consistent", ""), "the journal")


@pytest.mark.parametrize("why", [
    {"obstacle": "the series is new"},
    {"unsafe": "it made no progress"},
    {"unfit": "its guest was not frozen"},
    {"error": errors.SourceError("the domain says no")},
    {"on_lost_base": OnLostBase.FAIL, "choice": Choice(None, {"vda": (FULL, "bitmap-lost"), "vdb": (FULL, "x")})},
])  # fmt: skip
def test_a_dead_run_that_does_not_fit_is_left_with_a_warning(resumed, why):
    made, [warning] = resumed(**why)
    assert made is None and warning.startswith("the job of run 7 is not resumed: ") and not resumed.opened
    text = next((str(value) for name, value in why.items() if name in ("obstacle", "unsafe", "unfit", "error")), "")
    assert (text or "vda (bitmap-lost)") in warning


@pytest.mark.parametrize("options", [{"found": False}, {"how": Resume.NEVER}])
def test_no_run_to_resume(resumed, options):
    assert resumed(**options) == (None, [])


def test_a_libvirt_that_does_not_answer_is_no_reason_to_give_up_a_run(resumed):
    with pytest.raises(errors.NoAnswer):
        resumed(error=errors.NoAnswer("libvirt does not answer"))
