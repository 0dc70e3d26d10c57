"""Flaws of files, several of which were moved into one: it is read once, and each gets the flaws of its frames."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from nbdpull.format.manifest import FileEntry
from nbdpull.repository.file_flaws import FileFlaws

OLD = [FileEntry(f"a/{number}.zst", 1, "0" * 64) for number in range(6)]
NEW = [FileEntry(f"b/{number}.zst", 1, "1" * 64) for number in range(2)]


class Series:
    """Of which the first file is where it was, and of the others each was moved to one of two. bad: what is damaged."""

    def __init__(self, *bad):
        self.bad, self.reads, self.together = bad, [], threading.Event()
        self.led = {OLD[0]: [OLD[0]], **{entry: [NEW[number % 2]] for number, entry in enumerate(OLD[1:])}}

    def flaw(self, entry, of):
        return next(filter(None, map(of, self.led[entry])), None)

    def own_flaw(self, entry, check):
        check()
        self.reads.append(entry)
        self.together.wait(0.01)  # others come in between
        return f"{entry.path} is damaged" if entry in self.bad else None


@pytest.mark.parametrize("bad", [(), (NEW[0],), (OLD[0], NEW[1])], ids=len)
def test_each_file_is_read_once_by_any_threads(bad):
    series, checked = Series(*bad), []
    flaws = FileFlaws(series, lambda: checked.append(1))
    with ThreadPoolExecutor(4) as threads:
        found = [*threads.map(flaws.of, OLD[1:] * 2 + OLD[:1])]
    expected = [
        next((f"{new.path} is damaged" for new in series.led[old] if new in bad), None) for old in OLD[1:] * 2 + OLD[:1]
    ]
    assert found == expected
    assert {*series.reads} == {OLD[0], *NEW}
    assert [series.reads.count(new) for new in NEW] == [1, 1] and len(checked) == len(series.reads)


def test_an_interruption_is_no_verdict():
    """Who asks next has it looked at."""
    stop = SimpleNamespace(now=True)

    def check():
        if stop.now:
            raise KeyboardInterrupt

    series = Series(NEW[0])
    flaws = FileFlaws(series, check)
    with pytest.raises(KeyboardInterrupt):
        flaws.of(OLD[1])
    stop.now = False
    assert flaws.of(OLD[1]) == "b/0.zst is damaged" == flaws.of(OLD[3]) and len(series.reads) == 1
