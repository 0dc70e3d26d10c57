"""The command line without a hypervisor: words in; lines, JSON and exit codes out; and never a traceback."""

import io
import json
import os
import platform
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import command
import pytest
from stores import KIB, MIB, Vm, chain, flipped, package_environment

from nbdpull import __version__
from nbdpull.cli import commands, signals, types, usage
from nbdpull.cli import main as cli
from nbdpull.core import errors
from nbdpull.operations.options import pulls, restores
from nbdpull.repository import image


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("cli") / "store")


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A store whose restore takes some 40 pieces."""
    vm = Vm(tmp_path_factory.mktemp("cli") / "big")
    vm.add_disk("vda", 40 * MIB)
    vm.write("vda", 0, b"x" * 40 * MIB)
    vm.pull(frame_size=MIB)
    return vm


def nbdpull(*words, **how):
    """Run the real program."""
    how = {"capture_output": True, "text": True, "timeout": 60, "env": package_environment(), **how}
    return subprocess.run([sys.executable, "-m", "nbdpull", *map(str, words)], **how)


def parsed(*words):
    return cli.parsed(list(words))


def usage_error(capsys, *words):
    """Return the one line that a wrong command line prints; with --json it prints a JSON line, too."""
    assert cli.main(list(words)) == 2
    out, err = capsys.readouterr()
    assert err.startswith("nbdpull: ") and len(err.splitlines()) == 1
    if "--json" not in words:
        assert out == ""
    return err


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, domain",
    [
        (["vm1", "--since", "chk3", "-o", "dir/"], "vm1"),
        (["pull", "vm1", "--since", "chk3", "-o", "dir/"], "vm1"),
        (["-o", "dir/", "--since", "chk3", "vm1"], "vm1"),
        (["--since=chk3", "-odir/", "--", "-vm"], "-vm"),
        (["pull", "list", "--since", "chk3", "-o", "dir/"], "list"),
        (["pull", "pull", "--since", "chk3", "-o", "dir/"], "pull"),
        (["Verify", "--since", "chk3", "-o", "dir/"], "Verify"),
    ],
)
def test_a_first_argument_that_is_not_a_verb_is_a_domain(words, domain):
    line = parsed(*words)
    assert (line.verb, line.args.domain, line.args.since, line.args.output) == ("pull", domain, "chk3", "dir/")


@pytest.mark.parametrize("verb", commands.VERBS)
def test_a_verb_is_a_verb(verb):
    needed = {
        "expose": "vm --listen :1 --token-file f",
        "pull": "vm -o d",
        "restore": "d -o o",
        "run": "vm -- true",
        "show": "d latest",
        "diff": "d 2026 latest",
        "index": "d latest vda",
        "remove": "d latest",
        "undelete": "d 2026",
        "pin": "d latest",
        "unpin": "d latest",
        "copy": "d e",
        "compare": "d e",
        "key": "list d",
    }
    assert parsed(verb, *needed.get(verb, "d").split()).verb == verb


def test_the_list_of_verbs_is_that_of_the_files():
    found = {path.stem for path in Path(commands.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(commands.VERBS) == found and len(commands.VERBS) == len(found)


def test_defaults():
    assert vars(parsed("vm1", "-o", "dir").args) == {"domain": "vm1", "output": "dir"}, "they are those of the Options"
    made = usage.options(pulls.PullOptions, parsed("vm1", "-o", "dir").args)
    assert made == pulls.PullOptions("vm1", "dir")
    assert (made.full, made.since, made.checkpoint, made.make_checkpoint) == (False, None, None, True)
    assert (made.disks, made.exclude, made.level, made.dedupe) == ([], [], 1, True)
    assert (made.frame_size, made.chunk_size) == (MIB, 256 * MIB)
    made = usage.options(restores.RestoreOptions, parsed("restore", "dir", "-o", "out").args)
    assert (made.point, made.kind, made.force, made.verify) == ("latest", None, False, True)


def test_options_that_are_repeated():
    args = parsed("vm1", "-o", "dir", "--disk", "vda", "--disk", "vdb", "--exclude", "vdc").args
    assert (args.disks, args.exclude) == (["vda", "vdb"], ["vdc"])


@pytest.mark.parametrize(
    "text, size",
    [("0", 0), ("65536", 65536), ("64K", 65536), ("64k", 65536), ("64KiB", 65536), ("64kB", 65536), ("1M", MIB),
     ("3G", 3 << 30), ("2T", 2 << 40), ("5B", 5)],
)  # fmt: skip
def test_sizes(text, size):
    assert types.size(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5M", "1 M", "64KK", "1P", "M1", "1x", "\u2460"])
def test_invalid_sizes(text, capsys):
    assert "size" in usage_error(capsys, "vm1", "-o", "d", f"--chunk-size={text}")


@pytest.mark.parametrize(
    "option, message",
    [
        ("--frame-size=32K", "must be 64K, 128K, 256K, 512K or 1M"),
        ("--frame-size=2M", "must be 64K"),
        ("--frame-size=96K", "must be 64K"),
        ("--chunk-size=1023K", "must be at least 1M"),
        ("--level=0", "must be a number from 1 to 19"),
        ("--level=20", "must be a number from 1 to 19"),
        ("--level=autoo", "must be a number from 1 to 19, or auto;"),
        ("--threads=0", "must be a number from 1 to 64"),
        ("--threads=65", "must be a number from 1 to 64"),
        ("--threads=-1", "must be a number"),
        ("--max-duration=0", "is not a duration; write 90s, 5m, 2h, 30d, or seconds;"),
    ],
)
def test_values_out_of_bounds(capsys, option, message):
    assert message in usage_error(capsys, "vm1", "-o", "d", option)


@pytest.mark.parametrize(
    "words, message",
    [
        (["prune", "d", "--repack-below=x"], "'x' is not a percentage; write 5% or 0.1%, or 0;"),
        (["verify", "d", "--sample=0"], "'0' is not a percentage; write 5% or 0.1%;"),
        (["restore", "d", "--onto=vda="], "'vda=' is not of the form vda=…, nor an image alone;"),
        (["restore", "d", "--to=vda"], "'vda' is not of the form vda=…;"),
        (["policy", "d", "--immutable-for=x"], "'x' is not a duration; write 90s, 5m, 2h, 30d, or 0;"),
    ],
)
def test_errors_list_all_values_of_an_option(capsys, words, message):
    assert message in usage_error(capsys, *words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["vm1"],
        ["pull"],
        ["-o", "dir"],
        ["vm1", "-o"],
        ["vm1", "-o", "d", "--since", "a", "--full"],
        ["vm1", "-o", "d", "--checkpoint", "a", "--no-checkpoint"],
        ["vm1", "-o", "d", "--json", "--quiet"],
        ["vm1", "vm2", "-o", "d"],
        ["vm1", "-o", "d", "--sinc", "a"],
        ["vm1", "-o", "d", "--no-such-option"],
        ["restore", "d", "-o", "o", "--format", "vmdk"],
        ["verify"],
        ["list"],
        ["list", "a", "b"],
        ["show", "d"],
        ["index", "d", "latest"],
    ],
)
def test_wrong_usage(capsys, words):
    verb = words[0] if words and words[0] in commands.VERBS else "pull"
    assert re.search(rf"; see nbdpull help( {verb})?$", usage_error(capsys, *words))


@pytest.mark.parametrize("words, expected", [
    (["vm1", "-o", "d", "--sinc", "a"], "unknown option --sinc (did you mean --since?); see nbdpull help pull"),
    (["verify", "d", "--cache-dir", "c"], "--cache-dir is for list, show and serve; verify reads the object store "
     "itself; see nbdpull help verify"),
    (["vm1", "--ouptut", "d"], "unknown option --ouptut (did you mean --output?); see nbdpull help pull"),
    (["vm1", "-o", "d", "--xyzzy=3"], "unknown option --xyzzy; see nbdpull help pull"),
    (["verfy", "dir"], "no verb 'verfy' (did you mean 'verify'?); as a domain to pull: the following arguments are "
                       "required: -o/--output; see nbdpull help pull"),
    (["restor", "dir", "-o", "out"], "no verb 'restor' (did you mean 'restore'?); as a domain to pull: unexpected "
                                     "argument 'dir'; see nbdpull help pull"),
    (["vm1", "vm2", "-o", "d"], "unexpected argument 'vm2'; see nbdpull help pull"),
    (["help", "verfy"], "no verb 'verfy' (did you mean 'verify'?); see nbdpull help"),
    (["help", "verify", "x"], "unexpected argument 'x'; see nbdpull help"),
    ([], "a verb or a domain is missing; see nbdpull help"),
])  # fmt: skip
def test_did_you_mean(capsys, words, expected):
    assert usage_error(capsys, *words) == f"nbdpull: {expected}\n"


def test_an_unknown_domain_may_be_a_mistyped_verb(tmp_path, capsys):
    for word, hint in (("verfy", "; nor is 'verfy' a verb (did you mean 'verify'?)"), ("nosuch", "")):
        assert cli.main([word, "-o", str(tmp_path / "d"), "-c", "test:///default"]) == 3
        assert (capsys.readouterr().err.rstrip("\n") + "$").endswith(hint + "$")
    assert cli.main(["pull", "verfy", "-o", str(tmp_path / "d"), "-c", "test:///default"]) == 3
    assert "did you mean" not in capsys.readouterr().err, "it was a domain without doubt"


@pytest.mark.parametrize("words", [
    ["vm1", "-o", "d", "--json", "--bogus"], ["verify", "--json"], ["restore", "d", "--json"], ["--json"],
    ["vm1", "-o", "d", "--json", "--level", "x"],
])  # fmt: skip
def test_usage_errors_are_json_lines_too(capsys, words):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    [result] = json_lines(out)
    assert (result["ok"], result["exit_code"], result["code"], result["domain"]) == (False, 2, "usage", None)
    assert err == f"nbdpull: {result['message']}\n"


@pytest.mark.parametrize("words", [["list", "--json"], ["show", "d", "--json"], ["vm1", "--", "--json"]])
def test_no_json_line_without_the_option(capsys, words):
    """A verb that prints one document fails without one; and after a -- there is no option."""
    assert cli.main(words) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("words", [
    ["-vm", "-o", "d"], ["pull", "-vm", "-o", "d"], ["doctor", "-vm"], ["restore", "-dir", "-o", "o"],
    ["restore", "dir", "-o", "o", "--name", "-vm"],
])  # fmt: skip
def test_a_name_that_begins_with_a_dash(capsys, words):
    """It is taken for an option: the message says how to write it."""
    said = usage_error(capsys, *words)
    assert "; put a name that starts with a dash after --, a value after =: --name=-vm; see nbdpull help " in said
    assert "a dash" not in usage_error(capsys, "vm1", "-o", "d", "--no-such-option")
    assert parsed("doctor", "--", "-vm").args.domain == "-vm"
    assert parsed("restore", "d", "--name=-vm").args.name == "-vm"


@pytest.mark.parametrize("words, domain, command", [
    (["--", "-vm", "--", "true"], "-vm", ["true"]),
    (["--json", "--", "-vm", "--", "-x", "--"], "-vm", ["-x", "--"]),
    (["vm1", "--", "-x", "-y"], "vm1", ["-x", "-y"]),
    (["vm1", "--", "true", "--", "-x"], "vm1", ["true", "--", "-x"]),
    (["vm1", "--", "git", "log", "--"], "vm1", ["git", "log", "--"]),
    (["vm1", "--", "true", "--help"], "vm1", ["true", "--help"]),
])  # fmt: skip
def test_a_command_and_its_domain(words, domain, command):
    """A domain whose name begins with a dash could not be given; a command whose last word is -- was refused."""
    args = parsed("run", *words).args
    assert (args.domain, args.command) == (domain, command)


@pytest.mark.parametrize("words", [
    ["vm1"], ["vm1", "--"], ["--", "-vm", "--"], ["--", "true"], ["--", "true", "--", "x"], ["-vm", "--", "true"],
    ["vm1", "--", "-x", "--", "true"], ["--json", "--"],
])  # fmt: skip
def test_a_domain_or_a_command_is_missing(capsys, words):
    assert "see nbdpull help run" in usage_error(capsys, "run", *words)


@pytest.mark.parametrize(
    "words", [["prune", "d", "--keep-within"], ["policy", "d", "--immutable-for"], ["init", "d", "--immutable-for"]]
)
def test_how_long_points_are_kept_needs_a_unit(capsys, words):
    """14 was 14 seconds: a policy that removes nearly everything, or a lock that protects from nothing."""
    assert f"argument {words[-1]}: '14' has no unit; write 14d for days, or " in usage_error(capsys, *words, "14")


# -- help -------------------------------------------------------------------------------------------------------------


def all_errors(kind=errors.NbdpullError):
    return {kind}.union(*(all_errors(each) for each in kind.__subclasses__()))


def test_the_table_of_exit_codes_is_that_of_the_errors():
    lines = usage.EXIT_CODES.splitlines()
    table = {int(found[1]): found[2] for found in (re.match(r" +(\d+) +(\S.*)", line) for line in lines) if found}
    used = {kind.exit_code for kind in all_errors()}
    assert set(table) == {0} | used
    assert any(line.strip().startswith("128+N") for line in lines)
    assert errors.Interrupted(15).exit_code == 143


def test_each_error_has_a_code_word():
    for kind in all_errors():
        assert re.fullmatch(r"[a-z-]+", kind.code)


def test_help(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert cli.main(["help"]) == cli.main(["-h"]) == 0
    assert capsys.readouterr().out == 2 * out
    assert usage.EXIT_CODES in out and usage.EXAMPLES in out
    assert all(f"    {verb}  " in out for verb in commands.VERBS)


def test_help_names_a_default_only_of_what_can_be_left_out(capsys):
    with pytest.raises(SystemExit):
        cli.main(["help", "key"])
    assert "list, add, remove, rotate, test, export\n" in capsys.readouterr().out
    assert "the following arguments are required: ACTION, DIR" in usage_error(capsys, "key")


@pytest.mark.parametrize("verb", commands.VERBS)
def test_help_of_a_verb_has_an_example_that_works(capsys, verb):
    for words in ([verb, "--help"], ["help", verb]):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        out = capsys.readouterr().out
        assert caught.value.code == 0
    example = shlex.split(re.search(r"example:\n  nbdpull (.*)\n", out)[1])
    assert parsed(*example).verb == verb


def test_version():
    done = nbdpull("--version")
    assert (done.stdout, done.stderr, done.returncode) == (f"nbdpull {__version__}\n", "", 0)


@pytest.mark.e2e
@pytest.mark.parametrize("option", ["--version", "--help", "pull --help", "help verify"])
def test_a_start_loads_nothing_heavy(option):
    program = (
        "import sys\nfrom nbdpull.__main__ import main\nsys.argv[0] = 'nbdpull'\n"
        "try: main()\nexcept SystemExit: pass\nprint('LOADED', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *option.split()],
        env=package_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.rpartition("LOADED ")[2].split())
    assert ("nbdpull.cli.usage" in loaded) == (option != "--version")
    heavy = {"numpy", "libvirt", "nbd", "rich", "zstandard", "blake3", "concurrent.futures", "subprocess"}
    assert not heavy & loaded


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_list(vm, capsys):
    assert cli.main(["list", str(vm.root), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [point["id"] for point in result] == [point.id for point in vm.points]
    assert cli.main(["list", str(vm.root), "--wide"]) == 0
    *lines, empty, totals = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "DOMAIN", "POINT", "AS", "OF", "PARENT", "CHECKPOINT", "DISKS", "STORED", "VERIFIED", "DRILLED"
    ]  # fmt: skip
    assert [line.split()[:2] for line in lines[1:]] == [["vm1", point.id] for point in vm.points]
    assert not empty and totals.startswith("3 points, ") and totals.endswith("B stored")


def test_a_list_fits_a_terminal(tmp_path, capsys):
    """Whatever is known of a point; and its short id in the list is accepted."""
    vm = chain(tmp_path / "store", size=300_000)
    path = vm.folder / vm.points[1].id / "vda.0000.zst"
    path.write_bytes(flipped(path.read_bytes(), 99))
    assert cli.main(["verify", str(vm.root), "--quiet"]) == 11
    capsys.readouterr()
    assert cli.main(["list", str(vm.root), "--last", "2", "--domain", "vm1"]) == 0
    domain, headings, *rows, empty, totals = capsys.readouterr().out.splitlines()
    assert domain == "vm1:" and headings.split() == ["POINT", "MODE", "DISKS", "STORED", "VERIFIED", "DRILLED"]
    assert max(map(len, [headings, *rows, totals])) <= 80 and totals.startswith("2 points, ")
    assert ["DAMAGED" in row for row in rows] == [True, True], "the last one refers to what the other has stored"
    for row, point in zip(rows, vm.points[1:]):
        assert cli.main(["show", str(vm.root), row.split()[0], "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["id"] == point.id
    assert cli.main(["list", str(vm.root), "--last", "1", "--json"]) == 0
    assert [point["id"] for point in json.loads(capsys.readouterr().out)] == [vm.points[2].id]
    assert cli.main(["list", str(vm.root), "--domain", "vm2"]) == 10


def test_list_with_a_damaged_point(tmp_path, capsys):
    vm = chain(tmp_path / "store", size=300_000)
    path = vm.folder / vm.points[0].id / "manifest.json"
    path.write_bytes(flipped(path.read_bytes(), 99))
    assert cli.main(["list", str(vm.root), "--json"]) == 11
    out, err = capsys.readouterr()
    assert [point["id"] for point in json.loads(out)] == [point.id for point in vm.points[1:]]
    assert str(path) in err


def test_show(vm, capsys):
    assert cli.main(["show", str(vm.root), vm.points[1].id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == vm.points[1].id
    assert cli.main(["show", str(vm.root), "latest"]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in (vm.points[2].id, vm.points[1].id, "vda", "vdb", "incr"))
    assert max(map(len, out.splitlines())) <= 80


def test_index(vm, capsys):
    assert cli.main(["index", str(vm.root), "latest", "vda"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {record["kind"] for record in records} == {"data"}, "what is in none reads as zero"
    assert [r["offset"] for r in records] == sorted(r["offset"] for r in records)


def json_lines(text):
    """Return the object of each line; the last one, and only that, is the result."""
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["event"] == "result" for event in events] == [False] * (len(events) - 1) + [True]
    return events


def test_json_lines_of_a_restore(vm, tmp_path, capsys):
    assert cli.main(["restore", str(vm.root), "-o", str(tmp_path / "out"), "--format", "raw", "--json"]) == 0
    *progress, result = json_lines(capsys.readouterr().out)
    assert {event["disk"] for event in progress} == {"vda", "vdb"}
    assert result["ok"] is True and result["exit_code"] == 0
    assert result["point"] == vm.points[-1].id
    assert result["files"] == {disk: str(tmp_path / "out" / f"{disk}.raw") for disk in ("vda", "vdb")}
    assert all(os.path.exists(path) for path in result["files"].values())


def test_json_lines_of_a_verify(vm, capsys):
    assert cli.main(["verify", str(vm.root), "--json"]) == 0
    result = json_lines(capsys.readouterr().out)[-1]
    assert (result["ok"], result["points"], result["damages"]) == (True, 3, [])


@pytest.mark.parametrize(
    "words, code, word",
    [
        (["restore", "NONE", "-o", "OUT"], 10, "store"),
        (["restore", "STORE", "-o", "OUT", "--point", "20300101T000000Z-aaaaaa"], 10, "no-such-point"),
        (["restore", "STORE", "-o", "OUT", "--disk", "vdz"], 3, "no-such-disk"),
        (["restore", "STORE", "-o", "OUT", "--domain", "vm9"], 10, "store"),
        (["restore", "STORE", "-o", "FILE"], 9, "output-exists"),
        (["verify", "NONE"], 10, "store"),
        (["verify", "STORE", "--point", "x"], 10, "no-such-point"),
        (["show", "STORE", "x"], 10, "no-such-point"),
        (["index", "STORE", "latest", "vdz"], 3, "no-such-disk"),
        (["list", "NONE"], 10, "store"),
    ],
)
def test_expected_failures(vm, tmp_path, capsys, words, code, word):
    (tmp_path / "file").write_text("")
    places = {"STORE": vm.root, "NONE": tmp_path / "none", "OUT": tmp_path / "out", "FILE": tmp_path / "file"}
    words = [str(places.get(each, each)) for each in words]
    assert cli.main(words) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("nbdpull: ") and len(err.splitlines()) == 1
    if words[0] in ("restore", "verify"):
        assert cli.main([*words, "--json"]) == code
        out, err = capsys.readouterr()
        (result,) = json_lines(out)
        assert (result["ok"], result["exit_code"], result["code"]) == (False, code, word)
        assert err == f"nbdpull: {result['message']}\n"
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def two_domains(tmp_path_factory):
    """A store of vm1 and vm2."""
    root = tmp_path_factory.mktemp("two") / "store"
    for name in ("vm1", "vm2"):
        made = Vm(root, name)
        made.add_disk("vda", 300_000)
        made.pull()
    return root


OF_LIBVIRT = [
    (["pull", "-o", "NONE", "-c", "test:///default", "nosuch"], "nosuch"),
    (["nosuch", "-o", "NONE", "-c", "test:///nowhere"], "nosuch"),
    (["vm1", "-o", "NONE", "--nbd", "nonsense"], "vm1"),  # wrong usage, but the word is there
    (["vm1", "-o", "NONE", "--tls", "/nowhere"], "vm1"),
    (["cleanup", "nosuch", "-c", "test:///default"], "nosuch"),
]
OF_STORES = [
    (["restore", "STORE", "-o", "OUT", "--point", "x"]),
    (["restore", "STORE", "--to", "vda=OUT", "--onto", "vda=OUT"]),  # wrong usage
    (["verify", "STORE", "--point", "x"]),
    (["verify", "STORE", "--disk", "vda"]),  # wrong usage
    (["verify", "STORE", "--against", "NONE"]),
    (["digest", "STORE", "--point", "x"]),
    (["serve", "STORE", "--point", "x"]),
    (["drill", "STORE", "--point", "x"]),
    (["drill", "STORE", "--expect", "("]),  # wrong usage
]


FAILURES = [
    *OF_LIBVIRT,
    *((words, "vm1") for words in OF_STORES),
    *(([*words, "--domain", "vm9"], "vm9") for words in OF_STORES),
    *(([word.replace("STORE", "TWO") for word in words], None) for words in OF_STORES),
    *(([word.replace("STORE", "TWO") for word in [*words, "--domain", "vm2"]], "vm2") for words in OF_STORES),
    (["verify", "NONE"], None),
]


@pytest.mark.parametrize("words, domain", [
    pytest.param(*case, marks=[pytest.mark.e2e] * (case[0][0] == "serve"))  # which asks nbdkit what it is
    for case in FAILURES
])  # fmt: skip
def test_the_json_of_a_failure_names_the_domain(vm, two_domains, tmp_path, capsys, words, domain):
    places = {"STORE": vm.root, "TWO": two_domains, "NONE": tmp_path / "none", "OUT": tmp_path / "out"}
    code = cli.main([*(str(places.get(each, each)) for each in words), "--json"])
    (result,) = json_lines(capsys.readouterr().out)
    assert (result["ok"], result["exit_code"], result["domain"]) == (False, code, domain)
    assert not list(tmp_path.iterdir())


def test_quiet(vm, tmp_path, capsys):
    assert cli.main(["restore", str(vm.root), "-o", str(tmp_path / "out"), "--format", "raw", "--quiet"]) == 0
    assert cli.main(["verify", str(vm.root), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_quiet_still_reports_damage(tmp_path, capsys):
    vm = chain(tmp_path / "store", size=300_000)
    (vm.folder / vm.points[0].id / "domain.xml").unlink()
    assert cli.main(["verify", str(vm.root), "--quiet"]) == 11
    assert "DAMAGE" in capsys.readouterr().out


def test_no_progress_bar_in_a_pipe(vm, tmp_path):
    done = command.nbdpull("restore", vm.root, "-o", tmp_path / "out", "--format", "raw")
    assert done.stderr == ""
    first, headings, *disks, xml, last = done.stdout.splitlines()
    assert first.startswith(f"point {vm.points[-1].id} restored in ") and headings.split()[0] == "DISK"
    assert [line.split()[-1] for line in disks] == [str(tmp_path / "out/vda.raw"), str(tmp_path / "out/vdb.raw")]
    assert xml == f"domain.xml: {tmp_path / 'out/domain.xml'}"
    assert last == f"next: virsh define {tmp_path / 'out/domain.xml'} && virsh start vm1 --force-boot"


def test_bars_on_a_terminal(big, tmp_path):
    output, shown = command.on_a_terminal("restore", big.root, "-o", tmp_path / "out", "--format", "raw")
    assert "restored" in output
    assert b"vda" in shown and b"100%" in shown and b"40.0 MiB" in shown


def test_the_exit_code_of_an_internal_error(vm, capsys, monkeypatch):
    def broken(*_):
        error = ZeroDivisionError("oh")
        error.left_behind = ("the domain is left paused",)  # as hypervisor/clean_up.py does
        raise error

    monkeypatch.setattr(usage.command("list"), "run", broken)
    monkeypatch.delenv("NBDPULL_DEBUG", raising=False)
    assert cli.main(["list", str(vm.root)]) == 1
    err = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: oh" in err and "NBDPULL_DEBUG=1" in err
    assert err.splitlines()[1:] == ["nbdpull: the domain is left paused"]
    monkeypatch.setenv("NBDPULL_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["list", str(vm.root)])


# -- outputs that end early -------------------------------------------------------------------------------------------


def shell(line, **how):
    """Run a line of bash in which $NBDPULL is the program; return (exit code of the program, standard error)."""
    environment = {**package_environment(), "NBDPULL": f"{sys.executable} -m nbdpull", **how}
    line = f'{line}; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=60, errors="backslashreplace"
    )
    return done.returncode, done.stderr


@pytest.mark.e2e
@pytest.mark.parametrize("verb", ["index STORE latest vda", "list STORE", "verify STORE --json", "--help"])
def test_a_reader_that_goes_away(tmp_path, verb):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 8 * MIB)
    for at in range(0, 8 * MIB, 8 * KIB):
        vm.write("vda", at, b"x")
    vm.pull()
    code, err = shell(f"$NBDPULL {verb.replace('STORE', str(vm.root))} | true")
    assert err == ""
    if verb.startswith("index"):
        assert code == 141, "much was to be written"
    else:
        assert code in (0, 141)  # by who is first, it or the reader that goes away


def to_nobody(*words):
    """Run a command line whose standard output is a pipe that nobody reads."""
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as output:
        return command.nbdpull(*words, stdout=output)


@pytest.mark.parametrize(
    "words", [["index", "STORE", "latest", "vda"], ["list", "STORE"], ["verify", "STORE", "--json"], ["--help"]]
)
def test_a_reader_that_was_never_there(vm, words):
    done = to_nobody(*[str(vm.root) if word == "STORE" else word for word in words])
    assert (done.returncode, done.stderr) == (141, "")


def test_a_reader_that_went_away_before_an_error(tmp_path):
    done = to_nobody("restore", tmp_path / "none", "-o", tmp_path / "out", "--json")
    assert done.returncode == 10
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("verb", ["list STORE", "show STORE latest --json", "index STORE latest vda", "verify STORE"])
def test_standard_output_on_a_full_disk(vm, verb):
    with open("/dev/full", "w") as full:
        done = command.nbdpull(*verb.replace("STORE", str(vm.root)).split(), stdout=full)
    assert done.returncode == 9
    assert done.stderr == "nbdpull: cannot write to standard output: No space left on device\n"


@pytest.mark.e2e
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(vm, tmp_path, closed):
    code, err = shell(f"$NBDPULL restore {vm.root} -o {tmp_path}/out --quiet {closed}")
    assert (code, err) == (0, "")
    assert sorted(os.listdir(tmp_path / "out")) == ["domain.xml", "vda.qcow2", "vdb.qcow2"]
    code, err = shell(f"$NBDPULL restore {tmp_path}/none -o {tmp_path}/out {closed}")
    assert code == 10 and "Traceback" not in err


@pytest.mark.e2e
@pytest.mark.parametrize("words", ["list STORE", "restore STORE --disk vda -o -", "--version"])
@pytest.mark.parametrize("closed", [">&-", "<&- >&-"])
def test_closed_standard_output_is_an_error_for_what_has_to_print(vm, words, closed):
    """Otherwise a restore would write a disk to nowhere, or into the next file that is opened."""
    code, err = shell(f"$NBDPULL {words.replace('STORE', str(vm.root))} {closed}")
    assert code == 9
    assert re.fullmatch("nbdpull: cannot write to (stdout|standard output): it is closed\n", err)


SEVERAL = """
import sys
from nbdpull.__main__ import main
for line in sys.argv[1:]:
    sys.argv = ["nbdpull", *line.split()]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0, line
