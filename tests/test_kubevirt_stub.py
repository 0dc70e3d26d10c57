"""The stub of KubeVirt does what KubeVirt's sources say: what is reported, what is refused, and the traps."""

import base64
import http.client
import json
import ssl
from urllib.parse import urlsplit

import numpy
import pytest
from kubevirt_stub import BLOCK, CLUSTER, GENERATIONS, Cluster
from kubevirt_stub.disks import Disk
from kubevirt_stub.schema import seconds

GROUP = "/apis/backup.kubevirt.io/v1alpha1/namespaces/ns1"
CORE = "/api/v1/namespaces/ns1"
TOKEN = "x-kubevirt-export-token"
SIZE = 4 * CLUSTER


class Client:
    """A client with the least that is needed to speak to the cluster."""

    def __init__(self, cluster):
        self.cluster = cluster
        cluster.create("Secret", "ns1", "s", data={"token": base64.b64encode(b"secret").decode()})

    def api(self, method, path, item=None, bearer=None, kind="application/json"):
        ca, _ = self.cluster.ca_paths
        server = next(line.split()[1] for line in self.cluster.kubeconfig.read_text().splitlines() if "server:" in line)
        headers = {"Authorization": f"Bearer {bearer or self.cluster.bearer}", "Content-Type": kind}
        status, body = ask(method, server + path, ca.read_text(), item and json.dumps(item), headers)
        return status, json.loads(body)

    def tracker(self, name="t"):
        source = {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "vm1"}
        return self.api(
            "POST", f"{GROUP}/virtualmachinebackuptrackers", item("VirtualMachineBackupTracker", name, source)
        )

    def backup(self, name, **others):
        source = {"apiGroup": "backup.kubevirt.io", "kind": "VirtualMachineBackupTracker", "name": "t"}
        spec = {"source": source, "mode": "Pull", "pvcName": "scratch", "tokenSecretRef": "s", **others}
        return self.api("POST", f"{GROUP}/virtualmachinebackups", item("VirtualMachineBackup", name, **spec))

    def ready(self, name):
        """Wait for the URLs of its one disk; return those of map and data."""
        return self.cluster.ready("ns1", name)[2]["rootdisk"]

    def status(self, name):
        return self.cluster.status("ns1", name)

    def get(self, url, token="secret"):
        return ask("GET", url, self.cluster.ca_paths[1].read_text(), None, {TOKEN: token} if token else {})


