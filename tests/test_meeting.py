"""Some seconds of a meeting in a bucket. NBDPULL_MEETING_SECONDS=300 lasts longer; only then are files removed."""

import collections
import os

import meeting
import pytest

pytestmark = pytest.mark.e2e

SECONDS = float(os.environ.get("NBDPULL_MEETING_SECONDS") or 3)
HOUR = 2.5  # seconds
ROLES = ["pull", "pull", "pull", "prune", "prune", "copy"]


@pytest.mark.timeout_seconds(int(SECONDS) + 300)
@pytest.mark.parametrize("server", ["object_store", *(["rgw_store"] if SECONDS > 60 else [])])
def test_nothing_is_lost(server, tmp_path, request):
    met = meeting.Meeting(request.getfixturevalue(server).url, tmp_path, HOUR)
    wrong = met.meet(SECONDS, ROLES if SECONDS > 60 else ROLES[2:])
    events = met.events()
    counts = collections.Counter(each["event"] for each in events)
    print(dict(counts), {name: sum(each.get(name, 0) for each in events) for name in ("moved", "freed")})
    assert not wrong
    assert counts["pruned"] + counts["refused"] and counts["pulled"]
