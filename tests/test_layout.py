"""Bytes of the format: what is written can be read, and what a reader must refuse is refused with the reason."""

import hashlib
import json
import re
import struct
from datetime import datetime, timezone

import numpy
import pytest
import strange
from stores import flipped

from nbdpull.core import errors, extents
from nbdpull.format import layout
from nbdpull.format.layout import MAX_FRAME, RECORD

# -- names ------------------------------------------------------------------------------------------------------------


def test_point_ids_are_unique_and_contain_the_time():
    now = datetime(2026, 11, 22, 19, 45, tzinfo=timezone.utc)
    ids = {layout.new_point_id(now) for _ in range(1000)}
    assert len(ids) == 1000
    assert all(point.startswith("20261122T194500Z-") and layout.POINT_ID.match(point) for point in ids)
    assert layout.POINT_ID.match(layout.new_point_id())


@pytest.mark.parametrize("text", ["..", "", "20261122T194500Z-7f3a9c/..", "20261122T194500Z-7f3a9c\n", "latest"])
def test_invalid_point_ids(text):
    assert not layout.POINT_ID.match(text)


NAMES = ["vm1", "a/b", "..", ".", ".hidden", "%", "%2E", "ü, blank & more", "new\nline", "a\\b", "x" * 80]


@pytest.mark.parametrize("name", NAMES)
def test_a_domain_becomes_one_plain_path_component(name):
    folder = layout.folder_name(name)
    assert re.fullmatch(r"[\w%~-][\w%.~-]*", folder, re.ASCII)
    assert layout.domain_name(folder) == name


def test_folders_of_different_domains_differ():
    assert len({layout.folder_name(name) for name in NAMES}) == len(NAMES)


LONG = ["x" * 255, "x" * 256, "x" * 247 + "\u65e5", "\U0001f4be" * 85, "." * 256, "%" * 86, "\u65e5" * 60 + "a"]
LONG += ["\u65e5" * 60 + "b", "a" + "\u65e5" * 85, "aa" + "\u65e5" * 85]
LONG += ["vm~0123456789abcdef", layout.folder_name("y" * 256), layout.domain_name(layout.folder_name("\u65e5" * 90))]


def test_long_names_are_cut_between_characters_and_stay_distinct():
    folders = {name: layout.folder_name(name) for name in LONG}
    assert len(set(folders.values())) == len(LONG)
    for name, folder in folders.items():
        assert len(folder) <= 255 and re.fullmatch(r"[\w%~-][\w%.~-]*", folder, re.ASCII)
        shortened = name != "x" * 255
        assert bool(re.search("~[0-9a-f]{16}$", folder)) == shortened
        decoded = layout.domain_name(folder)
        if shortened:
            kept, _, digest = decoded.rpartition("~")
            assert name.startswith(kept) and digest == hashlib.sha256(name.encode()).hexdigest()[:16]
            assert len(folder) > 255 - 12 or kept == name, "as much of the name is kept as can be"
        else:
            assert decoded == name


@pytest.mark.parametrize("folder", ["lost+found", "a b", ".x", "%zz", "%FF", "\udcff", "%2f", "%61", "%00", "a%00"])
def test_folders_of_no_domain(folder):
    assert layout.domain_name(folder) is None


@pytest.mark.parametrize(
    "path, good",
    [
        ("20261122T194500Z-7f3a9c/vda.0000.zst", True),
        ("20261122T194500Z-7f3a9c04/vda.12345.zst", True),
        ("20261122T194500Z-7f3a9c/../vda.0000.zst", False),
        ("../20261122T194500Z-7f3a9c/vda.0000.zst", False),
        ("/20261122T194500Z-7f3a9c/vda.0000.zst", False),
        ("20261122T194500Z-7f3a9c/vda.000.zst", False),
        ("20261122T194500Z-7f3a9c/vda.0000.zst\n", False),
        ("20261122T194500Z-7f3a9c/manifest.json", False),
    ],
)
def test_chunk_paths_lead_to_chunk_files_only(path, good):
    assert bool(layout.CHUNK_PATH.match(path)) == good


def test_names_of_files():
    assert (layout.chunk_name("vda", 7), layout.index_name("vda")) == ("vda.0007.zst", "vda.index")
    assert layout.CHUNK_PATH.match(f"20261122T194500Z-7f3a9c/{layout.chunk_name('a/..', 10000)}")


