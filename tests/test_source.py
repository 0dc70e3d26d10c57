"""A source: real NBD servers on Unix sockets, good ones, failing ones, and one with wrong answers."""

import os
import random
import signal
import socket
import subprocess
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bed.address import free_port, is_listening
from bed.machine import wait_for
from fake_nbd import FakeServer
from threads import at_once

from nbdpull.core import errors, extents
from nbdpull.core.extents import DATA, ZERO
from nbdpull.nbd import address, batching, connection, source, source_connection
from nbdpull.nbd.source import Source

KIB, MIB = 1 << 10, 1 << 20
CLUSTER = 64 * KIB
SIZE = 8 * MIB


# -- real servers -----------------------------------------------------------------------------------------------------


class Server:
    """An NBD server program with its socket; ends with the test."""

    def __init__(self, folder, *command):
        self.socket = str(folder / f"nbd-{random.getrandbits(32):x}.sock")
        self.process = subprocess.Popen([part if part != "SOCKET" else self.socket for part in command])
        wait_for(self._listens, f"{command[0]} listens")

    def _listens(self):
        assert self.process.poll() is None, "it ended at once"
        return is_listening(self.socket)

    def end(self):
        """nbdkit's eval leaves its directory of scripts if it is killed; the others wait for their clients unless they
        are killed."""
        self.process.send_signal(signal.SIGTERM if "eval" in self.process.args else signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def serve(tmp_path):
    made = []

    def start(*command):
        made.append(Server(tmp_path, *command))
        return made[-1]

    yield start
    for server in made:
        server.end()


@pytest.fixture
def qemu_nbd(serve):
    def start(image, *options, read_only=True):
        only = ["-r"] if read_only else []
        return serve("qemu-nbd", *only, "-t", "-e", "8", "-x", "vda", *options, "-k", "SOCKET", str(image)).socket

    return start


@pytest.fixture
def nbdkit(serve):
    def start(*arguments):
        return serve("nbdkit", "-f", "-r", "--exit-with-parent", "-U", "SOCKET", *arguments)

    return start


def run(*command):
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def qemu_io(image, *commands):
    run("qemu-io", "-d", "unmap", "-f", "qcow2", *(part for command in commands for part in ("-c", command)), image)


def content_of(image):
    raw = Path(f"{image}.raw")
    run("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", image, raw)
    return raw.read_bytes()


@pytest.fixture
def image(tmp_path):
    """A qcow2 with data, zeroes and unallocated clusters, then a bitmap `b0` that records what follows."""
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", path, SIZE)
    qemu_io(path, "write -P 1 0 2M", "write -P 2 3M 1M", "write -z 4M 1M")
    run("qemu-img", "bitmap", "--add", path, "b0")
    return path


def mapped(opened):
    return [tuple(map(int, extent)) for batch in opened.extents() for extent in batch]


# -- extents ----------------------------------------------------------------------------------------------------------


def test_a_full_read(image, qemu_nbd):
    with Source(qemu_nbd(image), "vda") as opened:
        assert opened.size == SIZE
        assert mapped(opened) == [
            (0, 2 * MIB, DATA), (2 * MIB, MIB, ZERO), (3 * MIB, MIB, DATA), (4 * MIB, 4 * MIB, ZERO)
        ]  # fmt: skip


def nothing(_start, _stop):
    """Report no data where an image has some."""
    return extents.of([])


def test_dirty_data_and_dirty_zeroes(image, qemu_nbd):
    """What became zero since the checkpoint must be reported: otherwise the restored disk would hold the old data."""
    qemu_io(image, "write -P 3 64k 64k", "write -z 512k 128k", "discard 3M 64k", "write -P 9 8323072 64k")
    with Source(qemu_nbd(image, "-B", "b0"), "vda", "b0", held=nothing) as opened:
        assert mapped(opened) == [
            (64 * KIB, 64 * KIB, DATA), (512 * KIB, 128 * KIB, ZERO), (3 * MIB, 64 * KIB, ZERO),
            (SIZE - 64 * KIB, 64 * KIB, DATA),
        ]  # fmt: skip


def test_nothing_dirty(image, qemu_nbd):
    with Source(qemu_nbd(image, "-B", "b0"), "vda", "b0", held=nothing) as opened:
        assert mapped(opened) == []


def test_the_end_of_the_clean_data_is_reported_above_a_backing_image(image, qemu_nbd):
    """Source describes what QEMU does there; a bit of 64 KiB in the middle of a larger cluster does not change that."""
    last = 4 * MIB
    qemu_io(image, f"write -P 3 {last - 4 * CLUSTER} 64k")
    data = extents.of(each for each in whole(image, qemu_nbd) if each[2] == DATA)
    first = int(extents.ends(data)[-1]) - source.MAX_CLUSTER
    expected = extents.clip(data, first, last).tolist()
    with Source(qemu_nbd(image, "-B", "b0"), "vda", "b0", held=nothing, layered=True) as opened:
        assert [each for each in mapped(opened) if each[2] == DATA] == expected != []
        assert opened.presumed == sum(length for _, length, _ in expected) - CLUSTER


def whole(image, qemu_nbd):
    with Source(qemu_nbd(image), "vda") as opened:
        return mapped(opened)


def test_all_zeroes_are_reported_if_the_base_is_unknown(image, qemu_nbd):
    address = qemu_nbd(image, "-B", "b0")
    with Source(address, "vda") as whole, Source(address, "vda", "b0") as opened:
        zeroes = [found for found in mapped(whole) if found[2] == ZERO]
        found = mapped(opened)
        assert [each for each in found if each[2] == ZERO] == zeroes != []
        assert opened.presumed == sum(length for _, length, _ in found)


@pytest.mark.parametrize("seed", range(6))
def test_extents_and_bytes_lead_from_the_old_image_to_the_new(image, qemu_nbd, monkeypatch, seed):
    rng = random.Random(seed)
    set_window(monkeypatch, rng.choice([1 << 30, MIB, 3 * CLUSTER + 512]))
    disk = bytearray(content_of(image))
    commands = []
    for _ in range(12):
        unit = rng.choice([512, CLUSTER])
        at = rng.randrange(SIZE // unit) * unit
        length = min(rng.randrange(1, 12) * unit, SIZE - at)
        command = rng.choice([f"write -P {rng.randrange(256)}", "write -z", "discard"])
        commands.append(f"{command} {at} {length}")
    qemu_io(image, *commands)
    with Source(qemu_nbd(image, "-B", "b0"), "vda", "b0") as opened:
        for offset, length, kind in mapped(opened):
            disk[offset : offset + length] = opened.read(offset, length) if kind == DATA else bytes(length)
    assert bytes(disk) == content_of(image)


def test_windows_make_no_difference(image, qemu_nbd, monkeypatch):
    address = qemu_nbd(image)
    with Source(address, "vda") as opened:
        whole = mapped(opened)
    for window in (8 * 512, 1000 * 512, CLUSTER):
        set_window(monkeypatch, window)
        with Source(address, "vda") as opened:
            assert mapped(opened) == whole


def test_a_size_that_is_no_multiple_of_anything(tmp_path, qemu_nbd):
    raw = tmp_path / "disk.raw"
    raw.write_bytes(b"x" * (MIB + 512))
    with Source(qemu_nbd(raw, "-f", "raw"), "vda") as opened:
        assert opened.size == MIB + 512
        assert mapped(opened) == [(0, MIB + 512, DATA)]
        assert opened.read(MIB, 512) == b"x" * 512


def test_a_hole_is_not_zero_by_itself(nbdkit):
    """NBD's HOLE promises nothing about the content; only ZERO does."""
    server = nbdkit(
        "eval", "get_size=echo 1M", "pread=dd if=/dev/zero count=$3 iflag=count_bytes status=none",
        "can_extents=exit 0",
        "extents=echo 0 256K hole; echo 256K 256K hole,zero; echo 512K 256K zero; echo 768K 256K",
    )  # fmt: skip
    with Source(server.socket, "") as opened:
        assert mapped(opened) == [(0, 256 * KIB, DATA), (256 * KIB, 512 * KIB, ZERO), (768 * KIB, 256 * KIB, DATA)]


def test_a_small_part_of_the_map_takes_a_small_request(lying):
    """One page of it may be enough; QEMU answers in the thread that serves the guest."""
    asked = []

    def status(context, offset, length):
        asked.append(length)
        return [(65536, connection.STATE_ZERO * (at % 2)) for at in range(length // 65536)]

    with Source(lying(status, size=1 << 30), "x") as opened:
        extents = opened.extents()
        assert next(extents)["length"][0] == 65536
        extents.close()
    assert asked[0] == batching.MIN_STATUS


# -- bytes ------------------------------------------------------------------------------------------------------------


def set_window(monkeypatch, size):
    """Request the block status of that many bytes at once, however long it takes."""
    for name in ("MIN_STATUS", "MAX_STATUS"):
        monkeypatch.setattr(batching, name, size)


def test_reading_by_many_threads(tmp_path, qemu_nbd):
    raw = tmp_path / "disk.raw"
    raw.write_bytes(random.Random(1).randbytes(4 * MIB))
    expected, wrong = raw.read_bytes(), []
    with Source(qemu_nbd(raw, "-f", "raw"), "vda") as opened:

        def work(seed):
            rng = random.Random(seed)
            for _ in range(10):
                starts = sorted(place * 9216 for place in rng.sample(range(455), rng.choice([1, 5, 40])))
                with opened.reading() as reader:
                    views = reader.read_batch([(start, min(9000, len(expected) - start)) for start in starts])
                    wrong.extend(s for s, view in zip(starts, views) if bytes(view) != expected[s : s + len(view)])

        at_once(work, range(4))
    assert wrong == []


class Counted:
    """A libnbd handle that records the most reads, and bytes of them, that were in flight at once."""

    def __init__(self, handle):
        self._handle, self._under_way = handle, {}
        self.reads = self.bytes = 0

    def __getattr__(self, name):
        return getattr(self._handle, name)

    def aio_pread(self, view, offset):
        cookie = self._handle.aio_pread(view, offset)
        self._under_way[cookie] = len(view)
        self.reads = max(self.reads, len(self._under_way))
        self.bytes = max(self.bytes, sum(self._under_way.values()))
        return cookie

    def aio_command_completed(self, cookie):
        ended = self._handle.aio_command_completed(cookie)
        if ended:
            del self._under_way[cookie]
        return ended


@pytest.mark.parametrize("seed", range(8))
def test_reads_at_once_are_bounded_and_change_nothing(tmp_path, qemu_nbd, monkeypatch, seed):
    rng = random.Random(seed)
    content, raw = rng.randbytes(2 * MIB), tmp_path / "disk.raw"
    raw.write_bytes(content)
    most_bytes, most_reads = rng.choice([512, 100 * 512, 256 * KIB]), rng.choice([1, 3, 16])
    monkeypatch.setattr(source_connection, "MAX_BATCH_BYTES", most_bytes)
    edges = sorted(512 * place for place in rng.sample(range(4096), 2 * rng.randint(1, 12)))
    ranges = [(start, stop - start) for start, stop in zip(edges[::2], edges[1::2])]
    address = qemu_nbd(raw, "-f", "raw")
    with Source(address, "vda", reads_at_once=most_reads) as opened, opened.reading() as reader:
        [used] = [each.connection for each in reader._readers]
        counted = used._nbd = Counted(used._nbd)
        views = reader.read_batch(ranges)
        assert [bytes(view) for view in views] == [content[start : start + length] for start, length in ranges]
        assert reader.read_batch([]) == []
    assert 0 < counted.bytes <= most_bytes and 0 < counted.reads <= most_reads


@pytest.mark.parametrize("seed", range(8))
def test_a_buffer_is_filled_over_several_connections(tmp_path, qemu_nbd, monkeypatch, seed):
    """Each has no more in flight than if it were the only one, and one is left for the map."""
    rng = random.Random(seed)
    content, raw = rng.randbytes(2 * MIB), tmp_path / "disk.raw"
    raw.write_bytes(content)
    most_bytes, count = rng.choice([16 * KIB, 100 * 512, 256 * KIB]), rng.randint(1, 7)
    monkeypatch.setattr(source_connection, "MAX_BATCH_BYTES", most_bytes)
    with Source(qemu_nbd(raw, "-f", "raw"), "vda", connections=count) as opened:
        counted = [Counted(each._nbd) for each in opened._opened]
        for each, handle in zip(opened._opened, counted):
            each._nbd = handle
        for _ in range(5):
            start = 512 * rng.randrange(4096)
            found = bytearray(rng.choice([0, 512, rng.randrange(2 * MIB - start)]))
            opened.read_into(start, memoryview(found))
            assert found == content[start : start + len(found)]
        with opened.reading() as reader:
            edges = sorted(512 * place for place in rng.sample(range(4096), 2 * rng.randint(1, 40)))
            ranges = [(start, stop - start) for start, stop in zip(edges[::2], edges[1::2])]
            views = reader.read_batch(ranges)
            assert [bytes(view) for view in views] == [content[start : start + length] for start, length in ranges]
        opened.read_into(0, memoryview(found := bytearray(2 * MIB)))
        assert found == content
    assert max(each.bytes for each in counted) <= most_bytes
    assert sum(each.reads > 0 for each in counted) == max(1, min(source.SPREAD, count - 1))


@pytest.fixture
def steps_of(tmp_path, qemu_nbd):
    """Factory: a Source over some connections, and its content."""

    def start(connections):
        content, raw = random.Random(connections).randbytes(2 * MIB), tmp_path / "disk.raw"
        raw.write_bytes(content)
        return Source(qemu_nbd(raw, "-f", "raw", "-e", "16"), "vda", connections=connections), content

    return start


@pytest.mark.parametrize("seed", range(8))
def test_buffers_are_filled_in_two_steps(steps_of, seed):
    """Some are given up after the first: then their connections serve the next."""
    rng = random.Random(seed)
    connections = rng.randint(1, 12)
    opened, content = steps_of(connections)
    with opened:
        first, under_way = [*opened._opened], []
        for _ in range(60):
            start = rng.randrange(2 * MIB)
            found = bytearray(rng.randrange(2 * MIB - start))
            steps = opened.filling(start, memoryview(found))
            is_requested = next(steps)
            useful = min(max(-(-len(found) // source_connection.MAX_BATCH_BYTES), 1), source.SPREAD)
            assert is_requested == (connections - sum(each[3] for each in under_way) > useful)
            under_way.append((steps, start, found, useful * is_requested))
            while under_way and rng.random() < 0.6:
                steps, start, found, _ = under_way.pop(rng.randrange(len(under_way)))
                if rng.random() < 0.3:
                    steps.close()
                elif len(opened._free):
                    assert next(steps, None) is None and found == content[start : start + len(found)]
        for steps, *_ in under_way:
            steps.close()
        assert len(opened._free) == connections and opened._opened == first


@pytest.fixture
def over_tcp(tmp_path):
    """The address of a server, and its content."""
    raw, port = tmp_path / "disk.raw", free_port()
    raw.write_bytes(content := random.Random(1).randbytes(2 * MIB))
    server = subprocess.Popen(
        ["qemu-nbd", "-r", "-t", "-e", "16", "-f", "raw", "-b", "127.0.0.1", "-p", str(port), raw]
    )
    try:
        wait_for(lambda: is_listening(port), "qemu-nbd listens")
        yield address.Tcp("127.0.0.1", port), content
    finally:
        server.kill()
        server.wait()


def test_nothing_is_requested_in_advance_over_tcp(over_tcp):
    """It might not fit into the sockets, and QEMU would hang while it waits."""
    server, content = over_tcp
    with Source(server, "", connections=9) as opened:
        steps = opened.filling(0, memoryview(found := bytearray(MIB)))
        assert next(steps) is False and len(opened._free) == 9
        assert next(steps, None) is None and found == content[:MIB]


def test_a_connection_that_breaks_between_two_steps(steps_of):
    opened, content = steps_of(9)
    with opened:
        steps = [opened.filling(start, memoryview(bytearray(MIB))) for start in (0, MIB)]
        found = bytearray(MIB)
        steps[0] = opened.filling(0, memoryview(found))
        assert [*map(next, steps)] == [True, True]
        for each in opened._opened:
            source_connection._hang_up(each._nbd)
        assert next(steps[0], None) is None and found == content[:MIB]
        steps[1].close()
        assert opened.read(MIB, MIB) == content[MIB:]


def test_the_end_waits_for_nobody_between_two_steps(steps_of):
    opened, _ = steps_of(9)
    one, other = steps = [opened.filling(0, memoryview(bytearray(MIB))) for _ in range(2)]
    assert [*map(next, steps)] == [True, True]
    opened._handshake = 60.0  # seconds that `close` waits for threads at work
    opened.close()
    with pytest.raises(errors.SourceError, match="vda: the source was closed"):
        next(one)
    other.close()


def test_threads_that_read_in_two_steps_wait_for_each_other_never_in_a_circle(steps_of):
    opened, content = steps_of(9)

    def work(number):
        rng = random.Random(number)
        for _ in range(30):
            start = rng.randrange(MIB)
            found = [bytearray(rng.randrange(512 * KIB)) for _ in range(2)]
            steps = [opened.filling(start, memoryview(each)) for each in found]
            for each in steps:
                next(each)
            for each, got in zip(steps, found):
                next(each, None)
                assert got == content[start : start + len(got)]

    with opened:
        at_once(work, range(6))


def test_more_requests_are_in_flight_over_tcp(over_tcp):
    server, content = over_tcp
    with Source(server, "") as opened, opened.reading() as reader:
        [used] = [each.connection for each in reader._readers]
        counted = used._nbd = Counted(used._nbd)
        assert bytes(reader.read_batch([(0, 2 * MIB)])[0]) == content
    assert source_connection.MAX_BATCH_BYTES < counted.bytes <= source_connection.FAR_BATCH_BYTES


def test_a_thread_has_one_buffer_however_many_disks(image, qemu_nbd):
    address = qemu_nbd(image)
    with Source(address, "vda") as one, Source(address, "vda") as other:
        with one.reading() as reader:
            first = reader.read_batch([(0, MIB)])[0]
            assert bytes(first) == b"\1" * MIB
        with other.reading() as reader:
            second = reader.read_batch([(3 * MIB, MIB)])[0]
            assert bytes(second) == b"\2" * MIB
        assert first.obj is second.obj


def test_no_more_connections_than_threads(image, qemu_nbd):
    """qemu-nbd accepts eight; a free one is used again."""
    with Source(qemu_nbd(image), "vda") as opened:
        for at in range(30):
            assert opened.read(at * 512, 512) == b"\x01" * 512


# -- connections ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path):
    """Factory of FakeServers with right answers, by their path."""
    servers = {}

    def start(**how):
        path = str(tmp_path / f"fake-{len(servers)}")
        servers[path] = FakeServer(path, MIB, truth, **how).__enter__()
        return path, servers[path]

    yield start
    for server in servers.values():
        server.__exit__()


def test_all_connections_are_made_before_anything_is_asked(fake):
    """A QEMU whose server is stopped during a handshake may hang forever: so there is none later on."""
    address, server = fake(slow=0.01)
    with Source(address, "x", connections=5) as opened:
        assert server.handshakes() == ["whole"] * 5 and not server.asked

        def work():
            for at in range(20):
                assert opened.read(at * 512, 512) == bytes(512)

        with ThreadPoolExecutor(12) as pool:  # more than there are connections
            done = [pool.submit(work) for _ in range(12)]
            assert mapped(opened) == [(0, MIB, DATA)]
            for each in done:
                each.result()
        assert server.asked > 200 and server.clients == 5


class Stop(Exception):
    """The exception that a check raises."""


def test_a_handshake_is_not_aborted(fake):
    """A signal, or the failure of another disk, waits for its end."""
    address, server = fake(slow=0.2)

    def check():
        if server.clients:
            raise Stop

    with pytest.raises(Stop):
        Source(address, "x", connections=3, check=check)
    assert set(server.handshakes()) == {"whole"}


def test_a_handshake_that_does_not_end_is_waited_for_a_moment(tmp_path):
    def check():
        if time.monotonic() > began + 0.3:
            raise Stop

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(8)
        began = time.monotonic()
        with pytest.raises(Stop):
            Source(str(tmp_path / "s"), "x", connections=3, check=check)
        assert source_connection.HANDSHAKE < time.monotonic() - began < source_connection.HANDSHAKE + 4


def test_closing_waits_for_the_handshake_of_another_thread(fake):
    """Whoever closes the source then ends the job."""
    address, server = fake(slow=0.1)
    opened = Source(address, "x", connections=1)
    with pytest.raises(Stop), opened.reading():
        raise Stop  # the next one makes a connection anew
    failed = []

    def read():
        try:
            opened.read(0, 512)
        except errors.SourceError as error:
            failed.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    wait_for(lambda: server.clients == 2, "a second handshake")
    opened.close()
    assert server.handshakes() == ["whole"] * 2
    thread.join()
    assert failed == ["x: the source was closed"]


def test_a_server_with_a_short_queue(fake):
    """The default of older ones. Linux refuses the next client at once then."""
    address, server = fake(slow=0.05, queue=0)
    with Source(address, "x", connections=6) as opened:
        assert opened.read(0, 512) == bytes(512) and server.handshakes() == ["whole"] * 6


# -- what is refused --------------------------------------------------------------------------------------------------


def refused(message, *arguments, **options):
    with pytest.raises(errors.SourceError, match=message) as caught, Source(*arguments, **options) as opened:
        list(opened.extents())
    assert caught.value.exit_code == 6
    return caught.value


def test_no_server(tmp_path):
    refused("vda: connecting failed", str(tmp_path / "none"), "vda")


def test_no_such_export(image, qemu_nbd):
    refused("vdz: connecting failed", qemu_nbd(image), "vdz")


def test_a_bitmap_that_is_not_served(image, qemu_nbd):
    """Without the context, every block would look clean: an empty point without changes."""
    refused("vda: .*does not offer qemu:dirty-bitmap:b0", qemu_nbd(image), "vda", "b0")


def test_another_bitmap(image, qemu_nbd):
    run("qemu-img", "bitmap", "--add", image, "b1")
    refused("does not offer qemu:dirty-bitmap:b0", qemu_nbd(image, "-B", "b1"), "vda", "b0")


def test_a_server_without_contexts(nbdkit):
    refused("does not offer base:allocation", nbdkit("--no-sr", "memory", "1M").socket, "")


def test_a_writable_export(image, qemu_nbd):
    refused("vda: the export is writable", qemu_nbd(image, read_only=False), "vda")


# -- servers that fail ------------------------------------------------------------------------------------------------


def test_a_read_error(nbdkit):
    server = nbdkit("--filter=error", "memory", "1M", "error-pread=EIO", "error-pread-rate=100%")
    with Source(server.socket, "") as opened, pytest.raises(errors.SourceError, match="reading at byte 4096 failed"):
        opened.read(4096, 512)


def test_one_read_error_among_many(nbdkit):
    server = nbdkit(
        "eval", "get_size=echo 1M",
        "pread=if [ $4 -ge 524288 ]; then echo EIO >&2; exit 1; fi; head -c $3 /dev/zero",
    )  # fmt: skip
    with Source(server.socket, "") as opened:
        with pytest.raises(errors.SourceError), opened.reading() as reader:
            reader.read_batch([(at * 32 * KIB, 512) for at in range(32)])
        assert opened.read(0, 512) == bytes(512), "a connection after an error is not used again"


def test_a_read_error_in_a_buffer_over_several_connections(nbdkit, monkeypatch):
    """The error names the place, and the other connections can be used for the next read."""
    monkeypatch.setattr(source_connection, "MAX_BATCH_BYTES", 64 * KIB)
    server = nbdkit(
        "eval", "get_size=echo 1M",
        "pread=[ $4 -gt 524288 ] || [ $(($4 + $3)) -le 524288 ] || { echo EIO >&2; exit 1; }; head -c $3 /dev/zero",
    )  # fmt: skip
    with Source(server.socket, "", connections=5) as opened:
        before = list(opened._opened)
        with pytest.raises(errors.SourceError, match="524288 failed, these bytes cannot be read: 524288 to 528383"):
            opened.read_into(0, memoryview(bytearray(MIB)))
        opened.read_into(528384, memoryview(found := bytearray(b"\1" * 4096)))
        assert found == bytes(4096) and len(set(before) & set(opened._opened)) == 4


def test_a_block_status_error(nbdkit):
    server = nbdkit("--filter=error", "memory", "1M", "error-extents=EIO", "error-extents-rate=100%")
    refused("block status", server.socket, "")


def gives_up(work):
    """Run `work`; return its SourceError."""
    with pytest.raises(errors.SourceError) as caught:
        work()
    return caught.value


@pytest.fixture
def hurry(monkeypatch):
    """Call this when everything is well: a minute of a connection then takes 0.6 s. So no server is silent that long by
    chance."""

    def faster():
        began = time.monotonic()
        clock = types.SimpleNamespace(monotonic=lambda: began + 100 * (time.monotonic() - began), sleep=time.sleep)
        monkeypatch.setattr(source_connection, "time", clock)
        monkeypatch.setattr(connection, "time", clock)

    return faster


def test_a_server_that_delays_reads(nbdkit, hurry):
    server = nbdkit("--filter=delay", "memory", "1M", "rdelay=60")
    with Source(server.socket, "") as opened:
        hurry()
        assert "was silent for 60 s" in str(gives_up(lambda: opened.read(0, 512)))


def test_a_server_that_delays_block_status(nbdkit, hurry):
    server = nbdkit("--filter=delay", "memory", "1M", "delay-extents=60")
    with Source(server.socket, "") as opened:
        hurry()
        assert "was silent" in str(gives_up(lambda: list(opened.extents())))


def test_a_slow_server_does_not_count_as_stalled(lying, monkeypatch):
    """The time counts from the last answer, not from the start of a long batch."""
    clock = types.SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=time.sleep)

    def slow(offset, length):
        clock.now += 15
        return bytes(length)

    with Source(lying(truth, read=slow), "x") as opened, opened.reading() as reader:
        monkeypatch.setattr(connection, "time", clock)
        ranges = [(at * 64 * KIB, 512) for at in range(12)]  # too far apart to be read at once
        assert [bytes(v) for v in reader.read_batch(ranges)] == [bytes(512)] * 12
    assert clock.now == 12 * 15 > 60


@pytest.mark.parametrize("doing", ["reading", "block status", "connecting again"])
def test_a_stopped_server(image, serve, hurry, doing):
    """Closing does not wait for it, either."""
    server = serve("qemu-nbd", "-r", "-t", "-e", "8", "-x", "vda", "-k", "SOCKET", str(image))
    with Source(server.socket, "vda") as opened:
        if doing == "reading":
            opened.read(0, 512)
        os.kill(server.process.pid, signal.SIGSTOP)
        hurry()
        work = {
            "reading": lambda: opened.read(0, 512),
            "block status": lambda: list(opened.extents()),
            "connecting again": lambda: Source(server.socket, "vda"),
        }[doing]
        assert "was silent" in str(gives_up(work))


def test_a_listener_that_never_speaks(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        error = gives_up(lambda: Source(str(tmp_path / "s"), "vda", stall_timeout=0.5))
    assert "silent" in str(error) and "connecting" in str(error)


@pytest.mark.parametrize("doing", ["reading", "block status"])
def test_a_server_that_dies(nbdkit, doing):
    server = nbdkit("--filter=delay", "memory", "1M", "rdelay=60", "delay-extents=60")
    with Source(server.socket, "", stall_timeout=30) as opened:
        killer = threading.Timer(0.3, server.process.kill)
        killer.start()
        work = {"reading": lambda: opened.read(0, 512), "block status": lambda: list(opened.extents())}[doing]
        assert "silent" not in str(gives_up(work))
        killer.join()


def test_a_server_that_died_before(nbdkit):
    server = nbdkit("memory", "1M")
    with Source(server.socket, "") as opened:
        server.end()
        gives_up(lambda: opened.read(0, 512))


# -- a server that lies -----------------------------------------------------------------------------------------------


@pytest.fixture
def lying(tmp_path):
    servers = []

    def start(status, size=MIB, **how):
        path = tmp_path / f"lie-{len(servers)}"
        servers.append(FakeServer(path, size, status, **how).__enter__())
        return str(path)

    yield start
    for server in servers:
        server.__exit__()


BITMAP = source.DIRTY_BITMAP + "b0"


def truth(context, offset, length):
    return [(length, 0 if context == connection.ALLOCATION else 1)]


def test_the_fake_server_can_tell_the_truth(lying):
    with Source(lying(truth, read=lambda offset, length: b"%c" % (offset >> 16) * length), "x", "b0") as opened:
        assert mapped(opened) == [(0, MIB, DATA)]
        assert opened.read(5 << 16, 100) == b"\x05" * 100


def test_replies_of_unequal_length(lying):
    """Each context may answer for less than was requested, and for more than the other."""

    def status(context, offset, length):
        unit = 96 * KIB if context == connection.ALLOCATION else 160 * KIB
        flags = connection.STATE_ZERO if context == connection.ALLOCATION and offset % (192 * KIB) == 0 else 1
        return [(min(unit, length), flags)]

    with Source(lying(status), "x", "b0") as opened:
        found = mapped(opened)
    assert sum(length for _, length, _ in found) == MIB
    assert found[0] == (0, 96 * KIB, ZERO)


def test_a_reply_beyond_what_was_asked_counts_no_further(lying, monkeypatch):
    """The last extent may exceed the request; the next request may be answered differently."""
    set_window(monkeypatch, 256 * KIB)

    def status(context, offset, length):
        return [(1024 * KIB - offset, connection.STATE_ZERO if offset < 512 * KIB else 0)]

    with Source(lying(status), "x") as opened:
        assert mapped(opened) == [(0, 512 * KIB, ZERO), (512 * KIB, 512 * KIB, DATA)]


@pytest.mark.parametrize("context", [connection.ALLOCATION, BITMAP])
@pytest.mark.parametrize(
    "answer",
    [None, [(0, 0)], [(0, 0), (0, 1)], FakeServer.HANG_UP],
    ids=["none", "an empty run", "two empty runs", "hang up"],
)
@pytest.mark.parametrize("after", [0, 512 * KIB])
def test_a_map_that_does_not_cover_the_disk(lying, context, answer, after):
    def status(name, offset, length):
        return answer if name == context and offset >= after else [(min(length, 256 * KIB), 1)]

    assert "silent" not in str(gives_up(lambda: mapped(Source(lying(status), "x", "b0"))))


@pytest.mark.parametrize("sent", [0, 511, 32 * KIB])
def test_an_answer_that_is_too_short(lying, sent):
    """libnbd reports success to a completion callback, and leaves in the buffer what it held."""
    address = lying(truth, read=lambda offset, length: bytes(length if offset == 0 else min(sent, length // 2)))
    with Source(address, "x") as opened, opened.reading() as reader:
        reader.read_batch([(0, 64 * KIB)])
        with pytest.raises(errors.SourceError, match="reading at byte 131072 failed, these bytes cannot"):
            reader.read_batch([(0, 64 * KIB), (128 * KIB, 64 * KIB)])


def into_a_buffer(opened, length):
    opened.read_into(0, memoryview(found := bytearray(length)))
    return found


def as_a_batch(opened, length):
    with opened.reading() as reader:
        return b"".join(reader.read_batch([(0, length // 4), (length // 4, length - length // 4)]))


@pytest.mark.parametrize("read_whole", [into_a_buffer, as_a_batch])
@pytest.mark.parametrize("dead", [False, True])
def test_a_buffer_whose_connection_breaks_is_read_again(lying, monkeypatch, dead, read_whole):
    """And no connection is made to an export that may no longer be the same."""
    monkeypatch.setattr(source_connection, "MAX_BATCH_BYTES", 64 * KIB)
    broken, asked = [], []

    def read(offset, length):
        if offset == 512 * KIB and not broken:
            broken.append(offset)
            return FakeServer.HANG_UP
        return b"%c" % (offset >> 16) * length

    def alive():
        asked.append(len(broken))
        if dead:
            raise errors.JobLost("it is gone")

    with Source(lying(truth, read=read), "x", connections=5, require_alive=alive) as opened:
        if dead:
            with pytest.raises(errors.JobLost):
                read_whole(opened, MIB)
        else:
            assert read_whole(opened, MIB) == b"".join(b"%c" % at * (64 * KIB) for at in range(16))
    assert asked and set(asked) == {1}


def test_an_answer_that_is_too_short_in_a_buffer(lying):
    """What the buffer held is not taken for the disk's data."""
    short = lying(truth, read=lambda offset, length: bytes(length // 2 if offset == 512 * KIB else length))
    with Source(short, "x", connections=5) as opened, pytest.raises(errors.SourceError, match="524288"):
        opened.read_into(512 * KIB, memoryview(bytearray(b"\1" * 64 * KIB)))


@pytest.mark.parametrize("context", [connection.ALLOCATION, BITMAP])
def test_a_context_that_is_refused(lying, context):
    refused(f"does not offer {context}", lying(truth, refused=[context]), "x", "b0")


def test_a_server_that_never_answers(lying, hurry):
    with Source(lying(lambda *_: FakeServer.SILENT), "x") as opened:
        hurry()
        error = gives_up(lambda: mapped(opened))
    assert "x: the NBD server was silent" in str(error)


def test_a_writable_export_is_refused_before_its_map(lying):
    refused("writable", lying(truth, read_only=False), "x")


def test_handles_are_closed(lying):
    address = lying(truth)
    before = os.listdir("/proc/self/fd")
    with Source(address, "x") as opened:
        opened.read(0, 512)
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) > len(before) and time.monotonic() < deadline:
        time.sleep(0.01)  # the server's ends
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_totals_of_a_big_map(lying):
    """Offsets and sums that need more than 32 bits, in runs as long as a reply can have."""
    size = 1 << 40

    def status(context, offset, length):
        return [(min(length, (1 << 32) - 512), connection.STATE_ZERO)]

    with Source(lying(status, size=size), "x") as opened:
        assert sum(extents.total(batch) for batch in opened.extents()) == size
