"""A store in memory that is changed as an attacker would: something harmful is put in, and then everything else is made
consistent.

Owns: the changes (members of JSON, pages, directories, frames, names, kinds of files, definitions), and what an
attacker does last: sizes and digests in directories and manifests, and the seals, which have no key. Must not know: who
reads it.
"""

import copy
import hashlib
import json
import os
import random
import re
import struct
from contextlib import suppress

import numpy
import stores
import zstandard

from nbdpull.core import extents, process
from nbdpull.format import layout, pages
from nbdpull.repository import announcement

NUMBERS = [0, 1, 2, 511, 512, 4096, 65535, 65536]
NUMBERS += [(1 << bits) + more for bits in (20, 31, 32, 50, 63) for more in (-1, 0, 1)] + [(1 << 64) - 1]
POINT = "20300101T000000Z-aaaaaa"  # that there is not
_FOR_PEOPLE = ("domain", "since", "reason", "source", "consistency_reason")  # members of a manifest
_OBEYED = ("\x1b[31m\a", "\x9b2J", "\u202e", "\r\n", "\x7f")
TEXTS = ["", ".", "..", "/", "../../outside/file", "/etc/passwd", "vda", "VDA", "vdb", "x" * 300, "x" * 5000, "\0"]
TEXTS += ["a\nb", "\x1b[31m\a", "\u202e", "\ud800", "💾", "full", "incremental", "frozen", "latest", "nbdpull/2"]
TEXTS += [
    "2026-11-22T19:45:00+00:00",
    POINT,
    f"{POINT}/vda.directory",
    f"{POINT}/vda.0000.zst",
    "0" * 64,
    "vda.0000.zst",
]


class Forgery:
    """A store to be forged. files: bytes by path; strange: paths that will not be a plain file, and what they will
    be."""

    def __init__(self, files):
        self.files, self.strange = dict(files), {}

    @classmethod
    def of(cls, root):
        return cls({str(path.relative_to(root)): path.read_bytes() for path in stores.files(root)})

    def named(self, *endings):
        return sorted(path for path in self.files if path.endswith(endings))

    def change(self, rng, only=None):
        """Make one change, of any kind or of the one with this name."""
        weights = {_json: 12, _index: 10, _directory: 8, _frame: 8, _tail: 2, _bytes: 3, _kind: 3, _name: 2, _folder: 1,
                   _size: 2, _announcement: 3, _definition: 4, _words: 3}  # fmt: skip
        names = {how.__name__.lstrip("_"): how for how in weights}
        [how] = rng.choices(list(weights), list(weights.values()))
        names.get(only, how)(self, rng)

    def make_right(self, rng):
        """Make nearly everything consistent, so that a reader reaches what was changed."""
        for path in self.named(".directory"):
            with suppress(*UNREADABLE):
                self.files[path] = self._fit_directory(path, rng)
        digests = {}
        manifests = [path for path in self.named("/manifest.json") if path.count("/") == 2]
        for path in sorted(manifests, key=self._sequence):
            document = self.document(path)
            if rng.random() < 0.95:
                self._fit(document, path.split("/")[0], rng)
                parent = document.get("parent")
                if isinstance(parent, dict) and str(parent.get("point")) in digests and rng.random() < 0.97:
                    parent["sha256"] = digests[str(parent["point"])]
                if _is_plain(self.files[path]):
                    self.files[path] = sealed(rng, _text(rng, document))
            digests[path.split("/")[-2]] = hashlib.sha256(self.files[path]).hexdigest()

    def document(self, path):
        """Return the object in a sealed file, without its seal."""
        with suppress(ValueError, AttributeError, TypeError, RecursionError):
            document = json.loads(self.files[path])
            document.pop("digest", None)
            return document
        return {"format": layout.FORMAT, "requires": []}

    def _sequence(self, path):
        number = self.document(path).get("sequence")
        return (number if isinstance(number, int) else 0, path)

    def _fit(self, document, domain, rng):
        for container, key in _places(document):
            entry = container[key]
            if isinstance(entry, dict) and {"path", "size", "sha256"} <= set(entry):
                data = self.files.get(f"{domain}/{entry['path']}")
                if data is not None and rng.random() < 0.98:
                    entry["size"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()

    def _fit_directory(self, path, rng):
        names, files, refs = _directory_parts(self.files[path])
        for name, file in zip(names, files):
            data = self.files.get(f"{path.split('/')[0]}/{name}")
            if data is not None and rng.random() < 0.98:
                file["size"], file["sha256"] = len(data), numpy.void(hashlib.sha256(data).digest())
        data = _directory_of(names, files, refs)
        return self.files[path] if data == _decompressed(self.files[path]) else _well_compressed(data)

    def write(self, root, outside):
        """Write everything to a directory; what something strange has replaced goes to `outside`."""
        for path, data in self.files.items():
            with suppress(OSError, ValueError):  # a name that the file system does not take
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(data)
        for path, kind in self.strange.items():
            with suppress(OSError):
                _replace(root / path, kind, outside)


# JSON


def _scalar(rng):
    """Return a value that hardly belongs where it is put."""
    return rng.choice([
        lambda: rng.choice(NUMBERS), lambda: rng.choice(TEXTS), lambda: -rng.choice(NUMBERS), lambda: None,
        lambda: True, lambda: 1.5, lambda: [], lambda: {}, lambda: [rng.choice(TEXTS)] * 3,
        lambda: {"path": rng.choice(TEXTS)}, lambda: _nested(rng.choice([5, 100, 600])),
    ])()  # fmt: skip


def _nested(depth):
    value = []
    for _ in range(depth):
        value = [value] if depth % 2 else {"a": value}
    return value


def _places(value):
    """Yield every (container, key) in a JSON value."""
    found, more = [], [value]
    while more:
        inner = more.pop()
        items = inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
        found += [(inner, key) for key, _ in items]
        more += inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else ()
    return found


def change_json(rng, document):
    """Change a JSON value in one place."""
    known = _places(document)
    if not known:
        return
    container, key = rng.choice(known)
    how = rng.randrange(8)
    if how < 3:
        container[key] = _scalar(rng)
    elif how == 3:
        del container[key]
    elif how == 4:  # what belongs to another place, so that it may be of the right type
        other, from_key = rng.choice(known)
        container[key] = copy.deepcopy(other[from_key])
    elif how == 5 and isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), copy.deepcopy(container[key]))
    elif how == 6 and type(container[key]) is int:
        container[key] += rng.choice([-1, 1, 512, -512, 1 << 32])
    elif isinstance(container[key], str) and container[key]:
        text, at = container[key], rng.randrange(len(container[key]))
        container[key] = text[:at] + rng.choice(TEXTS) + text[at + rng.randrange(2) :]


