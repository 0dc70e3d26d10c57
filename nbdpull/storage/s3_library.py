"""boto3: loaded, and set as a store needs it.

Owns: which settings of the user's count, which are ours, and what is said of those that boto3 does not take.
Credentials are its own matter: they are read where it reads them, and shown nowhere. Must not know: what is requested,
what an answer means.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from ..core import errors
from ..core.choices import S3_ENDPOINT
from . import s3_waiting

_CONNECTIONS = 32
_MISSING = "s3://… needs the library boto3 from 1.36 on: pip install 'nbdpull[s3]'"
_ENDPOINTS = (S3_ENDPOINT, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # what names the server, the first that is set
_PASSWORD = re.compile(r"""//[^/\s"']*@""")  # of a URL, in what botocore says of it


def without_password(text: str) -> str:
    return _PASSWORD.sub("//", text)


def silence(patience: float) -> float:
    """Seconds that a server may say nothing, at one try."""
    return min(20.0, max(1.0, patience / 3))


def library() -> tuple[Any, tuple[type[Exception], ...]]:
    """boto3, and the classes of what fails in it; MissingSoftware."""
    try:
        with _uncollected():
            import boto3
            from botocore import exceptions
            from urllib3.exceptions import HTTPError
    except ImportError:
        raise errors.MissingSoftware(_MISSING) from None
    if tuple(map(int, boto3.__version__.split(".")[:2])) < (1, 36):
        raise errors.MissingSoftware(f"{_MISSING} (this one is {boto3.__version__})")
    return boto3, (exceptions.ClientError, exceptions.BotoCoreError, HTTPError, s3_waiting.Unanswered)


def client(boto3: Any, patience: float) -> Any:
    """Of boto3, as the environment and its files say; UsageError where they cannot be followed. It tries once: what is
    tried again is for s3_client.py, which knows what may have been done."""
    try:
        with _uncollected():
            return _made(boto3, patience)
    except ValueError as error:
        raise errors.UsageError(f"{_of_setting(error)}: {without_password(str(error))}") from None


def _made(boto3: Any, patience: float) -> Any:
    from botocore.config import Config

    session = boto3.session.Session()
    config = session._session
    config.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
    told = config.get_scoped_config() if config.profile in (None, *config.available_profiles) else {}
    own = dict(told.get("s3") or {})
    endpoint = os.environ.get(S3_ENDPOINT)
    if any(map(os.environ.get, _ENDPOINTS)):
        own.setdefault("addressing_style", "path")  # few have a name in the DNS for each bucket
    wait = silence(patience)
    how = Config(
        connect_timeout=wait,
        read_timeout=wait,
        max_pool_connections=_CONNECTIONS,
        request_checksum_calculation="when_required",  # else boto3 adds what third parties do not take
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1},
        s3=own or None,
    )
    made = session.client("s3", endpoint_url=endpoint or None, config=how)
    made.meta.events.register("before-parameter-build.s3", _ask_for_the_region_once)
    return made


def _time(told: Any) -> Any:
    """A time as botocore reads it, but in a tenth of the time, which else is half of what a listing takes."""
    try:
        found = datetime.fromisoformat(f"{told[:-1]}+00:00") if told[-1:] == "Z" else parsedate_to_datetime(told)
    except (TypeError, ValueError):
        found = None
    if found is None or found.tzinfo is None:
        from botocore.utils import parse_timestamp

        return parse_timestamp(told)
    return found


def _ask_for_the_region_once(model: Any, context: dict[str, Any], **_: Any) -> None:
    """botocore asks in which region a bucket is where an answer sends it to another one. Where that question is sent
    away, too, it would ask again because of it, some eighty times."""
    if model.name == "HeadBucket":
        context.setdefault("s3_redirect", {})["redirected"] = True


def _of_setting(error: ValueError) -> str:
    """Which one boto3 does not take."""
    from botocore.exceptions import InvalidRegionError
    from botocore.utils import is_valid_endpoint_url

    if isinstance(error, InvalidRegionError):
        return "AWS_REGION, or region in ~/.aws/config"
    told = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    if told and not is_valid_endpoint_url(os.environ[told]):
        return f"--s3-endpoint, {told}" if told == S3_ENDPOINT else told
    return "the settings of boto3, in the environment or in ~/.aws/config"


@contextmanager
def _uncollected() -> Iterator[None]:
    """While objects are made by the ten thousand that stay, Python need not look for garbage: that is a quarter of what
    a client takes."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