# -- sealed documents -------------------------------------------------------------------------------------------------

DOCUMENT = {"format": layout.FORMAT, "requires": [], "text": 'ü "digest": "0000"', "list": [1, 2, {"digest": "0" * 64}]}


def test_a_sealed_document_is_readable_json():
    sealed = layout.seal(DOCUMENT)
    assert layout.unseal(sealed, "x") == json.loads(sealed)
    assert {**DOCUMENT, "digest": json.loads(sealed)["digest"]} == json.loads(sealed)


def test_the_digest_is_that_of_the_document_with_zeros_in_its_place():
    sealed = layout.seal(DOCUMENT)
    digest = json.loads(sealed)["digest"]
    before, after = sealed.rsplit(digest.encode(), 1)
    assert hashlib.sha256(before + b"0" * 64 + after).hexdigest() == digest


def test_no_flipped_bit_passes():
    sealed = layout.seal(DOCUMENT)
    for at in range(len(sealed)):
        for bit in range(8):
            with pytest.raises(errors.Damaged, match=r"^file:"):
                layout.unseal(flipped(sealed, at, bit), "file")


def test_no_cut_passes():
    sealed = layout.seal(DOCUMENT)
    for size in range(len(sealed)):
        with pytest.raises(errors.Damaged):
            layout.unseal(sealed[:size], "file")
    with pytest.raises(errors.Damaged):
        layout.unseal(sealed + b"\n", "file")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"5", b'"x"', b"null", b"\xff\xfe", b"{}", b'{"format": "nbdpull/2", "requires": 5}',
             b'{"format": "nbdpull/2", "requires": [[]]}', b'{"format": "nbdpull/2", "requires": null}', b"[" * 100_000]
)  # fmt: skip
def test_invalid_documents(data):
    with pytest.raises(errors.Damaged, match=r"^file: "):
        layout.unseal(data, "file")


HEAD = '{"format": "nbdpull/2", "requires": []'


def test_resealed_is_as_good_as_sealed():
    assert layout.unseal(strange.resealed(HEAD + ', "a": 1'), "x")["a"] == 1


@pytest.mark.parametrize("member", strange.JSON, ids=lambda member: ascii(member[:30]))
def test_json_that_two_readers_might_read_as_two_things(member):
    with pytest.raises(errors.Damaged, match=r"^file: not a document"):
        layout.unseal(strange.resealed(f"{HEAD}, {member}"), "file")


@pytest.mark.parametrize("coding", ["utf-16", "utf-32", "utf-8-sig", "latin-1"])
def test_a_document_is_utf_8(coding):
    with pytest.raises(errors.Damaged):
        layout.unseal(strange.resealed(HEAD + ', "a": "ü"').decode().encode(coding), "file")


def test_a_pair_of_surrogates_is_a_character():
    assert layout.unseal(strange.resealed(HEAD + r', "a": "\ud83d\udcbe \\ud800"'), "x")["a"] == "💾 \\ud800"


def test_a_document_is_no_larger_than_it_may_be(monkeypatch):
    data = layout.seal(DOCUMENT)
    monkeypatch.setattr(layout, "MAX_DOCUMENT", len(data))
    layout.unseal(data, "file")
    monkeypatch.setattr(layout, "MAX_DOCUMENT", len(data) - 1)
    with pytest.raises(errors.Damaged):
        layout.unseal(data, "file")


@pytest.mark.parametrize("member", ['"requires": "encryption"', '"requires": [1]', '"requires": {"a": 1}'])
def test_invalid_feature_names_are_damage(member):
    """Whoever reads "use a newer nbdpull" does not look for the damage."""
    with pytest.raises(errors.Damaged, match="not a document"):
        layout.unseal(strange.resealed('{"format": "nbdpull/2", ' + member), "file")


@pytest.mark.parametrize(
    "members",
    [{"requires": [f"{n}{'x' * 4000}" for n in range(1000)]}, {"format": "x" * 10**6}, {"format": ["x" * 10**6]}],
    ids=["many features", "a long format", "a strange format"],
)
def test_features_of_a_later_format_are_reported_in_one_line(members):
    with pytest.raises(errors.FormatTooNew) as caught:
        layout.unseal(layout.seal({**DOCUMENT, **members}), "file")
    assert len(str(caught.value)) < 40_000


