"""Ways to log in to a cluster, each against the stub's API server: the account of a pod, and a program."""

import base64
import datetime
import json
import os
import select
import socket
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kubernetes.config import incluster_config
from kubevirt_bed import DOMAIN, furnished, pull, quicken, require_equal, store_of
from kubevirt_stub import Cluster

from nbdpull.cli import main as cli
from nbdpull.core import errors
from nbdpull.kubevirt.cluster import Cluster as Client


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


@pytest.fixture
def bed(tmp_path):
    with Cluster("main", tmp_path, reach="inside") as made:
        yield furnished(made)


@pytest.fixture
def pod(bed, monkeypatch, tmp_path):
    """Run as in a pod of the cluster."""
    (tmp_path / "token").write_text(bed.bearer)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(bed.ca_paths[0]))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    host, _, port = bed.api_url.partition("//")[2].partition(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    return bed


@pytest.fixture
def renewing(monkeypatch):
    """Read the tokens of a pod again at once, not after a minute."""
    at_once = types.SimpleNamespace(datetime=datetime.datetime, timedelta=lambda **_: datetime.timedelta(0))
    monkeypatch.setattr(incluster_config, "datetime", at_once)


def test_the_account_of_the_pod(pod):
    pull(pod, kubeconfig=None)
    require_equal(pod, "0")
    assert pod.complaints == []


def test_a_token_of_the_pod_that_is_renewed_meanwhile(pod, renewing, tmp_path):
    def renew():
        pod.bearer = "another"
        (tmp_path / "token").write_text("another\n")

    pod.faults.on("data", renew)
    pull(pod, kubeconfig=None)
    require_equal(pod, "0")


@pytest.mark.parametrize("lost", ["unlink", "empty"])
def test_a_token_of_the_pod_that_is_gone(pod, renewing, tmp_path, lost):
    def lose():
        (tmp_path / "token").unlink() if lost == "unlink" else (tmp_path / "token").write_text("")

    pod.faults.on("data", lose)
    with pytest.raises(errors.AccessDenied, match="no credentials for the cluster: "):
        pull(pod, kubeconfig=None)


def test_neither_kubeconfig_nor_pod(pod, monkeypatch, tmp_path):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(errors.UsageError, match="cannot reach the cluster: .*--kubeconfig"):
        pull(pod, kubeconfig=None)
    assert not store_of(pod).exists()


class Proxy(ThreadingHTTPServer):
    """An HTTP proxy. tunnels: where to, and with which credentials."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.tunnels = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


class Tunnel(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_CONNECT(self):
        self.server.tunnels.append((self.path, self.headers["Proxy-Authorization"]))
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port))) as far:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: far, far: self.connection}
            while data := (end := select.select(ends, [], [])[0][0]).recv(1 << 16):
                ends[end].sendall(data)


def test_a_proxy_of_the_kubeconfig(bed):
    with Proxy() as proxy:
        text = bed.kubeconfig.read_text()
        where = f"    proxy-url: http://me:a%40b@127.0.0.1:{proxy.server_address[1]}\n    server:"
        bed.kubeconfig.write_text(text.replace("    server:", where))
        pull(bed, kubeconfig=str(bed.folder / "kubeconfig"))
        proxy.shutdown()
    require_equal(bed, "0")
    credentials = "Basic " + base64.b64encode(b"me:a@b").decode()
    assert set(proxy.tunnels) == {(bed.api_url.partition("//")[2], credentials)}


# -- programs of a kubeconfig

PLUGIN = """#!/bin/sh
echo x >> calls
cat answer
"""


@pytest.fixture
def plugin(bed, tmp_path):
    """answer(status): what the program returns from now on; its kubeconfig is used."""
    program = tmp_path / "plugin"
    program.write_text(PLUGIN)
    program.chmod(0o755)

    def answer(status):
        fields = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
        (tmp_path / "answer").write_text(json.dumps(fields))

    answer({"token": bed.bearer})
    return answer


def calls(bed):
    return len((bed.folder / "calls").read_text().split())


def in_an_hour():
    return (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_program_gives_the_token(bed, plugin):
    plugin({"token": bed.bearer, "expirationTimestamp": in_an_hour()})
    pull(bed, kubeconfig=str(bed.kubeconfig_of_a_program))
    require_equal(bed, "0")
    assert calls(bed) == 1


def test_a_token_of_a_program_that_expired_is_asked_for_again(bed, plugin):
    plugin({"token": bed.bearer, "expirationTimestamp": "2026-01-01T00:00:00Z"})

    def renew():
        bed.bearer = "another"
        plugin({"token": "another", "expirationTimestamp": in_an_hour()})

    bed.faults.on("data", renew)
    pull(bed, kubeconfig=str(bed.kubeconfig_of_a_program))
    require_equal(bed, "0")
    assert calls(bed) > 1


@pytest.mark.parametrize("fault", ["fails", "is missing", "says nothing"])
def test_a_program_that_gives_no_credentials(bed, plugin, fault, capfd):
    """The library logs why, and would continue as anonymous."""
    program = bed.folder / "plugin"
    if fault == "is missing":
        program.unlink()
    else:
        program.write_text("#!/bin/sh\n" + ("echo the vault is sealed >&2; exit 3" if fault == "fails" else "echo {}"))
    path = str(bed.kubeconfig_of_a_program)
    assert cli.main([DOMAIN, "-o", str(store_of(bed)), "--kubeconfig", path, "--quiet"]) == 7
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("nbdpull: no credentials for the cluster: ")
    assert fault != "fails" or "the vault is sealed" in line
    assert not store_of(bed).exists() and bed.log == []


def test_a_program_that_fails_later(bed, plugin):
    plugin({"token": bed.bearer, "expirationTimestamp": "2026-01-01T00:00:00Z"})
    client = Client(str(bed.kubeconfig_of_a_program), None, 1.0)
    os.unlink(bed.folder / "plugin")
    with pytest.raises(errors.AccessDenied, match="no credentials for the cluster: "):
        client.items("api/v1/namespaces/{}/secrets", "ns1")
