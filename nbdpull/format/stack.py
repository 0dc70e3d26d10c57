"""The stack of pages of one window, laid over each other: what shows of each, and when two pages are merged.

Owns: the overlay of records, and the rule that limits the height of a stack. Pure. Must not know: files, points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy

from ..core import extents
from . import layout

if TYPE_CHECKING:
    from ..core.extents import Segments

DEPTH = 8  # pages of a window, at most
GROWTH = 2  # a page has more than this many times the records of the page above it


def segments(layers: Sequence[layout.Records], start: int, stop: int) -> Segments:
    """Return which record of which layer shows, the last layer on top; ranges without a record are in no segment."""
    result = numpy.empty(0, extents.SEGMENT)
    for number, records in reversed(list(enumerate(layers))):  # so that the large first layer is laid only once
        result = extents.overlay(extents.clip(_of(records, number), start, stop), result)
    return result


def _of(records: layout.Records, layer: int) -> Segments:
    result = numpy.zeros(len(records), extents.SEGMENT)
    result["offset"], result["length"] = records["offset"], records["length"]
    result["layer"], result["record"] = layer, numpy.arange(len(records))
    return result


def shown(found: Segments, layers: Sequence[layout.Records]) -> layout.Records:
    """Return the records of the layers, each cut to what shows of it, ascending."""
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
    """Return the records of a single layer that shows the same as all layers."""
    return shown(segments(layers, start, stop), layers)


def data_of(records: layout.Records) -> layout.Records:
    result: layout.Records = records[records["kind"] == extents.DATA]
    return result


def changes(new: layout.Records, below: layout.Records, whole: bool) -> layout.Records:
    """Return those new records that change what the ones below show. whole: ranges without a record read as zero."""
    data, zero = data_of(new), new[new["kind"] == extents.ZERO]
    if whole:  # zero over what reads as zero changes nothing
        zero = zero[_meet(zero, data_of(below))]
    both = numpy.concatenate([data[~_are_in(data, below)], zero])
    return both[numpy.argsort(both["offset"], kind="stable")]


def _are_in(records: layout.Records, below: layout.Records) -> extents.Mask:
    """Return which of the records are also below, byte for byte."""
    if not len(below) or not len(records):
        return numpy.zeros(len(records), bool)
    nearest = numpy.minimum(numpy.searchsorted(below["offset"], records["offset"]), len(below) - 1)
    size = layout.RECORD.itemsize
    same: extents.Mask = records.view(f"V{size}") == below[nearest].view(f"V{size}")
    return same


def _meet(ranges: extents.Ranges, others: extents.Ranges) -> extents.Mask:
    """Return which of the ranges have a byte in common with others. The ranges are not cut to the common part: a
    discard of the whole disk must remain one record, not become one for each frame."""
    first = numpy.searchsorted(extents.ends(others), ranges["offset"], side="right")
    found: extents.Mask = first < numpy.searchsorted(others["offset"], extents.ends(ranges), side="left")
    return found


def merges(below: int, top: int, height: int) -> bool:
    """Return whether two pages have to be merged: one with `below` records, and one with `top` records on it.

    height: of the stack, in pages. Because of GROWTH each record is rewritten only a few times, however many pulls
    there are, and the height of a stack is logarithmic in the number of records.
    """
    return below <= GROWTH * top or height > DEPTH
