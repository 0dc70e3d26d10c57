"""pull kubevirt:NAMESPACE/VM --http-map: points from an HTTP endpoint like KubeVirt's, with every restored byte
compared. The endpoint is a small one of our own, which knows the disks; faults are put into its answers."""

import json
import os
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from nbdpull.cli import main as cli
from nbdpull.core import errors
from nbdpull.core.choices import BackupType
from nbdpull.kubevirt import endpoint, given
from nbdpull.operations import kubevirt, restore, verify
from nbdpull.operations.options.pulls import KubevirtOptions as Options
from nbdpull.operations.options.restores import RestoreOptions, VerifyOptions
from nbdpull.repository import marker, series_choice

pytestmark = pytest.mark.e2e  # servers

BLOCK = 4096
WORDS = {"full": ["data", "hole", "zero", "hole,zero"], "incremental": ["clean", "dirty", "zero", "dirty,zero"]}
TOKEN = "s3cr3t-of-the-export"


class Disk:
    """The bytes of a disk, and which blocks are dirty since the last backup."""

    def __init__(self, size, seed=0):
        self.random = random.Random(seed)
        self.data = bytearray(size)
        self.dirty = set()
        self.write(0, self.random.randbytes(size // 2))

    def write(self, offset, data):
        self.data[offset : offset + len(data)] = data
        self.dirty |= set(range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)))

    def type(self, block, kind):
        zero = 0 if any(self.data[block * BLOCK : (block + 1) * BLOCK]) else 2
        return zero | (1 if block in self.dirty else 0) if kind == "incremental" else zero


