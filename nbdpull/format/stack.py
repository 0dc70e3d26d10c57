"""Pages of one window laid over each other: what shows of each, and when they are made into one.

Owns: the overlay of records, and the rule by which a stack stays low. Pure. Must not know: files, points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy

from ..core import extents
from . import layout

if TYPE_CHECKING:
    from ..core.extents import Segments

DEPTH = 8  # pages of a window
GROWTH = 2  # a page has so many times as many records as the one on it, at least


def segments(layers: Sequence[layout.Records], start: int, stop: int) -> Segments:
    """Which record of which layer shows, the last layer on top; what no record covers is in none."""
    result = numpy.empty(0, extents.SEGMENT)
    for number, records in reversed(list(enumerate(layers))):  # so that the large first layer is laid once
        result = extents.overlay(extents.clip(_of(records, number), start, stop), result)
    return result


def _of(records: layout.Records, layer: int) -> Segments:
    result = numpy.zeros(len(records), extents.SEGMENT)
    result["offset"], result["length"] = records["offset"], records["length"]
    result["layer"], result["record"] = layer, numpy.arange(len(records))
    return result


def shown(found: Segments, layers: Sequence[layout.Records]) -> layout.Records:
    """The records of the layers, each cut to what shows of it, ascending."""
    result = numpy.empty(len(found), layout.RECORD)
    for number, records in enumerate(layers):
        mine = found["layer"] == number
        part, at = records[found["record"][mine]], found[mine]
        is_data = part["kind"] == extents.DATA
        part["skip"][is_data] += (at["offset"] - part["offset"])[is_data].astype("u4")
        part["offset"], part["length"] = at["offset"], at["length"]
        result[mine] = part
    return result


def flat(layers: Sequence[layout.Records], start: int, stop: int) -> layout.Records:
    """The records of one layer that shows the same."""
    return shown(segments(layers, start, stop), layers)


def data_of(records: layout.Records) -> layout.Records:
    result: layout.Records = records[records["kind"] == extents.DATA]
    return result


def changes(new: layout.Records, below: layout.Records, whole: bool) -> layout.Records:
    """Of new records those that change what shows of the ones below. whole: what no record covers reads as zero."""
    data, zero = data_of(new), new[new["kind"] == extents.ZERO]
    if whole:  # zero over what reads as zero changes nothing
        zero = zero[_meet(zero, data_of(below))]
    both = numpy.concatenate([data[~_are_in(data, below)], zero])
    return both[numpy.argsort(both["offset"], kind="stable")]


def _are_in(records: layout.Records, below: layout.Records) -> extents.Mask:
    """Which of the records are below, byte for byte."""
    if not len(below) or not len(records):
        return numpy.zeros(len(records), bool)
    nearest = numpy.minimum(numpy.searchsorted(below["offset"], records["offset"]), len(below) - 1)
    size = layout.RECORD.itemsize
    same: extents.Mask = records.view(f"V{size}") == below[nearest].view(f"V{size}")
    return same


def _meet(ranges: extents.Ranges, others: extents.Ranges) -> extents.Mask:
    """Which of the ranges have a byte in common with others. They are not cut to that: a discard of all that a disk
    holds is one record, not one for each frame."""
    first = numpy.searchsorted(extents.ends(others), ranges["offset"], side="right")
    found: extents.Mask = first < numpy.searchsorted(others["offset"], extents.ends(ranges), side="left")
    return found


def merges(below: int, top: int, height: int) -> bool:
    """Whether a page of so many records has to be made into one with that on it. By the growth each record is written
    again a few times at most, however many pulls there are, and the stack is as high as their number's logarithm."""
    return below <= GROWTH * top or height > DEPTH
