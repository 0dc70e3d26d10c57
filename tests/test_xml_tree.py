"""XML is written as it was read, except for what a definition never has, which is refused."""

import random
import xml.etree.ElementTree as ET

import pytest

from nbdpull.core import errors
from nbdpull.definitions import definition, xml_tree

METADATA = """<metadata>
    <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
      <libosinfo:os id="http://debian.org/debian/12"/>
    </libosinfo:libosinfo>
    <app xmlns="urn:default"><!-- of the app --><inner a="1 &amp; 2">x &lt; y</inner></app>
    <ns0:odd xmlns:ns0="urn:odd" ns0:attribute="&quot;"/>
  </metadata>"""
DOMAIN = f"""<domain type="kvm" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>vm1</name>
  {METADATA}
  <devices/>
  <qemu:commandline>
    <qemu:arg value="-x"/>
  </qemu:commandline>
</domain>"""


def canonical(text):
    return ET.canonicalize(text, with_comments=True)


def test_prefixes_are_kept():
    adapted, _ = definition.adapted(DOMAIN, {}, {})
    assert METADATA.replace("/>", " />") in adapted and '<qemu:arg value="-x" />' in adapted and "ns1" not in adapted
    assert canonical(adapted) == canonical(DOMAIN)


def test_cdata_keeps_its_meaning():
    xml = DOMAIN.replace("x &lt; y", "<![CDATA[<x> & ]]>")
    assert canonical(xml_tree.text_of(xml_tree.parse(xml))) == canonical(xml)


def test_comments_outside_of_metadata_are_dropped():
    root = xml_tree.parse(DOMAIN.replace("<devices/>", "<devices><!-- about --><disk/></devices>"))
    assert [child.tag for child in root.find("devices")] == ["disk"]


@pytest.mark.parametrize("seed", range(30))
def test_any_tree_survives_a_round_trip(seed):
    rng = random.Random(seed)
    text = f"<domain>{''.join(some_xml(rng, 5) for _ in range(3))}</domain>"
    assert canonical(xml_tree.text_of(xml_tree.parse(text))) == canonical(text)


def some_xml(rng, depth):
    """Return a random element, with prefixes, default namespaces, and characters that must be escaped."""
    prefix = rng.choice(["", "", "a:", "b:"])
    tag = prefix + rng.choice(["x", "y"])
    attributes = "".join(f' {name}="{rng.choice(SOME_TEXT)}"' for name in rng.sample(["c", "a:d", "b:e"], 2))
    inner = "".join(some_xml(rng, depth - 1) for _ in range(rng.randrange(3))) if depth else ""
    return (f'<{tag} xmlns:a="urn:{rng.randrange(2)}" xmlns:b="urn:b" xmlns="urn:{rng.randrange(2)}"{attributes}>'
            f"{rng.choice(SOME_TEXT)}{inner}</{tag}>{rng.choice(SOME_TEXT)}")  # fmt: skip


SOME_TEXT = ["", " ", "x", "\n  ", "&amp;", "&lt;&gt;", "&#9;", "ü\U0001f600", "&quot;'"]


@pytest.mark.parametrize("text, says", [
    ("", "no element found"),
    ("<domain>", "no element found"),
    ("<domain></domain>x", "junk"),
    ("<network/>", "begins with <network>"),
    ("<domain>\0</domain>", "not well-formed"),
    ("<domain>\ud800</domain>", "surrogates"),
    ('<!DOCTYPE domain [<!ENTITY a "aaaa">]><domain>&a;</domain>', "document type"),
    ('<!DOCTYPE domain SYSTEM "file:///etc/passwd"><domain/>', "document type"),
    ("<domain>" + "<x>" * 1000 + "</x>" * 1000 + "</domain>", "200 elements deep"),
])  # fmt: skip
def test_texts_that_are_not_definitions(text, says):
    with pytest.raises(errors.Damaged, match=says):
        xml_tree.parse(text)


def test_bytes_are_utf_8_whatever_they_say():
    text = '<?xml version="1.0" encoding="ISO-8859-1"?><domain><name>ü</name></domain>'
    assert xml_tree.parse(text.encode()).findtext("name") == "ü"
    with pytest.raises(errors.Damaged, match="not well-formed"):
        xml_tree.parse(b"<domain>\xff</domain>")
