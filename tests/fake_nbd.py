"""An NBD server whose answers a test makes up: what no sane server would answer must be detected as well.

Speaks the fixed newstyle handshake with structured replies, as specified by the NBD protocol document, on a unix
socket.
"""

import contextlib
import socket
import struct
import threading
import time

OPT_ABORT, OPT_GO, OPT_STRUCTURED_REPLY, OPT_SET_META_CONTEXT = 2, 7, 8, 10
REP_ACK, REP_INFO, REP_META_CONTEXT, REP_ERR_UNSUP = 1, 3, 4, (1 << 31) + 1
CMD_READ, CMD_DISC, CMD_BLOCK_STATUS = 0, 2, 7
TYPE_NONE, TYPE_OFFSET_DATA, TYPE_BLOCK_STATUS = 0, 1, 5
READ_ONLY = 1 << 1


class FakeServer:
    """A server with status(context, offset, length) -> [(length, flags), …], None: no reply for it; and read(offset,
    length) -> bytes.

    A function that returns `HANG_UP` ends the connection, one that returns `SILENT` sends no answer.
    """

    HANG_UP, SILENT = object(), object()

    def __init__(self, path, size, status, read=None, refused=(), read_only=True, slow=0.0, queue=16):
        """slow: seconds before each reply in a handshake, and before a client is accepted from the queue."""
        self._size, self._status, self._refused = size, status, refused
        self._slow, self._handshakes, self._changed = slow, [], threading.Condition()
        self.asked = 0  # requests after a handshake
        self._read = read or (lambda offset, length: bytes(length))
        self._flags = 1 | (READ_ONLY if read_only else 0)
        self._open = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(queue)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def clients(self):
        """The number of clients so far."""
        return len(self._open)

    def handshakes(self):
        """Wait until no handshake is in progress; return how each ended: "whole", or "left" before its end."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._handshakes) == self.clients, 30)
            return list(self._handshakes)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for each in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                time.sleep(self._slow)
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with contextlib.suppress(OSError, EOFError), connection:
            contexts = self._watched_handshake(connection)
            while contexts is not None and self._answer(connection, contexts):
                pass

    def _watched_handshake(self, connection):
        ended = "left"
        try:
            contexts = self._handshake(connection)
            ended = "left" if contexts is None else "whole"
            return contexts
        finally:
            with self._changed:
                self._handshakes.append(ended)
                self._changed.notify_all()

    def _handshake(self, connection):
        connection.sendall(b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3))
        _receive(connection, 4)
        contexts = []
        while True:
            _, option, size = struct.unpack(">QII", _receive(connection, 16))
            data = _receive(connection, size)
            time.sleep(self._slow)
            replies = [(REP_ACK, b"")]
            if option == OPT_SET_META_CONTEXT:
                contexts = [name for name in _queries(data) if name not in self._refused]
                granted = [struct.pack(">I", i) + name.encode() for i, name in enumerate(contexts)]
                replies = [*((REP_META_CONTEXT, each) for each in granted), *replies]
            elif option == OPT_GO:
                replies = [(REP_INFO, struct.pack(">HQH", 0, self._size, self._flags)), *replies]
            elif option not in (OPT_STRUCTURED_REPLY, OPT_ABORT):
                replies = [(REP_ERR_UNSUP, b"")]
            for kind, payload in replies:
                head = struct.pack(">QIII", 0x3E889045565A9, option, kind, len(payload))
                connection.sendall(head + payload)
            if option == OPT_GO:
                return contexts
            if option == OPT_ABORT:
                return None

    def _answer(self, connection, contexts):
        _, _, command, cookie, offset, length = struct.unpack(">IHHQQI", _receive(connection, 28))
        if command == CMD_DISC:
            return False
        self.asked += 1
        if command == CMD_READ:
            replies = [(TYPE_OFFSET_DATA, self._read(offset, length))]
        elif command == CMD_BLOCK_STATUS:
            replies = [(TYPE_BLOCK_STATUS, (i, self._status(name, offset, length))) for i, name in enumerate(contexts)]
        else:
            raise EOFError
        chunks = []
        for kind, value in replies:
            told_value = value[1] if kind == TYPE_BLOCK_STATUS else value
            if told_value is self.HANG_UP:
                return False
            if told_value is self.SILENT:
                return True
            if kind == TYPE_OFFSET_DATA:
                chunks.append((kind, struct.pack(">Q", offset) + value))
            elif told_value is not None:
                entries = b"".join(struct.pack(">II", *entry) for entry in told_value)
                chunks.append((kind, struct.pack(">I", value[0]) + entries))
        for kind, payload in chunks:
            connection.sendall(struct.pack(">IHHQI", 0x668E33EF, 0, kind, cookie, len(payload)) + payload)
        connection.sendall(struct.pack(">IHHQI", 0x668E33EF, 1, TYPE_NONE, cookie, 0))
        return True


def _queries(data):
    (at,) = struct.unpack_from(">I", data)
    at += 4
    (count,) = struct.unpack_from(">I", data, at)
    at += 4
    names = []
    for _ in range(count):
        (size,) = struct.unpack_from(">I", data, at)
        names.append(data[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return names


def _receive(connection, size):
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data