class Exports(ThreadingHTTPServer):
    """The endpoint. faults: functions of (handler, path, query), each called before an answer; one that returns True
    has answered."""

    daemon_threads = True

    def __init__(self, disks, kind="full"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.disks, self.kind, self.token, self.faults = disks, kind, TOKEN, []
        self.asked = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        parts = urlsplit(self.path)
        query = {name: int(values[0]) for name, values in parse_qs(parts.query).items()}
        self.server.asked.append((parts.path, query))
        for fault in self.server.faults:
            if fault(self, parts.path, query):
                return
        if self.headers["x-kubevirt-export-token"] != self.server.token:
            return self.answer(401, b"")
        _, _, volume, what = parts.path.split("/")
        disk = self.server.disks[volume]
        if query["offset"] >= len(disk.data):
            return self.answer(500, b"")
        length = min(query["length"] or len(disk.data), len(disk.data) - query["offset"])
        if what == "data":
            return self.chunks(disk.data[query["offset"] : query["offset"] + length])
        self.answer(200, json.dumps(self.map(disk, query["offset"], length, query["page_size"])).encode())

    def map(self, disk, offset, length, page_size):
        found = []
        while length:
            piece = min(length, BLOCK - offset % BLOCK)
            kind = disk.type(offset // BLOCK, self.server.kind)
            if found and found[-1]["type"] == kind:
                found[-1]["length"] += piece
            else:
                word = WORDS[self.server.kind][kind]
                found.append({"offset": offset, "length": piece, "type": kind, "description": word})
            offset, length = offset + piece, length - piece
        following = found[page_size]["offset"] if len(found) > page_size else None
        return {"extents": found[:page_size] or None, "next_offset": following}

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def chunks(self, data, cut=None):
        """Send chunks. cut: after that many bytes the connection is reset."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(data), 1 << 16):
            piece = bytes(data[start : start + (1 << 16)])
            if cut is not None and start + len(piece) > cut:
                self.wfile.write(b"%x\r\n%s" % (len(piece), piece[: max(cut - start, 0)]))
                self.close_connection = True
                return
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def exports():
    server = Exports({"root": Disk(40 * BLOCK + 512, 1), "data": Disk(3 << 20, 2)})
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)
    monkeypatch.setattr(endpoint, "PAGE_SIZE", 7)


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return str(path)


def pull(exports, token, output, kind="full", **more):
    exports.kind = kind
    urls = {"http_map": [f"{exports.url}/exports/{name}/map" for name in exports.disks]}
    found = {"stall_timeout": 60, "threads": 3, **urls, "token_file": token, "type": kind, **more}
    result = kubevirt.kubevirt(Options(domain="kubevirt:prod/db", output=str(output), **found))
    for disk in exports.disks.values():
        disk.dirty = set()
    return result


def restored(output, where):
    restore.restore(RestoreOptions(store=str(output), output=str(where), kind="raw"))
    return {path.stem: path.read_bytes() for path in Path(where).glob("*.raw")}


def require_equal(exports, output, where, point=None):
    images = restored(output, where)
    assert set(images) == set(exports.disks)
    for name, disk in exports.disks.items():
        assert images[name] == disk.data, name
    assert verify.verify(VerifyOptions(store=str(output), point=point)).damages == []


def points(output):
    return series_choice.only_series(marker.open_store(str(output))).points()


def decisions(point):
    return {disk.name: (disk.mode, disk.reason) for disk in point.manifest.disks}


def test_a_series_of_increments_restores_to_the_disks(exports, token, tmp_path):
    """Writes, discards, growth, and a range that a shrunk and grown disk lost without a dirty bit."""
    out = tmp_path / "store"
    pull(exports, token, out, checkpoint="c0")
    require_equal(exports, out, tmp_path / "0")
    root, data = exports.disks["root"], exports.disks["data"]
    root.write(3 * BLOCK, b"x" * 700)
    root.write(5 * BLOCK, bytes(2 * BLOCK))  # dirty and zero
    data.data[8 * BLOCK : 12 * BLOCK] = bytes(4 * BLOCK)  # clean and zero
    result = pull(exports, token, out, "incremental", since="c0", checkpoint="c1")
    assert decisions(result.point) == dict.fromkeys(("root", "data"), ("incremental", "checkpoint"))
    require_equal(exports, out, tmp_path / "1")
    data.data += data.random.randbytes(5 * BLOCK) + bytes(70 * BLOCK)  # grown, without a dirty bit
    result = pull(exports, token, out, "incremental", since="c1", checkpoint="c2")
    assert decisions(result.point)["data"] == ("incremental", "grown")
    require_equal(exports, out, tmp_path / "2")
    assert [point.manifest.since for point in points(out)] == [None, "c0", "c1"]
    assert [point.manifest.domain for point in points(out)] == ["prod/db"] * 3
    assert os.listdir(out / "prod%2Fdb")


def test_a_disk_that_shrank_is_read_in_full_though_the_backup_is_incremental(exports, token, tmp_path):
    pull(exports, token, tmp_path / "s")
    del exports.disks["data"].data[1 << 20 :]
    result = pull(exports, token, tmp_path / "s", "incremental")
    assert decisions(result.point) == {"root": ("incremental", "checkpoint"), "data": ("full", "shrunk")}
    require_equal(exports, tmp_path / "s", tmp_path / "out")


def test_a_new_volume_is_read_in_full_though_the_backup_is_incremental(exports, token, tmp_path):
    new = exports.disks.pop("data")
    pull(exports, token, tmp_path / "s")
    new.dirty = set()
    exports.disks["data"] = new
    result = pull(exports, token, tmp_path / "s", "incremental")
    assert decisions(result.point)["data"] == ("full", "not-in-checkpoint")
    require_equal(exports, tmp_path / "s", tmp_path / "out")


def test_an_unreported_base_is_a_warning(exports, token, tmp_path):
    """The endpoint does not report it."""
    assert pull(exports, token, tmp_path / "s", checkpoint="c0").warnings == []
    assert pull(exports, token, tmp_path / "s", "incremental", since="c0", checkpoint="c1").warnings == []
    [warning] = pull(exports, token, tmp_path / "s", "incremental").warnings
    assert "--since" in warning
    assert sorted(points(tmp_path / "s")[-1].manifest.seconds) == ["begin", "copy", "end", "files", "prepare"]


def test_what_is_damaged_is_read_again(exports, token, tmp_path):
    pull(exports, token, tmp_path / "s")
    [victim] = (tmp_path / "s").glob("*/*/root.0000.zst")
    victim.write_bytes(victim.read_bytes()[:-1])
    result = pull(exports, token, tmp_path / "s", "incremental")
    assert decisions(result.point)["root"] == ("incremental", "healed")
    [(disk, size, files, mended)] = result.healed
    assert disk == "root" and size and files == [victim.relative_to(victim.parents[1]).as_posix()]
    assert mended == []
    assert any(str(files[0]) in each for each in result.warnings)
    require_equal(exports, tmp_path / "s", tmp_path / "out", result.point.id)


def test_a_disk_without_a_usable_parent_is_read_in_full(exports, token, tmp_path):
    pull(exports, token, tmp_path / "s")
    [victim] = (tmp_path / "s").glob("*/*/root.directory")
    victim.unlink()
    result = pull(exports, token, tmp_path / "s", "incremental")
    assert decisions(result.point)["root"] == ("full", "chain-broken") and result.healed == []
    assert any("chain-broken" in each for each in result.warnings)
    require_equal(exports, tmp_path / "s", tmp_path / "out", result.point.id)


def nothing_written(output):
    return not Path(output).exists() or not list(Path(output).glob("*/*/manifest.json"))


@pytest.mark.parametrize("first", [False, True], ids=["no store", "another base"])
def test_an_increment_without_its_parent_is_refused_and_nothing_written(exports, token, tmp_path, first):
    out = tmp_path / "s"
    if first:
        pull(exports, token, out, checkpoint="c0")
    before = sorted(out.rglob("*"))
    with pytest.raises(errors.CheckpointUnusable, match="pull a full one"):
        pull(exports, token, out, "incremental", since="another")
    assert sorted(out.rglob("*")) == before and out.exists() == first
    assert exports.asked == [] or first


def test_a_full_backup_is_never_taken_for_an_increment(exports, token, tmp_path):
    pull(exports, token, tmp_path / "s")
    exports.faults.append(lambda *_: setattr(exports, "kind", "full"))
    with pytest.raises(errors.SourceError, match="not of an incremental backup"):
        pull(exports, token, tmp_path / "s", "incremental")
    assert len(points(tmp_path / "s")) == 1


def fails(times, act):
    """Return a fault that occurs that many times."""
    left = [times]

    def fault(handler, path, query):
        if left[0] and path.endswith("data"):
            left[0] -= 1
            return act(handler, path, query)
        return False

    return fault


def refuse(handler, path, query):
    handler.answer(503, b"")
    return True


def reset(handler, path, query):
    handler.close_connection = True
    return True


def cut(handler, path, query):
    disk = handler.server.disks[path.split("/")[2]]
    handler.chunks(disk.data[query["offset"] : query["offset"] + query["length"]], query["length"] // 3)
    return True


def end_early(handler, path, query):
    """Answer with less than was requested, well formed."""
    disk = handler.server.disks[path.split("/")[2]]
    handler.chunks(disk.data[query["offset"] : query["offset"] + query["length"] // 2])
    return True


@pytest.mark.parametrize("act", [refuse, reset, cut, end_early])
def test_answers_that_fail_are_asked_for_again(exports, token, tmp_path, act):
    exports.faults.append(fails(3, act))
    pull(exports, token, tmp_path / "s")
    require_equal(exports, tmp_path / "s", tmp_path / "out")


@pytest.mark.parametrize("act", [refuse, reset])
def test_a_server_that_keeps_failing_is_given_up(exports, token, tmp_path, act):
    exports.faults.append(fails(10**6, act))
    with pytest.raises(errors.SourceError, match="tried for 0.5 s"):
        pull(exports, token, tmp_path / "s", stall_timeout=0.5)
    assert nothing_written(tmp_path / "s")


def test_too_many_bytes_are_no_answer(exports, token, tmp_path):
    exports.faults.append(fails(1, lambda handler, path, query: handler.chunks(bytes(4 << 20)) or True))
    with pytest.raises(errors.SourceError, match="received more bytes"):
        pull(exports, token, tmp_path / "s")
    assert nothing_written(tmp_path / "s")


@pytest.mark.parametrize("shift, error", [(0, None), (512, "received the range bytes 512-")])
def test_a_partial_answer_has_to_be_the_part_that_was_asked_for(exports, token, tmp_path, shift, error):
    """KubeVirt's proposal answers with 206, its code with 200."""

    def partial(handler, path, query):
        if not path.endswith("data"):
            return False
        disk, start = handler.server.disks[path.split("/")[2]].data, query["offset"]
        body = disk[start : start + query["length"]]
        handler.send_response(206)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Content-Range", f"bytes {start + shift}-{start + shift + len(body) - 1}/{len(disk)}")
        handler.end_headers()
        handler.wfile.write(body)
        return True

    exports.faults.append(partial)
    if error is None:
        pull(exports, token, tmp_path / "s")
        return require_equal(exports, tmp_path / "s", tmp_path / "out")
    with pytest.raises(errors.SourceError, match=error):
        pull(exports, token, tmp_path / "s")
    assert nothing_written(tmp_path / "s")


def test_an_expired_token_is_reported_at_once(exports, token, tmp_path):
    exports.faults.append(fails(1, lambda *_: setattr(exports, "token", "new")))
    with pytest.raises(errors.AccessDenied, match="refuses the token") as caught:
        pull(exports, token, tmp_path / "s", stall_timeout=60)
    assert TOKEN not in str(caught.value)
    assert nothing_written(tmp_path / "s")


def test_a_redirect_is_not_given_the_token(exports, token, tmp_path):
    def elsewhere(handler, path, query):
        handler.answer(302, b"")
        return True

    exports.faults.append(elsewhere)
    with pytest.raises(errors.SourceError, match="redirects are not followed"):
        pull(exports, token, tmp_path / "s")


def test_a_backup_that_is_another_one_at_the_end_is_discarded(exports, token, tmp_path):
    """Its job has ended: the last reads may have been of the live disk."""

    def change(handler, path, query):
        if path.endswith("root/data"):
            exports.disks["root"].write(len(exports.disks["root"].data) - 512, bytes(512))
            exports.kind = "incremental"
        return False

    exports.faults.append(change)
    with pytest.raises(errors.JobLost, match="no longer the one"):
        pull(exports, token, tmp_path / "s")
    assert nothing_written(tmp_path / "s")


def test_a_stop_does_not_wait_for_a_silent_server(exports, token, tmp_path):
    """Threads wait for bytes: their connections are shut down."""
    go_on, asked = threading.Event(), threading.Event()

    def hang(handler, path, query):
        if path.endswith("data"):
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            handler.wfile.write(b"1\r\nx\r\n")
            asked.set()
            go_on.wait(30)
        return path.endswith("data")

    def check():
        if asked.is_set():
            raise errors.Interrupted(2)

    exports.faults.append(hang)
    urls = [f"{exports.url}/exports/{name}/map" for name in exports.disks]
    options = Options("kubevirt:prod/db", str(tmp_path / "s"), http_map=urls, token_file=token, type="full", threads=2)
    began = time.monotonic()
    with pytest.raises(errors.Interrupted):
        kubevirt.kubevirt(options, check=check)
    go_on.set()
    assert time.monotonic() - began < 20  # and not the 30 of an answer
    assert nothing_written(tmp_path / "s")


def test_requests_are_bounded(exports, token, tmp_path):
    pull(exports, token, tmp_path / "s")
    assert all(0 < query["length"] <= 16 << 20 for path, query in exports.asked if path.endswith("data"))
    assert all(query["length"] > 0 and query["page_size"] == 7 for path, query in exports.asked if path.endswith("map"))


def test_the_token_is_in_no_log_and_no_message(exports, token, tmp_path, capfd):
    urls = [f"--http-map={exports.url}/exports/{name}/map" for name in exports.disks]
    words = ["pull", "kubevirt:prod/db", "-o", str(tmp_path / "s"), *urls, "--token-file", token, "--type", "full"]
    exports.faults.append(fails(2, refuse))
    assert cli.main([*words, "-vv", "--log-file", str(tmp_path / "log"), "--json"]) == 0
    text = "".join(capfd.readouterr()) + (tmp_path / "log").read_text()
    assert "trying again" in text and TOKEN not in text
    assert '"ok": true' in text


@pytest.mark.parametrize(
    "words, message",
    [
        (["--since=x"], "--http-map"),
        (["--http-map=http://h/exports/root/map"], "--token-file"),
        (["--http-map=http://h/disk", "--token-file=T", "--type=full"], "VOLUME=URL"),
        (["--http-map=root=ftp://h/map", "--token-file=T", "--type=full"], "not an http or https URL"),
        (["--http-map=root=https://a..b/map", "--token-file=T", "--type=full"], "not an http or https URL"),
        (["--http-map=http://h/exports/{volume}/map", "--token-file=T", "--type=full"], "--disk"),
        (["--http-map=root=http://h/m", "--token-file=T", "--type=full"], "--http-data is missing"),
        (["--http-map=http://h/exports/root/map?x-kubevirt-export-token=1", "--token-file=T", "--type=full"], "secret"),
        (["--http-map=http://h/exports/root/map", "--token-file=NONE", "--type=full"], "cannot be read"),
        (["--http-map=http://h/exports/root/map", "--token-file=T", "--type=full", "--since=c"], "--since is for"),
        (["--http-map=http://h/exports/root/map", "--token-file=T", "--type=full", "--uuid=1"], "not a UUID"),
        (["--http-map=http://h/exports/root/map", "--token-file=T", "--type=full", "--ca=T"], "certificates"),
        (["--http-map=http://h/exports/root/map", "--token-file=T", "--type=full", "--ca=/dev/null"], "certificates"),
        (["--socket=/x"], "--socket is not for kubevirt:"),
        (["--no-checkpoint"], "--no-checkpoint is not for kubevirt:"),
    ],
)
def test_usage_errors(words, message, token, tmp_path, capfd):
    words = [word.replace("=T", f"={token}") for word in words]
    assert cli.main(["pull", "kubevirt:prod/db", "-o", str(tmp_path / "s"), *words]) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("domain", ["kubevirt:", "kubevirt:a", "kubevirt:a/", "kubevirt:a/b/c", "kubevirt:A/b"])
def test_domains_that_are_not_virtual_machines(domain, tmp_path, capfd):
    assert cli.main(["pull", domain, "-o", str(tmp_path / "s")]) == 2
    assert "kubevirt:NAMESPACE/VM" in capfd.readouterr().err


def test_options_of_kubevirt_are_refused_elsewhere(tmp_path, capfd):
    assert cli.main(["pull", "vm1", "-o", str(tmp_path / "s"), "--type=full"]) == 2
    assert "--type is for kubevirt:" in capfd.readouterr().err


@pytest.mark.parametrize(
    "maps, datas, names, found",
    [
        (["https://h/exports/a/map"], [], [], {"a": ("https://h/exports/a/map", "https://h/exports/a/data")}),
        (["a=https://h/m"], ["a=https://h/d"], [], {"a": ("https://h/m", "https://h/d")}),
        (["https://h/{volume}/map?x=1"], [], ["a", "b"],
         {name: (f"https://h/{name}/map?x=1", f"https://h/{name}/data?x=1") for name in "ab"}),
        (["https://h/{volume}/m"], ["https://g/{volume}"], ["a"], {"a": ("https://h/a/m", "https://g/a")}),
    ],
)  # fmt: skip
def test_how_endpoints_are_written(maps, datas, names, found):
    assert given.access(maps, datas, names, None).volumes == found


def test_a_token_that_others_may_read_is_a_warning(token):
    assert given.token(token) == (TOKEN, [])
    os.chmod(token, 0o644)
    assert "others can read" in given.token(token).warnings[0]


def test_a_token_goes_unencrypted_to_this_machine_only():
    access = given.access(["https://h/exports/a/map", "http://far/exports/b/map", "http://127.0.0.1/exports/c/map"],
                          [], [], None)  # fmt: skip
    assert given.unencrypted(access) == ["the token and the disks go to far unencrypted (http)"]


def test_types_of_backups_match_the_choices():
    assert set(WORDS) == set(BackupType.WORDS)
