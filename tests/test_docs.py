"""The documents are true: commands run, options and codes are those of the program, and the code reads the hexdump."""

import ast
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import command
import pytest
import stores
import zstandard
from bed.machine import MIB, Machine
from blake3 import blake3
from documents import README, blocks, code, section, table

import nbdpull
from nbdpull.cli import main as cli
from nbdpull.cli import types, usage
from nbdpull.cli.commands import VERBS
from nbdpull.cli.output import SCHEMA
from nbdpull.core import errors
from nbdpull.crypto import keys, seal
from nbdpull.format import layout, manifest, moved, pages
from nbdpull.operations import restore

PROJECT = Path(__file__).parent.parent
MANUAL = (PROJECT / "docs/nbdpull.1.md").read_text()
FORMAT = (PROJECT / "docs/format.md").read_text()
DESIGN = (PROJECT / "docs/design.md").read_text()
DOCUMENTS = [PROJECT / "README.md", PROJECT / "CHANGELOG.md", *sorted((PROJECT / "docs").glob("*.md"))]


# -- reading markdown -------------------------------------------------------------------------------------------------


def commands(text):
    """Return every line of a document's shell blocks, as words, without comments."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        assert "://" not in link, "documents can be read offline"
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).replace(" ", "-").lower() for heading in headings}, link


# -- commands ---------------------------------------------------------------------------------------------------------


def parsed(words):
    """Return what the real parser makes of a command line; it refuses a wrong one."""
    return cli.parsed(words[1:])


@pytest.mark.parametrize("text", [README, MANUAL, usage.EXAMPLES], ids=["README", "manual", "help"])
def test_commands_are_understood(text):
    if text is usage.EXAMPLES:
        lines = [re.sub(r"  +\S.*$", "", line.strip()) for line in text.splitlines() if line.startswith("  nbdpull")]
        found = [shlex.split(line) for line in lines]
    else:
        found = [words for words in commands(text) if words[0] == "nbdpull"]
    assert len(found) >= 5
    assert {parsed(words).verb for words in found} >= {"pull", "restore", "verify", "list"}


def test_scripts_exist_and_are_executable():
    named = {word for word in re.findall(r"(?:scripts|\.ci)/[\w-]+(?:\.py)?", README + FORMAT)}
    assert named >= {"scripts/demo", "scripts/test", "scripts/install", "scripts/nbdpull-restore-min"}
    for name in [*named, ".ci/run"]:
        assert os.access(PROJECT / name, os.X_OK), name
        if (PROJECT / name).read_bytes().startswith(b"#!/bin/bash"):
            subprocess.run(["bash", "-n", str(PROJECT / name)], check=True)


def test_the_two_commands_come_first():
    assert [words[0] for words in commands(README)[:2]] == ["scripts/demo", "scripts/test"]


def test_the_changelog_has_this_version():
    assert nbdpull.__version__ in (PROJECT / "CHANGELOG.md").read_text()


def test_the_modules_of_where_a_thing_goes_exist():
    rows = table(section((PROJECT / "docs/hacking.md").read_text(), "Where a thing goes"))
    paths = [path.replace("VERB", "pull") for _, where in rows for path in code(where)]
    assert len(paths) > 30
    assert [path for path in paths if not (PROJECT / "nbdpull" / path).exists()] == []


# -- options and codes ------------------------------------------------------------------------------------------------


def option_strings(parser):
    return {
        (string, action.metavar or "{" + ",".join(action.choices) + "}" if action.nargs != 0 else "")
        for action in parser._actions
        for string in action.option_strings
        if string not in ("-h", "--help")
    }


def verb_parser(verb):
    return usage.Parser(verb)


@pytest.mark.parametrize("verb", VERBS)
def test_options_are_those_of_the_manual(verb):
    items = re.findall(r"^- (`.*?`)(?=:)", section(MANUAL, verb) + section(MANUAL, "every verb"), re.MULTILINE)
    documented = {tuple(text.partition(" ")[::2]) for item in items for text in code(item)}
    assert documented == option_strings(verb_parser(verb))


@pytest.mark.parametrize("verb", VERBS)
def test_defaults_are_those_of_the_manual(verb):
    """The default of an option in --help is also in the manual, or the manual refers to pull."""
    texts = section(MANUAL, verb) + section(MANUAL, "every verb")
    items = re.findall(r"^- (`.*?`): ((?:.|\n(?!\n|- |#))*)", texts, re.MULTILINE)
    said = {name.partition(" ")[0]: " ".join(text.split()) for names, text in items for name in code(names)}
    for action in verb_parser(verb)._actions:
        default = re.search(r"\(default: ([\w/-]+)\)$", action.help or "")  # one that is a sentence may differ
        for name in action.option_strings if default else []:
            stated = re.search(r"Default: `?([\w/-]+)`?[.,;]", said[name])
            assert said[name].startswith("as for pull") or stated[1] == default[1], name


def test_defaults_are_written_as_they_are_given():
    for read, text in [*((types.size, text) for text in ("0", "1000", "64K", "1M", "3G")),
                       *((types.duration, text) for text in ("1.5s", "60s", "5m", "2h"))]:  # fmt: skip
        assert read(types.SHOWN[read](read(text))) == read(text)


def test_every_option_in_the_readme_exists():
    known = {string for verb in VERBS for string, _ in option_strings(verb_parser(verb))}
    others = {"--checkpoints-metadata"}  # of virsh
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", README)) <= known | others


def error_classes(kind=errors.NbdpullError):
    return {kind, *(found for child in kind.__subclasses__() for found in error_classes(child))}


def test_exit_codes_are_those_of_the_manual():
    rows = {row[0]: row for row in table(section(MANUAL, "EXIT CODES"))}
    documented = {(word, number) for number, row in rows.items() for word in code(row[1])}
    real = {(kind.code, str(kind.exit_code)) for kind in error_classes() if kind is not errors.Interrupted}
    assert documented == real | {("interrupted", "128+N")}
    assert errors.Interrupted(15).exit_code == 143
    assert list(rows) == re.findall(r"^  (\d\S*)", usage.EXIT_CODES, re.MULTILINE)


def decided_reasons():
    """Return the second member of each pair that the functions of base.py make which decide on a disk or on a base."""
    module = ast.parse((PROJECT / "nbdpull/pulling/base.py").read_text())
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    names = ("choose", "decide", "_decide_by_before", "newest", "_of_point")
    deciding = [node for node in functions if node.name in names]
    assert len(deciding) == len(names)
    for pair in [node for function in deciding for node in ast.walk(function) if isinstance(node, ast.Tuple)]:
        yield from _texts(pair.elts[1])


def _texts(node):
    if isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "FORMAT" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from [*_texts(node.body), *_texts(node.orelse)]
    elif isinstance(node, ast.Constant) and node.value:
        yield node.value


def test_reason_codes_are_those_of_the_manual():
    documented = [code(row[0])[0] for row in table(section(MANUAL, "REASON CODES"))]
    assert len(documented) == len(set(documented))
    assert set(documented) == set(decided_reasons())


# -- what programs print ----------------------------------------------------------------------------------------------

TYPES = {
    "string": str, "integer": int, "boolean": bool, "object": dict, "array of strings": list, "array of objects": list,
    "array of arrays": list, "array of integers": list,
    "number": float, "object of strings": dict, "object of numbers": dict, "null": type(None),
}  # fmt: skip
# their members are not in the same table
OPAQUE = {"versions", "seconds", "files", "written_bytes", "details", "sizes", "beside", "defined", "covered", "last",
          "formats", "newest", "verified", "drilled"}  # fmt: skip


def members(document, containers=False, path=""):
    """Return {path of each member: value}, with paths such as "disks[].name"; containers: also the members that have
    members."""
    found = {}
    for name, value in document.items():
        here, inner = path + name, {}
        if isinstance(value, dict) and (containers or name not in OPAQUE) and name not in ("versions", "seconds"):
            inner = members(value, containers, here + ".")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                inner.update(members(item, containers, here + "[]."))
        if containers or not inner:
            found[here] = value
        found.update(inner)
    return found


def assert_documented(rows, document, **how):
    """Require that each member of a document is in a table, and each row of the table is a member of its type."""
    rows = {code(row[0])[0]: row[1] for row in rows}
    found = members(document, **how)
    assert set(found) == set(rows)
    for name, value in found.items():
        assert any(type(value) is TYPES[word] for word in rows[name].split(" or ")), (name, value)


def nbdpull_says(folder, *words, exit_code=0):
    """Run nbdpull in a directory; return its standard output."""
    done = command.nbdpull(*words, cwd=folder)
    assert done.returncode == exit_code, done.stderr
    return done.stdout


def events(output):
    """Return its JSON lines by event, without the members that all have; of several lines of one event, the last."""
    shown = [json.loads(line) for line in output.splitlines()]
    rows = {code(row[0])[0]: row[1] for row in table(section(MANUAL, "every line"))}
    assert list(rows) == ["event", "time", "schema", "domain"]
    for event in shown:
        assert list(event)[: len(rows)] == list(rows), "they come first, in each line"
        assert all(any(type(event[name]) is TYPES[word] for word in rows[name].split(" or ")) for name in rows)
        assert layout.is_time(event.pop("time")) and event.pop("schema") == SCHEMA
        assert type(event.get("point", "")) is str, "an id, in each line"
        event.pop("domain")
    return {event["event"]: event for event in shown}


def test_every_event_is_in_the_table():
    """Each of the events also has its own table; and the program reports no others."""
    rows = {code(row[0])[0]: set(code(row[1])) for row in table(section(MANUAL, "the events"))}
    documented = re.findall(r"^### event (\S+) of (\S+)$", MANUAL, re.MULTILINE)
    tables = {event: {verb for other, verb in documented if other == event} for event, _ in documented}
    assert {event: verbs - {"a"} for event, verbs in tables.items()} == {
        event: verbs & tables.get(event, set()) for event, verbs in rows.items()
    }
    reported = set()
    for path in [*PROJECT.glob("nbdpull/operations/*.py"), *PROJECT.glob("nbdpull/restoring/*.py")]:
        reported |= set(re.findall(r'event="([\w-]+)"', path.read_text()))
    assert reported | {"result"} == set(rows)


def assert_event(events, event, verb):
    assert_documented(table(section(MANUAL, f"event {event} of {verb}")), events[event])


@pytest.fixture(scope="module", params=[0, 1], ids=["", "iothread"])
def vm(request, private_libvirt, tmp_path_factory):
    """The VM of the documents: vm1, with a checkpoint chk3; also with its disk in an I/O thread."""
    folder = tmp_path_factory.mktemp("images")
    with Machine(private_libvirt, folder, {"vda": 8 * MIB}, name="vm1", iothreads=request.param) as vm:
        vm.write("vda", 0, MIB, 0x55)
        vm.create_checkpoint("chk3")
        vm.write("vda", MIB, MIB, 0x66)
        yield vm


def test_the_commands_of_the_readme(vm, tmp_path):
    run = [words[1:] for words in commands(README) if words[0] == "nbdpull"]
    assert len(run) == 5
    for words in run:
        nbdpull_says(tmp_path, *words)
    images = [str(tmp_path / "out/vda.qcow2"), str(vm.freeze_copy("vda", tmp_path / "seen.raw"))]
    subprocess.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", *images], check=True)
    assert (tmp_path / "out/domain.xml").read_text().startswith("<domain")
    [since] = json.loads(nbdpull_says(tmp_path, "list", "since-chk3", "--json"))
    assert since["since"] == "chk3" and since["disks"][0]["dirty_bytes"] == MIB
    assert "chk3" in vm.checkpoints() and not vm.job_active()


def test_the_commands_of_the_readmes_table(vm, tmp_path):
    """serve and drill, which run until they are stopped, and the changes to a store have tests of their own."""
    shown = [shlex.split(words) for words in re.findall(r"^\| `nbdpull ([^`]+)` \|", README, re.MULTILINE)]
    assert [parsed(["nbdpull", *words]).verb for words in shown] == [
        "doctor", "plan", "serve", "drill", "status", "prune", "policy", "usage", "diff", "init", "copy",
        "cleanup", "release"
    ]  # fmt: skip
    before = vm.checkpoints()
    for words in shown:
        if words[0] in ("doctor", "plan", "cleanup"):
            assert "vda" in nbdpull_says(tmp_path, *words) or words[0] == "cleanup"
    assert vm.checkpoints() == before and not vm.job_active()
    nbdpull_says(tmp_path, *shown[-1])
    assert vm.checkpoints() == [name for name in before if not name.startswith("nbdpull-")]
    assert not (tmp_path / "dir").exists()


def test_the_json_of_pull(vm, tmp_path):
    nbdpull_says(tmp_path, "vm1", "-o", "store", "--quiet")
    vm.write("vda", 3 * MIB, 65536, 0x77)
    shown = events(nbdpull_says(tmp_path, "vm1", "-o", "store", "--json"))
    for event in ("start", "progress", "result"):
        assert_event(shown, event, "pull")
    assert set(shown) == {"start", "progress", "result"}
    point = shown["result"]["details"]
    assert shown["result"]["point"] == shown["start"]["point"] == point["id"]
    assert_documented(table(section(MANUAL, "a point")), point)
    assert set(point["seconds"]) == set(code(table(section(MANUAL, "a point"))[-2][2]))
    assert set(point["versions"]) == set(code(table(section(MANUAL, "a point"))[-1][2]))
    assert shown["result"]["next_command"] == "nbdpull vm1 -o store"
    assert json.loads(nbdpull_says(tmp_path, "show", "store", "latest", "--json")) == point
    assert json.loads(nbdpull_says(tmp_path, "list", "store", "--json"))[-1] == point


def test_the_json_of_status(vm, tmp_path):
    nbdpull_says(tmp_path, "vm1", "-o", "store", "--quiet")
    nbdpull_says(tmp_path, "verify", "store", "--quiet")
    result = json.loads(nbdpull_says(tmp_path, "status", "store", "--max-age", "10m", "--json"))
    assert_documented(table(section(MANUAL, "a status")), result)
    [domain] = result["domains"]
    assert result["ok"] and 0 < domain["newest"]["age"] < 600 and domain["verified"]["point"] == domain["newest"]["id"]
    (tmp_path / "domains").write_text("vm1\nvm2\n")
    text = nbdpull_says(tmp_path, "status", "store", "--expect", "domains", exit_code=15)
    assert text.startswith("not ok: 1 of 2 domains: vm2\n")


def test_the_json_of_run(vm, tmp_path):
    words = ("run", "vm1", "--since", "token", "--token", "token", "--json", "--", "true")
    if vm.iothreads:  # that it refuses some test_run.py says
        return
    shown = events(nbdpull_says(tmp_path, *words))
    assert set(shown) == {"start", "result"}
    for event in shown:
        assert_event(shown, event, "run")


def test_the_lines_of_verbose(vm, tmp_path):
    """The lines of the manual's excerpt come in that order; numbers, ids and paths differ each time."""

    def alike(text):
        times = r"^[\d:.]{12} "
        lines = [line for line in text.splitlines() if re.match(times, line)]
        return [re.sub(r"\S*\d\S*", "#", re.sub(times, "", line)) for line in lines]

    [excerpt] = [block for block in blocks(section(MANUAL, "every verb"), "text")]
    nbdpull_says(tmp_path, "vm1", "-o", "store", "--quiet")
    vm.write("vda", 3 * MIB, MIB, 0x77)
    done = command.nbdpull("-v", "vm1", "-o", "store", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seen = iter(alike(done.stderr))
    assert [line for line in alike(excerpt) if line not in seen] == []


def test_the_json_of_a_failure(tmp_path):
    shown = events(nbdpull_says(tmp_path, "restore", "nowhere", "-o", "out", "--json", exit_code=10))
    assert_documented(table(section(MANUAL, "event result of a failure")), shown["result"])


def test_the_json_of_restore_and_verify(tmp_path):
    vm = stores.chain(tmp_path / "store", points=2)
    shown = events(nbdpull_says(tmp_path, "restore", "store", "-o", "out", "--format", "raw", "--json"))
    assert_event(shown, "progress", "restore")
    assert_event(shown, "result", "restore")
    path = vm.folder / vm.points[0].id / layout.chunk_name("vda", 0)
    (vm.folder / vm.points[1].id / "manifest.json").write_bytes(layout.seal({"format": "nbdpull/3", "requires": []}))
    copy, data = vm.copy(tmp_path / "copy"), stores.flipped(path.read_bytes(), 150)
    (vm.folder / vm.points[0].id / layout.DOMAIN_XML).unlink()
    with stores.damaged(path, data), stores.damaged(copy.root / path.relative_to(vm.root), data):
        shown = events(nbdpull_says(tmp_path, "verify", "store", "--heal-from", "copy", "--json", exit_code=11))
    for event in ("progress", "damage", "too-new", "result"):
        assert_event(shown, event, "verify")
    [point] = json.loads(nbdpull_says(tmp_path, "list", "store", "--json", exit_code=10))
    assert_documented(table(section(MANUAL, "verified of a point")), point["verified"])


def test_the_json_of_digest_and_of_a_comparison(tmp_path):
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 2 * MIB)
    for data in (b"before", b"after"):
        vm.write("vda", 0, data)
        vm.pull()
    shown = events(nbdpull_says(tmp_path, "digest", "store", "--json"))
    assert_event(shown, "progress", "digest")
    rows = {code(row[0])[0] for row in table(section(MANUAL, "event result of digest"))}
    assert {name.partition(".disks.")[0] for name in members(shown["result"])} - {"points[]"} == rows - {
        "points[].disks"
    }
    nbdpull_says(tmp_path, "restore", "store", "-o", "out", "--format", "raw")
    words = ("verify", "store", "--against", "out/vda.raw", "--disk", "vda", "--json")
    assert events(nbdpull_says(tmp_path, *words))["result"]["equal"]
    shown = events(nbdpull_says(tmp_path, *words, "--point", vm.points[0].id, exit_code=13))
    assert_documented(table(section(MANUAL, "event result of verify --against")), shown["result"])


