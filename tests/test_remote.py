"""TCP with real certificates and a real sshd, on loopback: what is right works, and nothing else does."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from bed import Unavailable
from bed.address import free_port, is_listening
from bed.guest import _fetch, _unpack
from bed.libvirtd import cache_folder
from bed.machine import MIB, wait_for
from command import PROJECT, environment, last_event, nbdpull, start_held
from witness import CLUSTER, SINCE, Before, modes

from nbdpull.core import errors
from nbdpull.nbd import address, libnbd, source
from nbdpull.pulling import route

pytest.importorskip("libvirt")

SAN = {"server": "subjectAltName=DNS:localhost", "client": "subjectAltName=DNS:backup"}


def openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def make_ca(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-days", "2", "-keyout", folder / "ca-key.pem", "-out", folder / "ca-cert.pem")  # fmt: skip
    return folder


def make_certificate(ca, folder, who):
    """Create who-cert.pem and who-key.pem in folder, signed by ca."""
    folder.mkdir(parents=True, exist_ok=True)
    request, config = folder / "request", folder / "extensions"
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={who}",
            "-keyout", folder / f"{who}-key.pem", "-out", request)  # fmt: skip
    config.write_text(f"{SAN[who]}\nextendedKeyUsage={who}Auth\nkeyUsage=digitalSignature\n")
    openssl("x509", "-req", "-in", request, "-CA", ca / "ca-cert.pem", "-CAkey", ca / "ca-key.pem", "-CAcreateserial",
            "-days", "2", "-extfile", config, "-out", folder / f"{who}-cert.pem")  # fmt: skip
    shutil.copy(ca / "ca-cert.pem", folder)
    request.unlink()
    return folder


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Directories: server, right, other_ca (a client of another CA), no_client (the right CA, no certificate)."""
    base = tmp_path_factory.mktemp("tls")
    ours, other = make_ca(base / "ca", "ours"), make_ca(base / "other", "other")
    made = {"server": make_certificate(ours, base / "server", "server")}
    made["right"] = make_certificate(ours, base / "right", "client")
    made["other_ca"] = make_certificate(other, base / "wrong", "client")
    made["unknown_client"] = make_certificate(other, base / "unknown", "client")
    shutil.copy(ours / "ca-cert.pem", made["unknown_client"])
    made["no_client"] = base / "none"
    made["no_client"].mkdir()
    shutil.copy(ours / "ca-cert.pem", made["no_client"])
    return made


@pytest.fixture
def with_tls(private_libvirt, certificates):
    """libvirt's daemon has the server's certificates, and requests those of clients."""
    folder = Path("/etc/libvirt" if private_libvirt.root else os.environ["XDG_CONFIG_HOME"] + "/libvirt")
    before = (folder / "qemu.conf").read_text()
    (folder / "qemu.conf").write_text(f'{before}backup_tls_x509_cert_dir = "{certificates["server"]}"\n')
    private_libvirt.restart()
    yield
    (folder / "qemu.conf").write_text(before)
    private_libvirt.restart()


def test_tls(with_tls, certificates, pulled):
    witness = pulled({"vda": 2 * MIB})
    vm, port = witness.vm, free_port()
    vm.write("vda", 0, MIB)
    by_tcp = ("--nbd", f"tcp:localhost:{port}")
    witness.pull(*by_tcp, "--tls", certificates["right"])
    vm.write("vda", CLUSTER, CLUSTER, 0x21)
    assert modes(witness.pull(*by_tcp, "--tls", certificates["right"])) == {"vda": SINCE}
    warnings = witness.result["warnings"]
    assert bool(warnings) != libnbd.tls_is_verified(libnbd.library_version()) and all(
        "known gaps" in t for t in warnings
    )
    witness.assert_restores()
    before = Before(witness)
    for wrong in ("other_ca", "no_client", "unknown_client"):
        done = nbdpull(*witness.words(*by_tcp, "--tls", certificates[wrong]))
        assert done.returncode == 6, f"{wrong}: {done.stdout}"
        before.assert_same()
    # the certificate is good for localhost, and for no other name of the same address
    done = nbdpull(*witness.words("--nbd", f"tcp:127.0.0.1:{port}", "--tls", certificates["right"]))
    assert done.returncode == 6
    before.assert_same()
    key = (certificates["right"] / "client-key.pem").read_text().split("\n")[1]
    for file in [path for path in witness.store.rglob("*") if path.is_file()]:
        assert key.encode() not in file.read_bytes()
    assert key not in vm.bed.daemon_log() + vm.bed.qemu_log(vm.name).read_text() + done.stdout + done.stderr


