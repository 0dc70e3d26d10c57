"""XML as a tree that is written as it was read: prefixes, default namespaces, and comments of metadata.

Owns: reading and writing, and what no definition of libvirt contains and a reader must refuse. ElementTree's own reader
renames every prefix to ns0, ns1, … Here a name is what was written ("qemu:arg"), and xmlns is an ordinary attribute.
Must not know: what an element means.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Optional, Union, cast
from xml.parsers import expat

from ..core import errors

MAX_SIZE = 1 << 22  # bytes, or characters: the longest string of libvirt's protocol
MAX_DEPTH = 200  # libvirt's reader takes 256, Python's writer a thousand
METADATA = "metadata"  # its comments belong to programs; libvirt drops those elsewhere, too


def parse(text: Union[str, bytes], root: str = "domain") -> ET.Element:
    """Return the tree of a document with that root element, in UTF-8 if bytes; Damaged if it is not one."""
    if len(text) > MAX_SIZE:
        raise errors.Damaged(f"not a definition of a {root}: it has more than {MAX_SIZE} bytes")
    try:
        found = _Reader().read(text)
    except (expat.ExpatError, UnicodeError, ValueError) as error:
        raise errors.Damaged(f"not a definition of a {root}: {error}") from error
    if found.tag != root:
        raise errors.Damaged(f"not a definition of a {root}: it begins with <{found.tag}>")
    return found


def text_of(root: ET.Element) -> str:
    return ET.tostring(root, encoding="unicode")


def child(element: ET.Element, tag: str) -> ET.Element:
    """Return the first child of that name, which must exist."""
    return cast(ET.Element, element.find(tag))


def made(element: ET.Element, tag: str) -> ET.Element:
    """Return the first child of that name; create it if there is none."""
    found: Optional[ET.Element] = element.find(tag)
    return ET.SubElement(element, tag) if found is None else found


class _Reader:
    def __init__(self) -> None:
        self._builder = ET.TreeBuilder(insert_comments=True)
        self._open: list[str] = []

    def read(self, text: Union[str, bytes]) -> ET.Element:
        parser = expat.ParserCreate("UTF-8")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._builder.data
        parser.CommentHandler = self._comment
        parser.StartDoctypeDeclHandler = self._refuse
        parser.Parse(text.encode() if isinstance(text, str) else text, True)
        return self._builder.close()

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._open.append(name)
        if len(self._open) > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} elements deep")
        self._builder.start(name, attributes)

    def _end(self, name: str) -> None:
        self._open.pop()
        self._builder.end(name)

    def _comment(self, text: str) -> None:
        if METADATA in self._open:
            self._builder.comment(text)

    def _refuse(self, *_about: object) -> None:
        raise ValueError("a document type of its own, which may define entities")
