"""The architecture: which module may import which. The table of docs/design.md says it, and this test holds it.

Each row imports only from the rows below it, never sideways. One outside library has one importing file, or the few
that are named. Only the two top rows print or exit.
"""

import ast
import re
from pathlib import Path

import pytest

import nbdpull

LIBRARIES = {
    "libvirt": {
        "domain",
        "domain_boot",
        "domain_freeze",
        "domain_link",
        "domain_mark",
        "domain_offer",
        "domain_start",
        "domain_state",
        "domain_thaw",
        "socket_guard",
    },
    "libvirt_qemu": {"domain_boot", "domain_link"},
    "nbdkit": {"nbdkit_plugin"},  # a module that exists inside nbdkit only
    "nbd": {"source", "nbd_target"},
    "zstandard": {"writer", "reader"},
    "blake3": {"writer", "reader"},
    "rich": {"terminal"},
    "numpy": {
        "extents",
        "format",
        "writer",
        "reader",
        "disk_copy",
        "source",
        "image",
        "verify",
        "known_frames",
        "lookup",
        "compare",
        "part",
        "evidence",
        "qcow2",
        "overlay",
    },
}
NEEDS_NO_HYPERVISOR = {"restore", "verify", "listing", "serve", "digest", "rebuild"}
FOLDER = Path(nbdpull.__file__).parent


def rows():
    """[(number of its row, 1 is the top; module), …] of the table."""
    design = (FOLDER.parent / "docs" / "design.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| (\d+) \|([^|]*)\|", design, re.MULTILINE)
    return [(int(number), name) for number, names in told for name in re.findall(r"`(\w+)`", names)]


LEVEL = {name: -number for number, name in rows()}
MODULES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.py")}


def imports(tree):
    """Every imported name, wherever in the file: (of our package or not, dotted name)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0] == "nbdpull", alias.name.removeprefix("nbdpull.")
        elif isinstance(node, ast.ImportFrom):
            ours = node.level > 0 or (node.module or "").split(".")[0] == "nbdpull"
            base = (node.module or "").removeprefix("nbdpull").strip(".")
            if ours and not base:
                yield from ((True, alias.name) for alias in node.names)
            else:
                yield ours, base


def ours(name):
    return {found.split(".")[0] for own, found in imports(MODULES[name]) if own} & set(MODULES)


def outside(name):
    return {found.split(".")[0] for own, found in imports(MODULES[name]) if not own}


def reached(name, without=frozenset()):
    """Every module of ours that an import of `name` may bring in."""
    found, more = set(), {name}
    while more:
        found |= more
        more = set().union(*(ours(each) for each in more)) - found - without
    return found


def test_the_table_names_every_module():
    assert set(LEVEL) == set(MODULES) - {"__init__"}
    assert len(rows()) == len(LEVEL), "a module is named twice"


def test_the_package_is_flat():
    assert [path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__"] == []


@pytest.mark.parametrize("name", sorted(LEVEL))
def test_imports_go_down(name):
    wrong = {other for other in ours(name) if LEVEL[other] >= LEVEL[name]}
    assert not wrong, f"{name} imports {', '.join(sorted(wrong))}, not below it in the table"


def test_the_package_itself_imports_nothing():
    assert list(imports(MODULES["__init__"])) == []


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_a_library_has_its_files(library):
    found = {name for name in MODULES if library in outside(name)}
    assert found == LIBRARIES[library]


def test_there_is_no_other_library():
    import sys

    known = set(sys.stdlib_module_names) | set(LIBRARIES) if hasattr(sys, "stdlib_module_names") else None
    if known:  # from Python 3.10 on
        assert {name: outside(name) - known for name in MODULES if outside(name) - known} == {}


@pytest.mark.parametrize("name", sorted(NEEDS_NO_HYPERVISOR))
def test_what_reads_a_store_needs_no_hypervisor(name):
    """restore may import what defines a domain in a function only."""
    assert not {"domain", "source"} & reached(name, without={"domain_define"})
    assert "domain_define" not in at_import(name)


def at_import(name):
    """What an import of a module imports, whether it is used or not."""
    nodes = [node for node in MODULES[name].body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return {found for _, found in imports(ast.Module(nodes, []))}


def test_a_restore_to_raw_needs_no_libnbd():
    """target may import what speaks NBD in a function only."""
    assert not {"nbd", "nbd_target"} & at_import("target")


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


SPEAKS = {"print", "sys.exit", "exit", "quit", "os._exit", "sys.stdout.write", "sys.stderr.write", "input"}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"cli", "__main__", "nbdkit_plugin"}))
def test_only_the_top_prints_or_exits(name):
    assert not SPEAKS & set(calls(MODULES[name]))


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_says_what_it_owns(name):
    text = ast.get_docstring(MODULES[name])
    assert text and len(text.splitlines()[0]) <= 120


def test_only_format_knows_magic_numbers_and_layouts():
    """A byte layout in a second file would have to be changed in two."""
    knowing = {name for name in MODULES if "struct" in outside(name)}
    assert knowing == {"format", "qcow2"}  # one layout is ours, the other is QEMU's
    big = {
        name
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value > 1 << 24
    }
    assert big <= {"format"}


def test_threads_are_the_pipelines():
    """One place starts threads for the data; the writer's is the one that waits for fsync while the next chunk file is
    written. A call of libvirt that may never return needs one to be left in, also in the guard of the connections, and
    the domain, scratch and the guest's processors one each that looks at them; the plugin of nbdkit has one that sees
    its parent end."""
    starting = {name for name, tree in MODULES.items() if {"ThreadPoolExecutor", "threading.Thread"} & set(calls(tree))}
    watching = {"domain_watch", "scratch_watch", "guest_load", "nbdkit_plugin"}
    assert starting == {"pipeline", "writer", "domain_link", "socket_guard"} | watching
