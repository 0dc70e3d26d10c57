"""Fixtures for the whole suite: one private libvirt per session; VMs and the witnesses of their pulls, one per test."""

import collections
import contextlib
import faulthandler
import functools
import gc
import os
import re
import shutil
import signal
import tempfile
import warnings
from pathlib import Path

import flush
import memory_folder
import object_store as object_stores
import pytest
import rgw as rados_gateway
import stores
from bed import Unavailable
from bed.guest import Guest, build
from bed.libvirtd import PrivateLibvirt, cache_folder
from bed.libvirtd import version as bed_version
from bed.machine import Machine
from bed.saved_guest import SavedGuest, save
from seaweed_cluster import SeaweedCluster
from witness import Witness

from nbdpull.core import errors, pipeline
from nbdpull.storage import s3_client

TIMEOUT = 120  # seconds a test may take with its fixtures; @pytest.mark.timeout_seconds(300) for the few long ones
REAL_STDERR = pytest.StashKey()
LIBVIRT = pytest.StashKey()  # the running one
FAILED = pytest.StashKey()  # of a test: whether it has failed so far


class TimedOut(Exception):
    """A test exceeded its time limit."""


KINDS = {  # and the approximate seconds of one test: the longest modules begin first
    "unit": ("needs no hypervisor, no server, and no program but Python once", 0.02),
    "e2e": ("needs libvirt, a program such as QEMU's, a server, or many starts of Python", 1),
    "faults": ("an e2e test that does a fault to a run, in tests/faults", 4),
    "guest": ("an e2e test with a Linux guest", 8),
}
# Seconds of the modules that take far longer than these figures say: the run would wait for one that begins last.
LONG = {
    "test_guest.py": 60, "test_fuzz.py": 50, "test_pull_disks.py": 40, "test_connections.py": 35, "test_drill.py": 30,
    "test_encryption.py": 30, "test_restore_domain.py": 30, "test_offline.py": 27, "test_torture.py": 25,
    "test_pull_stores.py": 18, "test_rename.py": 18, "test_signals.py": 16, "test_property.py": 10,
    "test_damage.py": 10, "test_cli.py": 10, "test_verdict.py": 5, "test_lookup.py": 5, "test_openapi.py": 5,
    "test_s3_cluster.py": 25, "test_object_stores_page.py": 20, "test_s3_faults.py": 12, "test_s3_probe.py": 12,
    "test_object_store_bed.py": 10, "test_object_lock.py": 15, "test_undelete.py": 20,
    "test_restore_min.py": 4, "test_age.py": 8, "test_verify.py": 4, "test_writer_reader.py": 4, "test_image.py": 3,
}  # fmt: skip
STARTING = {"private_libvirt", "nbdkit", "seaweedfs", "rgw"}  # fixtures that start a program
MARKED = "\npytestmark = pytest.mark.e2e"
# A word of a command line in a module's text; the bed's files that run such programs; the fuzz, whose stores need them;
# schemathesis, which takes 4 s; and the servers of a cluster, whose tests run command lines from end to end.
PROGRAMS = re.compile(
    r"""["'](qemu-[a-z]+|virsh|nbdkit|nbdcopy|nbdinfo|swtpm|pip|mount)(["'][,\])]| )"""
    "|schemathesis[.]cli|bed[.](luks|device|images)|import (fuzz|torture)|from kubevirt_"
)


def pytest_configure(config):
    config.addinivalue_line("markers", "timeout_seconds(n): this test may take n seconds")
    for name in ("libvirt_since", "qemu_since", "qemu_before"):
        config.addinivalue_line(
            "markers", f"{name}(version): only for {name.replace('_', ' ')} this one, such as '10.10'"
        )
    for name, (meaning, _) in KINDS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    config.stash[REAL_STDERR] = os.dup(2)  # output is not yet captured here
    # These are ignored if the suite was started in the background or by nohup; nbdpull would inherit that and comply.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def leave_out_other_versions(config, items):
    """Deselect the tests for other versions of libvirt and QEMU. They are not skipped, as nothing is missing that could
    be installed: they run on another release (scripts/in-release)."""
    elsewhere = [item for item in items if any(map(_is_for_another_version, item.iter_markers()))]
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in elsewhere]


def _is_for_another_version(mark):
    program, _, when = mark.name.partition("_")
    if when not in ("since", "before"):
        return False
    here, wanted = _version(program), tuple(map(int, mark.args[0].split(".")))
    return here is not None and (here >= wanted) == (when == "before")


_version = functools.cache(bed_version)


def pytest_collection_modifyitems(config, items):
    """Mark each test with its kinds, and put the longest modules first, so that no worker ends with one."""
    leave_out_other_versions(config, items)
    seconds = collections.Counter()
    for item in items:
        kinds = kinds_of(item)
        for kind in kinds:
            item.add_marker(kind)
        seconds[item.path] += max(KINDS[kind][1] for kind in kinds)
    items.sort(key=lambda item: -LONG.get(item.path.name, seconds[item.path]))


@pytest.hookimpl(hookwrapper=True)
def pytest_collection():
    """Collect no garbage while tests are collected: nearly all that is made then remains."""
    gc.disable()
    yield
    gc.enable()


