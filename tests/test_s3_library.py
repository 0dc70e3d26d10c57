"""The settings of boto3 that a store needs."""

import random
from datetime import datetime, timezone

import pytest
from botocore.utils import parse_timestamp

from nbdpull.storage import s3_library

FORMS = ("%Y-%m-%dT%H:%M:%S.{:03}Z", "%Y-%m-%dT%H:%M:%SZ", "%a, %d %b %Y %H:%M:%S GMT", "%a, %d %b %Y %H:%M:%S +0000")
OTHERS = [
    1795376700,
    1795376700.5,
    "1795376700",
    "2026-11-22T19:45:00+01:00",
    "2026-11-22T19:45:00.1234567Z",
    "20261122T194500Z",
]


@pytest.mark.parametrize("seed", range(20))
def test_a_time_is_what_botocore_says(seed):
    chance = random.Random(seed)
    when = datetime.fromtimestamp(chance.randrange(2**31), timezone.utc)
    for form in FORMS:
        text = when.strftime(form).format(chance.randrange(1000))
        assert s3_library._time(text) == parse_timestamp(text), text


@pytest.mark.parametrize("told", OTHERS, ids=str)
def test_so_is_what_no_server_is_known_to_write(told):
    assert s3_library._time(told) == parse_timestamp(told)


@pytest.mark.parametrize("told", ["", "Z", "yesterday", None, []], ids=repr)
def test_what_is_no_time_is_refused_as_by_botocore(told):
    with pytest.raises(ValueError):
        s3_library._time(told)