"""


@pytest.mark.e2e
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_names_that_the_terminal_cannot_show(tmp_path, encoding):
    vm = Vm(tmp_path / "store", "vm ü ☃")
    vm.add_disk("vda", 1000)
    vm.pull()
    lines = [f"list {vm.root}", "--help", f"show {vm.root} latest"]
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, *lines],
        env={**package_environment(), "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    output = done.stdout.decode(encoding)
    assert (
        "vm ü ☃" if encoding == "utf-8" else "vm ü \\u2603" if encoding == "latin-1" else "vm \\xfc \\u2603"
    ) in output


def test_a_directory_whose_name_is_not_valid_text(tmp_path):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 1000)
    vm.pull()
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    done = command.nbdpull("restore", vm.root, "-o", folder, "--format", "raw")
    assert done.returncode == 0
    assert done.stderr.count("which is not named here") == done.stderr.count("\n") == 1  # in domain.xml, by that name
    assert os.path.exists(f"{folder}/vda.raw")


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGQUIT, 131)]
)
def test_a_signal_during_a_restore(big, tmp_path, capsys, monkeypatch, number, code, kind):
    reads, real = [], image.Image.read_piece

    def read_piece(self, piece):
        reads.append(piece)
        if len(reads) == 3:
            os.kill(os.getpid(), number)
        return real(self, piece)

    monkeypatch.setattr(image.Image, "read_piece", read_piece)
    before = [signal.getsignal(each) for each in signals.HEARD]
    words = ["restore", str(big.root), "-o", str(tmp_path / "out"), "--format", kind, "--json", "--threads", "1"]
    assert cli.main(words) == code
    assert not (tmp_path / "out").exists()
    assert len(reads) < 40
    result = json_lines(capsys.readouterr().out)[-1]
    assert (result["code"], result["exit_code"]) == ("interrupted", code)
    assert [signal.getsignal(each) for each in signals.HEARD] == before


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_ctrl_c_at_the_terminal_reaches_every_process(big, tmp_path, kind):
    """Ctrl-C goes to qemu-nbd as well: what that then prints must not hide that the operator asked for the end."""
    gate = tmp_path / "gate"
    words = [Path(__file__).with_name("faults") / "held.py", "decompressing", gate]
    words += ["restore", big.root, "-o", tmp_path / "out", "--format", kind, "--json"]
    with subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=package_environment(), start_new_session=True,
    ) as process:  # fmt: skip
        while json.loads(process.stdout.readline())["event"] != "held":
            pass
        os.killpg(process.pid, signal.SIGINT)
        gate.touch()
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert json_lines(out)[-1]["code"] == "interrupted"
    assert err.startswith("nbdpull: stopped by SIGINT") and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_line_is_one_write(vm, monkeypatch):
    """Even with PYTHONUNBUFFERED, as in containers: otherwise other writers' output could get in before its end."""
    written = []

    class Output(io.StringIO):
        def write(self, text):
            written.extend([text] if text else [])
            return len(text)

    monkeypatch.setattr(sys, "stdout", Output())
    assert cli.main(["verify", str(vm.root), "--json"]) == 0
    assert len(written) > 1 and all(text.endswith("\n") and json.loads(text) for text in written)