def _text(rng, document):
    """Return a document as JSON, sometimes of a form that Python does not write."""
    text = json.dumps(document, indent=1, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.06:
        number, at = rng.choice(["NaN", "1e999", "-Infinity", "9" * 5000, "1" + "0" * 40 + ".5"]), text.find('"', 5)
        return rng.choice([
            text.replace(": 0,", f": {number},", 1), text.replace("{", '{"format": "nbdpull/2",', 1), text + text,
            text[:-1], text[:at] + r'"\ud800": 1, ' + text[at:], text.replace("[", "[" * 3000, 1), "\ufeff" + text,
        ])  # fmt: skip
    return text


def _is_plain(data):
    """Return whether this is JSON that loses nothing if it is read and written again."""
    with suppress(ValueError):
        return bool(layout.parse_object(data))
    return False


def sealed(rng, text):
    """Return the bytes of a sealed document, nearly always with the right seal."""
    text = text.rstrip()
    text = text[:-1].rstrip() if text.endswith("}") else text
    blank = (text + ("" if text.endswith("{") else ",")).encode("utf-8", "surrogatepass")
    blank += b'\n "digest": "' + b"0" * 64 + b'"\n}\n'
    digest = hashlib.sha256(blank).hexdigest().encode()
    return blank[:-68] + digest + blank[-4:] if rng.random() < 0.97 else blank


def _json(store, rng):
    findings = store.named("verify.json", "digest.json", "drill.json")
    path = rng.choice([*store.named("manifest.json") * 4, *findings, "nbdpull.json"])
    document = store.document(path)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        change_json(rng, document)
    store.files[path] = sealed(rng, _text(rng, document))


def _words(store, rng):
    """Return text for people, with characters that control a terminal; every reader accepts it."""
    there = [path for path in store.named("/manifest.json") if path.count("/") == 2]
    path = rng.choice(there or ["vm1/x/manifest.json"])
    document = store.document(path)
    texts = [(container, key) for container, key in _places(document) if key in _FOR_PEOPLE]
    if texts:
        container, key = rng.choice(texts)
        container[key] = f"{container[key]}{rng.choice(_OBEYED)}"
        store.files[path] = sealed(rng, _text(rng, document))


def _announcement(store, rng):
    """Put the announcement of a run into the directory of a point, whose manifest may be gone."""
    there = [path for path in store.named("/manifest.json") if path.count("/") == 2]
    path = rng.choice(there or ["vm1/x/manifest.json"])
    domain, point, _ = path.split("/")
    if rng.random() < 0.7:
        store.files.pop(path, None)
    announced = announcement.Announcement(
        id=point, domain=domain, uuid="u", store="/s", folder=f"{domain}/{point}", process=process.Process(1, 1),
        begun="2026-11-22T19:45:00+00:00", inode=rng.choice([None, 5]),
    )  # fmt: skip
    document = json.loads(announcement.encode(announced))
    for _ in range(rng.choice([0, 1, 1, 3])):
        change_json(rng, document)
    store.files[f"{domain}/{point}/{announcement.NAME}"] = _text(rng, document).encode("utf-8", "surrogatepass")


# Pages, directories and frames

UNREADABLE = (zstandard.ZstdError, ValueError, IndexError, MemoryError)  # of what has been spoiled already
_HEAD, _DIRECTORY_HEAD = struct.Struct("<II"), struct.Struct("<IIQ")


def _well_compressed(data):
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)


