"""pull kubevirt:NAMESPACE/VM with the API of a cluster: the objects that are created, watched and deleted, against the
strict stub of KubeVirt's three generations (tests/kubevirt_stub)."""

import copy
import threading

import identities
import pytest
from kubevirt_bed import (
    SIZE,
    both,
    dead_run,
    decisions,
    disks,
    furnished,
    left,
    points,
    pull,
    quicken,
    require_equal,
    store_of,
)
from kubevirt_stub import CLUSTER, GENERATIONS, Cluster

from nbdpull.cli import main as cli
from nbdpull.core import errors
from nbdpull.crypto import identity_files
from nbdpull.kubevirt import backup, given, objects, ours
from nbdpull.operations import kubevirt
from nbdpull.operations.options.pulls import KubevirtOptions as Options
from nbdpull.repository import key_changes, marker, policies, series_choice
from nbdpull.repository.retention import Policy


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


@pytest.fixture(params=GENERATIONS)
def bed(request, tmp_path):
    with Cluster(request.param, tmp_path) as made:
        yield furnished(made)


@pytest.fixture
def late(tmp_path):
    with Cluster("main", tmp_path) as made:
        yield furnished(made)


def test_a_pull_with_prune(late):
    """By the policy for its name, NAMESPACE/VM; without one the cluster gets no request."""
    with pytest.raises(errors.UsageError, match="has no policy"):
        pull(late, prune=True)
    made = [pull(late).point.id]
    policies.put(marker.open_store(str(store_of(late))), "ns1/*", Policy(keep_last=2))
    for expected in ([], made):
        found = pull(late, prune=True)
        made.append(found.point.id)
        assert found.pruned.removed == expected[:1] and found.warnings == []
    assert [point.id for point in points(late)] == made[1:]
    require_equal(late, "0")


def test_pulls_into_a_sealed_store(late, monkeypatch):
    monkeypatch.delenv(identity_files.VARIABLE, raising=False)
    marker.create(str(store_of(late)), seal=key_changes.new([identities.recipient("age1")], None))
    with pytest.raises(errors.KeyNeeded, match="name an identity"):
        pull(late)
    assert left(late) == []
    monkeypatch.setenv(identity_files.VARIABLE, identities.path("age1"))
    for number, decided in enumerate([both("full", "first-point"), both("incremental", "checkpoint")]):
        assert decisions(pull(late).point) == decided
        require_equal(late, str(number))
        disks(late)["rootdisk"].write(7 * CLUSTER, b"c" * 100)


def test_increments_of_each_generation_restore_to_the_disks(bed):
    first = pull(bed)
    assert decisions(first.point) == both("full", "first-point") and first.warnings == []
    require_equal(bed, "0")
    disks(bed)["rootdisk"].write(7 * CLUSTER, b"c" * 100)
    disks(bed)["rootdisk"].zero(CLUSTER, CLUSTER)
    second = pull(bed)
    assert decisions(second.point) == both("incremental", "checkpoint")
    warnings = [each.partition(":")[0] for each in second.warnings]
    assert warnings == ["the map of rootdisk, data reports no zeros (KubeVirt 1.8 never does)"] * (
        bed.generation.name == "v1.8"
    )
    require_equal(bed, "1")
    made = [point.manifest.checkpoint.name for point in points(bed)]
    assert list(bed.trackers.values()) == made[-1:] and second.point.manifest.since == made[0]
    assert left(bed) == [] and bed.complaints == []


def test_the_machine_is_a_file_of_the_point(late):
    point = pull(late).point
    target = series_choice.only_series(marker.open_store(str(late.folder / "store")))
    assert b'"name": "vm1"' in target.read_file(point, "virtualmachine.json")
    require_equal(late, "0")
    assert (late.folder / "out-0" / "virtualmachine.json").exists()