@pytest.mark.parametrize(
    "text, good",
    [
        ("2026-11-22T19:45:00+00:00", True),
        ("2026-11-22T19:45:00.123-01:30", True),
        ("2026-11-22T19:45:00.123456+00:00", True),
        ("2026-11-22T19:45:00", False),
        ("2026-11-22T19:45:00Z", False),
        ("2026-11-22 19:45:00+00:00", False),
        ("2026-13-22T19:45:00+00:00", False),
        ("2026-11-22T25:45:00+00:00", False),
        ("2026-11-22T19:45:00+23:59", True),
        ("2026-11-22T19:45:00+00:60", False),
        ("2026-11-22T19:45:00+24:00", False),
        ("2026-11-22T19:45:00+00:00\n", False),
        ("٢٠٢٦-11-22T19:45:00+00:00", False),
        ("", False),
    ],
)
def test_times(text, good):
    assert layout.is_time(text) is good


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "sealed otherwise"])
@pytest.mark.parametrize(
    "members, needed",
    [
        ({"format": "nbdpull/3"}, "nbdpull/3"),
        ({"format": "nbdpull/2", "requires": ["zz", "encryption"]}, "encryption, zz"),
        ({"format": {"name": "other"}}, "other"),
        ({"format": ""}, ""),
        ({"requires": [""]}, ""),
    ],
)
def test_a_later_format_is_refused_by_its_name(members, needed, sealed):
    data = layout.seal({**DOCUMENT, **members}) if sealed else json.dumps({**DOCUMENT, **members}).encode()
    with pytest.raises(errors.FormatTooNew, match=f"^file: needs .*{needed}.*this nbdpull reads nbdpull/2"):
        layout.unseal(data, "file")


def test_what_was_never_released_is_refused_by_one_line():
    with pytest.raises(errors.FormatTooOld, match="^file: .*in format nbdpull/1, which no release reads"):
        layout.unseal(layout.seal({**DOCUMENT, "format": "nbdpull/1"}), "file")


def test_a_damaged_document_is_not_taken_for_a_later_format():
    """Whoever reads "use a newer nbdpull" does not look for the damage."""
    data = layout.seal(DOCUMENT).replace(b"nbdpull/2", b"nbdpull/3")
    with pytest.raises(errors.Damaged, match="digest"):
        layout.unseal(data, "file")


# -- records ----------------------------------------------------------------------------------------------------------

FIELDS = [("offset", 8), ("length", 8), ("position", 8), ("stored", 4), ("raw", 4), ("skip", 4), ("chunk", 4),
          ("kind", 4), ("flags", 4), ("digest", 32)]  # fmt: skip


def test_a_record_is_80_little_endian_bytes():
    values = (1, 2, 3, 4, 5, 6, 7, 1, 9, bytes(range(32)))
    packed = struct.pack("<QQQIIIIII32s", *values)
    assert [(name, RECORD[name].itemsize) for name in RECORD.names] == FIELDS
    record = numpy.frombuffer(packed, RECORD)[0]
    assert [record[name].tobytes() if name == "digest" else int(record[name]) for name in RECORD.names] == list(values)


def good_records():
    records = numpy.zeros(3, RECORD)
    records["offset"] = [0, 65536, 1 << 20]
    records["length"] = [65536, 100, 4096]
    records["kind"] = [extents.DATA, extents.ZERO, extents.DATA]
    records["stored"] = [500, 0, 90]
    records["raw"] = [65536, 0, 8192]
    records["skip"] = [0, 0, 4096]
    records["chunk"] = [0, 0, 1]
    return records


SIZE = (1 << 20) + 4096


def test_good_records_have_no_flaw():
    assert layout.records_flaw(good_records(), SIZE, 2) is None
    assert layout.records_flaw(good_records()[:0], SIZE, 0) is None


