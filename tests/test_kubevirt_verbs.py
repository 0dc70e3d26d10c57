"""cleanup and release of kubevirt:NAMESPACE/VM, by the command line in process, against the strict stub."""

import json

import pytest
from kubevirt_bed import DOMAIN, both, dead_run, decisions, furnished, left, pull, quicken, store_of
from kubevirt_stub import Cluster

from nbdpull.cli import main as cli
from nbdpull.repository import half_points, marker, series


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


@pytest.fixture
def bed(tmp_path, monkeypatch):
    with Cluster("main", tmp_path) as made:
        furnished(made)
        monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig))
        yield made


@pytest.fixture
def says(capfd):
    """says(words …): (exit code, the result object)."""

    def run(*words):
        code = cli.main([*map(str, words), "--json"])
        out, _ = capfd.readouterr()
        return code, json.loads(out.splitlines()[-1])

    return run


def found(result):
    return [(each["what"].partition(" ")[0], each["left"]) for each in result["found"]]


OF_A_RUN = ["backup", "secret", "claim"]


@pytest.fixture
def dead(bed):
    """A run was killed after another one had made a point."""
    pull(bed)
    dead_run(bed)
    target = series.only_series(marker.open_store(str(store_of(bed))))
    target.store.make_folder(f"{target.folder}/20261127T000000Z-00000000", fresh=True)
    return bed


def test_cleanup_removes_what_a_dead_run_left(dead, says):
    code, result = says("cleanup", DOMAIN, "-o", store_of(dead), "--dry-run")
    assert code == 0 and len(left(dead)) == 3
    assert found(result) == [("partial", "dry run"), *((what, "dry run") for what in OF_A_RUN)]
    assert {each["run"] for each in result["found"]} == {"20261127T000000Z-00000000"}
    code, result = says("cleanup", DOMAIN, "-o", store_of(dead))
    assert code == 0 and found(result) == [("partial", ""), *((what, "") for what in OF_A_RUN)]
    assert left(dead) == [] and len(dead.trackers) == 1 and dead.complaints == []
    assert says("cleanup", DOMAIN, "-o", store_of(dead))[1]["found"] == []
    assert decisions(pull(dead).point) == both("full", "checkpoint-replaced")


def test_cleanup_leaves_a_live_run_alone(bed, says):
    pull(bed)
    target = series.only_series(marker.open_store(str(store_of(bed))))
    with half_points.writing(target):
        dead_run(bed)
        code, result = says("cleanup", DOMAIN, "-o", store_of(bed))
    assert (code, result["code"]) == (5, "busy") and len(left(bed)) == 3


def test_cleanup_of_another_store_finds_nothing(dead, says, tmp_path):
    marker.open_or_create(str(tmp_path / "other"))
    code, result = says("cleanup", DOMAIN, "-o", tmp_path / "other")
    assert (code, result["found"]) == (0, []) and len(left(dead)) == 3


def test_cleanup_without_a_store_is_refused(dead, says):
    code, result = says("cleanup", DOMAIN)
    assert code == 2 and "wants -o DIR" in result["message"] and len(left(dead)) == 3


def test_what_may_not_be_removed_is_told(dead, says):
    dead.forbidden.update({("delete", "virtualmachinebackups"), ("list", "secrets")})
    code, result = says("cleanup", DOMAIN, "-o", store_of(dead))
    assert code == 5 and not result["ok"]
    told = dict(found(result))
    assert "cannot delete" in told["backup"] and "cannot list" in told["secrets"] and told["claim"] == ""


def test_release_removes_the_trackers_of_every_store(dead, says, tmp_path):
    code, result = says("release", DOMAIN)
    assert (code, result["code"]) == (5, "busy") and len(dead.trackers) == 1
    dead.controller.end_ttl()
    code, result = says("release", DOMAIN)
    assert code == 0 and found(result) == [(what, "") for what in [*OF_A_RUN, "tracker"]]
    assert left(dead) == [] and dead.trackers == {}
    assert decisions(pull(dead).point) == both("full", "checkpoint-lost")


def test_release_leaves_what_is_not_nbdpulls(bed, says):
    source = {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "vm1"}
    bed.create("VirtualMachineBackupTracker", "ns1", "theirs", spec={"source": source})
    bed.create("Secret", "ns1", "nbdpull-theirs", data={})
    assert says("release", DOMAIN)[1]["found"] == [] and list(bed.trackers) == ["theirs"]


@pytest.mark.parametrize("verb", ["release"])
def test_a_machine_that_is_not_there(bed, says, verb):
    code, result = says(verb, "kubevirt:ns1/nosuch")
    assert (code, result["code"]) == (3, "no-such-domain")


@pytest.mark.parametrize("words", [["cleanup", "-o", "x"], ["release"]], ids=["cleanup", "release"])
def test_options_of_libvirt_are_refused(says, words):
    code, result = says(*words, DOMAIN, "--connect", "test:///default")
    assert code == 2 and result["message"].startswith("--connect is not for kubevirt:NAMESPACE/VM")
    code, result = says(*words, "vm1", "--kubeconfig", "x")
    assert code == 2 and result["message"].startswith("--kubeconfig is for kubevirt:NAMESPACE/VM")
