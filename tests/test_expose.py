"""expose: any HTTP client reads the disk, and nothing changes unless the client confirms."""

import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import time
import urllib.parse

import ovirt_client
import pytest
from bed.address import free_port
from bed.machine import MIB, Machine, wait_for
from command import HELD, nbdpull, next_event, start_nbdpull

pytest.importorskip("libvirt")

TOKEN = "3f1c7a90e5d24b68"


class Exposed:
    """A running expose, and a client of it."""

    def __init__(self, process, about, tls=None):
        self.process, self.about, self._tls = process, about, tls
        self.url = urllib.parse.urlsplit(about["url"])

    def connection(self):
        if self._tls:
            return http.client.HTTPSConnection(self.url.hostname, self.url.port, timeout=60, context=self._tls)
        return http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=60)

    def ask(self, method, path, body=None, token=TOKEN, **headers):
        """Return (status, headers, body)."""
        with contextlib.closing(self.connection()) as made:
            made.request(method, path, body, {"x-kubevirt-export-token": token, **headers})
            answer = made.getresponse()
            return answer.status, answer.headers, answer.read()

    def extents(self, disk, page_size=3):
        found, at = [], 0
        while at is not None:
            status, _, body = self.ask("GET", f"/exports/{disk}/map?offset={at}&page_size={page_size}")
            assert status == 200, body
            page = json.loads(body)
            found += page["extents"]
            at = page["next_offset"]
        return found, page

    def image(self, disk, before):
        """Return the image that a client has after it has taken over the changes."""
        reported, page = self.extents(disk)
        assert [each["offset"] for each in reported[1:]] == [each["offset"] + each["length"] for each in reported[:-1]]
        assert reported[0]["offset"] == 0 and reported[-1]["offset"] + reported[-1]["length"] == page["size"]
        image = bytearray(before if page["backup_type"] == "incremental" else page["size"])
        for each in reported:
            where = slice(each["offset"], each["offset"] + each["length"])
            if each["type"] == (1 if page["backup_type"] == "incremental" else 0):
                status, _, body = self.ask("GET", f"/exports/{disk}/data?offset={where.start}&length={each['length']}")
                assert status == 200 and len(body) == each["length"]
                image[where] = body
            elif "zero" in each["description"]:
                image[where] = bytes(each["length"])
        return bytes(image)

    def finish(self, ok=True):
        """Return (the answer, the result of the command)."""
        status, _, body = self.ask("POST", "/finish", json.dumps({"ok": ok}))
        return (status, json.loads(body)), self.result()

    def result(self):
        output, said = self.process.communicate(timeout=60)
        assert "Traceback" not in said and TOKEN not in said + output
        result = json.loads(output.splitlines()[-1])
        assert result["exit_code"] == self.process.returncode
        return result


class Program:
    """A program that takes backups of a machine by HTTP."""

    def __init__(self, vm, folder):
        self.vm, self.folder, self.token = vm, folder, folder / "token"
        (folder / "secret").write_text(TOKEN + "\n")
        (folder / "secret").chmod(0o600)
        (folder / "scratch").mkdir()
        self.images = dict.fromkeys(vm.disks, b"")

    def words(self, *options, listen="127.0.0.1:0"):
        words = ["expose", self.vm.name, "-c", self.vm.bed.uri, "--scratch-dir", self.folder / "scratch"]
        words += ["--token-file", self.folder / "secret", "--listen", listen]
        return [*words, "--since", self.token, "--token-out", self.token, *options]

    @contextlib.contextmanager
    def exposed(self, *options, listen="127.0.0.1:0", program=None, **how):
        started = {"program": program} if program else {}
        process = start_nbdpull(*self.words(*options, "--json", "-vv", listen=listen), **started)
        try:
            yield Exposed(process, next_event(process, "exposing"), **how)
        finally:
            if process.poll() is None:
                process.terminate()  # a test that fails leaves no job to the next
            process.communicate(timeout=60)

    def state(self):
        return self.vm.checkpoints(), self.token.read_text() if self.token.exists() else None

    def assert_unmoved(self, before):
        assert self.state() == before and not self.vm.job_active()
        assert os.listdir(self.folder / "scratch") == []
        assert sorted(path.name for path in self.folder.glob("token*")) == (["token"] if before[1] else [])

    def take(self, options=()):
        """Make one backup, which has to be right."""
        frozen = {disk: self.vm.content(disk) for disk in self.vm.disks}
        with self.exposed(*options) as now:
            self.vm.write("vda", 0, 65536, 0xEE)  # after the instant
            taken = {disk: now.image(disk, self.images[disk]) for disk in frozen}
            assert taken == frozen
            (status, answer), result = now.finish()
            assert (status, answer["committed"], result["ok"]) == (200, True, True), answer
        self.images = taken
        assert answer["token"] == result["token"] == self.token.read_text().strip()
        assert len(self.vm.checkpoints()) == 1 and not self.vm.job_active()
        return now.about


