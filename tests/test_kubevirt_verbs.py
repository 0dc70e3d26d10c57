"""plan, doctor, cleanup and release of kubevirt:NAMESPACE/VM: command lines in this process, against the strict
stub."""

import json

import pytest
import schemas
from kubevirt_bed import DOMAIN, both, dead_run, decisions, furnished, left, pull, quicken, store_of
from kubevirt_stub import Cluster

from nbdpull.cli import main as cli
from nbdpull.repository import half_points, marker, series_choice


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
    """says(words …): (exit code, the result object, or the message of a document that failed)."""

    def run(*words):
        code = cli.main([*map(str, words), "--json"])
        out, err = capfd.readouterr()
        if words[0] not in schemas.DOCUMENTS:
            return code, json.loads(out.splitlines()[-1])
        return code, json.loads(out) if out else {"message": err.removeprefix("nbdpull: ")}

    return run


def found(result):
    return [(each["what"].partition(" ")[0], each["left"]) for each in result["found"]]


OF_A_RUN = ["backup", "secret", "claim"]


@pytest.fixture
def dead(bed):
    """The state after a run made a point and another one was killed."""
    pull(bed)
    dead_run(bed)
    target = series_choice.only_series(marker.open_store(str(store_of(bed))))
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
    target = series_choice.only_series(marker.open_store(str(store_of(bed))))
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
    assert code == 2 and "needs -o DIR" in result["message"] and len(left(dead)) == 3


def test_what_could_not_be_removed_is_reported(dead, says):
    dead.forbidden.update({("delete", "virtualmachinebackups"), ("list", "secrets")})
    code, result = says("cleanup", DOMAIN, "-o", store_of(dead))
    assert code == 5 and not result["ok"]
    reported = dict(found(result))
    assert "cannot delete" in reported["backup"] and "cannot list" in reported["secrets"] and reported["claim"] == ""


def test_release_removes_the_trackers_of_every_store(dead, says, tmp_path):
    code, result = says("release", DOMAIN)
    assert (code, result["code"]) == (5, "busy") and len(dead.trackers) == 1
    store = marker.uuid_of(marker.open_store(str(store_of(dead))))
    assert f"nbdpull cleanup with -o its store ({store}) ends it" in result["message"]
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


@pytest.mark.parametrize("verb", ["plan", "release"])
def test_a_machine_that_is_not_there(bed, says, verb):
    code, result = says(verb, "kubevirt:ns1/nosuch")
    assert (code, result["message"].strip()) == (3, "namespace ns1 has no virtual machine nosuch")


@pytest.mark.parametrize("words", ["cleanup -o x", "release", "plan", "doctor"])
def test_options_of_libvirt_are_refused(says, words):
    words = words.split()
    code, result = says(*words, DOMAIN, "--connect", "test:///default")
    assert code == 2 and result["message"].startswith("--connect is not for kubevirt:NAMESPACE/VM")
    code, result = says(*words, "vm1", "--kubeconfig", "x")
    assert code == 2 and result["message"].startswith("--kubeconfig is for kubevirt:NAMESPACE/VM")


def test_verbs_that_refuse_kubevirt_say_so(tmp_path, capfd):
    (tmp_path / "token").write_text("t" * 32)
    (tmp_path / "token").chmod(0o600)
    listen = ["--listen", f"unix:{tmp_path}/s", "--token-file", str(tmp_path / "token")]
    for words in (["run", DOMAIN, "--", "true"], ["expose", DOMAIN, *listen]):
        assert cli.main(words) == 2
        assert "only pull, plan, doctor, cleanup and release take" in capfd.readouterr().err


# -- plan


def decided(result):
    return {disk["name"]: (disk["mode"], disk["reason"]) for disk in result["disks"]}


def test_plan_shows_what_a_pull_decides(bed, says):
    """And creates nothing."""
    plan = ("plan", DOMAIN, "-o", store_of(bed))
    before = list(bed.log)
    assert decided(says(*plan)[1]) == both("full", "first-point")
    assert not store_of(bed).exists() and [each for each in bed.log[len(before) :] if not each.startswith("get")] == [
        "list virtualmachinebackuptrackers", "list virtualmachinebackups"]  # fmt: skip
    first = pull(bed).point
    code, result = says(*plan)
    assert code == 0 and decided(result) == both("incremental", "checkpoint")
    assert (result["since"], result["parent"]) == (first.manifest.checkpoint.name, first.id)
    assert result["disks"][0]["size"] == 1 << 30 and result["disks"][0]["dirty_bytes"] is None
    schemas.check_output(["plan", DOMAIN, "--json"], json.dumps(result))
    assert decided(says(*plan, "--full", "--disk", "data")[1]) == {"data": ("full", "requested")}
    bed.foreign_backup("ns1", *bed.trackers)
    code, result = says(*plan)
    assert decided(result) == both("full", "checkpoint-replaced") and "theirs-" in result["warnings"][0]