def _compressed(rng, data):
    """Return a zstd frame of these bytes, sometimes an invalid one."""
    if rng.random() < 0.9:
        return _well_compressed(data)
    settings = {"window_log": rng.choice([10, 20, 23, 24, 27, 31]), "write_checksum": rng.random() < 0.7}
    settings = zstandard.ZstdCompressionParameters.from_level(3, **settings)
    stream = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    frame = stream.compress(data) + stream.flush()
    skippable = layout.skippable(rng.choice([layout.HEADER_MAGIC, layout.SEEK_TABLE_MAGIC]), b"x" * rng.choice([0, 9]))
    claims = layout.FRAME_MAGIC + bytes([rng.choice([0xE0, 0xE4, 0xA4, 0x07])])
    claims += rng.choice(NUMBERS).to_bytes(8, "little")
    return rng.choice([frame, frame + b"x", frame * 2, frame[: rng.randrange(len(frame) + 1)], skippable + frame,
                       frame + skippable, skippable, claims + frame[6:], b"", zstandard.compress(data)])  # fmt: skip


def _decompressed(data):
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def _page_parts(data):
    """Return (names, records) of a page's bytes."""
    count, size = _HEAD.unpack_from(data.ljust(8, b"\0"))
    names = data[8 : 8 + size].decode().split("\n")[:-1]
    return names, numpy.frombuffer(data[8 + size :], layout.RECORD).copy()


def _page_of(names, records):
    text = "".join(f"{name}\n" for name in names).encode("utf-8", "surrogatepass")
    return _HEAD.pack(len(names), len(text)) + text + records.tobytes()


def _directory_parts(data):
    """Return (names, files, pages) of a directory's file."""
    data = _decompressed(data)
    count, refs, _ = _DIRECTORY_HEAD.unpack_from(data.ljust(16, b"\0"))
    middle, end = 16 + 48 * count, 16 + 48 * count + 64 * refs
    files = numpy.frombuffer(data[16:middle], pages._FILE).copy()
    return data[end:].decode().split("\n")[:-1], files, numpy.frombuffer(data[middle:end], pages.PAGE).copy()


def _directory_of(names, files, refs):
    text = "".join(f"{name}\n" for name in names).encode("utf-8", "surrogatepass")
    return _DIRECTORY_HEAD.pack(len(files), len(refs), len(text)) + files.tobytes() + refs.tobytes() + text


