"""Sizes as people write them."""

import pytest

from nbdpull.core import sizes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("65536", 65536), ("64K", 65536), ("1M", 1 << 20), ("2GiB", 2 << 30), ("3tb", 3 << 40)],
)
def test_sizes(text, expected):
    assert sizes.parse(text) == expected


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5G", "1 M", "1X", "1M\n", "٣"])
def test_invalid_sizes(text):
    with pytest.raises(ValueError, match="is not a size"):
        sizes.parse(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (1 << 50, "1024.0 TiB")],
)
def test_sizes_to_read(count, text):
    assert sizes.shown(count) == text