def test_plan_foresees_that_a_dead_run_moves_the_tracker(dead, says):
    """The next pull deletes it."""
    result = says("plan", DOMAIN, "-o", store_of(dead))[1]
    assert decided(result) == both("full", "checkpoint-replaced") and "died" in result["warnings"][0]
    assert decisions(pull(dead).point) == decided(result)


def test_plan_for_people(bed, capfd):
    assert cli.main(["plan", DOMAIN]) == 0
    out = capfd.readouterr().out
    assert (
        "ns1/vm1, in full:" in out
        and "?" in out
        and out.endswith("Only a backup shows how much that is, and none was made.\n")
    )


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--disk", "nosuch"], 3), (["--exclude", "data", "--exclude", "rootdisk"], 3), (["--since", "x"], 2)],
    ids=["disk", "no disk", "since"],
)
def test_plan_refuses_impossible_requests(bed, says, words, code):
    assert says("plan", DOMAIN, *words)[0] == code


def test_plan_reports_a_foreign_backup_as_busy(bed, says):
    bed.start_backup("ns1", "theirs", "vm1", "VirtualMachine")
    assert says("plan", DOMAIN)[0] == 5


# -- doctor


@pytest.fixture
def examined(capfd):
    """examined(): (exit code, {subject: (state, text)})."""

    def run(domain=DOMAIN):
        code = cli.main(["doctor", domain, "--json"])
        found = json.loads(capfd.readouterr().out)
        schemas.check_output(["doctor", domain, "--json"], json.dumps(found))
        return code, {each["subject"]: (each["state"], each["text"]) for each in found}

    return run


def test_doctor_of_a_machine_that_is_fit(bed, examined):
    pull(bed)
    code, found = examined()
    assert code == 0 and {state for state, _ in found.values()} == {"good"}, found
    [tracker], [checkpoint] = bed.trackers, bed.trackers.values()
    assert found[f"tracker {tracker}"][1].endswith(f"starts at checkpoint {checkpoint}")
    assert found["KubeVirt"][1] == "v1.10.0-alpha.0, with the feature gate IncrementalBackup"
    assert found["volume data"] == ("good", "claim vm1-data") and bed.complaints == []


def without_gate(bed):
    bed.gates.remove("IncrementalBackup")


def without_backups(bed):
    bed.without.add("backup.kubevirt.io")


def off(bed):
    item = bed.all("virtualmachines")[0]
    item["status"]["printableStatus"] = "Stopped"
    bed.objects.update("virtualmachines", item)


def forbidden(*rights):
    return lambda bed: bed.forbidden.update(rights)


def unverified(bed):
    text = bed.kubeconfig.read_text()
    (bed.folder / "kubeconfig").write_text(
        text.replace("    server:", "    insecure-skip-tls-verify: true\n    server:")
    )


def busy(bed):
    bed.start_backup("ns1", "theirs", "vm1", "VirtualMachine")


@pytest.mark.parametrize(
    ("fault", "subject", "state", "text", "code"),
    [
        (without_gate, "KubeVirt", "warn", "no feature gate IncrementalBackup", 0),
        (without_backups, "backups", "BAD", "the cluster has no virtualmachinebackuptrackers", 6),
        (off, "virtual machine ns1/vm1", "BAD", "is off", 3),
        (forbidden(("create", "secrets")), "permissions", "BAD", "may not create secrets", 7),
        (forbidden(("create", "persistentvolumeclaims")), "permissions", "warn", "create persistentvolumeclaims", 0),
        (forbidden(("list", "kubevirts")), "KubeVirt", "good", "need not", 0),
        (unverified, "verification", "warn", "insecure-skip-tls-verify", 0),
        (busy, "backup theirs", "warn", "not made by nbdpull; running", 0),
    ],
    ids=["gate", "backups", "off", "right", "right that may lack", "version", "verification", "busy"],
)
def test_doctor_finds(bed, examined, fault, subject, state, text, code):
    fault(bed)
    exit_code, found = examined()
    assert (exit_code, found[subject][0]) == (code, state) and text in found[subject][1], found
    assert found["volume data"][0] == "good", "the others are looked at all the same"


def test_doctor_of_a_cluster_that_is_away(bed, examined, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nosuch"))
    code, found = examined()
    assert code == 2 and list(found) == ["cluster"] and found["cluster"][0] == "BAD"
    assert cli.main(["doctor", "kubevirt:x"]) == 2