def taken_by_a_command(vm, folder, *words):
    """Return the result of a backup whose images a command reads at the URIs that it gets."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"  # the command needs a Python that has libnbd
    token = folder / "token"
    line = ["run", vm.name, "--json", "--scratch-dir", folder, "--since", token, "--token", token, *words]
    done = nbdpull(*line, "--", PROJECT / "examples/take_images.sh", cwd=folder, env={**environment(), "PATH": path})
    assert done.returncode == 0, done.stderr
    result = last_event(done.stdout)
    assert (folder / "images" / result["run"] / "vda.raw").read_bytes() == vm.content("vda")
    return result


def test_a_command_by_tls(with_tls, certificates, machine, tmp_path):
    """Its URI has the certificates, even if their directory was named relative to here, and the command is elsewhere;
    without them it does not work."""
    vm, port = machine({"vda": MIB}), free_port()
    (tmp_path / "tls").symlink_to(certificates["right"])
    words = ("-c", vm.bed.uri, "--nbd", f"tcp:localhost:{port}", "--tls", "tls")
    for mode in ("full", "incremental"):
        vm.write("vda", 0, CLUSTER, 0x31 if mode == "full" else 0x32)
        result = taken_by_a_command(vm, tmp_path, *words)
        assert result["disks"][0]["mode"] == mode
    asks = 'cd / && nbdinfo --size "$NBDPULL_VDA_URI"; ! nbdinfo --size "${NBDPULL_VDA_URI%%\\?*}"; '
    asks += '! nbdinfo --size "nbd://localhost:$0/$NBDPULL_VDA_EXPORT"'
    done = nbdpull("run", vm.name, *words, "--", "sh", "-ec", asks, port, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(f"{MIB}\n"), done.stderr
    done = nbdpull("run", vm.name, *words[:-1], certificates["other_ca"], "--", "true")
    assert done.returncode == 6 and not vm.job_active()


def serve(*words):
    port = free_port()
    process = subprocess.Popen(["qemu-nbd", "-r", "-t", "-e", "0", "-x", "vda", "-p", str(port), *map(str, words)])
    wait_for(lambda: is_listening(port), "qemu-nbd listens")
    return process, port


def test_no_fallback_to_plain_text(certificates, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(b"\x55" * MIB)
    plain, port = serve("-f", "raw", image)
    try:
        assert source.Source(address.Tcp("localhost", port), "vda").size == MIB
        with pytest.raises(errors.SourceError):
            source.Source(address.Tcp("localhost", port, str(certificates["right"])), "vda")
    finally:
        plain.kill()
        plain.wait()
    tls, port = serve("--object", f"tls-creds-x509,id=t,endpoint=server,dir={certificates['server']},verify-peer=yes",
                      "--tls-creds", "t", "-f", "raw", image)  # fmt: skip
    try:
        with source.Source(address.Tcp("localhost", port, str(certificates["right"])), "vda") as live:
            assert live.read(0, 512) == b"\x55" * 512
        for refused in (address.Tcp("localhost", port), address.Tcp("localhost", port, str(certificates["no_client"]))):
            with pytest.raises(errors.SourceError):
                source.Source(refused, "vda").read(0, 512)
    finally:
        tls.kill()
        tls.wait()


def test_plain_tcp_says_what_it_is(pulled):
    witness = pulled({"vda": MIB})
    witness.pull("--nbd", f"tcp:127.0.0.1:{free_port()}")
    assert "has no TLS" in witness.result["warnings"][0]
    witness.assert_restores()


@pytest.mark.parametrize("words", [
    ["--nbd", "localhost:1"], ["--nbd", "tcp:localhost:0"], ["--nbd", "tcp:localhost:99999"], ["--tls", "/nowhere"],
    ["--nbd", "tcp:localhost:1", "--tls", "/nowhere"], ["--nbd", "tcp:localhost:1", "--socket", "/tmp/x.sock"],
])  # fmt: skip
def test_usage_errors(pulled, words):
    witness = pulled({"vda": MIB})
    done = nbdpull(*witness.words(*words))
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_port_taken_and_no_certificates(pulled, certificates):
    witness = pulled({"vda": MIB})
    witness.pull()
    before = Before(witness)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = nbdpull(*witness.words("--nbd", f"tcp:127.0.0.1:{taken.getsockname()[1]}"))
        assert done.returncode == 6 and "listen on 127.0.0.1" in done.stderr
    done = nbdpull(*witness.words("--nbd", f"tcp:localhost:{free_port()}", "--tls", certificates["right"]))
    assert done.returncode == 6 and "backup_tls_x509_cert_dir" in done.stderr
    before.assert_same()


# -- libvirt's own TLS ------------------------------------------------------------------------------------------------


@pytest.fixture
def tls_port(private_libvirt, certificates):
    """The daemon listens with TLS on this port of loopback, and requires certificates of its CA from clients."""
    if not private_libvirt.root:
        pytest.skip("only a system daemon listens on TCP")
    port, file, folder = free_port(), Path("/etc/libvirt/libvirtd.conf"), certificates["server"]
    before = file.read_text()
    said = {"listen_addr": "127.0.0.1", "tls_port": port, "auth_tls": "none", "key_file": folder / "server-key.pem",
            "cert_file": folder / "server-cert.pem", "ca_file": folder / "ca-cert.pem"}  # fmt: skip
    lines = [f'{name} = "{value}"\n' for name, value in said.items()]
    file.write_text("".join([before.replace("listen_tls = 0", "listen_tls = 1"), *lines]))
    private_libvirt.restart()
    yield port
    file.write_text(before)
    private_libvirt.restart()


def tls_uri(port, folder, host="localhost"):
    """libvirt has its own names for the files."""
    names = {"ca-cert.pem": "cacert.pem", "client-cert.pem": "clientcert.pem", "client-key.pem": "clientkey.pem"}
    for ours, theirs in names.items():
        if (folder / ours).exists() and not (folder / theirs).exists():
            (folder / theirs).symlink_to(ours)
    return f"qemu+tls://{host}:{port}/system?pkipath={folder}"


def test_control_connection_with_tls(tls_port, with_tls, certificates, pulled):
    """Both connections, of libvirt and of NBD; there is no other route for the data of a remote hypervisor."""
    witness, nbd_port = pulled({"vda": 2 * MIB}), free_port()
    vm, right = witness.vm, certificates["right"]
    vm.write("vda", 0, MIB)
    remote = ("-c", tls_uri(tls_port, right), "--nbd", f"tcp:localhost:{nbd_port}", "--tls", right)
    witness.pull(*remote)
    vm.write("vda", CLUSTER, CLUSTER, 0x21)
    assert modes(witness.pull(*remote)) == {"vda": SINCE}
    witness.assert_restores()
    before = Before(witness)
    done = nbdpull(*witness.words("-c", tls_uri(tls_port, right)))
    assert done.returncode == 2 and "--nbd tcp:HOST:PORT" in done.stderr
    before.assert_same()


@pytest.mark.parametrize("who, host, code", [
    ("other_ca", "localhost", 7), ("right", "127.0.0.1", 7), ("unknown_client", "localhost", 6),
    ("no_client", "localhost", 6),
])  # fmt: skip
def test_control_connection_that_is_refused(tls_port, certificates, pulled, who, host, code):
    """The wrong CA, another name than the server's, a client's certificate of another CA, and none at all."""
    witness = pulled({"vda": MIB})
    uri = tls_uri(tls_port, certificates[who], host)
    done = nbdpull(*witness.words("-c", uri))
    [reported] = [
        line for line in done.stderr.splitlines() if line.startswith("nbdpull: ")
    ]  # libvirt has its own log there
    assert done.returncode == code and uri in reported and "accept each other's certificates" in reported
    assert "Traceback" not in done.stderr and not witness.store.exists() and not witness.vm.job_active()


# -- ssh --------------------------------------------------------------------------------------------------------------


class Sshd(NamedTuple):
    """key: the client's."""

    port: int
    key: Path
    folder: Path
    process: subprocess.Popen

    def reload(self):
        """Have it read its configuration again; until then it may still accept connections by the old one."""
        self.process.send_signal(signal.SIGHUP)
        wait_for(lambda: (self.folder / "log").read_text().count("Server listening on") == 2, "sshd listens again")


