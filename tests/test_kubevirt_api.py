"""The API of a cluster, and the way to it: answers that are none or that pass, and kubeconfigs.

The answers are made up, because the stub gives none of them.
"""

import copy
import functools
import json
import ssl
import types

import pytest
import urllib3

from nbdpull.core import errors
from nbdpull.kubevirt import cluster, given, objects, ours
from nbdpull.kubevirt.login import Login

pytestmark = pytest.mark.unit

KUBECONFIG = """apiVersion: v1
kind: Config
clusters: [{name: c, cluster: %s}]
users: [{name: u, user: %s}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""
SERVER = "{server: 'https://api.example:6443'}"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def config(tmp_path):
    def written(server=SERVER, user="{token: t}", text=KUBECONFIG):
        (tmp_path / "config").write_text(text % (server, user) if "%s" in text else text)
        return str(tmp_path / "config")

    return written


class Answers:
    """A pool of connections that gives these answers: (status, JSON, text or an error)."""

    def __init__(self, *answers):
        self.left = list(answers)

    def request(self, method, url, **more):
        answer = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        if isinstance(answer, Exception):
            raise answer
        status, body = answer
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        return types.SimpleNamespace(status=status, data=data)


@pytest.fixture
def answered(config, monkeypatch):
    """Return call(answers) -> (a cluster that gets them, one after the other; their pool)."""
    monkeypatch.setattr(cluster, "PAUSE", 0.01)

    def made(*answers, patience=60.0):
        pool = Answers(*answers)
        monkeypatch.setattr(cluster, "_pool", lambda login: pool)
        return cluster.Cluster(config(), None, patience), pool

    return made


SECRET = ours.secret("s", ours.labels("a-store", "a-run", "a-tracker"), "t")
EXISTS = {"kind": "Status", "reason": "AlreadyExists", "message": "it exists"}
QUOTA = {"kind": "Status", "reason": "Conflict", "message": "the quota has been modified; please apply your changes"}


def labelled(**labels):
    return {**SECRET, "metadata": {**SECRET["metadata"], "labels": labels}}


@pytest.mark.parametrize("body", ["<html>Please log in</html>", "", "[]", '{"cut', "{}"])
def test_a_success_without_an_object_is_no_answer(answered, body):
    """A backup would have been replaced, or nobody else would have one."""
    reached, _ = answered((200, body), (200, SECRET))
    assert reached.get(objects.SECRET, "ns", "s") == SECRET
    reached, _ = answered((200, body), patience=0)
    with pytest.raises(errors.HypervisorError, match="does not answer: the answer is not a JSON object"):
        reached.items(objects.SECRET, "ns")


def test_a_conflict_over_a_quota_passes(answered):
    reached, _ = answered((409, QUOTA), (409, QUOTA), (201, SECRET))
    assert reached.create(objects.SECRET, "ns", SECRET) == SECRET


def test_an_object_whose_creation_was_not_answered_is_ours_by_its_labels(answered):
    """A webhook may have added others."""
    added = labelled(**SECRET["metadata"]["labels"], team="a")
    reached, _ = answered((500, {}), (409, EXISTS), (200, added))
    assert reached.create(objects.SECRET, "ns", SECRET) == added
    reached, _ = answered((409, EXISTS), (200, labelled(team="a")))
    with pytest.raises(cluster.Exists):
        reached.create(objects.SECRET, "ns", SECRET)


def test_a_redirect_is_not_followed(answered):
    reached, _ = answered((302, {}))
    with pytest.raises(errors.HypervisorError, match="redirects"):
        reached.get(objects.SECRET, "ns", "s")


def test_a_certificate_that_cannot_be_verified_is_reported_at_once(answered):
    failed = urllib3.exceptions.SSLError(ssl.SSLCertVerificationError("self-signed certificate"))
    reached, pool = answered(failed, (200, SECRET))
    with pytest.raises(errors.HypervisorError, match=r"api.example:6443 cannot be verified: .*self-signed"):
        reached.get(objects.SECRET, "ns", "s")
    assert len(pool.left) == 1


def places(found, before=()):
    """Yield the path of every member and item."""
    inner = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for name, value in inner:
        yield (*before, name)
        yield from places(value, (*before, name))


def test_an_object_of_any_shape_is_read():
    """Whatever a member is, there is no traceback."""
    urls = {"volumeName": "a", "mapEndpoint": "https://m", "dataEndpoint": "https://d", "type": "Full"}
    condition = {"type": "Progressing", "status": "True", "reason": "ExportReady", "message": "m"}
    status = {"type": "Full", "checkpointName": "c", "endpointCert": "x", "includedVolumes": [urls], "capacity": {},
              "conditions": [condition], "links": {"external": {"cert": "c", "volumes": [urls]}}}  # fmt: skip
    volume = {"name": "a", "persistentVolumeClaim": {"claimName": "c"}}
    spec = {"source": {"kind": "VirtualMachine", "name": "vm"}, "template": {"spec": {"volumes": [volume]}}}
    whole = {
        "metadata": {"name": "b", "uid": "u", "labels": {}, "creationTimestamp": "x"},
        "spec": spec,
        "status": status,
    }
    machine = given.Machine("ns", "vm")
    for place in places(whole):
        for junk in (None, 0, 1.5, True, "", "x", [], {}, [1], {"a": 1}, [[]]):
            found = copy.deepcopy(whole)
            parent = functools.reduce(lambda inner, name: inner[name], place[:-1], found)
            parent[place[-1]] = junk
            for inside in (False, True):
                objects.state(found, inside)
            for read in (
                objects.volumes,
                objects.capacity,
                objects.is_over,
                objects.is_off,
                ours.store_of,
                ours.run_of,
            ):
                read(found)
            objects.is_of(found, machine, [found]), objects.sources(machine, found, {}), ours.is_ours(found, machine)


@pytest.mark.parametrize(
    "text",
    ["{", "\0", "- a", "a word", "", KUBECONFIG % ("{server: 5}", "{}"), KUBECONFIG % ("{}", "{}"),
     KUBECONFIG % (SERVER[:-1] + ", certificate-authority: none}", "{}"),
     KUBECONFIG % (SERVER[:-1] + ", certificate-authority-data: bm9uZQ==}", "{}"),
     KUBECONFIG % (SERVER[:-1] + ", proxy-url: 'socks5://me:secret@h:1'}", "{}"),
     KUBECONFIG % (SERVER, "{client-certificate-data: bm9uZQ==, client-key-data: bm9uZQ==}")],
)  # fmt: skip
def test_a_kubeconfig_that_cannot_be_used_is_one_clear_line(config, text):
    with pytest.raises(errors.UsageError, match="cannot reach the cluster: ") as caught:
        cluster.Cluster(config(text=text), None, 1.0)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_cluster_that_is_not_verified_is_a_warning(config):
    assert cluster.Cluster(config(), None, 1.0).warnings == []
    [line] = cluster.Cluster(config(SERVER[:-1] + ", insecure-skip-tls-verify: true}"), None, 1.0).warnings
    assert "insecure-skip-tls-verify" in line


@pytest.mark.parametrize(
    "url, environment, proxy",
    [
        (None, {}, None),
        ("http://proxy:3128", {}, ("http://proxy:3128", "")),
        ("https://me:a%40b@proxy:3128", {}, ("https://proxy:3128", "me:a@b")),
        (None, {"https_proxy": "http://other:1"}, ("http://other:1", "")),
        (None, {"https_proxy": "http://other:1", "no_proxy": "localhost,.example"}, None),
        ("http://proxy:3128", {"https_proxy": "http://other:1"}, ("http://proxy:3128", "")),
    ],
)
def test_the_proxy_on_the_way(config, monkeypatch, url, environment, proxy):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server = SERVER if url is None else f"{SERVER[:-1]}, proxy-url: '{url}'}}"
    assert Login(config(server), None).proxy() == proxy
