"""The object store of the tests itself: a witness must be right."""

import base64
import hashlib
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import botocore.exceptions
import object_store as object_stores
import pytest
from faulty_proxy import FaultyProxy, once

pytestmark = pytest.mark.e2e
TESTS = Path(__file__).parent


def put(place, name, data, client=None, **options):
    return (client or place.client).put_object(Bucket=place.bucket, Key=place.key(name), Body=data, **options)


def refused(call, *args, **options):
    """Return the code of the server's error."""
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(*args, **options)
    return caught.value.response["Error"]["Code"]


@pytest.fixture(params=["object_store", "rgw_store"])
def place(request):
    return request.getfixturevalue(request.param)


def test_a_place_is_empty_and_has_what_was_put_there(place):
    assert place.objects() == {}
    put(place, "vm/file", b"data")
    assert place.objects() == {"vm/file": 4}
    assert place.read("vm/file") == b"data"
    assert place.url == f"s3://{place.bucket}/{place.prefix}"


def test_an_object_is_created_once(place):
    put(place, "file", b"first", IfNoneMatch="*")
    assert refused(put, place, "file", b"second", IfNoneMatch="*") == "PreconditionFailed"
    assert place.read("file") == b"first"


def test_keys_that_the_server_does_not_know(place):
    stranger = object_stores.client(place.server.endpoint, ("stranger", "secret"))
    assert refused(put, place, "file", b"data", stranger) == "InvalidAccessKeyId"


def test_what_was_acknowledged_survives_a_kill(place):
    put(place, "file", b"data")
    place.server.kill()
    with pytest.raises(botocore.exceptions.EndpointConnectionError):
        place.objects()
    place.server.start()
    assert place.read("file") == b"data"


def test_a_wrong_checksum_is_refused(object_store):
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    assert refused(put, object_store, "file", b"data", ChecksumSHA256=wrong) == "BadDigest"
    assert object_store.objects() == {}


def test_a_bucket_that_is_not_there_is_not_made(object_store):
    assert refused(object_store.client.put_object, Bucket="no-such-bucket", Key="file", Body=b"") == "NoSuchBucket"


def test_the_environment_has_the_keys_and_the_place(object_store):
    """For whatever uses boto3, in a process of its own."""
    put(object_store, "file", b"data")
    program = (
        "import boto3, sys; print(boto3.client('s3').get_object(Bucket=sys.argv[1], Key=sys.argv[2])['Body'].read())"
    )
    line = [sys.executable, "-c", program, object_store.bucket, object_store.key("file")]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout == "b'data'\n"


def test_unknown_keys_open_nothing(object_store):
    nobody = object_stores.client(object_store.server.endpoint, object_stores.NOBODY)
    assert refused(put, object_store, "file", b"data", nobody) == "AccessDenied"
    wrong = object_stores.client(object_store.server.endpoint, (object_stores.ROOT[0], "wrong"))
    assert refused(put, object_store, "file", b"data", wrong) == "SignatureDoesNotMatch"


def test_a_paused_server_continues(object_store):
    with object_store.server.paused():
        state = Path(f"/proc/{object_store.server.pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert state == "T"
    put(object_store, "file", b"data")
    assert object_store.objects() == {"file": 4}


def test_a_lost_answer_is_that_of_something_done(object_store):
    """A client that repeats a request has to know that."""
    with FaultyProxy(object_store.server.port, once("lost", "PUT", "/file")) as proxy:
        client = object_stores.client(proxy.endpoint)
        with pytest.raises(botocore.exceptions.HTTPClientError):
            put(object_store, "file", b"data", client, IfNoneMatch="*")
        assert refused(put, object_store, "file", b"data", client, IfNoneMatch="*") == "PreconditionFailed"
        assert client.get_object(Bucket=object_store.bucket, Key=object_store.key("file"))["Body"].read() == b"data"
    assert [(each.method, each.fault) for each in proxy.requests] == [("PUT", "lost"), ("PUT", None), ("GET", None)]


def test_a_server_ends_with_the_process_that_started_it():
    """However that process ends."""
    program = (
        "import object_store, sys, time; server = object_store.SeaweedFS(); server.spawn(); "
        "print(server.pid, server.folder, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    line = [sys.executable, "-c", program]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        pid, folder = parent.stdout.readline().split()
        server = os.pidfd_open(int(pid))
        try:
            assert select.select([server], [], [], 0) == ([], [], [])
            parent.kill()
            assert select.select([server], [], [], 20) == ([server], [], [])
        finally:
            os.close(server)
            shutil.rmtree(folder)


def test_leftovers_of_a_killed_worker_are_removed_by_the_next_server(tmp_path):
    """And nothing of one that is alive."""
    living, socket = object_stores.Server(), tmp_path / "socket"
    socket.touch()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            dead = object_stores.Server()
            (dead.folder / "sockets").write_text(f"{socket}\n")
            os.write(writing, os.fsencode(dead.folder))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    folder = Path(os.fsdecode(os.read(reading, 1000)))
    os.close(reading)
    os.close(writing)
    assert folder.exists()
    try:
        object_stores.Server().close()
        assert living.folder.exists() and not folder.exists() and not socket.exists()
    finally:
        living.close()
