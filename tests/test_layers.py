"""The architecture: which package may import which, as in the table of docs/design.md.

Imports have no cycle. Each outside library has one importing file, or a few named ones. Only the command line prints or
exits.
"""

import ast
import functools
import re
from pathlib import Path

import pytest

import nbdpull
from nbdpull.cli.commands import VERBS

LIBRARIES = {
    "libvirt": {
        "hypervisor.bindings",  # and by it the rest of its folder
        "hypervisor.guard",  # programs that import nothing else of ours
        "hypervisor.domain_thaw",
        "hypervisor.socket_guard",
    },
    "botocore": {"storage.s3_library"},
    "libvirt_qemu": {"hypervisor.bindings"},
    "cheroot": {"serving.http.server"},
    "nbdkit": {"serving.nbdkit_plugin"},  # a module that exists inside nbdkit only
    "nbd": {"nbd.libnbd"},
    "zstandard": {"format.writer", "format.reader", "format.pages"},
    "blake3": {"format.writer", "format.reader"},
    "cryptography": {"crypto.xaes"},
    "pyrage": {"crypto.age_library"},
    "rich": {"cli.terminal"},
    "urllib3": {"storage.s3_library", "kubevirt.endpoint", "kubevirt.cluster"},
    "kubernetes": {"kubevirt.login"},
    "yaml": {"kubevirt.login"},  # whose errors kubernetes passes on
    "numpy": {
        "core.extents",
        "format.layout",
        "format.writer",
        "format.reader",
        "format.pages",
        "format.sound_part",
        "format.stack",
        "format.directory",
        "format.moved",
        "format.index_writer",
        "repository.changes",
        "repository.good_windows",
        "repository.seen_frames",
        "pulling.disk_copy",
        "nbd.source",
        "nbd.source_connection",
        "repository.image",
        "repository.inspection",
        "repository.known_frames",
        "repository.live_frames",
        "repository.mending",
        "repository.lookup",
        "operations.against",
        "repository.part",
        "repository.rolling",
        "repository.repack",
        "repository.resealed_disk",
        "repository.evidence",
        "images.qcow2",
        "serving.overlay",
        "kubevirt.extent_map",
        "kubevirt.volume",
    },
}
NEEDS_NO_HYPERVISOR = {"restore", "verify", "listing", "status", "show", "index", "serve", "digest", "rebuild"}
FOLDER = Path(nbdpull.__file__).parent


def rows():
    """Return {package: the packages that it may import} of the table."""
    design = (FOLDER.parent / "docs" / "design.md").read_text(encoding="utf-8")
    allowed = re.findall(r"^\| `(\w+)/` \|[^|]*\|([^|]*)\|", design, re.MULTILINE)
    assert len(dict(allowed)) == len(allowed), "a folder twice"
    return {folder: set(re.findall(r"`(\w+)`", others)) for folder, others in allowed}


def named(path):
    """Return package.module; of a module at the top only its name; of a package's own file package.__init__."""
    return ".".join(path.relative_to(FOLDER).with_suffix("").parts)


MAY = rows()
MODULES = {named(path): path for path in FOLDER.rglob("*.py")}
PLACED = sorted(name for name in MODULES if name.count(".") and not name.endswith("__init__"))


@functools.cache
def tree(name):
    """Parse a module when a test needs it: each process of a run imports this file, but only one of them runs its
    tests."""
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imports(name, nodes=None):
    """Return every name that a module imports, wherever in the file: (whether it is of our package, dotted name within
    it)."""
    folders = name.split(".")[:-1]
    for node in nodes or ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0] == "nbdpull", alias.name.removeprefix("nbdpull.")
        elif isinstance(node, ast.ImportFrom):
            above = folders[: len(folders) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*above, node.module]))
            ours = node.level > 0 or base.split(".")[0] == "nbdpull"
            base = base.removeprefix("nbdpull").strip(".")
            yield from ((ours, f"{base}.{alias.name}".strip(".") if ours else base) for alias in node.names)


@functools.cache
def ours(name):
    """Return our modules that it imports."""
    return _ours(name, None)


def _ours(name, nodes):
    found = {each for own, each in imports(name, nodes) if own}
    return (found | {each.rpartition(".")[0] for each in found}) & set(MODULES)  # a module, or a name in one


@functools.cache
def outside(name):
    return {found.split(".")[0] for own, found in imports(name) if not own}


@functools.cache
def reached(name, without=frozenset(), imported=ours):
    """Return every module of ours that an import of `name` may load. imported: the function for a single module."""
    found, more = set(), {name}
    while more:
        found |= more
        more = set().union(*(imported(each) for each in more)) - found - without
    return found


def folder_of(name):
    return name.partition(".")[0]


