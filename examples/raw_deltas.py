#!/usr/bin/env python3
"""Back up a domain into a directory of raw deltas, each a sparse file and a map of what it holds.

raw_deltas.py DOMAIN DIR [URI]          one more backup: DIR/0001, DIR/0002, ...
raw_deltas.py --assemble DIR DISK FILE  the disk as of the newest one, as a raw image
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Optional

import nbdpull

MIB = 1 << 20


class Delta:
    """One disk: an nbdpull.DiskSink."""

    def __init__(self, folder: Path, disk: nbdpull.Disk) -> None:
        self.raw = (folder / f"{disk.name}.raw").open("wb")
        self.map = [f"size {disk.size}"]

    def data(self, offset: int, view: memoryview) -> None:
        self.raw.seek(offset)
        self.raw.write(view)
        self.map.append(f"data {offset} {len(view)}")

    def zero(self, offset: int, length: int) -> None:
        self.map.append(f"zero {offset} {length}")

    def close(self) -> None:
        self.raw.close()
        Path(self.raw.name).with_suffix(".map").write_text("\n".join(self.map))


class Deltas:
    """All disks: an nbdpull.Sink."""

    def __init__(self, root: Path) -> None:
        self.root, self.new, self.done = root, root / "new", sorted(root.glob("[0-9]*"))
        shutil.rmtree(self.new, ignore_errors=True)  # of a backup that was killed
        self.new.mkdir(parents=True)

    def token(self) -> Optional[nbdpull.Token]:
        return nbdpull.Token.loads((self.done[-1] / "token").read_text()) if self.done else None

    def open(self, disk: nbdpull.Disk) -> Delta:
        return Delta(self.new, disk)

    def commit(self, token: nbdpull.Token) -> None:
        (self.new / "token").write_text(token.dumps())
        os.sync()  # before it has its name, by which it counts
        self.new.rename(self.root / f"{len(self.done) + 1:04}")
        os.sync()

    def abort(self) -> None:
        shutil.rmtree(self.new, ignore_errors=True)


def assemble(root: Path, disk: str, target: str) -> None:
    with open(target, "wb") as image:
        for delta in sorted(root.glob("[0-9]*")):
            with (delta / f"{disk}.map").open() as lines, (delta / f"{disk}.raw").open("rb") as raw:
                image.truncate(int(next(lines).split()[1]))
                for kind, offset, length in map(str.split, lines):
                    raw.seek(int(offset))
                    image.seek(int(offset))
                    for at in range(0, int(length), MIB):
                        count = min(MIB, int(length) - at)
                        image.write(raw.read(count) if kind == "data" else bytes(count))


def main(domain: str, root: str, *others: str) -> None:
    if domain == "--assemble":
        return assemble(Path(root), *others)
    sink = Deltas(Path(root))
    result = nbdpull.backup(nbdpull.Options(domain, since=sink.token(), uri=others[0] if others else None), sink)
    for disk in result.disks:
        print(f"{disk.name}: {disk.mode} ({disk.reason}), {disk.data_bytes} bytes of data")
    print(*result.warnings, sep="\n", file=sys.stderr, end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