def test_the_json_of_serve(tmp_path):
    vm = stores.chain(tmp_path / "store", points=1)
    path = vm.folder / stores.chunks_of(vm, vm.points[0], "vda")[0].path
    with stores.damaged(path, path.read_bytes()[:200]):
        process = subprocess.Popen(
            [sys.executable, "-m", "nbdpull", "serve", str(vm.root), "--json"], stdout=subprocess.PIPE, text=True,
            env=stores.package_environment(),
        )  # fmt: skip
        lines = [process.stdout.readline()]
        uri = json.loads(lines[0])["exports"][0]["uri"]
        assert subprocess.run(["nbdcopy", uri, "null:"], capture_output=True).returncode
        lines.append(process.stdout.readline())
        process.terminate()
        lines.append(process.communicate(timeout=20)[0])
    shown = events("".join(lines))
    assert set(shown) == {"serving", "trouble", "result"}
    for event in shown:
        assert_event(shown, event, "serve")


def test_the_json_of_expose(vm, tmp_path):
    (tmp_path / "secret").write_text("0123456789abcdef")
    (tmp_path / "secret").chmod(0o600)
    words = ("expose", "vm1", "--listen", f"unix:{tmp_path}/sock", "--token-file", "secret", "--json")
    process = command.start_nbdpull(*words, cwd=tmp_path)
    line = process.stdout.readline()
    curl = ["curl", "-sSf", "--unix-socket", tmp_path / "sock", "-H", "Authorization: Bearer 0123456789abcdef"]
    subprocess.run([*curl, "-d", '{"ok": true}', f"{json.loads(line)['url']}/finish"], check=True, capture_output=True)
    shown = events(line + process.communicate(timeout=60)[0])
    assert set(shown) == {"exposing", "result"}
    for event in shown:
        assert_event(shown, event, "expose")
    nbdpull_says(tmp_path, "release", "vm1")


