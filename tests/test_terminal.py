"""What a person sees: nothing in a store reaches the terminal as a command to it, and JSON stays exact."""

import json

import command
import pytest
import stores
from stores import KIB

from nbdpull.cli import main as cli
from nbdpull.cli import terminal
from nbdpull.operations import drill

# A colour, a bell, a title of the window, C1's CSI, an override of the direction, a line that looks like ours.
EVIL = "x\x1b[31m\a\x1b]0;owned\x07\x9b2J\u202egnp\x7f\r\nnbdpull: all is well"
HARMLESS = r"x\x1b[31m\x07\x1b]0;owned\x07\x9b2J\u202egnp\x7f\r\nnbdpull: all is well"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("vm1 ü ☃ 💾", "vm1 ü ☃ 💾"),
        (EVIL, HARMLESS),
        ("a\tb\0c", r"a\tb\x00c"),
        ("\u2028\u200b\ufeff\u2066", r"\u2028\u200b\ufeff\u2066"),
        ("\udcff", r"\udcff"),  # what is no UTF-8 in a path
    ],
)
def test_plain(text, shown):
    assert terminal.plain(text) == shown


def test_a_long_text_is_folded_and_no_word_is_cut():
    path = "/" + "long/" * 20
    lines = terminal.folded("good  ", f"scratch: {'a-word ' * 20}{path}\x1b and\nmore")
    assert lines[0].startswith("good  scratch: a-word") and all(line.startswith("      a-word") for line in lines[1:-2])
    assert [line for line in lines if len(line) > terminal.COLUMNS] == [f"      {path}\\x1b"]
    assert lines[-1] == r"      and\nmore"


def test_cells_are_aligned_by_the_columns_that_they_take():
    """A name of two wide characters takes four, and an accent of its own none."""
    assert terminal.table(("A", "B"), [("日本", "x"), ("e\u0301", "x"), ("abcd", "x")]) == [
        "A     B", "日本  x", "e\u0301     x", "abcd  x",
    ]  # fmt: skip


def test_cells_are_aligned_as_they_are_shown():
    assert terminal.table(("A", "B"), [("\x1b", "1"), ("x", "\n")]) == ["A     B", "\\x1b  1", "x     \\n"]


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    """Two points of a domain whose name controls a terminal, and a directory that is not a series."""
    vm = stores.Vm(tmp_path_factory.mktemp("evil") / "store", EVIL)
    vm.xml = "<domain/>"  # XML can hold nothing of the kind
    vm.add_disk(f"vda{EVIL}", 10 * KIB)
    vm.write(f"vda{EVIL}", 0, b"x" * KIB)
    vm.pull()
    vm.points[-1] = stores.resealed(vm, vm.points[-1], since=EVIL, consistency=EVIL)
    vm.pull(since="nothing")
    (vm.folder / f"damaged{EVIL.replace('/', '')}").mkdir()
    (vm.folder / f"damaged{EVIL.replace('/', '')}" / "manifest.json").write_text("{}")
    return vm


WORDS = [
    ["list", "STORE"],
    ["status", "STORE"],
    ["show", "STORE", "POINT"],
    ["index", "STORE", "POINT", EVIL],
    ["verify", "STORE"],
    ["verify", "STORE", "--domain", f"{EVIL}?"],
    ["digest", "STORE", "--point", "POINT"],
    ["restore", "STORE", "--point", "POINT", "-o", "OUT", "--format", "raw"],
    ["restore", "STORE", "--point", "POINT", "-o", "OUT", "--disk", "none"],
    ["restore", "STORE", "-o", "OUT"],
    ["serve", "STORE", "--point", "POINT", "--disk", "none"],
    ["drill", "STORE", "--point", "POINT"],
]


def run(capsys, vm, tmp_path, words, *more):
    """Return (standard output, standard error)."""
    names = {"STORE": vm.root, "POINT": vm.points[0].id, "OUT": tmp_path / "out"}
    cli.main([*(str(names.get(word, word)) for word in words), *more])
    return capsys.readouterr()


def assert_harmless(text):
    lines = text.split("\n")
    assert all(line.isprintable() for line in lines), text
    assert not any(line.startswith("nbdpull: all is well") for line in lines), text


@pytest.mark.usefixtures("nbdkit")
@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_store_has_no_command_of_the_terminal(capsys, vm, tmp_path, words):
    out, err = run(capsys, vm, tmp_path, words)
    assert_harmless(out)
    assert_harmless(err)
    assert r"\x1b[31m" in out + err


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_json_is_exact(capsys, vm, tmp_path, words):
    out, err = run(capsys, vm, tmp_path, words, "--json")
    assert_harmless(err)
    if words[0] in ("list", "show"):
        report = json.loads(out)
        point = report[0] if words[0] == "list" else report
        assert (point["domain"], point["since"], point["disks"][0]["name"]) == (EVIL, EVIL, f"vda{EVIL}")
    elif words[0] == "status":
        assert [each["domain"] for each in json.loads(out)["domains"]] == [EVIL]
    elif out:
        [*_, result] = map(json.loads, out.splitlines())
        assert any(EVIL in text for text in texts(result)), result


def texts(value):
    """Yield every string in a JSON value, names of members too."""
    if isinstance(value, str):
        yield value
    for each in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from texts(each)


def test_the_bar_of_a_disk(vm, tmp_path):
    words = ["restore", vm.root, "--point", vm.points[0].id, "-o", tmp_path / "out", "--format", "raw"]
    _, shown = command.on_a_terminal(*words)
    assert rb"\x1b[31m" in shown and b"\x1b[31m" not in shown and b"\a" not in shown


def test_the_console_of_a_guest(vm, capsys, monkeypatch):
    found = drill.Result(vm.points[0], "", "", drill.FAILED, EVIL, 1.0, "console", f"one\n{EVIL}\n\n")
    monkeypatch.setattr(drill, "drill", lambda *_: found)
    words = ["drill", str(vm.root), "--point", vm.points[0].id]
    assert cli.main(words) == 13
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines()[1:] == ["the console ended with:", "one", *_shown_lines(EVIL)]
    assert cli.main([*words, "--json"]) == 13
    result = json.loads(capsys.readouterr().out)
    assert (result["console"], result["reason"]) == (f"one\n{EVIL}\n\n", EVIL)


def _shown_lines(text):
    return [terminal.plain(line) for line in text.split("\n")]