def _rewrite_index(store, rng, path, change):
    """Replace each page by the one that change(number, names, records) returns, or by other bytes; usually, all
    directories are adapted."""
    index, moved = b"", {}
    for number, (_, start, stop) in enumerate(stores.zstd_frames(store.files[path])):
        raw = change(number, *_page_parts(_decompressed(store.files[path][start:stop])))
        frame = _compressed(rng, raw)
        records = max(len(raw) - 8 - int.from_bytes(raw[4:8], "little"), 0) // 80
        moved[start] = (len(index), len(frame), len(raw), records, stores.digest(raw))
        index += frame
    store.files[path] = index
    series, _, name = path.partition("/")
    for directory in [each for each in store.named(".directory") if each.startswith(f"{series}/")]:
        with suppress(*UNREADABLE):
            names, files, refs = _directory_parts(store.files[directory])
            for ref in refs:
                if ref["file"] < len(names) and names[ref["file"]] == name and rng.random() < 0.97:
                    place = moved.get(int(ref["position"]), tuple(ref[list(_PLACE)]))
                    for field, value in zip(_PLACE, place):
                        ref[field] = value
            store.files[directory] = _well_compressed(_directory_of(names, files, refs))


_PLACE = ("position", "stored", "raw", "records", "digest")


def _index(store, rng):
    path = rng.choice(store.named(".index"))

    def change(number, names, records):
        for _ in range(rng.choice([1, 1, 2, 3])):
            if rng.random() < 0.15:
                names = _change_names(rng, names)
            else:
                records = _change_records(rng, records)
        data = _page_of(names, records)
        return data if rng.random() < 0.97 else data[: -rng.randrange(1, 80)]

    with suppress(*UNREADABLE):
        _rewrite_index(store, rng, path, change)


def _change_names(rng, names):
    names = [*names]
    other = rng.choice([*TEXTS, *names, *(name.replace("vda", "vdb") for name in names), f"{POINT}/vda.0000.zst"])
    at = rng.randrange(len(names) + 1)
    names[at : at + rng.choice([0, 1])] = rng.choice([[other], [other, other], []])
    return names


def _directory(store, rng):
    path = rng.choice(store.named(".directory"))
    with suppress(*UNREADABLE):
        names, files, refs = _directory_parts(store.files[path])
        for _ in range(rng.choice([1, 1, 2, 3])):
            how = rng.random()
            if how < 0.2:
                names = _change_names(rng, names)
            elif how < 0.4:
                files = _change_rows(rng, files)
            else:
                refs = _change_rows(rng, refs)
        data = _directory_of(names, files, refs)
        store.files[path] = _compressed(rng, data if rng.random() < 0.97 else data[: -rng.randrange(1, 80)])


def _change_rows(rng, rows):
    """Change fields in a row of files or of pages, or the rows themselves."""
    if not len(rows) or rng.random() < 0.1:
        return numpy.concatenate([rows, numpy.frombuffer(rng.randbytes(rows.itemsize), rows.dtype)])
    at, other = rng.randrange(len(rows)), rng.randrange(len(rows))
    how = rng.randrange(8)
    if how == 0:
        return numpy.delete(rows, at)
    if how == 1:
        return numpy.insert(rows, at, rows[other])
    if how == 2:
        return numpy.repeat(rows, rng.choice([2, 16, 17]))
    if how == 3:
        rows[[at, other]] = rows[[other, at]]
        return rows
    name = rng.choice(rows.dtype.names[:-1])
    value = rng.choice(NUMBERS) if rng.random() < 0.5 else int(rows[name][at]) + rng.choice([-1, 1, 1 << 30])
    rows[name][at] = value % (1 << 8 * rows[name].dtype.itemsize)
    return rows


def _change_records(rng, records):
    if not len(records) or rng.random() < 0.1:
        return numpy.concatenate([records, numpy.frombuffer(rng.randbytes(80), layout.RECORD)])
    at, other = rng.randrange(len(records)), rng.randrange(len(records))
    how = rng.randrange(9)
    if how < 4:
        name = rng.choice(layout.RECORD.names[:-1])
        value = rng.choice(NUMBERS) if rng.random() < 0.5 else int(records[name][at]) + rng.choice([-1, 1, 512, 65536])
        records[name][at] = value % (1 << 8 * records[name].dtype.itemsize)
    elif how == 4:
        return numpy.delete(records, at)
    elif how == 5:
        return numpy.insert(records, at, records[other])
    elif how == 6:  # the frame of another place
        for name in layout.RECORD.names[2:]:
            records[name][at] = records[name][other]
    elif how == 7:
        records[[at, other]] = records[[other, at]]
    else:
        return numpy.concatenate([records[:at], _dense(rng, records[at]), records[at + 1 :]])
    return records


def _dense(rng, record):
    """Replace one record by many."""
    many, step = numpy.repeat(record, rng.choice([2, 1000, 20000])), rng.choice([0, 1, 16, 64, 512])
    many["offset"] += (numpy.arange(len(many)) * step).astype("u8")
    many["length"] = min(step or 1, int(record["length"]) or 1)
    return many