def test_a_tracker_that_moved_leads_to_a_full_pull(bed):
    pull(bed)
    [tracker] = bed.trackers
    bed.foreign_backup("ns1", tracker)
    result = pull(bed)
    assert decisions(result.point) == both("full", "checkpoint-replaced")
    assert any("checkpoint-replaced" in each for each in result.warnings)
    assert any("names checkpoint theirs-" in each for each in result.warnings)
    require_equal(bed, "1")


def test_an_increment_instead_of_a_full_backup_is_read_in_full(late, monkeypatch):
    asked = ours.backup
    pull(late)
    disks(late)["rootdisk"].write(CLUSTER, b"c" * CLUSTER)
    monkeypatch.setattr(ours, "backup", lambda name, labelled, wish: asked(name, labelled, wish._replace(full=False)))
    assert decisions(pull(late, full=True).point) == both("full", "requested")
    require_equal(late, "0")


def test_a_volume_without_its_bitmap_is_read_in_full(late, monkeypatch):
    """KubeVirt is about to report a type for each volume, and none for the backup."""
    pull(late)
    data, state = disks(late)["data"], objects.state
    freeze = data.freeze
    monkeypatch.setattr(data, "freeze", lambda checkpoint, since, merged: freeze(checkpoint, None, merged))

    def reported(found, inside):
        status = copy.deepcopy(found.get("status") or {})
        if status.pop("type", None):
            for each in status.get("includedVolumes", []):
                each["type"] = "Full" if each["volumeName"] == "data" else "Incremental"
        return state({**found, "status": status}, inside)

    monkeypatch.setattr(objects, "state", reported)
    disks(late)["rootdisk"].write(CLUSTER, b"c" * CLUSTER)
    data.write(0, b"d" * CLUSTER)
    found = decisions(pull(late).point)
    assert found == {"rootdisk": ("incremental", "checkpoint"), "data": ("full", "checkpoint-lost")}
    require_equal(late, "0")


def test_a_disk_that_is_not_in_the_backup_is_a_warning(late):
    """Unless it is excluded."""
    del disks(late)["data"]
    [line] = pull(late).warnings
    assert line.startswith("volume data (claim vm1-data) is not in KubeVirt's backup")
    assert pull(late, exclude=["data"]).warnings == pull(late, disks=["rootdisk"]).warnings == []


def test_a_claim_that_was_made_again_is_no_base(late):
    """As by a restore in place: the same name, other content, and clean bits."""
    pull(late)
    late.objects.delete("persistentvolumeclaims", "ns1", "vm1-data")
    late.add_claim("ns1", "vm1-data", "Block")
    disk = disks(late)["data"]
    disk.content[:] = 7
    disk.allocation[:] = 0
    result = pull(late)
    assert decisions(result.point) == {"rootdisk": ("incremental", "checkpoint"), "data": ("full", "source-changed")}
    assert any("it has another image now" in each for each in result.warnings)
    require_equal(late, "1")


def test_claims_that_may_not_be_seen_are_known_by_name(late):
    late.forbidden.add(("get", "persistentvolumeclaims"))
    pull(late, pvc="scratch")
    assert decisions(pull(late, pvc="scratch").point) == both("incremental", "checkpoint")


def test_on_lost_base_fail_begins_nothing(late):
    pull(late)
    [tracker] = late.trackers
    late.foreign_backup("ns1", tracker)
    before = late.log.count("create virtualmachinebackups")
    with pytest.raises(errors.CheckpointUnusable, match="checkpoint-replaced"):
        pull(late, on_lost_base="fail")
    assert late.log.count("create virtualmachinebackups") == before


def test_a_tracker_that_moves_at_the_last_moment_is_seen(late):
    """Between our look at it and the start of our backup."""
    pull(late)
    [tracker] = late.trackers
    late.faults.on("create virtualmachinebackups", late.foreign_backup, "ns1", tracker)
    disks(late)["rootdisk"].write(0, b"new")
    result = pull(late)
    assert decisions(result.point) == both("full", "checkpoint-replaced")
    require_equal(late, "1")
    assert left(late) == []