def test_the_json_of_serve_over_http(tmp_path):
    vm = stores.chain(tmp_path / "store", points=2)
    (tmp_path / "token").write_text("a-token-of-ours")
    (tmp_path / "token").chmod(0o600)
    words = ("serve", vm.root, "--http", f"unix:{tmp_path}/socket", "--token-file", tmp_path / "token", "--json")
    process = command.start_nbdpull(*words)
    line = process.stdout.readline()
    process.terminate()
    shown = events(line + process.communicate(timeout=20)[0])
    assert_documented(table(section(MANUAL, "event serving of serve --http")), shown["serving"])
    assert [each["since"] for each in shown["serving"]["exports"]] == [vm.points[0].id] * 2
    assert_event(shown, "result", "serve")


def test_the_json_of_drill(vm, private_libvirt, tmp_path):
    nbdpull_says(tmp_path, "vm1", "-o", "store", "--quiet")
    words = ("drill", "store", "-c", private_libvirt.uri, "--expect", "never", "--timeout", "1s", "--json")
    shown = events(nbdpull_says(tmp_path, *words, exit_code=13))
    assert set(shown) == {"drill", "result"}
    for event in shown:
        assert_event(shown, event, "drill")


def test_the_members_of_findings(tmp_path):
    vm = stores.chain(tmp_path / "store", points=1)
    for _ in range(2):
        with stores.damaged(vm.folder / vm.points[0].id / "domain.xml", b""):
            nbdpull_says(tmp_path, "verify", "store", "--sample", "50%", exit_code=11)
    nbdpull_says(tmp_path, "digest", "store")
    rows = {name for row in table(section(FORMAT, "18. Findings")) for name in code(row[0])}
    for path in vm.folder.glob("*.json"):
        found = members(layout.unseal(path.read_bytes(), path.name))
        assert {name.partition(".disks.")[0] for name in found} - {"points[]"} <= rows | {
            "format",
            "requires",
            "digest",
        }
    assert len(list(vm.folder.glob("*.json"))) == 3