def pytest_collection_finish(session):
    """Exempt what was collected from garbage collection: it remains until the end."""
    gc.collect()
    gc.freeze()


def pytest_ignore_collect(collection_path, config):
    """When only unit tests are selected, do not import modules that contain none."""
    return True if config.option.markexpr == "unit" and has_no_unit_test(collection_path) else None


def has_no_unit_test(path):
    return path.suffix == ".py" and (MARKED in path.read_text() or _names_a_program(path))


def kinds_of(item):
    """Return the kinds of a test, by its fixtures, its directory, the programs that its module names, and the mark
    e2e."""
    programs = item.get_closest_marker("e2e") or STARTING & {*item.fixturenames} or _names_a_program(item.path)
    if not programs:
        return ["unit"]
    faults = ["faults"] if item.path.parent.name == "faults" else []
    return ["e2e", *faults, *(["guest"] if "guest_parts" in item.fixturenames else [])]


@functools.cache
def _names_a_program(path):
    return PROGRAMS.search(path.read_text()) is not None


def pytest_assertrepr_compare(op, left, right):
    """Show where the contents of two images differ first. pytest's own comparison of some MiB takes longer than a test
    may."""
    if op != "==" or not (isinstance(left, bytes) and isinstance(right, bytes)) or max(len(left), len(right)) < 4096:
        return None
    short = min(len(left), len(right))
    first = next((at for at in range(short) if left[at] != right[at]), short)
    seen, expected = (data[first : first + 16].hex() for data in (left, right))
    return [f"{len(left)} bytes == {len(right)} bytes", f"first difference at {first}: {seen}, not {expected}"]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """Interrupt a test that hangs: by an exception, or, if it hangs in C code, by ending the run."""
    mark = item.get_closest_marker("timeout_seconds")
    seconds = mark.args[0] if mark else TIMEOUT

    def ring(_signal, _frame):
        signal.alarm(10)  # again, should the first one be swallowed
        raise TimedOut(f"{item.nodeid} took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(seconds + 60, exit=True, file=item.config.stash[REAL_STDERR])
    os.fsync = flush.skipped if item.get_closest_marker("unit") else flush.REAL
    try:
        yield
    finally:
        os.fsync = flush.REAL
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """End the domains that a module left behind, which the next module on this libvirt would count, and report them at
    the end of the run."""
    yield
    bed = item.config.stash.get(LIBVIRT, None)
    if bed and (nextitem is None or nextitem.path != item.path):
        left = bed.end_domains()
        if left:
            warnings.warn(f"domains left behind by {item.path.name}: {', '.join(left)}", stacklevel=1)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """With CI in the environment, turn a skipped test into a failed one: there everything has to be installed.

    The alarm is off while a test that took too long is reported: when that took ten seconds, the second alarm ended the
    whole run.
    """
    left = signal.alarm(0)
    outcome = yield
    signal.alarm(left)
    report = outcome.get_result()
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr[2]}"
    item.stash[FAILED] = report.failed or item.stash.get(FAILED, False)
    # captured output may contain a name that is not valid text: xdist cannot send it, which would end the whole run
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """Skip a module that needs libvirt's bindings if they are missing, wherever the import fails first."""
    outcome = yield
    report = outcome.get_result()
    if report.failed and isinstance(report.call.excinfo.value, errors.MissingSoftware):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {report.call.excinfo.value}")
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr[2]}"


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory):
    """The state directory of these tests, separate from that of the machine's own nbdpull. It is among pytest's
    directories, which a later run removes: a killed run once left its own in /tmp forever."""
    path = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBDPULL_STATE_DIR", str(path))
        yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def memory(pytestconfig):
    """The directory in memory for the directories of unit tests; None if there is none, and they are on a disk."""
    if are_kept(pytestconfig) or not memory_folder.usable():
        yield None
        return
    with memory_folder.folder() as path:
        yield path


def are_kept(config):
    """Return whether tests keep their directories, as with `-n0 --basetemp DIR`. xdist passes its workers such an
    option, too."""
    return config.option.basetemp and not hasattr(config, "workerinput")