def test_the_table_names_every_folder():
    assert set(MAY) == {path.parent.name for path in FOLDER.glob("*/__init__.py")}
    assert {name for name in MODULES if "." not in name} == {"__init__", "__main__"}
    deeper = {name.rpartition(".")[0] for name in MODULES if name.count(".") > 1}
    assert deeper == {"cli.commands", "operations.options", "serving.http"}


def test_no_two_folders_import_each_other():
    """Nor in a longer cycle: in some order, each imports only those before it."""
    left, known = dict(MAY), set()
    while left:
        free = {folder for folder, others in left.items() if others <= known}
        assert free, f"a circle in {sorted(left)}"
        known |= free
        left = {folder: others for folder, others in left.items() if folder not in free}


def test_a_module_imports_what_its_folder_may():
    """By the table of docs/design.md."""
    imported = {(name, other) for name in PLACED for other in ours(name)}
    allowed = {(folder, other) for folder, others in MAY.items() for other in {folder, *others}}
    wrong = sorted(each for each in imported if tuple(map(folder_of, each)) not in allowed)
    assert wrong == []


@pytest.mark.parametrize("folder", sorted(MAY))
def test_what_a_folder_may_import_it_does(folder):
    """Otherwise the table would allow more than is needed."""
    used = {folder_of(other) for name in PLACED if folder_of(name) == folder for other in ours(name)} - {folder}
    assert used == MAY[folder]


def test_no_module_imports_itself_by_others():
    assert [name for name in PLACED if any(name in reached(other) for other in ours(name) - {name})] == []


def test_the_package_and_its_folders_import_nothing():
    """Except for the names of the public API: for type checkers, and when they are used."""
    assert [name for name in MODULES if name.endswith(".__init__") and list(imports(name))] == []
    assert outside("__init__") == {"importlib", "typing"} and at_import("__init__") == set()


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_a_library_has_its_files(library):
    found = {name for name in MODULES if library in outside(name)}
    assert found == LIBRARIES[library]


def test_libvirt_is_its_folders():
    """Any other caller would have to translate its errors."""
    calling = {name for name in PLACED if "hypervisor.bindings" in ours(name)}
    assert calling and {folder_of(name) for name in calling} == {"hypervisor"}


def test_there_is_no_other_library():
    import sys

    known = set(sys.stdlib_module_names) | set(LIBRARIES) if hasattr(sys, "stdlib_module_names") else None
    if known:  # from Python 3.10 on
        assert {name: outside(name) - known for name in MODULES if outside(name) - known} == {}


@pytest.mark.parametrize("verb", sorted(NEEDS_NO_HYPERVISOR))
def test_what_reads_a_store_needs_no_hypervisor(verb):
    """The module that defines a restored domain may be imported only inside a function."""
    name = f"operations.{verb}"
    assert not {"hypervisor.bindings", "nbd.source"} & reached(name, without=frozenset({"hypervisor.domain_define"}))
    assert "hypervisor.domain_define" not in reached(name, imported=at_import)