UNREAD = "no client read disk {}, or asked what changed"


@pytest.fixture(scope="module")
def vm(private_libvirt, tmp_path_factory):
    with Machine(private_libvirt, tmp_path_factory.mktemp("images"), {"vda": 8 * MIB, "vdb": MIB + 512}) as vm:
        vm.write("vda", 3 * MIB, MIB + 65536, 0x55)
        vm.write("vdb", 0, 65536, 0x66)
        yield vm


@pytest.fixture
def program(vm, tmp_path):
    yield Program(vm, tmp_path)
    assert not vm.job_active()
    for name in vm.checkpoints():
        vm.delete_checkpoint(name)


def test_full_and_incremental_are_the_disks(program):
    about = program.take()
    assert [each["mode"] for each in about["exports"]] == ["full", "full"]
    for pattern in (0x11, 0x22):
        program.vm.write("vda", 5 * MIB, 70000 // 512 * 512, pattern)
        program.vm.write_zeroes("vda", 3 * MIB, 131072)
        about = program.take()
        assert [each["mode"] for each in about["exports"]] == ["incremental", "incremental"]
    with program.exposed() as now:
        now.image("vda", program.images["vda"])
        (_, answer), result = now.finish()
    assert [answer["committed"], answer["warnings"], result["warnings"]] == [True, *[[UNREAD.format("vdb")]] * 2]


def test_an_unsuccessful_end_moves_nothing(program):
    """The client declines or is silent, a signal, a kill; and the backup after all that is right."""
    program.take()
    before = program.state()
    program.vm.write("vda", 6 * MIB, 65536, 0x77)
    with program.exposed() as now:
        (status, answer), result = now.finish(ok=False)
        assert (status, answer["committed"], answer["code"]) == (200, False, "declined")
        assert (result["exit_code"], result["code"]) == (9, "declined")
    program.assert_unmoved(before)
    with program.exposed("--ttl", "1s") as now:
        result = now.result()
        assert (result["exit_code"], result["code"]) == (12, "limit-reached")
    program.assert_unmoved(before)
    with program.exposed() as now:
        now.process.send_signal(signal.SIGTERM)
        assert now.result()["exit_code"] == 143
    program.assert_unmoved(before)
    with program.exposed() as now:
        now.process.kill()
    assert program.state()[1] == before[1] and not list(program.folder.glob("token.*"))
    assert program.take()["exports"][0]["mode"] == "incremental"


def test_killed_between_the_token_and_the_commit(program):
    """The token is useless then, which costs a full backup."""
    program.take()
    before = program.token.read_text()
    program.vm.write("vda", 6 * MIB, 65536, 0x99)
    held = program.exposed(program=(HELD, "token-written", program.folder / "never"))
    with held as now, contextlib.closing(now.connection()) as made:
        made.request("POST", "/finish", '{"ok": true}', {"x-kubevirt-export-token": TOKEN})
        next_event(now.process, "held")
        now.process.kill()
    assert program.token.read_text() != before
    assert {each["mode"] for each in program.take()["exports"]} == {"full"}


def test_a_lost_job_is_never_taken_for_a_whole_one(program):
    """Aborted by somebody else in the middle of a stream: the stream is cut, and nothing is committed."""
    before = program.state()
    with program.exposed() as now, contextlib.closing(now.connection()) as made:
        made.request("GET", "/exports/vda/data", headers={"x-kubevirt-export-token": TOKEN})
        answer = made.getresponse()
        assert answer.length == 8 * MIB
        program.vm.domain.abortJob()
        wait_for(lambda: now.process.poll() is not None, "the end of expose")
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            got = answer.read()
            assert len(got) < 8 * MIB, "it fits into the sockets"
        result = now.result()
        assert result["exit_code"] == 6 and result["code"] in ("job-lost", "source")
    program.assert_unmoved(before)


def test_a_finish_cuts_the_streams_under_way(program):
    with program.exposed() as now, contextlib.closing(now.connection()) as made:
        made.request("GET", "/exports/vda/data", headers={"x-kubevirt-export-token": TOKEN})
        response = made.getresponse()
        begun = time.monotonic()
        (status, answer), _ = now.finish()
        assert answer["committed"] and time.monotonic() - begun < 20
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()


def test_impossible_requests_are_one_clear_line(program):
    """And no backup is started."""
    for options, said, code in (
        (["--listen", "0.0.0.0:0"], "use --tls", 2),
        (["--client-ca", "x"], "use it with --tls", 2),
        (["--tls", "nowhere"], "server-cert.pem", 2),
        (["--since", "."], "token file .: Is a directory", 2),
        (["--since", "secret"], "token file secret: not a token", 2),
        (["--token-file", "nowhere"], "--token-file nowhere", 2),
        (["--token-out", "/nowhere/token"], "/nowhere/token", 9),
        (["--token-out", "secret"], "secret exists", 9),
        (["--disk", "vdz"], "vdz", 3),
        (["--nbd-tls", "nowhere"], "use it with --nbd", 2),
        (["--nbd", "tcp:127.0.0.1:1", "--nbd-tls", "nowhere"], "TLS files in nowhere: there is no readable ca-cert", 2),
    ):
        done = nbdpull(*program.words(*options), cwd=program.folder)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1) and said in done.stderr, done.stderr
        program.assert_unmoved(([], None))