def test_a_pull_that_fails_leaves_nothing(bed):
    bed.faults.on("data", 401, times=1000)
    with pytest.raises(errors.AccessDenied):
        pull(bed)
    assert left(bed) == [] and bed.trackers == {} and points(bed) == []


def test_a_pull_that_is_stopped_leaves_nothing(late):
    def check():
        if late.faults.seen["data"]:
            raise errors.Interrupted(2)

    options = Options("kubevirt:ns1/vm1", str(late.folder / "store"), kubeconfig=str(late.kubeconfig))
    with pytest.raises(errors.Interrupted):
        kubevirt.kubevirt(options, check=check)
    assert left(late) == [] and late.trackers == {} and points(late) == []


def test_a_point_is_committed_before_its_backup_is_removed(bed):
    seen = []
    bed.faults.on("delete virtualmachinebackups", lambda: seen.append(len(points(bed))))
    pull(bed)
    assert seen == [1]


def test_what_cannot_be_removed_is_reported(late):
    late.faults.on("data", 401, times=1000)
    late.forbidden.add(("delete", "secrets"))
    with pytest.raises(errors.AccessDenied) as caught:
        pull(late)
    [leftover] = caught.value.left_behind
    assert leftover.startswith("secrets/nbdpull-") and late.backups == []


def test_a_point_that_is_committed_stays_whatever_cannot_be_removed(late):
    late.forbidden.add(("delete", "virtualmachinebackups"))
    result = pull(late)
    assert len(points(late)) == 1 and "left in the cluster: virtualmachinebackups/nbdpull-" in result.warnings[0]


def test_an_api_that_stumbles_is_asked_again(late):
    for verb in ("get", "create", "delete"):
        late.faults.on(f"{verb} virtualmachinebackups", 500)
    pull(late)
    assert sum(late.faults.done[f"{verb} virtualmachinebackups"] for verb in ("get", "create", "delete")) == 3
    require_equal(late, "0")
    assert left(late) == []


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [({"printableStatus": "Stopped"}, errors.DomainNotRunning, "is off"),
     ({"changedBlockTracking": {"state": "PendingRestart"}}, errors.Unsupported, "PendingRestart")],
    ids=["off", "no tracking"],
)  # fmt: skip
def test_a_machine_without_backups_is_refused_at_once(late, status, error, message):
    """KubeVirt would wait for it forever."""
    late.create("VirtualMachine", "ns1", "other", spec={}, status=status)
    options = Options("kubevirt:ns1/other", str(late.folder / "s"), kubeconfig=str(late.kubeconfig))
    with pytest.raises(error, match=message):
        kubevirt.kubevirt(options)
    assert late.backups == [] and not (late.folder / "s").exists()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_inside_the_cluster_its_own_services_are_read(generation, tmp_path):
    """An export may have no route from outside there; if it has both, the inner one is used."""
    with Cluster(generation, tmp_path, reach="inside") as made:
        pull(furnished(made))
        require_equal(made, "0")


def test_inner_links_are_used_only_inside(late):
    late.create("Secret", "ns1", "theirs", data={"token": "eA=="})
    late.start_backup("ns1", "b", "vm1", "VirtualMachine")
    late.ready("ns1", "b")
    found = late.objects.get("virtualmachinebackups", "ns1", "b")
    inner, outer = (objects.state(found, inside).access.volumes["rootdisk"].map for inside in (True, False))
    assert ".svc/exports/" in inner and "/virtualmachineexports/" in outer


def test_an_expired_backup_makes_no_point(bed):
    bed.faults.on("data", bed.controller.end_ttl)
    with pytest.raises((errors.JobLost, errors.SourceError)):
        pull(bed)
    assert points(bed) == [] and left(bed) == []
    assert decisions(pull(bed).point) == both("full", "first-point")
    require_equal(bed, "0")


def test_an_export_that_is_made_anew_is_followed(bed):
    bed.faults.on("data", bed.recreate_export)
    pull(bed)
    require_equal(bed, "0")
    assert left(bed) == []