def item(kind, name, source, **spec):
    metadata, spec = {"name": name}, {"source": source, **spec}
    return {"apiVersion": "backup.kubevirt.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def ask(method, url, ca, body, headers):
    parts = urlsplit(url)
    context = ssl.create_default_context(cadata=ca)
    connection = http.client.HTTPSConnection(parts.hostname, parts.port, context=context, timeout=20)
    try:
        connection.request(method, parts._replace(scheme="", netloc="").geturl(), body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture(params=GENERATIONS)
def cluster(request, tmp_path):
    with Cluster(request.param, tmp_path) as made:
        made.add_vm("ns1", "vm1", {"rootdisk": SIZE})
        yield made


@pytest.fixture
def late(tmp_path):
    with Cluster("main", tmp_path) as made:
        made.add_vm("ns1", "vm1", {"rootdisk": SIZE})
        yield made


def disk_of(cluster):
    return cluster.controller.vms["ns1", "vm1"].disks["rootdisk"]


def test_a_full_and_an_incremental_backup(cluster):
    client, disk = Client(cluster), disk_of(cluster)
    disk.write(0, b"a" * CLUSTER)
    assert client.tracker()[0] == 201 and client.backup("b1")[0] == 201
    at_map, at_data = client.ready("b1")
    checkpoint = client.status("b1")["checkpointName"]
    assert client.status("b1")["type"] == "Full"
    code, body = client.get(f"{at_map}?page_size=1")
    first = {"offset": 0, "length": CLUSTER, "type": 0, "description": "data"}
    assert (code, json.loads(body)) == (200, {"extents": [first], "next_offset": CLUSTER})
    rest = {"offset": CLUSTER, "length": SIZE - CLUSTER, "type": 3, "description": "hole,zero"}
    assert json.loads(client.get(f"{at_map}?offset={CLUSTER}")[1]) == {"extents": [rest], "next_offset": None}
    disk.write(0, b"later")  # not seen by the backup
    assert client.get(f"{at_data}?offset=0&length={CLUSTER + 10}") == (200, b"a" * CLUSTER + bytes(10))
    assert cluster.trackers == {"t": None}
    code, left = client.api("DELETE", f"{GROUP}/virtualmachinebackups/b1")
    assert code == 200 and left["metadata"]["deletionTimestamp"]
    cluster.wait(lambda: not cluster.backups)
    assert cluster.trackers == {"t": checkpoint}

    disk.zero(2 * CLUSTER, CLUSTER)
    assert client.backup("b2")[0] == 201
    at_map, _ = client.ready("b2")
    assert client.status("b2")["type"] == "Incremental"
    listed = json.loads(client.get(at_map)[1])["extents"]
    zeroes = cluster.generation.merged  # the first write took the whole cluster's zero state with it: data
    assert [(each["offset"] // CLUSTER, each["type"]) for each in listed] == (
        [(0, 1), (1, 2), (2, 3), (3, 2)] if zeroes else [(0, 1), (1, 0), (2, 1), (3, 0)]
    )
    assert cluster.complaints == []


def test_an_unread_backup_moves_the_tracker_when_it_expires(cluster):
    client = Client(cluster)
    client.tracker(), client.backup("b1", ttlDuration="1h0m0.5s")
    at_map, _ = client.ready("b1")
    checkpoint = client.status("b1")["checkpointName"]
    cluster.controller.end_ttl()
    cluster.wait(lambda: cluster.generation.is_terminal(client.status("b1")))
    assert cluster.trackers == {"t": checkpoint} and cluster.backups == ["b1"]
    assert "mapEndpoint" not in client.status("b1")["includedVolumes"][0]
    assert client.get(at_map)[0] == 404


def test_a_failed_backup_does_not_move_it(cluster):
    client = Client(cluster)
    client.tracker(), client.backup("b1")
    client.ready("b1")
    cluster.controller.fail("no space")
    cluster.wait(lambda: cluster.generation.is_terminal(client.status("b1")))
    assert cluster.trackers == {"t": None} and "no space" in json.dumps(client.status("b1"))


@pytest.mark.parametrize(
    ("change", "code"),
    [({"nonsense": 1}, 400), ({"pvcName": ""}, 422), ({"tokenSecretRef": ""}, 422), ({"mode": "pull"}, 422),
     ({"ttlDuration": "2 hours"}, 422), ({"skipQuiesce": "true"}, 400), ({"source": {"kind": "VirtualMachine"}}, 422)],
    ids=str,
)  # fmt: skip
def test_backups_that_the_api_refuses(late, change, code):
    client = Client(late)
    answer = client.backup("b1", **change)
    assert answer[0] == answer[1]["code"] == code and answer[1]["kind"] == "Status"
    assert late.backups == [] and len(late.complaints) == 1


def test_permissions_of_the_api(late):
    client = Client(late)
    assert client.api("GET", f"{CORE}/secrets/s", bearer="other")[0] == 401
    assert client.api("GET", f"{CORE}/secrets/none")[0] == 404
    assert client.api("POST", f"{CORE}/secrets", {}, kind="text/plain")[0] == 415
    assert client.tracker()[0] == 201 and client.tracker()[0] == 409
    assert client.backup("b1")[0] == 201
    code, answer = client.backup("b2")
    assert code == 422 and 'VirtualMachineBackup "b1" in progress for source' in answer["message"]
    merge = {"kind": "application/merge-patch+json"}
    assert client.api("PATCH", f"{GROUP}/virtualmachinebackups/b1", {"spec": {"skipQuiesce": True}}, **merge)[0] == 422
    assert (
        client.api("PATCH", f"{GROUP}/virtualmachinebackups/b1", {"metadata": {"labels": {"a": "b"}}}, **merge)[0]
        == 200
    )
    late.forbidden.add(("list", "secrets"))
    assert client.api("GET", f"{CORE}/secrets")[0] == 403


def test_a_watch_reports_events(late):
    client = Client(late)
    version = client.api("GET", f"{GROUP}/virtualmachinebackups")[1]["metadata"]["resourceVersion"]
    client.tracker(), client.backup("b1")
    client.ready("b1")
    late.end_backup("ns1", "b1")
    ca, _ = late.ca_paths
    server = next(line.split()[1] for line in late.kubeconfig.read_text().splitlines() if "server:" in line)
    path = f"{GROUP}/virtualmachinebackups?watch=1&resourceVersion={version}&timeoutSeconds=0.1"
    _, body = ask("GET", server + path, ca.read_text(), None, {"Authorization": f"Bearer {late.bearer}"})
    events = [json.loads(line) for line in body.splitlines()]
    assert (events[0]["type"], events[-1]["type"]) == ("ADDED", "DELETED")
    conditions = [each["object"].get("status", {}).get("conditions", []) for each in events]
    reasons = [each[0]["reason"] for each in conditions if each]
    assert [*dict.fromkeys(reasons)] == ["Initiated", "PreparingExport", "ExportReady", "Aborting", "Completed"]


def test_requests_that_the_export_refuses(late):
    client = Client(late)
    client.tracker(), client.backup("b1")
    at_map, at_data = client.ready("b1")
    assert client.get(at_map, token="wrong")[0] == client.get(at_map, token=None)[0] == 401
    assert client.get(f"{at_map}?{TOKEN}=secret", token=None)[0] == 200
    for query in ("offset=x", "offset=-1", "length=1k", "page_size=0"):
        assert client.get(f"{at_map}?{query}")[0] == 400
    assert client.get(f"{at_map}?offset={SIZE}")[0] == 500
    assert ask("POST", at_map, late.ca_paths[1].read_text(), None, {TOKEN: "secret"})[0] == 405
    assert client.get(at_map.replace("rootdisk", "other"))[0] == 404
    assert client.get(at_map.replace("/exports/rootdisk/map", "/exportready"), token=None) == (200, b"OK")
    with pytest.raises(http.client.RemoteDisconnected):
        client.get(f"{at_data}?offset={SIZE}")


def test_the_faults(late):
    client = Client(late)
    client.tracker(), client.backup("b1")
    at_map, at_data = client.ready("b1")
    late.faults.on("data", 503, after=1)
    assert [client.get(f"{at_data}?length=8")[0] for _ in range(3)] == [200, 503, 200]
    late.faults.on("data", "cut", 5)
    with pytest.raises(http.client.IncompleteRead) as caught:
        client.get(f"{at_data}?length=8")
    assert caught.value.partial == bytes(5)
    late.faults.on("map", "null")
    assert json.loads(client.get(at_map)[1]) == {"extents": None, "next_offset": None}
    late.recreate_export()
    anew, _ = client.ready("b1")
    assert anew != at_map and client.get(anew)[0] == 200
    with pytest.raises(OSError):
        client.get(at_map)


def test_a_frozen_disk_against_a_naive_model():
    """Each byte of a map has the type that it had when the disk was frozen, in any range."""
    chance = numpy.random.default_rng(12)
    for _ in range(30):
        disk = Disk(int(chance.integers(1, 5 * CLUSTER // 512)) * 512)
        disk.freeze("base", None, True)
        dirty, zero = numpy.zeros(disk.size + CLUSTER, bool), numpy.ones(disk.size + CLUSTER, bool)
        for _ in range(5):
            offset, stop = sorted(int(each) for each in chance.integers(0, disk.size + 1, 2))
            if offset == stop:
                continue
            written = chance.random() < 0.5
            if written:
                disk.write(offset, b"x" * (stop - offset))
                zero[offset // BLOCK * BLOCK : -(-stop // BLOCK) * BLOCK] = False
            else:
                disk.discard(offset, stop - offset)
                whole = stop if stop == disk.size else stop // BLOCK * BLOCK
                zero[-(-offset // BLOCK) * BLOCK : max(0, whole)] = True
            dirty[offset // CLUSTER * CLUSTER : -(-stop // CLUSTER) * CLUSTER] = True
        frozen = disk.freeze("next", "base", True)
        offset, stop = sorted(int(each) for each in chance.integers(0, disk.size, 2))
        listed = frozen.extents(offset, stop + 1)
        types = numpy.concatenate([numpy.full(length, kind) for _, length, kind, _ in listed])
        assert (types == (dirty + 2 * zero)[offset : stop + 1]).all()
        assert [each[0] for each in listed[1:]] == [at + length for at, length, *_ in listed[:-1]]


@pytest.mark.parametrize("merged", [False, True])
def test_full_and_changes_give_the_disk(merged):
    """Whatever happens to it; if the map lacks zeroes, a disk that was shrunk and grown unnoticed cannot be
    assembled."""
    chance = numpy.random.default_rng(25)
    for _ in range(20):
        disk, image, since = Disk(int(chance.integers(1, 6)) * CLUSTER + 512), b"", None
        for number in range(6):
            for _ in range(int(chance.integers(4))):
                offset, stop = sorted(int(each) * 512 for each in chance.integers(0, disk.size // 512 + 1, 2))
                if chance.random() < 0.5:
                    disk.write(offset, chance.bytes(stop - offset))
                else:
                    disk.discard(offset, stop - offset)
            size = int(chance.integers(1, 6)) * CLUSTER + 512
            if chance.random() < 0.4 and (merged or size > disk.size):
                disk.resize(size)
            image = applied(disk.freeze(f"c{number}", since, merged), image, since is None)
            assert image == disk.read()
            since = f"c{number}"


def applied(frozen, image, full):
    content = bytearray(image[: frozen.size].ljust(frozen.size, b"\0"))
    for offset, length, kind, _ in frozen.extents(0, frozen.size):
        if kind & 2:
            content[offset : offset + length] = bytes(length)
        elif full or kind == 1:
            content[offset : offset + length] = frozen.content[offset : offset + length].tobytes()
    return bytes(content)


def test_durations_of_go():
    assert seconds("2h") == 7200 and seconds("1h30m0.5s") == 5400.5 and seconds("20ms") == pytest.approx(0.02)


def test_a_second_backup_of_another_source(cluster):
    """v1.8 lets it wait. From v1.9 on, it takes the first one's job for its own, and ends with it: nobody could read
    it, and its tracker moves to the checkpoint of the other."""
    client = Client(cluster)
    client.tracker(), client.tracker("u"), client.backup("b1")
    client.ready("b1")
    checkpoint = client.status("b1")["checkpointName"]
    other = {"apiGroup": "backup.kubevirt.io", "kind": "VirtualMachineBackupTracker", "name": "u"}
    assert client.backup("b2", source=other)[0] == 201
    if cluster.generation.name == "v1.8":
        cluster.end_backup("ns1", "b1")
        client.ready("b2")
        assert client.status("b2")["checkpointName"].startswith("b2-")
    else:
        cluster.wait(lambda: "includedVolumes" in client.status("b2"))
        assert "type" not in client.status("b2")
        cluster.end_backup("ns1", "b1")
        cluster.wait(lambda: cluster.generation.is_terminal(client.status("b2")))
        assert cluster.trackers == {"t": checkpoint, "u": checkpoint}


def test_reached_from_inside_there_is_no_other_link(tmp_path):
    with Cluster("main", tmp_path, reach="inside") as cluster:
        cluster.add_vm("ns1", "vm1", {"rootdisk": SIZE})
        client = Client(cluster)
        client.tracker(), client.backup("b1")
        at_map, _ = client.ready("b1")
        assert [*client.status("b1")["links"]] == ["internal"]
        assert urlsplit(at_map).path == "/exports/rootdisk/map" and client.get(at_map)[0] == 200
