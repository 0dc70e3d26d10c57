"""The benchmark's own arithmetic, against a simple calculation, and its reader; it reports its own measurements."""

import json
import random
import re
import shlex
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from bed.address import is_listening
from bed.machine import wait_for
from documents import PROJECT, blocks
from stores import Vm

SCRIPTS = PROJECT / "scripts" / "benchmark"
sys.path.insert(0, str(SCRIPTS))

nbd = pytest.importorskip("nbd")

import guest_view  # noqa: E402
import limits  # noqa: E402
import main  # noqa: E402
import measure  # noqa: E402
import plot  # noqa: E402
import pretend  # noqa: E402
import report  # noqa: E402
import scenarios  # noqa: E402
import years  # noqa: E402

from nbdpull.operations.restore import Options, restore  # noqa: E402

PERFORMANCE = (PROJECT / "docs/performance.md").read_text()
SHOWN = [line for block in blocks(PERFORMANCE, "sh") for line in block.splitlines()]
SHOWN += re.findall(r"`(scripts/bench [^`]*)`", PERFORMANCE)


@pytest.mark.parametrize("line", SHOWN)
def test_a_command_line_of_the_page_is_understood(line, capsys):
    """Each would run for minutes."""
    program, *words = shlex.split(line, comments=True)
    args = main._arguments(words)
    assert program == "scripts/bench" and {*args.scenario} <= scenarios.SCENARIOS.keys()
    with pytest.raises(SystemExit):
        main._arguments([*words, "--nothing"])
    assert "usage: scripts/bench" in capsys.readouterr().err


def cost(wall, size=0, cpu=1.0):
    return measure.Cost(wall=wall, cpu=cpu, qemu_cpu=0.5, peak_mib=64, size=size)


def test_medians_and_spread():
    rows = report.medians({"nbdpull": [cost(3.0, 10), cost(1.0, 30), cost(2.0, 20)], "other": [cost(8.0, cpu=3.0)]})
    assert (rows["nbdpull"]["wall"], rows["nbdpull"]["size"], rows["nbdpull"]["spread"]) == (2.0, 20, [1.0, 3.0])
    line = report.table("full", rows).splitlines()[3]
    assert line.split()[:3] == ["other", "8.00", "8.00–8.00"] and line.split()[-2:] == ["0.25", "0.33"]


def test_a_figure_says_whether_it_is_what_is_wanted():
    figures = [years.Figure(value, "x", 1.2) for value in (1.0, 1.3, 1.25)]
    rows = report.medians({"CPU": figures, "less": figures[:1], "told": [years.Figure(9.0, "s")]})
    lines = [line.split() for line in report.table("years", rows).splitlines()[2:]]
    assert lines == [
        ["CPU", "1.25", "x", "1–1.3", "at", "most", "1.2:", "MISSED"],
        ["less", "1", "x", "1–1", "at", "most", "1.2:", "kept"],
        ["told", "9", "s", "9–9"],
    ]
    assert [report.is_missed(row) for row in rows.values()] == [True, False, False]


def test_a_restore_is_written_to_memory_only_where_there_is_room(tmp_path, monkeypatch):
    """A machine that runs out of memory would end other programs."""
    monkeypatch.setattr(measure, "MEMORY", str(tmp_path))
    assert years._in_memory(0) == str(tmp_path) and years._in_memory(1 << 60) is None
    monkeypatch.setattr(measure, "MEMORY", "/nowhere")
    assert years._in_memory(0) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_view_is_what_counting_gives(seed):
    rng = random.Random(seed)
    times = [rng.expovariate(1000) for _ in range(rng.randint(1, 3000))]
    view = guest_view.of_times(times, 2.0)
    for part, reported in ((0.5, view.p50), (0.99, view.p99), (0.999, view.p999)):
        quicker = sum(1000 * each < reported for each in times)
        slower = sum(1000 * each > reported for each in times)
        assert quicker <= part * len(times) and slower <= (1 - part) * len(times)
    assert view.count == len(times) and view.rate == pytest.approx(1 / statistics.mean(times))


def test_views_of_several_rounds():
    growth = [(0.1 * i, (i - 3 << 20) if i > 3 else 0) for i in range(12)]
    rows = report.medians({
        "no backup": [guest_view.of_times([0.001] * 5, 1.0)],
        "nbdpull": [guest_view.of_times([ms / 1000] * 5, 1.0, growth) for ms in (2, 6, 3)],
    })  # fmt: skip
    assert rows["nbdpull"]["p99"] == 3.0 and rows["nbdpull"]["spread"] == [2.0, 6.0]
    line = report.table("guest", rows).splitlines()[-1]
    assert line.split()[3:5] == ["2.00–6.00", "3.00"] and line.split()[-4:] == ["2", "4", "6", "8"]
    json.dumps(rows)


def results(ours, theirs):
    return {"full": {"nbdpull": {"wall": ours, "size": 5}, "other": {"wall": theirs, "size": 9}}}


def test_more_than_15_percent_slower_is_a_regression():
    before = results(4.0, 10.0)
    assert report.regressions(results(4.5, 10.0), before) == []
    assert report.regressions(results(9.0, 20.0), before) == []  # all of the machine was slower
    assert report.regressions(results(4.7, 10.0), before) == ["full: 0.47 against other, was 0.40"]
    assert report.regressions({"new": results(1, 1)["full"]}, before) == []


