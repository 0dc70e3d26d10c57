"""A throw-away layer over an image: any writes at any offset, against a plain byte array."""

import random

import pytest
from stores import KIB, chain

from nbdpull.repository import lookup
from nbdpull.serving import overlay


@pytest.mark.parametrize("seed", range(4))
def test_any_writes(tmp_path, seed):
    rng, vm = random.Random(seed), chain(tmp_path / "store", seed=seed, points=2, size=1_500_000)
    point = vm.points[-1]
    with lookup.RandomImage(vm.series, point, "vda") as below:
        layer, expected = overlay.Overlay(below), bytearray(vm.images[point.id]["vda"])
        for _ in range(60):
            offset = rng.randrange(layer.size)
            length = min(rng.choice([1, 512, 4096, 64 * KIB, rng.randrange(1, 400 * KIB)]), layer.size - offset)
            data = bytes(length) if rng.random() < 0.3 else rng.randbytes(length)
            if any(data):
                layer.write(offset, data)
            else:
                layer.zero(offset, length)
            expected[offset : offset + length] = data
            at = rng.randrange(layer.size)
            found = bytearray(min(300 * KIB, layer.size - at))
            layer.read_into(at, found)
            assert found == expected[at : at + len(found)]
        whole = bytearray(layer.size)
        layer.read_into(0, whole)
        assert whole == expected
        assert_covered(layer, expected)
        untouched = bytearray(below.size)
        below.read_into(0, untouched)
        assert untouched == vm.images[point.id]["vda"]


def assert_covered(layer, expected):
    """Require that extents, requested bit by bit, cover everything, and that their zeros are zero."""
    at = 0
    while at < layer.size:
        found = layer.extents(at, layer.size - at, 3)
        for offset, length, kind in found.tolist():
            assert offset == at and length
            at += length
            assert not kind or not any(expected[offset:at])