def _frame(store, rng):
    """Replace a frame by another one, usually with its size and digest in each of its records."""
    path = rng.choice(store.named(".zst"))
    with suppress(*UNREADABLE):
        frames = [frame for frame in stores.zstd_frames(store.files[path]) if frame[0] == 0xFD2FB528]
        _, start, stop = rng.choice(frames)
        size = rng.choice([0, 1, 4096, 65536, 1 << 20, (1 << 20) + 1, 1 << 24])
        data = rng.choice([bytes(size), rng.randbytes(min(size, 65536)), b"x" * size])
        frame = _compressed(rng, data)
        store.files[path] = store.files[path][:start] + frame + store.files[path][stop:]
        series, _, name = path.partition("/")
        disk = path.rpartition("/")[2].split(".")[0]

        def change(number, names, records):
            here = (records["kind"] == extents.DATA) & (
                records["chunk"] == (names.index(name) if name in names else -1)
            )
            mine, behind = here & (records["position"] == start), here & (records["position"] > start)
            records["stored"][mine], records["raw"][mine] = len(frame), len(data)
            records["digest"][mine] = stores.digest(data)
            records["position"][behind] += numpy.uint64((len(frame) - stop + start) % (1 << 64))
            return _page_of(names, records)

        for index in store.named(f"/{disk}.index") if rng.random() < 0.8 else []:
            with suppress(*UNREADABLE):
                _rewrite_index(store, rng, index, change)


def _tail(store, rng):
    """Change the records and the seek table at the end of a chunk file, from which an index is rebuilt."""
    path = rng.choice(store.named(".zst"))
    data = bytearray(store.files[path])
    for _ in range(rng.choice([1, 4])):
        at = max(len(data) - rng.choice([1, 9, 17, 60, 300]), 0)
        data[at : at + 4] = rng.choice(NUMBERS).to_bytes(8, "little")[:4]
    store.files[path] = bytes(data)


# Files


