"""boto3: its import, and its configuration for a store.

Of boto3 only botocore is used, which makes all requests: boto3's own start would add 13 ms. Owns: which of the user's
settings count, which are ours, and the messages about those that boto3 rejects. Credentials are left to boto3: it reads
them from its usual places, and nbdpull shows them nowhere. Must not know: what is requested, what an answer means.
"""

from __future__ import annotations

import base64
import gc
import gzip
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Callable

from ..core import errors
from ..core.choices import S3_ENDPOINT
from . import s3_waiting

_CONNECTIONS = 32
_MISSING = "s3://… needs the library boto3 from 1.36 on: pip install 'nbdpull[s3]'"
_ENDPOINTS = (S3_ENDPOINT, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # the first that is set names the server
_SIGNATURE = "s3v4"  # botocore's name of the usual one
_UNUSED = "urllib3.contrib.pyopenssl"  # botocore imports it for a name that urllib3 has, too; it takes 25 ms
_PASSWORD = re.compile(r"""//[^/\s"']*@""")  # in a URL, in a message of botocore


def without_password(text: str) -> str:
    return _PASSWORD.sub("//", text)


def silence(patience: float) -> float:
    """Return the timeout of one attempt: the seconds that a server may be silent."""
    return min(20.0, max(1.0, patience / 3))


def library() -> tuple[Any, tuple[type[Exception], ...]]:
    """Return botocore, and the classes of the exceptions that its calls raise; MissingSoftware."""
    try:
        with _uncollected(), _without(_UNUSED):
            import botocore.session
            from botocore import exceptions
            from urllib3.exceptions import HTTPError
    except ImportError:
        raise errors.MissingSoftware(_MISSING) from None
    if tuple(map(int, botocore.__version__.split(".")[:2])) < (1, 36):
        raise errors.MissingSoftware(f"{_MISSING} (this one is {botocore.__version__})")
    return botocore, (exceptions.ClientError, exceptions.BotoCoreError, HTTPError, s3_waiting.Unanswered)


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Let imports of a module fail inside this block, unless it is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def client(botocore: Any, patience: float) -> Any:
    """Return a client, as the environment and boto3's files configure it; UsageError if these settings are invalid. The
    client tries each request once: retries are up to s3_client.py, which knows what may have been done."""
    try:
        with _uncollected():
            return _made(botocore, patience)
    except ValueError as error:
        raise errors.UsageError(f"{_of_setting(error)}: {without_password(str(error))}") from None


def _made(botocore: Any, patience: float) -> Any:
    from botocore.config import Config

    config = botocore.session.Session()
    models = config.get_component("data_loader")
    models.file_loader, models.list_available_services = _Models(), _every_service
    config.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
    scoped = config.get_scoped_config() if config.profile in (None, *config.available_profiles) else {}
    own = dict(scoped.get("s3") or {})
    endpoint = os.environ.get(S3_ENDPOINT)
    if any(map(os.environ.get, _ENDPOINTS)):
        own.setdefault("addressing_style", "path")  # few servers have a DNS name for each bucket
    wait = silence(patience)
    how = Config(
        connect_timeout=wait,
        read_timeout=wait,
        max_pool_connections=_CONNECTIONS,
        request_checksum_calculation="when_required",  # else boto3 adds checksums that third-party servers reject
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1},
        s3=own or None,
    )
    made = config.create_client("s3", endpoint_url=endpoint or None, config=how)
    made.meta.events.register("before-parameter-build.s3", _ask_for_the_region_once)
    made.meta.events.register_last("before-call.s3", _send_bytes_at_once)
    _sign_with_known_digests()
    return made


class _Every(list[str]):
    def __contains__(self, name: object) -> bool:
        return True


def _every_service(kind: str) -> list[str]:
    """Let botocore look for the model of a service where it is. It would first look into the folders of all 400
    services for those that have one of that kind: twice, 9 ms each time."""
    return _Every()


class _Models:
    """Reads botocore's models of services. botocore reads them into OrderedDicts, which takes twice as long."""

    _KINDS: Mapping[str, Callable[..., Any]] = {".json": open, ".json.gz": gzip.open}

    def exists(self, path: str) -> bool:
        return any(os.path.isfile(path + kind) for kind in self._KINDS)

    def load_file(self, path: str) -> Any:
        """Return what a file has, None if it does not exist. path: without its ending."""
        for kind, opened in self._KINDS.items():
            if os.path.isfile(path + kind):
                with opened(path + kind, "rb") as file:
                    return json.loads(file.read())
        return None


def _sign_with_known_digests() -> None:
    """Let botocore, in this process, sign a request with the SHA-256 in the header about its body. Otherwise it
    would read the body once more to compute it."""
    from botocore import auth

    class Signer(auth.S3SigV4Auth):  # type: ignore[misc]
        def payload(self, request: Any) -> str:
            known = request.headers.get("x-amz-checksum-sha256")
            return base64.b64decode(known).hex() if known else str(super().payload(request))

    if auth.AUTH_TYPE_MAPS.get(_SIGNATURE) is auth.S3SigV4Auth:
        auth.AUTH_TYPE_MAPS[_SIGNATURE] = Signer


def _time(text: Any) -> Any:
    """Return a time as botocore parses it, but in a tenth of the time, which would otherwise be half of that of a
    listing."""
    try:
        found = datetime.fromisoformat(f"{text[:-1]}+00:00") if text[-1:] == "Z" else parsedate_to_datetime(text)
    except (TypeError, ValueError):
        found = None
    if found is None or found.tzinfo is None:
        from botocore.utils import parse_timestamp

        return parse_timestamp(text)
    return found


def _ask_for_the_region_once(model: Any, context: dict[str, Any], **_: Any) -> None:
    """Prevent a loop: botocore asks for the region of a bucket when an answer redirects the request. If that question
    is redirected, too, botocore would repeat it because of that, some eighty times."""
    if model.name == "HeadBucket":
        context.setdefault("s3_redirect", {})["redirected"] = True


def _send_bytes_at_once(params: dict[str, Any], **_: Any) -> None:
    """Send a body that was given as bytes without asking first, which is a round trip. botocore makes a file object of
    them, and asks before it sends any file object."""
    if isinstance(params.get("body"), io.BytesIO):
        params["headers"].pop("Expect", None)


def _of_setting(error: ValueError) -> str:
    """Return which setting boto3 rejects."""
    from botocore.exceptions import InvalidRegionError
    from botocore.utils import is_valid_endpoint_url

    if isinstance(error, InvalidRegionError):
        return "AWS_REGION, or region in ~/.aws/config"
    variable = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    if variable and not is_valid_endpoint_url(os.environ[variable]):
        return f"--s3-endpoint, {variable}" if variable == S3_ENDPOINT else variable
    return "the settings of boto3, in the environment or in ~/.aws/config"


@contextmanager
def _uncollected() -> Iterator[None]:
    """Suspend garbage collection while tens of thousands of permanent objects are created: it takes a quarter of the
    time of creating a client."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