@pytest.mark.parametrize(
    "row, values, message",
    [
        (0, {"length": 0}, "an empty range"),
        (2, {"length": 4097}, "past the end"),
        (2, {"offset": (1 << 64) - 1}, "past the end"),
        (1, {"offset": 65535}, "overlap"),
        (1, {"flags": 1}, "unknown kind or flags"),
        (1, {"kind": 2}, "unknown kind or flags"),
        (1, {"position": 1}, "zero record with a frame"),
        (1, {"stored": 1}, "zero record with a frame"),
        (1, {"raw": 1}, "zero record with a frame"),
        (1, {"skip": 1}, "zero record with a frame"),
        (1, {"chunk": 1}, "zero record with a frame"),
        (2, {"chunk": 2}, "chunk file without a name"),
        (0, {"raw": MAX_FRAME + 1}, "frame of impossible size"),
        (0, {"stored": 0}, "frame of impossible size"),
        (0, {"stored": MAX_FRAME + (1 << 16) + 1}, "frame of impossible size"),
        (0, {"skip": 1}, "reaches past its frame"),
        (2, {"skip": (1 << 32) - 1}, "reaches past its frame"),
        (0, {"raw": 65535}, "reaches past its frame"),
        (2, {"offset": (1 << 20) - 1, "length": 2}, "crosses a multiple of 1048576"),
    ],
)
def test_records_that_a_reader_must_refuse(row, values, message):
    records = good_records()
    for field, value in values.items():
        records[field][row] = value
    assert message in layout.records_flaw(records, SIZE, 2)


def test_zero_records():
    records = layout.zero_records(extents.of([(5, 6, extents.ZERO), (11, 100, extents.ZERO)]))
    assert layout.records_flaw(records, 111, 0) is None
    assert records[["offset", "length", "kind"]].tolist() == [(5, 6, 1), (11, 100, 1)]
    assert not any(records["digest"].tobytes())


# -- frames that zstd skips -------------------------------------------------------------------------------------------


def test_skippable():
    frame = layout.skippable(layout.HEADER_MAGIC, b"payload")
    assert frame == b"\x50\x2a\x4d\x18" + b"\x07\0\0\0" + b"payload"
    assert layout.parse_skippable(frame + b"more", layout.HEADER_MAGIC) == b"payload"


def test_a_skippable_frame_is_whole_and_of_its_magic():
    frame = layout.skippable(layout.RECORDS_MAGIC, b"payload")
    for size in range(len(frame)):
        with pytest.raises(ValueError):
            layout.parse_skippable(frame[:size], layout.RECORDS_MAGIC)
    with pytest.raises(ValueError, match="0x184d2a50"):
        layout.parse_skippable(frame, layout.HEADER_MAGIC)


def test_chunk_header():
    header = layout.chunk_header("20261122T194500Z-7f3a9c", "vda", 5 << 40, 3)
    about = json.loads(layout.parse_skippable(header, 0x184D2A50))
    assert about == {
        "format": "nbdpull/2", "point": "20261122T194500Z-7f3a9c", "disk": "vda", "size": 5 << 40, "chunk": 3
    }  # fmt: skip


SIZES = [(80, 0), (10, 65536), ((1 << 32) - 1, 1), (30, 0)]


def test_seek_table_is_that_of_the_seekable_format():
    table = layout.seek_table(SIZES)
    entries = b"".join(struct.pack("<II", *entry) for entry in SIZES)
    assert table == struct.pack("<II", 0x184D2A5E, 8 * 4 + 9) + entries + struct.pack("<IBI", 4, 0, 0x8F92EAB1)


@pytest.mark.parametrize("sizes", [SIZES, []])
def test_seek_table_is_read_from_the_end(sizes):
    table = layout.seek_table(sizes)
    assert layout.parse_seek_table(b"what is before it" + table) == sizes


def test_a_seek_table_is_whole():
    table = layout.seek_table(SIZES)
    for first in range(1, len(table) + 1):
        with pytest.raises(ValueError):
            layout.parse_seek_table(table[first:])
    for size in range(len(table)):
        with pytest.raises(ValueError):
            layout.parse_seek_table(table[:size])
    for at in [*range(8), *range(len(table) - 9, len(table))]:  # all but the entries
        with pytest.raises(ValueError):
            layout.parse_seek_table(flipped(table, at))


# -- SHA256SUMS -------------------------------------------------------------------------------------------------------


def test_sums():
    digests = {"vda.index": "a" * 64, "domain.xml": "0123456789abcdef" * 4}
    data = layout.sums(digests)
    assert data.decode().splitlines() == [f"{digests['domain.xml']}  domain.xml", f"{'a' * 64}  vda.index"]
