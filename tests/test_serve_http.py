"""Serve over HTTP: the disks of a point in both formats, what is refused, damage in the middle, and the end."""

import http.client
import json
import random
import socket

import pytest
from http_points import TOKEN, served, token_file
from stores import MIB, Vm, chain, chunks_of, damaged, flipped

from nbdpull.core import errors
from nbdpull.operations import serve
from nbdpull.serving.http import auth


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("serve-http") / "store", points=3, size=2 * MIB + 512)


def asked(connection, path, **headers):
    connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}", **headers})
    answer = connection.getresponse()
    return answer.status, answer.read()


def over_tcp(events):
    return http.client.HTTPConnection(events[0]["url"].removeprefix("http://"), timeout=20)


class OverUnix(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def test_both_shapes_over_a_port(vm, tmp_path):
    point, parent = vm.points[1], vm.points[0]
    with served(vm, tmp_path, http="127.0.0.1:0", point=point.id) as events:
        first_line = events[0]
        assert (first_line["event"], first_line["point"], first_line["domain"]) == ("serving", point.id, vm.name)
        connection = over_tcp(events)
        for export in first_line["exports"]:
            name, expected = export["disk"], vm.images[point.id][export["disk"]]
            assert export["size"] == len(expected) and export["since"] == parent.id
            assert asked(connection, export["data"].removeprefix(first_line["url"])) == (200, expected)
            page = json.loads(asked(connection, export["map"].removeprefix(first_line["url"]))[1])
            assert (page["size"], page["backup_type"]) == (len(expected), "full")
            ticket = auth.Token(TOKEN.encode()).ticket(name)
            assert asked(connection, f"/images/{ticket}", Authorization="", Range="bytes=5-99") == (
                206,
                expected[5:100],
            )
            dirty = json.loads(asked(connection, f"/images/{ticket}/extents?context=dirty", Authorization="")[1])
            image = bytearray(vm.images[parent.id][name].ljust(len(expected), b"\xee")[: len(expected)])
            for each in dirty:
                if each["dirty"]:
                    part = slice(each["start"], each["start"] + each["length"])
                    image[part] = bytes(each["length"]) if each["zero"] else expected[part]
            assert image == expected
        connection.close()


def test_a_disk_over_a_unix_socket_and_its_end(vm, tmp_path):
    path = tmp_path / "socket"
    with served(vm, tmp_path, http=f"unix:{path}", disks=["vdb"]) as events:
        assert [each["disk"] for each in events[0]["exports"]] == ["vdb"] and path.stat().st_mode & 0o777 == 0o600
        connection = OverUnix(str(path))
        assert asked(connection, "/exports/vdb/data") == (200, vm.images[vm.points[-1].id]["vdb"])
        assert asked(connection, "/exports/vda/data")[0] == 404
        assert asked(connection, "/exports/vdb/data", Authorization="Bearer wrong-token")[0] == 401
        assert asked(connection, "/exportready", Authorization="")[0] == 200
        assert asked(connection, "/finish")[0] == 404, "it is for backups"
        connection.close()
    assert not path.exists()


def test_the_first_point_has_no_dirty_extents(vm, tmp_path):
    with served(vm, tmp_path, http="127.0.0.1:0", point=vm.points[0].id) as events:
        assert {each["since"] for each in events[0]["exports"]} == {None}
        connection = over_tcp(events)
        assert asked(connection, "/images/vda/extents?context=dirty")[0] == 404
        connection.close()


def test_a_damaged_frame_ends_the_answer_and_is_reported_once(tmp_path):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 8 * MIB)
    vm.write("vda", 0, random.Random(1).randbytes(8 * MIB))
    vm.pull(frame_size=MIB)
    expected = vm.images[vm.points[0].id]["vda"]
    chunk = vm.folder / chunks_of(vm, vm.points[0], "vda")[0].path
    with damaged(chunk, flipped(chunk.read_bytes(), 5 * MIB)), served(vm, tmp_path, http="127.0.0.1:0") as events:
        connection = over_tcp(events)
        for path in ("/exports/vda/data", "/images/vda"):
            connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
            answer = connection.getresponse()
            assert answer.getheader("Content-Length") == str(8 * MIB)
            got = b""
            with pytest.raises((http.client.IncompleteRead, ConnectionError)) as caught:
                got = answer.read()
            got = getattr(caught.value, "partial", got)
            assert expected.startswith(got) and len(got) < 6 * MIB
            connection.close()
        assert asked(connection, "/exports/vda/data", Range="bytes=0-99") == (206, expected[:100])
        connection.close()
    assert [each["event"] for each in events[1:]] == ["trouble"] and "damaged" in events[1]["message"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"http": "0.0.0.0:0"}, "--http 0.0.0.0:0 can be reached from other machines"),
        ({"http": "somewhere"}, "--http somewhere: write HOST:PORT"),
        ({"http": "127.0.0.1:0", "client_ca": "ca.pem"}, "--client-ca is for TLS"),
        ({"http": "127.0.0.1:0", "tls": "/nowhere"}, "--tls /nowhere"),
        ({"http": "127.0.0.1:0", "token_file": None}, "--http needs --token-file"),
        ({"http": "127.0.0.1:0", "token_file": "/nowhere"}, "--token-file /nowhere: No such file"),
        ({"http": "127.0.0.1:0", "writable": True}, "cannot be combined with --socket, --port or --writable"),
        ({"http": "127.0.0.1:0", "port": 10809}, "cannot be combined with --socket, --port or --writable"),
        ({}, "--token-file is for HTTP"),
        ({"token_file": None, "tls": "dir"}, "--tls is for HTTP"),
    ],
)
def test_options_that_exclude_each_other(vm, tmp_path, options, message):
    with pytest.raises(errors.UsageError, match=message):
        serve.serve(serve.Options(str(vm.root), **{"token_file": token_file(tmp_path), **options}))


def test_a_point_that_is_not_there(vm, tmp_path):
    with pytest.raises(errors.NoSuchPoint):
        serve.serve(
            serve.Options(str(vm.root), http="127.0.0.1:0", token_file=token_file(tmp_path), point="20200101T000000Z-0")
        )