def test_a_route_that_cuts_long_requests_is_survived(late):
    """Maps are requested in shorter ranges, data from where it was cut."""
    disks(late)["rootdisk"].write(0, bytes(range(256)) * (SIZE // 256))
    late.longest = 1 << 20
    pull(late)
    require_equal(late, "0")


def test_a_foreign_backup_is_busy(late):
    late.start_backup("ns1", "theirs", "vm1", "VirtualMachine")
    with pytest.raises(errors.Busy, match="theirs"):
        pull(late)
    assert late.backups == ["theirs"] and left(late) == []


def test_what_a_killed_run_left_is_removed(late):
    """Its tracker moves with it, so the next point is full."""
    pull(late)
    dead_run(late)
    assert len(left(late)) == 3
    result = pull(late)
    assert any("interrupted run" in each for each in result.warnings)
    assert decisions(result.point) == both("full", "checkpoint-replaced") and left(late) == []


def test_a_run_that_was_killed_after_its_commit_costs_no_base(bed, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(backup.Backup, "finish", lambda *_: [])  # as if it ended there
        pull(bed)
    assert len(left(bed)) == 3
    disks(bed)["rootdisk"].write(2 * CLUSTER, b"later")
    assert decisions(pull(bed).point) == both("incremental", "checkpoint")
    require_equal(bed, "1")
    assert left(bed) == []


def test_a_machine_that_is_not_there(late):
    with pytest.raises(errors.NoSuchDomain):
        kubevirt.kubevirt(
            Options(domain="kubevirt:ns1/none", output=str(late.folder / "s"), kubeconfig=str(late.kubeconfig))
        )
    assert not (late.folder / "s").exists()


def test_a_claim_of_the_user_is_kept(late):
    pull(late, pvc="scratch")
    assert "create persistentvolumeclaims" not in late.log
    assert [each["metadata"]["name"] for each in late.all("persistentvolumeclaims")].count("scratch") == 1


def test_expired_credentials_are_reported(late):
    path = str(late.kubeconfig)
    late.bearer = "another"
    with pytest.raises(errors.AccessDenied, match="credentials"):
        kubevirt.kubevirt(Options(domain="kubevirt:ns1/vm1", output=str(late.folder / "s"), kubeconfig=path))


def test_the_time_of_a_backup_is_that_of_the_pull(late):
    wished = []
    late.faults.on("map", lambda: wished.append(late.all("virtualmachinebackups")[0]["spec"]["ttlDuration"]))
    pull(late, max_duration=3600.0)
    assert wished == ["4200s"]


def test_the_command_line_of_a_cluster(late, monkeypatch, capfd):
    monkeypatch.setenv("KUBECONFIG", str(late.kubeconfig))
    assert cli.main(["kubevirt:ns1/vm1", "-o", str(late.folder / "store"), "--json"]) == 0
    assert '"next_command": "nbdpull kubevirt:ns1/vm1 -o' in capfd.readouterr().out
    assert threading.active_count() < 50


@pytest.mark.parametrize("name", ["vm1", "a" * 60, "b" * 200])
def test_names_are_within_the_limits_of_kubernetes(name):
    found = ours.tracker_name(given.Machine("ns", name), "12345678-1234")
    assert len(found) <= 63 and found[-1].isalnum()


def test_two_stores_have_two_trackers():
    machine = given.Machine("ns", "vm")
    assert ours.tracker_name(machine, "1" * 36) != ours.tracker_name(machine, "2" * 36)


@pytest.mark.parametrize(
    "text, size",
    [("1Gi", 1 << 30), ("10G", 10**10), ("1.5Mi", 3 << 19), ("77", 77), ("x", 0), (None, 0), ("inf", 0),
     ("1288490188800m", 1288490189), ("1E", 10**18), ("1Ei", 1 << 60), ("12E3", 12000)],
)  # fmt: skip
def test_the_capacity_of_a_claim(text, size):
    assert objects.capacity({"status": {"capacity": {"storage": text}}}) == size
