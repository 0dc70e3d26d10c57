"""The cost of a bucket compared with a directory, and of sealing compared with none: the figures with a goal, one
scenario.

Owns: what is measured for each, and its limit. Must not know: how a table is printed. The server is the tests'
SeaweedFS, a process of its own: its CPU time is in no figure.
"""

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import identities
import measure
import object_store
import serving
import tools
from years import Figure

MEMORY = 384  # MiB
REQUESTS, ROUND_TRIP = 7, 0.02  # until serve hands out a sector (tests/test_object_requests.py); seconds of each


def s3(setting, rounds):
    """A store in a bucket against one in a directory, in CPU time; a sealed one against that; boto3 alone."""
    with ExitStack() as opened:
        server = opened.enter_context(object_store.SeaweedFS())
        bucket = opened.enter_context(object_store.new_bucket(server))
        vm = opened.enter_context(setting.machine(setting.files_disk()))
        opened.enter_context(mock.patch.dict(os.environ, object_store.environment(server.endpoint)))
        for number in range(rounds):  # a host refuses a place whose key has changed
            place, folder = object_store.ObjectStore(server, bucket), setting.fresh("store")
            yield from _pulls(setting, vm, place, folder, setting.fresh(f"sealed-{number}"))
            yield from _restores(setting, place, folder)
            yield from _first_byte(place)


def _pulls(setting, vm, place, folder, sealed):
    setting.run(tools.nbdpull("init", sealed, "--recipient", identities.recipient("age1")))
    key = ("--identity", identities.path("age1"))
    shut = setting.run(setting.pull_command(vm, sealed, "--full", "--no-checkpoint", *key), vm)
    setting.fresh(sealed.name)  # what fills the page cache costs the next pull time in the kernel
    near = setting.pull(vm, "--full", "--no-checkpoint", output=folder)
    far = setting.run(setting.pull_command(vm, place.url, "--full", "--no-checkpoint"), vm)
    yield "pull to a bucket", Figure(far.cpu / near.cpu, "x", 1.3)
    yield "its memory", Figure(far.peak_mib, "MiB", MEMORY)
    yield "pull to a sealed store", Figure(shut.cpu / near.cpu, "x", 1.08)
    yield "pull to a directory, CPU", Figure(near.cpu, "s")


def _restores(setting, place, folder):
    """The restore from the directory has the cost of decompressing and writing, too."""
    words = ("--output", setting.folder / "restored", "--format", "raw", "--quiet", *setting.options)
    costs = []
    for store in (folder, place.url):
        setting.fresh("restored")
        costs.append(setting.run(tools.nbdpull("restore", store, *words)))
    near, far = costs
    program = Path(__file__).with_name("read_objects.py")
    alone = setting.run([sys.executable, program, place.bucket, place.prefix])
    yield "reading, against boto3", Figure((far.cpu - near.cpu) / alone.cpu, "x", 1.25)
    yield "restore, memory", Figure(far.peak_mib, "MiB", MEMORY)
    yield "restore, CPU", Figure(far.cpu, "s")
    yield "boto3 alone, CPU", Figure(alone.cpu, "s")


def _first_byte(place):
    """The processor's time, and that of the requests, one after the other, from a remote server."""
    running = []
    command = (tools.nbdpull("serve", place.url, "--json"), None)
    with serving.server(command, tools.environment(), running.append) as uri:
        serving.first_byte(uri, time.monotonic())
        used = measure.cpu_of_all(*running)
    yield "serve's first byte", Figure(used + REQUESTS * ROUND_TRIP, "s", 0.5)
    yield "of it CPU", Figure(used, "s")