ANNOUNCED = """
import signal
real = signal.signal
def first(*how):
    signal.signal = real
    real(*how)
    print("ready", flush=True)
signal.signal = first
from nbdpull.__main__ import main
main()
"""


@pytest.mark.e2e
def test_a_signal_at_any_time_shows_no_traceback(vm, tmp_path):
    """From the first instruction of ours; what Python does before that is its own."""
    rng = random.Random(1)
    for attempt in range(10):
        out = tmp_path / f"out{attempt}"
        process = subprocess.Popen(
            [sys.executable, "-c", ANNOUNCED, "restore", str(vm.root), "-o", str(out)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=package_environment(),
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.choice([0, 0.02, 0.1, 0.3, 0.5]) * rng.random())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        if process.returncode == 130:
            assert err.startswith("nbdpull: stopped") and len(err.splitlines()) == 1
        else:  # before the work began, or after its end
            assert process.returncode in (-signal.SIGINT, 0) and err == ""
        left = sorted(os.listdir(out)) if out.exists() else []
        assert left in ([], ["domain.xml", "vda.qcow2", "vdb.qcow2"])


def test_an_ignored_signal_stays_ignored(big, tmp_path, monkeypatch):
    """This is how nohup works."""
    real = image.Image.read_piece

    def read_piece(self, piece):
        os.kill(os.getpid(), signal.SIGHUP)
        return real(self, piece)

    monkeypatch.setattr(image.Image, "read_piece", read_piece)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.main(["restore", str(big.root), "-o", str(tmp_path / "out"), "--format", "raw"]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_ends_an_index_too(vm, monkeypatch, capsys):
    """It may have millions of lines."""
    from nbdpull.format.directory import Directory

    real = Directory.windows

    def windows(*which):
        os.kill(os.getpid(), signal.SIGTERM)
        for window in real(*which):
            yield from [window] * 100_000

    monkeypatch.setattr(Directory, "windows", windows)
    assert cli.main(["index", str(vm.root), "latest", "vda"]) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err


# -- no traceback, ever -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [10, "list", ""], [10, "list", "/dev/null"], [10, "list", "/proc"], [10, "list", "x" * 5000],
        [2, "restore", "STORE", "-o", ""], [9, "restore", "STORE", "-o", "x" * 5000],
        [2, "restore", "STORE", "-o", "/dev/null"], [9, "restore", "STORE", "-o", "/proc/x"],
        [10, "show", "STORE", "../.."], [10, "show", "STORE", "x", "--domain", ".."], [10, "show", "STORE", ""],
        [10, "verify", "STORE", "--domain", ""], [10, "verify", "STORE", "--point", ""],
        [10, "restore", "STORE", "-o", "OUT", "--domain", ""], [3, "restore", "STORE", "-o", "OUT", "--disk", ""],
    ],
)  # fmt: skip
def test_strange_arguments(vm, tmp_path, capsys, monkeypatch, words):
    monkeypatch.setenv("NBDPULL_DEBUG", "1")  # a fault of ours would be raised
    places = {"STORE": str(vm.root), "OUT": str(tmp_path / "out")}
    code, *words = words
    assert cli.main([places.get(word, word) for word in words]) == code
    assert capsys.readouterr().err.startswith("nbdpull: ")
    assert not os.path.exists(tmp_path / "out")