@pytest.fixture
def sshd(private_libvirt):
    """A real sshd on loopback that accepts root with one key."""
    if os.geteuid():
        pytest.skip("an sshd of our own that starts sessions needs root")
    folder = Path(tempfile.mkdtemp(prefix="sshd", dir="/var/tmp"))
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") or _unpacked_sshd(folder)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        f"PidFile none\nSetEnv LIBVIRT_AUTOSTART=0 PATH={os.environ['PATH']}\n"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder / "sshd/usr/lib/x86_64-linux-gnu")}
    with separation_user(folder), open(folder / "log", "wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", folder / "config"], stderr=log, env=environment)
        try:
            wait_for(lambda: is_listening(port), "sshd listens")
            yield Sshd(port, folder / "user", folder, process)
        finally:
            process.terminate()
            process.wait()
    shutil.rmtree(folder)


@contextlib.contextmanager
def separation_user(folder):
    """sshd needs a user of its own name. If there is none, our mount namespace gets an /etc/passwd that has one."""
    users = Path("/etc/passwd").read_text()
    with contextlib.ExitStack() as undo:
        if not Path("/run/sshd").exists():
            os.mkdir("/run/sshd", 0o755)
            undo.callback(os.rmdir, "/run/sshd")
        if "\nsshd:" not in users:
            (folder / "passwd").write_text(f"{users}sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n")
            subprocess.run(["mount", "--bind", folder / "passwd", "/etc/passwd"], check=True)
            undo.callback(subprocess.run, ["umount", "/etc/passwd"], check=True)
        yield


