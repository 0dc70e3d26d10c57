"""The public API is what tests/data/api.txt says: a change of it affects every vendor, and is made on purpose.

`python3 tests/test_public.py` prints it.
"""

import dataclasses
import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nbdpull

SNAPSHOT = Path(__file__).parent / "data" / "api.txt"


def lines():
    """Return every public name with its signature, and those of its members."""
    for name in sorted(nbdpull.__all__):
        found = getattr(nbdpull, name)
        if not inspect.isclass(found):
            yield f"{name}{inspect.signature(found)}"
            continue
        yield f"class {name}"
        if dataclasses.is_dataclass(found) and found is not nbdpull.Token:  # which is opaque
            for field in dataclasses.fields(found):
                default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
                yield f"    {field.name}: {field.type}{default}"
        elif issubclass(found, tuple):
            yield f"    ({', '.join(found._fields)})"
        for member, value in sorted(vars(found).items()):
            if member.startswith("_"):
                continue
            if inspect.isfunction(value) or isinstance(value, classmethod):
                yield f"    {member}{inspect.signature(getattr(found, member))}"


def test_the_api_is_as_it_was():
    assert list(lines()) == SNAPSHOT.read_text().splitlines()


def test_a_name_is_loaded_when_it_is_used():
    """A program that reads tokens needs no hypervisor."""
    code = "import sys, nbdpull; nbdpull.Token, nbdpull.NbdpullError; print(*{'nbd', 'libvirt'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_no_name_is_made_up():
    assert not hasattr(nbdpull, "pull") and "pull" not in nbdpull.__all__
    assert all(getattr(nbdpull, name) is not None for name in nbdpull.__all__)


def test_help_describes_all_of_it():
    """Though nothing is loaded before it is used."""
    pytest.importorskip("libvirt")
    text = pydoc.plain(pydoc.render_doc(nbdpull))
    described = {*re.findall(r"^    class (\w+)", text, re.M), *re.findall(r"^    (\w+)\(", text, re.M)}
    assert described >= {*nbdpull.__all__} and "scratch_dir: where QEMU keeps" in text


if __name__ == "__main__":
    print(*lines(), sep="\n")
