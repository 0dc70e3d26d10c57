"""A model VM's disks: bytes, allocation, and a dirty bitmap for each checkpoint; and a disk frozen for a backup.

Owns: what QEMU would report of them. Allocation is reported in blocks of 4 KiB, changes in clusters of 64 KiB. A disk
that grows gets clean bits and zeroes, one that shrinks loses its bits (as with QEMU). Must not know: HTTP, Kubernetes.
"""

import numpy

BLOCK, CLUSTER = 4 << 10, 64 << 10
DATA, HOLE, ZERO, HOLE_ZERO = range(4)  # the flags of base:allocation
DIRTY = 1  # that of qemu:dirty-bitmap, the same number as HOLE
ALLOCATION = {DATA: "data", HOLE: "hole", ZERO: "zero", HOLE_ZERO: "hole,zero"}
CHANGES = {0: "clean", DIRTY: "dirty", ZERO: "zero", DIRTY | ZERO: "dirty,zero"}


def count(size, unit):
    return -(-size // unit)


class Disk:
    def __init__(self, size):
        self.content = numpy.zeros(size, "u1")
        self.allocation = numpy.full(count(size, BLOCK), HOLE_ZERO, "u1")
        self.bitmaps = {}  # {checkpoint: which clusters changed since}

    @property
    def size(self):
        return len(self.content)

    def read(self):
        return self.content.tobytes()

    def write(self, offset, data):
        self.content[self._place(offset, len(data))] = numpy.frombuffer(bytes(data), "u1")
        self.allocation[offset // BLOCK : count(offset + len(data), BLOCK)] = DATA
        self._mark(offset, len(data))

    def zero(self, offset, length, allocation=ZERO):
        """Write zeroes. A block that is only partly covered remains data."""
        self.content[self._place(offset, length)] = 0
        stop = offset + length
        first, last = count(offset, BLOCK), count(stop, BLOCK) if stop == self.size else stop // BLOCK
        self.allocation[first : max(first, last)] = allocation
        self._mark(offset, length)

    def discard(self, offset, length):
        self.zero(offset, length, HOLE_ZERO)

    def as_a_hole(self, offset, length):
        """Report a range as a hole and not as zero: it is not allocated here, and its bytes come from elsewhere."""
        self.allocation[offset // BLOCK : count(offset + length, BLOCK)] = HOLE

    def resize(self, size):
        self.content = _resized(self.content, size, 0)
        self.allocation = _resized(self.allocation, count(size, BLOCK), HOLE_ZERO)
        self.bitmaps = {name: _resized(bits, count(size, CLUSTER), False) for name, bits in self.bitmaps.items()}

    def freeze(self, checkpoint, since, merged):
        """Return an export of the disk as it is now; from now on, changes are also recorded since `checkpoint`.

        since: the checkpoint of an incremental backup. merged: whether its map reports the zeroes, too.
        """
        dirty = None if since is None else self.bitmaps[since].copy()
        self.bitmaps[checkpoint] = numpy.zeros(count(self.size, CLUSTER), bool)
        return Frozen(self.content.copy(), self.allocation.copy(), dirty, merged)

    def _place(self, offset, length):
        assert offset >= 0 and offset + length <= self.size, "a guest cannot write there"
        return slice(offset, offset + length)

    def _mark(self, offset, length):
        for bits in self.bitmaps.values():
            bits[offset // CLUSTER : count(offset + length, CLUSTER)] = True


def _resized(array, length, filler):
    grown = numpy.full(max(0, length - len(array)), filler, array.dtype)
    return numpy.concatenate([array[:length], grown])


class Frozen:
    """The state that an export shows, whatever the guest writes meanwhile."""

    def __init__(self, content, allocation, dirty, merged):
        self.content = content
        if dirty is None:
            self.types, self.names = allocation, ALLOCATION
        else:
            bits = numpy.repeat(dirty, CLUSTER // BLOCK)[: len(allocation)].astype("u1")
            self.types, self.names = bits | (allocation & ZERO if merged else 0), CHANGES

    @property
    def size(self):
        return len(self.content)

    def extents(self, offset, stop):
        """Return [(offset, length, type, description)] of the range, contiguous, with different types of neighbours."""
        first = offset // BLOCK
        types = self.types[first : count(stop, BLOCK)]
        at = [0, *(numpy.flatnonzero(types[1:] != types[:-1]) + 1)]
        begins = [max(offset, int(first + index) * BLOCK) for index in at]
        kinds = [int(types[index]) for index in at]
        return [(a, b - a, kind, self.names[kind]) for a, b, kind in zip(begins, [*begins[1:], stop], kinds)]
