"""The names of places in object stores; test_storage_base.py tests what is done with their files."""

from datetime import datetime, timezone

import pytest

from nbdpull.core import errors
from nbdpull.format import layout
from nbdpull.storage import s3
from nbdpull.storage.s3 import Place, normal


@pytest.mark.parametrize(
    "word, url",
    [
        ("s3://bucket", "s3://bucket"),
        ("S3://bucket//", "s3://bucket"),
        ("s3://bucket/vms/of all/", "s3://bucket/vms/of all"),
        ("s3://bucket/ü/100%/a+b/..a/~/…", "s3://bucket/ü/100%/a+b/..a/~/…"),
        ("s3://bucket/" + 478 * "x", "s3://bucket/" + 478 * "x"),
    ],
)
def test_a_place(word, url):
    assert normal(word) == Place(url, None)


@pytest.mark.parametrize(
    "word, message",
    [
        ("s3://", "not a place in an object store"),
        ("s3:/bucket/vms", "not a place in an object store"),
        ("s3:///vms", "not a place in an object store"),
        ("s3://bucket//vms", "not a place in an object store"),
        ("s3://bucket/vms//a", "not a place in an object store"),
        ("s3://bucket/../other", "not a place in an object store"),
        ("s3://bucket/./vms", "not a place in an object store"),
        ("s3://bu cket/vms", "not a place in an object store"),
        ("s3://bucket/\udcff", "the prefix is not text in UTF-8"),
        ("s3://bucket/" + 240 * "ü", "the prefix has more than 478 bytes"),
        ("s3://bucket?as-of=then", "not a time"),
        ("s3://bucket?as-of=2026-11-22", "not a time with a time zone"),
    ],
)
def test_what_is_no_place(word, message):
    with pytest.raises(errors.UsageError, match=message):
        normal(word)


def test_a_place_as_of_a_time():
    when = datetime(2026, 11, 22, tzinfo=timezone.utc)
    place = normal(Place("s3://bucket/vms", when).name)
    assert place == Place("s3://bucket/vms", when)


def test_the_longest_key_fits():
    """The folder of a domain, a point, and a small file."""
    point = "20261122T194500Z-0123456789abcdef"
    assert layout.POINT_ID.match(point)
    name = layout.MAX_NAME
    assert s3._LONGEST + 1 + layout.MAX_NAME + 1 + len(point) + 1 + name == 1024