def test_alone_the_wall_time_counts():
    def alone(wall):
        return {"verify": {"nbdpull": {"wall": wall, "size": 0}}}

    assert report.regressions(alone(1.1), alone(1.0)) == []
    assert report.regressions(alone(1.2), alone(1.0)) == ["verify: 1.20 against nbdpull, was 1.00"]


def test_the_plot_has_a_bar_of_time_and_of_size_for_each_tool():
    drawn = ET.fromstring(plot.svg({**results(4.0, 8.0), "guest": {"nbdpull": {"p99": 1.0}}}))
    bars = [float(each.get("width")) for each in list(drawn.iter("{http://www.w3.org/2000/svg}rect"))[1:]]
    assert len(bars) == 4 and bars[0] == bars[2] / 2 and bars[1] < bars[3]


HOLD = """
import os, sys, time
held = bytearray(64 << 20)
open(sys.argv[1], "w").close()
while not os.path.exists("seen"):
    time.sleep(0.01)
time.sleep(0.5)
"""


def test_memory_of_all_processes_of_a_pipe(tmp_path, monkeypatch):
    """They hold their memory until it was measured while both had it."""
    monkeypatch.chdir(tmp_path)
    Path("hold").write_text(HOLD)
    looks, tree = [], measure._tree

    def seen(pid):
        looks.append(Path("left").exists() and Path("right").exists())
        if sum(looks) == 2:
            Path("seen").touch()
        return tree(pid)

    monkeypatch.setattr(measure, "_tree", seen)
    command = ["sh", "-c", f"{sys.executable} hold left | {sys.executable} hold right"]
    took = measure.run(command, log=tmp_path / "log")
    assert 128 < took.peak_mib < 300 and took.wall > 0.5


def test_a_command_that_fails_says_why(tmp_path):
    with pytest.raises(measure.Failed, match="no such thing"):
        measure.run(["sh", "-c", "echo no such thing; exit 3"], log=tmp_path / "log")


@pytest.fixture
def served(tmp_path):
    """Factory: the URI of 1 MiB of zeroes, served by nbdkit with these filters."""
    image, socket, servers = tmp_path / "image", tmp_path / "socket", []
    image.write_bytes(bytes(1 << 20))

    def start(*words):
        filters = [f"--filter={words[0]}"] if words else []
        servers.append(subprocess.Popen(["nbdkit", "-f", "-r", *filters, "-U", socket, "file", image, *words[1:]]))
        wait_for(lambda: is_listening(socket), "nbdkit listens")
        return f"nbd+unix:///?socket={socket}"

    yield start
    for server in servers:
        server.kill()
        server.wait()


def test_the_reader_reads_all_ranges(served):
    ranges = [(offset, 4096) for offset in range(0, 1 << 20, 8192)]
    assert limits.read(served(), ranges) == (1 << 20) // 2


def test_the_reader_is_not_quick_where_it_reads_nothing(served):
    with pytest.raises(nbd.Error, match="Input/output error"):
        limits.read(served("error", "error-pread=EIO", "error-pread-rate=100%"), [(0, 4096)])


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """The smallest disks, without a bed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return scenarios.Setting(None, tmp_path, 0.001)


def test_the_limit_is_of_the_very_frames(tmp_path):
    vm = Vm(tmp_path / "vm")
    vm.add_disk("vda", 4 << 20)
    vm.write("vda", 0, bytes(random.Random(1).choices(range(16), k=3 << 20)))
    vm.pull()
    chunks = list((tmp_path / "vm").rglob("*.zst"))
    took = limits.spent(chunks, tmp_path / "copy")
    frames = b"".join(limits._frames(chunks))
    assert (tmp_path / "copy").read_bytes() == frames and len(frames) > 1 << 20
    assert min(took) > 0


def test_a_pretend_disk_is_what_its_points_restore_to(tmp_path):
    disk = pretend.Disk(8 << 20)
    made = pretend.history(tmp_path / "store", disk, 5, 0.1)
    pretend.cloned(made, "other", "3e3fce45-4f53-4fa7-bb32-11f34168b82c")
    disk.save(tmp_path / "saved")
    saved = (tmp_path / "saved").read_bytes()
    assert saved == disk.read(0, disk.size) and len(set(saved[:: pretend.BLOCK])) > 100
    for name in (pretend.NAME, "other"):
        restore(Options(str(tmp_path / "store"), str(tmp_path / name), name, kind="raw"))
        assert (tmp_path / name / "vda.raw").read_bytes() == saved


@pytest.mark.parametrize("row", ["years-prune", "years-store"])
def test_rows_without_a_vm(setting, row):
    rows = report.medians({what: [figure] for what, figure in scenarios.SCENARIOS[row](setting, 1)})
    assert all(figure["value"] > 0 for figure in rows.values())
    assert any(figure["at_most"] for figure in rows.values())


def test_a_real_pull_with_points_behind_that_are_not(setting, private_libvirt):
    """Its point is laid over the simulated ones: otherwise the row itself fails."""
    setting.bed = private_libvirt
    figures = dict(years.pull(setting, 1))
    assert figures["CPU, against that"].at_most == 1.2 and figures["CPU"].value > 0
