"""Windows that need no second check: only if a directory has everything that they need."""

import random

import numpy
import pytest

from nbdpull.format.manifest import FileEntry
from nbdpull.format.pages import PAGE
from nbdpull.repository.good_windows import GoodWindows


class Named:
    """The part of a Directory that is used: files, and pages of one window, in named indexes, that name files."""

    def __init__(self, files, pages, size=1 << 20):
        """pages: (digest, index, position, names)"""
        self.size, self.files, self._pages, self.looks = size, [FileEntry(path, 1, "") for path in files], pages, 0

    @property
    def pages(self):
        refs = numpy.zeros(len(self._pages), PAGE)
        for ref, (digest, index, position, _) in zip(refs, self._pages):
            ref["digest"], ref["position"] = digest, position
            ref["file"] = [entry.path for entry in self.files].index(index)
        return refs

    def named(self, start):
        self.looks += 1
        return {name for *_, names in self._pages for name in names}


PAGES = [(b"a", "1.index", 0, ["1", "2"])]


def test_a_window_is_good_if_all_its_files_are_named():
    good = GoodWindows()
    first = good.of(Named(["1.index", "1", "2", "3"], PAGES))
    assert not first.has(0)
    first.add(0)
    assert first.has(0)
    for number in range(2):
        more = Named(["4", "2", "1", "1.index"], PAGES)
        assert good.of(more).has(0)
        assert more.looks == 1 - number, "what it needs is asked once"
    assert not good.of(Named(["3", "1", "1.index"], PAGES)).has(0)


def test_files_not_needed_before_are_not_needed():
    good = GoodWindows()
    good.of(Named(["1.index", "1", "3"], PAGES)).add(0)
    assert good.of(Named(["1.index", "1"], PAGES)).has(0)
    assert not good.of(Named(["1.index", "2"], PAGES)).has(0)


@pytest.mark.parametrize("pages, size", [
    ([(b"b", "1.index", 0, ["1", "2"])], 1 << 20),
    ([(b"a", "2.index", 0, ["1", "2"])], 1 << 20),
    ([(b"a", "1.index", 9, ["1", "2"])], 1 << 20),
    ([*PAGES, *PAGES], 1 << 20),
    (PAGES, 1 << 21),
])  # fmt: skip
def test_other_windows_are_unknown(pages, size):
    good, files = GoodWindows(), ["1.index", "2.index", "1", "2"]
    good.of(Named(files, PAGES)).add(0)
    assert not good.of(Named(files, pages, size)).has(0)


def test_any_directories():
    """The same result as if each good window were recorded with the files that it named."""
    rng = random.Random(3)
    for _ in range(30):
        good, model = GoodWindows(), []
        names = list("abcdefgh")
        pages = [(b"a", "index", 0, rng.sample(names, 3))]
        for _ in range(20):
            files = {*rng.sample(names, rng.randrange(9))}
            order = ["index", *files]
            rng.shuffle(order)
            one, needed = good.of(Named(order, pages)), {*pages[0][3]}
            if one.has(0):
                assert any(each & needed <= files for each in model)
            elif rng.random() < 0.3:
                one.add(0)
                model.append(files)
                assert one.has(0)