def test_the_json_of_index(tmp_path):
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", MIB // 2)
    vm.write("vda", 0, b"x" * (MIB // 2))
    vm.pull()
    vm.zero("vda", 0, 4096)
    vm.pull()
    records = [json.loads(line) for line in nbdpull_says(tmp_path, "index", "store", "latest", "vda").splitlines()]
    rows = table(section(MANUAL, "a record"))
    for record in records:
        assert_documented(rows if record["kind"] == "data" else rows[:3], record)
    assert {record["kind"] for record in records} == {"data", "zero"}


# -- the format -------------------------------------------------------------------------------------------------------


def test_the_members_of_a_manifest(tmp_path):
    vm = stores.chain(tmp_path / "store", points=2)
    document = json.loads((vm.folder / vm.points[1].id / layout.MANIFEST).read_bytes())
    sealed = {row[0].strip("`") for row in table(section(FORMAT, "4. Sealed JSON"))}
    assert sealed == {"format", "requires", "digest"}
    document = {name: value for name, value in document.items() if name not in sealed}
    rare = {"locked", "autostart", "origin"}  # what is locked in a bucket, autostarts, or was copied under another seal
    assert not rare & set(document)
    document["locked"] = asdict(manifest.LockedEntry("2026-11-22T19:44:00+00:00", "compliance", ["1.age"]))
    document["autostart"], document["origin"] = True, vm.points[1].sha256
    assert_documented(table(section(FORMAT, "6. manifest.json")), document, containers=True)
    marker = json.loads((vm.root / layout.MARKER).read_bytes())
    rows = {code(row[0])[0] for row in table(section(FORMAT, "5. nbdpull.json"))}
    elsewhere = {row for row in rows if row.partition(".")[0] in ("sealed", "object_store")}
    assert rows == set(marker) - sealed | elsewhere
    header = json.loads(layout.chunk_header("p", "vda", 1, 0)[8:])
    [about] = re.findall(r"The \*\*header\*\*.*?\(the number", section(FORMAT, "7. Chunk files"), re.DOTALL)
    assert set(header) == set(code(about)) - {layout.FORMAT}


def fields_of(dtype):
    return [(name, dtype.fields[name][1], dtype.fields[name][0].itemsize) for name in dtype.names]


def documented_fields(text):
    """Return the fields of the first table there."""
    sizes = {"u64": 8, "u32": 4, "32 bytes": 32}
    return [(code(name)[0], int(at), sizes[kind]) for at, kind, name, _ in table(text)]


def test_the_layout_of_a_record():
    assert documented_fields(section(FORMAT, "8. Records")) == fields_of(layout.RECORD)
    assert f"A record is {layout.RECORD.itemsize} bytes" in FORMAT


def test_the_layout_of_a_directory():
    text = section(FORMAT, "9. Pages, index, directory")
    assert documented_fields(text[text.index("Of each file it says:") :]) == fields_of(pages._FILE)
    assert documented_fields(text[text.index("and of each page:") :]) == fields_of(pages.PAGE)
    assert (
        f"{pages._FILE.itemsize} bytes each | F files" in text and f"{pages.PAGE.itemsize} bytes each | P pages" in text
    )


def test_the_layout_of_a_moved_table():
    text = section(FORMAT, "19. Moved tables")
    assert documented_fields(text[text.index("Of each move it says:") :]) == fields_of(moved.MOVE)
    assert f"{pages._FILE.itemsize} bytes each | F files" in text
    assert f"{moved.MOVE.itemsize} bytes each | M moves" in text and f"`DISK.NNNN.zst{layout.MOVED}`" in text.replace(
        "POINT/", ""
    )
    assert f"`{layout.REPACKED}`" in text


def test_the_limits_of_the_format():
    text = " ".join(FORMAT.split())
    for words, value in {
        "a range of {} (2^30) bytes of a disk": layout.WINDOW,
        "at most {} (2^21), and": layout.MAX_PAGE_RECORDS,
        "of at most {} (2^26) bytes together": pages.MAX_NAMES,
        "A page is not larger than {} (2^28) bytes": pages.MAX_PAGE,
        "A directory is not larger than {} (2^28) bytes": layout.MAX_DIRECTORY,
        "with a window of at most {} (2^23) bytes": pages.MAX_WINDOW,
        "A sealed file has at most {} (2^26) bytes": layout.MAX_DOCUMENT,
        "at most {} of them. Before it needs more": layout.MAX_PAGES,
        "at most {} that begin in one aligned range of": layout.MAX_BLOCK_RECORDS,
        "`stored` 0 or over {} (": layout.MAX_STORED,
    }.items():
        assert words.format(value) in text


def test_the_numbers_and_names_of_the_format():
    magics = {"HEADER_MAGIC": layout.HEADER_MAGIC, "RECORDS_MAGIC": layout.RECORDS_MAGIC,
              "SEEK_TABLE_MAGIC": layout.SEEK_TABLE_MAGIC}  # fmt: skip
    parts = {row[0]: row[1] for row in table(section(FORMAT, "7. Chunk files"))}
    for part, name in {"header": "HEADER_MAGIC", "records": "RECORDS_MAGIC", "seek table": "SEEK_TABLE_MAGIC"}.items():
        assert f"magic 0x{magics[name]:08X}" in parts[part]
    text = section(FORMAT, "7. Chunk files")
    assert (
        f"magic 0x{int.from_bytes(layout.FRAME_MAGIC, 'little'):08X}" in text
        and f"0x{layout.SEEKABLE_MAGIC:08X}" in text
    )
    assert f"at most {layout.MAX_FRAME} (2^20)" in " ".join(text.split())
    files = "".join(blocks(section(FORMAT, "2. Files of a store"), "text"))
    for name in (layout.MARKER, layout.MANIFEST, layout.SUMS, layout.DOMAIN_XML, layout.LIVE_XML, layout.CHECKPOINT_XML,
                 layout.NVRAM):  # fmt: skip
        assert re.search(rf"/{re.escape(name)} ", files), name
    assert f"`format` | string | `{layout.FORMAT}`" in FORMAT
    versions = table(FORMAT[FORMAT.index("| format | `requires`") :])
    assert {code(row[0])[0] for row in versions} == {layout.FORMAT}
    assert {word for row in versions for word in code(row[1])} == layout.FEATURES
    assert "`full`" in FORMAT and {manifest.FULL, manifest.INCREMENTAL} == {"full", "incremental"}


def test_names_are_encoded_as_specified():
    text = section(FORMAT, "3. Names")
    rows = {code(row[0])[0]: code(row[1])[0] for row in table(text)}
    assert {name: layout.folder_name(name) for name in rows} == rows
    [pattern] = [found for found in code(text) if found.startswith("[0-9]{8}T")]
    assert re.fullmatch(pattern, layout.new_point_id())
    for text in ("20261122T194500Z-7f3a9", "20261122T194500Z-7f3a9c04\n", "20261122T194500-7f3a9c"):
        assert not re.fullmatch(pattern, text) and not layout.POINT_ID.match(text)


# -- the hexdump ------------------------------------------------------------------------------------------------------


def hexdump(name):
    """Return [(bytes, annotation), …] of a dump; a line without annotation belongs to the one before."""
    [text] = blocks(FORMAT, f"hexdump {name}")
    parts, reached = [], 0
    for line in text.splitlines():
        offset, data, note = re.fullmatch(r"([0-9a-f]{8})  ((?:[0-9a-f]{2} ?)+?)(?:  +(\S.*))?", line).groups()
        assert int(offset, 16) == reached, line
        data = bytes.fromhex(data)
        reached += len(data)
        if note:
            parts.append((data, note))
        else:
            parts[-1] = (parts[-1][0] + data, parts[-1][1])
    return parts


def dumped(name):
    return b"".join(data for data, _ in hexdump(name))


def decompressed(frame):
    return zstandard.ZstdDecompressor().decompressobj().decompress(frame)


def example(root, **how):
    """The pull of the worked example."""
    vm = stores.Vm(root)
    vm.add_disk("vda", 135168)
    vm.write("vda", 0, b"\x55" * 65536)
    vm.write("vda", 131072, b"\xaa" * 4096)
    return vm, vm.pull(point_id="20261122T194500Z-7f3a9c04", **how)


DUMPS = ["vda.0000.zst", "records", "page", "directory", "table"]


def test_the_notes_of_the_hexdump_are_right():
    known = {"files", "pages", "names", "moves", *layout.RECORD.names, *pages.PAGE.names, *pages._FILE.names,
             *moved.MOVE.names}  # fmt: skip
    for name in DUMPS:
        for data, note in hexdump(name):
            value = int.from_bytes(data, "little")
            if found := re.match(r"magic 0x([0-9A-F]{8})", note):
                assert value == int(found[1], 16)
            elif found := re.match(r"(\d+) (?:bytes follow|entries)", note):
                assert value == int(found[1])
            elif found := re.match(r".* frame: (\d+) bytes, (\d+) decompressed", note):
                assert value == int(found[1]) + (int(found[2]) << 32)
            elif found := re.fullmatch(r"(\w+) (\d+)(?: \((?:data|zero)\))?", note):
                assert (found[1] in known or note == "descriptor 0", value) == (True, int(found[2]))
            else:
                assert re.fullmatch("digest|sha256|JSON|zstd frame: .*|.* name, and a line feed", note)


def records_frame(chunk):
    """Return the content of the records frame of a chunk file."""
    _, start, stop = next(frame for frame in stores.zstd_frames(chunk) if frame[0] == layout.RECORDS_MAGIC)
    return decompressed(chunk[start + 8 : stop])


def test_the_dumps_are_of_each_other():
    assert records_frame(dumped("vda.0000.zst")) == dumped("records")
    assert decompressed(dumped("vda.index")) == dumped("page")
    assert decompressed(dumped("vda.directory")) == dumped("directory")
    found = pages.decode_directory(dumped("directory"), "vda", 135168)
    for entry, name in zip(found.files, ("vda.0000.zst", "vda.index")):
        assert (entry.path.partition("/")[2], entry.size) == (name, len(dumped(name)))
        assert entry.sha256 == hashlib.sha256(dumped(name)).hexdigest()
    [ref] = found.pages
    assert ref["digest"].tobytes() == blake3(dumped("page")).digest()
    assert len(pages.decode_page(dumped("page"), "vda").records) == 2
    assert len(pages.decode_page(dumped("records"), "vda").records) == 3


def test_the_pieces_that_are_dumped_open():
    made = keys.of_master(bytes(range(32)))
    chapter = section(FORMAT, "20. Sealed stores")
    assert made.id in chapter and made.data.hex()[:8] in chapter and made.data.hex()[-6:] in chapter
    record = pages.decode_page(dumped("records"), "vda").records[0]
    frame = dumped("vda.0000.zst")[int(record["position"]) :][: int(record["stored"])]
    sealed = seal.Sealed(made)
    assert sealed.opened_frame(dumped("sealed frame"), record["digest"].tobytes()) == frame
    assert dumped("sealed frame")[:24] == bytes(range(0x40, 0x58))
    assert sealed.opened_piece(dumped("sealed nvram"), "file nvram") == b"efi\n"
    assert sealed.piece(b"efi\n", "file nvram") == dumped("sealed nvram")


def test_the_table_that_is_dumped_is_of_the_file_that_is():
    files, live, moves = pages.split(dumped("table"), moved.MOVE)
    old = stores.FileEntry(
        "20261122T194500Z-7f3a9c04/vda.0000.zst", 385, hashlib.sha256(dumped("vda.0000.zst")).hexdigest()
    )
    frame = pages.compressed(dumped("table"))
    found = moved.decode(frame + hashlib.sha256(frame).digest(), old)
    assert moved.encode(found) == frame + hashlib.sha256(frame).digest()
    position, size = pages.decode_page(dumped("page"), "vda").records[["position", "stored"]][1].tolist()
    assert moves.tolist() == [(position, 103, size, 1)] and live.tolist() == [size, size]
    assert found.place(position, size) == (files[1].path, 103) and found.place(103, 24) is None


def test_the_code_reads_the_hexdump(tmp_path):
    vm, point = example(tmp_path / "store")
    for name in ("vda.0000.zst", "vda.index", "vda.directory"):
        (vm.folder / point.id / name).unlink()
        entry = stores.replaced(vm, f"{point.id}/{name}", dumped(name))
    point = stores.resealed(vm, point, disks=[replace(point.manifest.disks[0], directory=entry)])
    assert stores.page_of(vm, point, "vda").records.tobytes() == dumped("page")[47:]
    request = restore.Options(str(vm.root), str(tmp_path / "out"), kind="raw")
    image = Path(restore.restore(request).files["vda"]).read_bytes()
    assert image == vm.images[point.id]["vda"] == b"\x55" * 65536 + bytes(65536) + b"\xaa" * 4096


def placeless(data):
    """Return names and records of a page, without what depends on the version of zstd."""
    names, records = pages.decode_page(data, "vda")
    records = records.copy()
    records["position"] = records["stored"] = 0
    return names, records.tobytes()


def anatomy(chunk):
    """Return a chunk file in parts that do not depend on the version of zstd; its own sizes and places are checked
    here."""
    frames = stores.zstd_frames(chunk)
    assert frames[0][0] == layout.HEADER_MAGIC and [magic for magic, _, _ in frames[-2:]] == [0x184D2A51, 0x184D2A5E]
    data = {start: (stop - start, decompressed(chunk[start:stop])) for magic, start, stop in frames[1:-2]}
    sizes = [(stop - start, len(data[start][1]) if start in data else 0) for _, start, stop in frames[:-1]]
    assert layout.parse_seek_table(chunk) == sizes
    page = records_frame(chunk)
    for record in pages.decode_page(page, "vda").records:
        if record["kind"] == 0:
            stored, raw = data[int(record["position"])]
            assert (int(record["stored"]), int(record["raw"])) == (stored, len(raw))
    return chunk[: frames[0][2]], [raw for _, raw in data.values()], placeless(page)


def test_the_code_writes_what_the_hexdump_shows(tmp_path):
    vm, point = example(tmp_path / "store")
    folder = vm.folder / point.id
    written = (folder / "vda.0000.zst").read_bytes()
    assert anatomy(written) == anatomy(dumped("vda.0000.zst"))
    assert len(anatomy(written)[1]) == 2
    index = (folder / "vda.index").read_bytes()
    assert placeless(decompressed(index)) == placeless(dumped("page"))
    theirs, ours = (pages.decode_directory(data, "vda", 135168) for data in
                    (decompressed((folder / "vda.directory").read_bytes()), dumped("directory")))  # fmt: skip
    assert [entry.path for entry in theirs.files] == [entry.path for entry in ours.files]
    fixed = ["offset", "position", "file", "records"]
    assert theirs.pages[fixed].tolist() == ours.pages[fixed].tolist()


# -- the demo ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout_seconds(300)
@pytest.mark.parametrize("options", [[], ["--iothread"]], ids=["", "iothread"])
def test_the_demo(guest_parts, tmp_path, options):
    environment = {**stores.package_environment(), "TMPDIR": str(tmp_path)}
    program = [sys.executable, str(PROJECT / "scripts/demo.py"), *options]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Images are identical.") == 3
    assert list(tmp_path.iterdir()) == []