def test_qemus_server_at_a_port_and_a_domain_that_is_off(program):
    """As for pull: the clients see no difference."""
    program.take(options=["--nbd", f"tcp:127.0.0.1:{free_port()}", "--freeze-timeout", "5"])
    frozen = program.vm.content("vda")
    program.vm.destroy()
    try:
        refused = nbdpull(*program.words("--offline", "refuse"), cwd=program.folder)
        assert refused.returncode == 3 and "is not running" in refused.stderr, refused.stderr
        with program.exposed("--offline", "read", "--stall-timeout", "60s") as now:
            assert now.ask("GET", "/exports/vda/data")[2] == frozen
            assert now.finish(ok=False)[1]["code"] == "declined"
    finally:
        program.vm.start()


def test_by_tls_with_certificates_of_clients(program):
    """Without key or token, nothing is served."""
    folder = program.folder
    for name in ("server", "client"):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-keyout",
                        folder / f"{name}-key.pem", "-out", folder / f"{name}-cert.pem"],
                       check=True, capture_output=True)  # fmt: skip
    context = ssl.create_default_context(cafile=folder / "server-cert.pem")
    frozen = program.vm.content("vda")
    with program.exposed("--tls", folder, "--client-ca", folder / "client-cert.pem", tls=context) as now:
        assert now.about["url"].startswith("https://")
        with pytest.raises((OSError, http.client.HTTPException)):
            now.ask("GET", "/exports/vda/data")
        context.load_cert_chain(folder / "client-cert.pem", folder / "client-key.pem")
        assert now.ask("GET", "/exports/vda/data", token="wrong-token")[0] == 401
        assert now.ask("GET", "/exports/vda/data")[2] == frozen
        assert now.finish()[0][1]["committed"]


def test_ovirts_client_downloads_all_and_what_changed(program):
    """Over TLS, and with the tickets that a client with the token gets."""
    folder, base = program.folder, {}
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-keyout",
                    folder / "server-key.pem", "-out", folder / "server-cert.pem"],
                   check=True, capture_output=True)  # fmt: skip
    context = ssl.create_default_context(cafile=folder / "server-cert.pem")
    for number in range(2):
        frozen = {disk: program.vm.content(disk) for disk in program.vm.disks}
        with program.exposed("--tls", folder, tls=context) as now:
            for image in json.loads(now.ask("GET", "/images")[2])["images"]:
                disk, path = image["name"], folder / f"{image['name']}-{number}.qcow2"
                assert image["dirty"] == bool(number)
                url = now.about["url"] + image["path"]
                taken = ovirt_client.downloaded(url, path, str(folder / "server-cert.pem"), base.get(disk))
                assert taken == frozen[disk]
                base[disk] = path
            assert set(base) == set(frozen) and now.finish()[0][1]["committed"]
        program.vm.write("vda", 5 * MIB, 65536, 0x88)
        program.vm.write_zeroes("vda", 3 * MIB, 131072)


def test_curl_as_in_kubevirts_tests(program):
    frozen = program.vm.content("vda")
    with program.exposed() as now:

        def curl(*words):
            return subprocess.run(["curl", "-sS", "--fail", *words], check=True, capture_output=True, timeout=60).stdout

        [disk] = [each for each in now.about["exports"] if each["disk"] == "vda"]
        assert curl(f"{now.about['url']}/exportready") == b"OK"
        token = f"x-kubevirt-export-token={TOKEN}"
        page = json.loads(curl(f"{disk['map']}?{token}&offset=0&length={8 * MIB}"))
        assert page["next_offset"] is None
        assert curl("-H", f"x-kubevirt-export-token: {TOKEN}", f"{disk['data']}?offset=0&length=0") == frozen
        part = curl("-H", f"Authorization: Bearer {TOKEN}", "-r", f"{3 * MIB}-{3 * MIB + 9}", disk["data"])
        assert part == frozen[3 * MIB :][:10]
        wrong = subprocess.run(["curl", "-s", "-o", os.devnull, "-w", "%{http_code}", disk["map"]], capture_output=True)
        assert wrong.stdout == b"401"
        curl("-H", f"x-kubevirt-export-token: {TOKEN}", "-d", '{"ok": false}', f"{now.about['url']}/finish")
        assert now.result()["code"] == "declined"
