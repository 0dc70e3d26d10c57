"""Code that takes an error for an answer and goes on does not take the wish to end for one."""

import pytest
import stores

from nbdpull.api.callers import Raised
from nbdpull.core import errors
from nbdpull.format import findings
from nbdpull.pulling import base
from nbdpull.repository import half_points, incoming, mending, pins, removal
from nbdpull.storage.directory import DirectoryStore

ENDS = [errors.Interrupted(2), errors.LimitReached("the time is over"), Raised(KeyError("of the caller"))]


def asked(vm):
    """{question: (how it is asked, the answer if the store cannot be read)}."""
    point, series = vm.points[-1], vm.series
    chunk = next(entry for entry in stores.directory_of(vm, point, "vda").files if entry.path.endswith(".zst"))
    return {
        "number": (lambda: half_points._seeming_sequence(series, point.id), 0),
        "manifest": (lambda: series._lacks_manifest(point.id), False),
        "levels": (lambda: mending._recorded_levels(mending.Now(series, point, "vda"), chunk), []),
        "base": (lambda: incoming._of_base(series, point), []),
        "pin": (lambda: pins.of_point(series, point) is not None, True),
        "rest": (lambda: removal.why_stays(series, point.id), "lost"),
        "disk": (lambda: base.Proof(series, lambda: None)._stored(point, "vda", ()).flaw, "lost"),
        "findings": (lambda: findings.load(series, ["20260101T000000Z-abcdef.verify.json"]), []),
    }


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    return stores.chain(tmp_path_factory.mktemp("store"), points=2)


@pytest.mark.parametrize("question", ["number", "manifest", "levels", "base", "pin", "rest", "disk", "findings"])
def test_an_interruption_does_not_count_as_an_answer(vm, question, monkeypatch):
    ask, answer = asked(vm)[question]
    raised = []

    def fails(*_, **__):
        raise raised[-1]

    for name in ("read", "find", "size", "names", "holds"):
        monkeypatch.setattr(DirectoryStore, name, fails)
    raised.append(errors.Damaged("lost"))
    found = ask()
    assert found == answer or str(answer) in str(found)
    for end in ENDS:
        raised.append(end)
        with pytest.raises(type(end)):
            ask()