def _bytes(store, rng):
    """Change any byte of any file, or its end."""
    path = rng.choice(sorted(store.files))
    data = store.files[path]
    if data and rng.random() < 0.7:
        at = rng.randrange(len(data))
        store.files[path] = data[:at] + rng.randbytes(1) + data[at + 1 :]
    else:
        store.files[path] = rng.choice([data[: len(data) // 2], data + b"x", b"", data * 2])


def _kind(store, rng):
    """Replace a file or a directory by something of another kind."""
    path = rng.choice(sorted(store.files))
    path = path.rpartition("/")[0] or path if rng.random() < 0.3 else path
    store.strange[path] = rng.choice(["link", "loop", "absolute", "inside", "FIFO", "folder"])


def _size(store, rng):
    """Make a sparse file of any size."""
    store.strange[rng.choice(sorted(store.files))] = "sparse"


def _name(store, rng):
    """Give a file another name, or two names."""
    path = rng.choice(sorted(store.files))
    folder, _, name = path.rpartition("/")
    new = rng.choice(["x", "vda.0000.zst", "manifest.json", "%2E%2E", "a\nb", name.upper(), f"{name}.draft"])
    store.files[f"{folder}/{new}".lstrip("/")] = store.files[path] if rng.random() < 0.5 else store.files.pop(path)


def _folder(store, rng):
    """Give a point or a series another name."""
    old = rng.choice([path for path in store.files if "/" in path]).split("/")[rng.randrange(2)]
    new = rng.choice([POINT, "x", "%00", "a%2Fb", "~" + "0" * 16, "%1B%5B31m"])
    for path in [path for path in store.files if f"/{old}/" in f"/{path}"]:
        store.files[f"/{path}".replace(f"/{old}/", f"/{new}/", 1)[1:]] = store.files.pop(path)


def _replace(path, kind, outside):
    """Put something strange in the place of a file or directory; a link may lead to what was there."""
    if kind == "sparse":
        os.truncate(path, 1 << 42)
    elif os.path.lexists(path):
        there = outside / str(len(os.listdir(outside)))
        path.rename(there)
        links = {"link": there, "loop": path.name, "absolute": "/etc/passwd", "inside": "../nbdpull.json"}
        if kind in links:
            path.symlink_to(links[kind])
        else:
            (os.mkfifo if kind == "FIFO" else os.mkdir)(path)


# Definitions

_XML = ["<", ">", "&", "]]>", "<x>", "</x>", "<!DOCTYPE a [<!ENTITY b 'c'>]>", "<a>" * 5000, "\0", "\ud800", "\x1b",
        "<?xml version='1.0' encoding='utf-16'?>", "<disk/>", "<devices/>", "<name/>", "<os><nvram/></os>"]  # fmt: skip


def _definition(store, rng):
    path = rng.choice(store.named(".xml"))
    text = store.files[path].decode(errors="replace")
    tags, values = re.findall(r"<(\w+)", text), re.findall(r"=('[^']*'|\"[^\"]*\")", text)
    if rng.random() < 0.7 and tags and values:  # still a definition: something of it is gone, doubled, or another
        tag = rng.choice(tags)
        element = re.search(rf"<{tag}\b[^>]*?(/>|>.*?</{tag}>)", text, re.DOTALL)
        found = element[0] if element else "x"
        text = rng.choice([
            text.replace(found, "", 1), text.replace(found, found * 2, 1), re.sub(rf"\b{tag}\b", "x", text),
            text.replace(rng.choice(values), rng.choice(["'/etc/passwd'", "''", "'\u202e'"])),
            re.sub(r"\w+='[^']*'", "", text, count=rng.choice([1, 0])), re.sub(r">[^<]+<", "><", text),
        ])  # fmt: skip
    else:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(_XML) + text[at + rng.choice([0, 1, 30]) :]
    store.files[path] = text.encode("utf-8", "surrogatepass")


# A sound store

DEFINITION = """<domain type='kvm'><name>vm1</name><uuid>3e3fce45-4f53-4fa7-bb32-11f34168b82b</uuid>
<metadata><a:b xmlns:a="u">c</a:b></metadata><memory>1024</memory>
<os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type><loader type='pflash'>/l</loader><nvram>/n</nvram>
<kernel>/k</kernel></os><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/a'/><target dev='vda'/></disk>
<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/i/b'/><target dev='vdb'/></disk>
<interface type='network'><mac address='52:54:00:00:00:01'/></interface><graphics type='vnc' port='-1'/>
<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm><serial type='file'><source path='/log'/></serial>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>
"""
CHECKPOINT = b"""<domaincheckpoint><name>c</name><description>nbdpull run x</description>
<creationTime>5</creationTime><disks><disk name='vda' checkpoint='bitmap'/></disks></domaincheckpoint>
"""
FILES = {"nvram": b"variables", "kernel": b"k" * 100, "tpm.tpm2-00.permall": b"state",
         layout.LIVE_XML: DEFINITION.encode(), layout.CHECKPOINT_XML: CHECKPOINT}  # fmt: skip
KIB = 1 << 10


def sound_store(root, seed):
    """Return three domains: one with a chain of two disks, one of which grows; one with a full point only; one with a
    point without a parent."""
    rng = random.Random(seed)
    vm = stores.Vm(root)
    vm.xml, vm.files = DEFINITION, FILES
    vm.add_disk("vda", 300 * KIB)
    vm.add_disk("vdb", 100 * KIB)
    for number in range(3):
        if number:
            vm.grow("vda", vm.disks["vda"].size + 77777)
        for disk in vm.disks:
            stores.scribble(vm, disk, rng, count=4, longest=60 * KIB)
        vm.write("vda", rng.randrange(100 * KIB), rng.randbytes(90 * KIB))
        vm.pull(point_id=_id(rng), chunk_size=64 * KIB, batch_size=64 * KIB)
    for name, since in (("vm2", "nothing"), ("vm3", "elsewhere")):
        other = stores.Vm(root, name, uuid=f"4e3fce45-4f53-4fa7-bb32-11f34168b82{name[-1]}")
        other.add_disk("vda", 100 * KIB)
        other.write("vda", 5000, rng.randbytes(20000))
        other.pull(since=since, point_id=_id(rng))
    (vm.folder / "20261122T194500Z-7f3a9c05").mkdir()  # of a run that died
    (vm.folder / "20261122T194500Z-7f3a9c05" / "vda.index").write_bytes(b"x")
    return vm


def _id(rng):
    """Return a point id that is the same in each run with the same seed."""
    return f"20261122T{rng.randrange(10**6):06d}Z-{rng.randrange(1 << 32):08x}"