@functools.cache
def at_import(name):
    """Return the modules of ours that an import of a module loads, whether they are used or not."""
    nodes = [node for node in tree(name).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return _ours(name, nodes)


def test_a_restore_to_raw_needs_no_libnbd():
    """targets/ may import what speaks NBD only inside a function."""
    placed = [name for name in PLACED if folder_of(name) == "targets"]
    assert [name for name in placed if any(folder_of(other) == "nbd" for other in at_import(name))] == []


@functools.cache
def calls(name):
    return {ast.unparse(node.func) for node in ast.walk(tree(name)) if isinstance(node, ast.Call)}


REACHES_FILES = {"fcntl", "glob", "io", "pathlib", "shutil", "tempfile"}
ONLY_NAMES = {
    "os.path.join",
    "os.path.dirname",
    "os.path.isabs",
    "os.path.basename",
    "os.sched_getaffinity",
    "os.getuid",
    "os.geteuid",
    "os.environ.get",
    "os.path.expanduser",
}


OTHER_FILES = {  # and whose
    "pulling.holder",  # the lock of a domain
    "pulling.token_file",  # a user's
    "pulling.route",  # certificates, a tunnel's socket
    "operations.drill",  # overlays and a console
    "restoring.belongings",  # restored ones
    "restoring.destination",  # secrets
    "restoring.fit",  # what is there
}
WITHOUT_FILES = [
    name
    for name in PLACED
    if folder_of(name) in ("format", "repository", "pulling", "restoring", "operations") and name not in OTHER_FILES
]


def test_only_storage_reaches_the_files_of_a_store():
    """In an object store, calls of the operating system would have nothing to act on."""
    called = {(name, call) for name in WITHOUT_FILES for call in calls(name) if call == "open" or call[:3] == "os."}
    assert sorted(each for each in called if each[1] not in ONLY_NAMES) == []
    assert [name for name in WITHOUT_FILES if outside(name) & REACHES_FILES] == []


OF_A_VERB = {"list": "listing"}  # its operation, where that has another name: `list` is Python's own
# Operations that are options of a verb: verify --against, index --rebuild, and those of kubevirt:…
FURTHER = {"against", "rebuild", "kubevirt"} | {f"kubevirt_{verb}" for verb in ("plan", "doctor", "cleanup", "release")}
OPERATIONS = sorted({OF_A_VERB.get(verb, verb) for verb in VERBS} | FURTHER)
SIGNATURE = "options: Options, report: Report=lambda **event: None, check: Check=lambda: None"


def defined(name):
    """Return {name: its node} of the functions and classes at the top of a module."""
    return {node.name: node for node in tree(name).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize("verb", OPERATIONS)
def test_every_verb_has_one_shape(verb):
    """operations.VERB(Options, report, check) -> Result, the Options from options/, the Result frozen."""
    found = defined(f"operations.{verb}")
    function, result = found[verb], found["Result"]
    assert (ast.unparse(function.args), ast.unparse(function.returns)) == (SIGNATURE, "Result")
    assert ast.get_docstring(function) and ast.get_docstring(result)
    assert [ast.unparse(each) for each in result.decorator_list] == ["dataclass(frozen=True)"]
    [(module, options)] = [
        (node.module, alias.name)
        for node in tree(f"operations.{verb}").body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("options.")
        for alias in node.names
        if alias.asname == "Options"
    ]
    assert [ast.unparse(each) for each in defined(f"operations.{module}")[options].decorator_list] == [
        "dataclass(frozen=True)"
    ]


ARRAYS = {"numpy", "NDArray", "Ranges", "Extents", "Segments", "Numbers", "Mask", "Indexes", "Record", "Records"}
OTHERS_TYPES = ARRAYS | {"libvirt", "nbd", "virDomain", "virConnect"}


def test_no_signature_of_an_operation_has_a_type_of_a_library():
    """Parameters and results of an operation have our types, or Python's; so have fields of classes."""
    operations = [name for name in PLACED if folder_of(name) == "operations"]
    assert {name: words_of_types(name) & OTHERS_TYPES for name in operations} == dict.fromkeys(operations, set())


def words_of_types(name):
    nodes = list(ast.walk(tree(name)))
    annotations = [node.annotation for node in nodes if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation]
    annotations += [node.returns for node in nodes if isinstance(node, ast.FunctionDef) and node.returns]
    return {word for each in annotations for word in re.findall(r"\w+", ast.unparse(each))}


SPEAKS = {"print", "sys.exit", "exit", "quit", "os._exit", "sys.stdout.write", "sys.stderr.write", "input"}


def test_only_the_top_prints_or_exits():
    speaking = {name for name in MODULES if SPEAKS & calls(name)}
    assert speaking == {"cli.output", "__main__", "serving.nbdkit_plugin"}


def test_every_module_states_what_it_owns():
    said = {name: ast.get_docstring(tree(name)) or "" for name in MODULES}
    assert [name for name, text in said.items() if not 0 < len(text.partition("\n")[0]) <= 120] == []


def test_only_format_knows_magic_numbers_and_layouts():
    """A byte layout in a second file would have to be changed in two."""
    knowing = {name for name in MODULES if "struct" in outside(name)}
    assert knowing == {"format.layout", "format.pages", "images.qcow2"}  # the last one is QEMU's
    big = {
        name
        for name in MODULES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value > 1 << 24
    }
    assert big <= {"format.layout"}


def test_threads_are_the_pipelines():
    """One place starts threads for the data; the writer's waits for fsync while the next chunk file is written. A call
    of libvirt that may never return needs a thread that can be abandoned, also in the guard of the connections. One
    thread each watches the domain, scratch and the guest's processors; the plugin of nbdkit has one that notices the
    end of its parent. Whether a server lets only one writer of a name win is tested with several at once, and whether a
    thread may leave the background with one. Frames that no client requested yet are read by threads of their cache:
    loading the module of a pool takes longer than all of it."""
    starting = {name for name in MODULES if {"ThreadPoolExecutor", "threading.Thread"} & calls(name)}
    watching = {"hypervisor.domain_watch", "pulling.scratch_watch", "hypervisor.guest_load", "serving.nbdkit_plugin"}
    watching.add("serving.http.server")  # and its clients
    named = {"core.pipeline", "format.writer", "hypervisor.domain_link", "hypervisor.socket_guard"}
    named |= {"storage.s3_probe", "repository.frame_cache", "core.background"}
    assert starting == named | watching


def test_no_test_module_is_a_library():
    """What two of them need is in a module of its own."""
    modules = Path(__file__).parent.rglob("*.py")
    assert [path.name for path in modules if re.search(r"^ *(from|import) test_", path.read_text(), re.MULTILINE)] == []