def _unpacked_sshd(folder):
    try:
        for package in ("openssh-server", "libwrap0"):
            _unpack(_fetch(package, cache_folder() / "packages"), folder / "sshd")
    except Unavailable as reason:
        pytest.skip(str(reason))
    return folder / "sshd/usr/sbin/sshd"


@pytest.fixture
def ssh_wrapper(sshd, tmp_path):
    """A command for the URI that knows the host's key, as an administrator's ~/.ssh/config would."""
    known = tmp_path / "known_hosts"
    host_key = " ".join((sshd.folder / "host.pub").read_text().split()[:2])
    known.write_text(f"[127.0.0.1]:{sshd.port} {host_key}\n")
    command = tmp_path / "ssh"
    command.write_text(f'#!/bin/sh\nexec ssh -F none -o UserKnownHostsFile={known} "$@"\n')
    command.chmod(0o755)
    return command


def uri(sshd, command, key=None):
    return f"qemu+ssh://root@127.0.0.1:{sshd.port}/system?command={command}&keyfile={key or sshd.key}&no_tty=1"


def test_ssh(sshd, ssh_wrapper, pulled, tmp_path, monkeypatch):
    temporary = tmp_path / "t"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    witness = pulled({"vda": 2 * MIB})
    vm = witness.vm
    vm.write("vda", 0, MIB)
    remote = uri(sshd, ssh_wrapper)
    witness.pull("-c", remote)
    vm.write("vda", CLUSTER, CLUSTER, 0x21)
    assert modes(witness.pull("-c", remote)) == {"vda": SINCE}
    witness.assert_restores()
    assert not os.listdir(temporary)
    before = Before(witness)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "stranger"], check=True)
    done = nbdpull(*witness.words("-c", uri(sshd, ssh_wrapper, tmp_path / "stranger")))
    assert done.returncode == 6 and "Traceback" not in done.stderr
    # libvirt lets us in, but the server forwards no sockets
    config = sshd.folder / "config"
    config.write_text(config.read_text() + "AllowStreamLocalForwarding no\n")
    sshd.reload()
    done = nbdpull(*witness.words("-c", remote))
    assert done.returncode == 6 and "Traceback" not in done.stderr
    before.assert_same()


def test_a_command_by_ssh(sshd, ssh_wrapper, machine, tmp_path):
    """It gets the socket on this host, which has no name."""
    vm = machine({"vda": MIB})
    vm.write("vda", 0, CLUSTER, 0x31)
    taken_by_a_command(vm, tmp_path, "-c", uri(sshd, ssh_wrapper))


def test_ssh_ends_with_nbdpull(sshd, ssh_wrapper, pulled, tmp_path, monkeypatch):
    """A killed pull left ssh, which held QEMU's socket, and its own in /tmp."""
    temporary = tmp_path / "t"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    witness = pulled({"vda": 2 * MIB})
    witness.vm.write("vda", 0, MIB)
    tunnel = ["pgrep", "-f", f"ssh .*-L {temporary}"]
    words = witness.words("-c", uri(sshd, ssh_wrapper))
    with start_held("copying", tmp_path / "gate", *words) as process:
        left, tunnels = os.listdir(temporary), subprocess.run(tunnel, capture_output=True).stdout.split()
        process.kill()
    assert left == [] and len(tunnels) == 1
    wait_for(lambda: subprocess.run(tunnel, capture_output=True).returncode == 1, "ssh ends")
    witness.pull("-c", uri(sshd, ssh_wrapper))
    witness.assert_restores()


def test_a_signal_ends_the_wait_for_ssh(tmp_path):
    def stop():
        raise errors.Interrupted(15)

    ssh = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(errors.Interrupted):
            route._wait_for(str(tmp_path / "none"), ssh, None, stop)
    finally:
        ssh.kill()
        ssh.wait()


def test_the_command_line_of_ssh():
    words = route.ssh_command("qemu+ssh://backup@hv1:2222/system?keyfile=/k")
    assert words[0] == "ssh" and words[-2:] == ["--", "hv1"]
    assert re.search("-i /k .*-l backup .*-p 2222", " ".join(words))
    with pytest.raises(errors.UsageError, match="only ssh"):
        route.ssh_command("qemu+tls://hv1/system")