@pytest.mark.parametrize("option", ["--domain", "--point", "--disk"])
def test_arguments_that_are_not_valid_text(vm, tmp_path, option):
    done = command.nbdpull("restore", vm.root, "-o", tmp_path / "out", option, "\udcff")
    assert done.returncode == {"--domain": 10, "--point": 10, "--disk": 3}[option]
    assert done.stderr.startswith("nbdpull: ") and "\\udcff" in done.stderr and len(done.stderr.splitlines()) == 1


FAULTS = """
import os, resource, sys, threading
import zstandard
from nbdpull.core import freed_memory

if sys.argv[1] == "kept":
    freed_memory.keep()
data = os.urandom(1 << 20)

def work():
    compressor, held = zstandard.ZstdCompressor(level=1), []
    for _ in range(60):
        held.append(compressor.compress(data))
        if len(held) == 8:
            held.clear()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


@pytest.mark.parametrize("verb", [["pull", "vm1", "-o", "dir"], ["plan", "vm1"], ["doctor"]])
def test_a_relative_scratch_directory_is_resolved_here(verb):
    """libvirt accepts only absolute paths, and reported a violated rule of its schema."""
    folder = parsed(*verb, "--scratch-dir", "here").args.scratch_dir
    assert folder == os.path.abspath("here")


@pytest.mark.e2e
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has that setting")
def test_freed_memory_is_kept():
    def faults(how):
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert 4 * faults("kept") < faults("given back")