@pytest.fixture
def tmp_path(request, tmp_path_factory, memory):
    """A directory for one test, in memory for a unit test, removed after the test; on a disk it remains if the test
    failed. Keeping all directories took 14 GB in 15,000 files, written to the disk and removed by a later run."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    in_memory = memory is not None and request.node.get_closest_marker("unit")
    path = Path(tempfile.mkdtemp(prefix=name, dir=memory)) if in_memory else tmp_path_factory.mktemp(name)
    yield path
    if in_memory or not (are_kept(request.config) or request.node.stash.get(FAILED, False)):
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def no_threads(monkeypatch):
    """No threads, for tests that restore and verify small stores many times: they started thousands. test_pipeline
    shows that all pipelines give the same results."""
    monkeypatch.setattr(pipeline, "ordered", pipeline.synchronous)
    monkeypatch.setattr(pipeline.Threads, "ordered", lambda _, *args, **how: pipeline.synchronous(*args, **how))


@pytest.fixture(scope="session")
def private_libvirt(pytestconfig):
    """The libvirt of this test run; connect to `private_libvirt.uri`."""
    try:
        bed = PrivateLibvirt().__enter__()
    except Unavailable as reason:
        pytest.skip(str(reason))
    pytestconfig.stash[LIBVIRT] = bed
    yield bed
    del pytestconfig.stash[LIBVIRT]
    bed.close()


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """A stores.Vm with three points, made without a VM once per session. Do not change it."""
    return stores.chain(tmp_path_factory.mktemp("pulled") / "store", **stores.SEVERAL)


@pytest.fixture
def vm(original, tmp_path):
    """A copy of `original` for one test."""
    return original.copy(tmp_path / "store")


@pytest.fixture(scope="session")
def nbdkit():
    """Skip the test if nbdkit is not installed."""
    if not shutil.which("nbdkit"):
        pytest.skip("nbdkit is not installed (scripts/install --test installs it)")


@pytest.fixture(scope="session")
def seaweedfs():
    """A SeaweedFS with an empty bucket, in which `object_store` is a place; a test that stops it must start it
    again."""
    with started(object_stores.SeaweedFS) as server:
        yield server


@pytest.fixture(scope="session")
def rgw():
    """A Ceph with radosgw, otherwise as `seaweedfs`."""
    with started(rados_gateway.Rgw) as server:
        yield server


@contextlib.contextmanager
def started(kind):
    try:
        server = kind()
    except Unavailable as reason:
        pytest.skip(str(reason))
    with server, object_stores.new_bucket(server) as server.bucket:
        yield server


@pytest.fixture
def object_store(seaweedfs, monkeypatch):
    """An ObjectStore, that is, an empty place in an object store: `object_store.url` stands for DIR on a command line.
    This process and its children have the keys in their environment."""
    return place_in(seaweedfs, monkeypatch)


@pytest.fixture(scope="session")
def locking_bucket(seaweedfs):
    """The name of a bucket of that SeaweedFS with object lock."""
    with object_stores.new_bucket(seaweedfs, ObjectLockEnabledForBucket=True) as name:
        yield name


@pytest.fixture
def locking_store(object_store, locking_bucket):
    """An ObjectStore like object_store, in a bucket with object lock."""
    return object_stores.ObjectStore(object_store.server, locking_bucket, object_store.prefix)


@pytest.fixture
def requests_made(monkeypatch):
    """A Counter of the requests to object stores, by call."""
    made, real = collections.Counter(), s3_client.Bucket._once

    def once(bucket, call, what):
        made[call] += 1
        return real(bucket, call, what)

    monkeypatch.setattr(s3_client.Bucket, "_once", once)
    return made


@pytest.fixture
def rgw_store(rgw, monkeypatch):
    """An ObjectStore in Ceph."""
    return place_in(rgw, monkeypatch)


@pytest.fixture
def cluster_store(monkeypatch):
    """An ObjectStore in a SeaweedFS of several servers, which the test may kill."""
    with started(SeaweedCluster) as server:
        yield place_in(server, monkeypatch)


def place_in(server, monkeypatch):
    place = object_stores.ObjectStore(server, server.bucket)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in place.environment().items():
        monkeypatch.setenv(name, value)
    return place


@pytest.fixture
def machine(private_libvirt, tmp_path):
    """Factory: `vm = machine({"vda": 64 * MIB})` defines and starts a Machine that ends with the test."""
    made = []

    def make(disks, **options):
        vm = Machine(private_libvirt, tmp_path / "images", disks, **options)
        made.append(vm)
        vm.start()
        return vm

    yield make
    for vm in reversed(made):
        vm.close()


@pytest.fixture(scope="session")
def guest_parts(private_libvirt):
    """Kernel and initramfs of the Linux guest, built once and cached."""
    left = signal.alarm(0)  # the first build downloads, at the network's speed
    faulthandler.cancel_dump_traceback_later()
    try:
        return build(cache_folder())
    except Unavailable as reason:
        pytest.skip(str(reason))
    finally:
        signal.alarm(left)


@pytest.fixture(scope="session")
def saved_guest(private_libvirt, guest_parts, tmp_path_factory):
    """The saved state of the Linux guest after its boot, when its agent answers: a boot takes 5 s, a restore half a
    second."""
    with Guest(private_libvirt, tmp_path_factory.mktemp("booted"), guest_parts) as vm:
        vm.wait_agent()
        return save(vm, tmp_path_factory.mktemp("saved"))


@pytest.fixture
def guest(private_libvirt, guest_parts, saved_guest, tmp_path):
    """A running Linux guest whose agent answers, with an ext4 on vda mounted at /mnt."""
    with SavedGuest(private_libvirt, tmp_path / "guest", guest_parts, saved_guest) as vm:
        yield vm


@pytest.fixture
def pulled(machine, tmp_path):
    """Factory: `witness = pulled({"vda": MIB})` starts a machine and returns the Witness of its pulls."""

    def make(disks, quick=False, **options):
        return Witness(machine(disks, **options), tmp_path / "witness", quick)

    return make
