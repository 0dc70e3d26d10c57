"""nbdpull run: a command reads the blocks, and only its success moves the base."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bed.address import free_port
from bed.machine import MIB, wait_for
from command import HELD, PROJECT, environment, last_event, next_event, start_nbdpull

pytest.importorskip("libvirt")

TAKE_IMAGES = PROJECT / "examples/take_images.sh"


class Script:
    """A script's backups of a machine, with one file for all its tokens."""

    def __init__(self, vm, folder):
        self.vm, self.folder, self.token = vm, folder, folder / "token"
        self.scratch = folder / "scratch"
        self.scratch.mkdir()

    def start(self, *command, options=(), token=True, **more):
        files = ("--since", self.token, "--token", self.token) if token else ()
        words = ("run", self.vm.name, "-c", self.vm.bed.uri, "--scratch-dir", self.scratch, *files, *options)
        path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"  # nbdsh needs a Python that has libnbd
        env = {**environment(), "PATH": path}
        return start_nbdpull(*words, "--json", "--", *command, cwd=self.folder, env=env, **more)

    def run(self, *command, exit_code=0, **how):
        """Run; return the members of the result. Other output is in `errors`."""
        output, self.errors = self.start(*command, **how).communicate(timeout=100)
        result = last_event(output)
        assert result["exit_code"] == exit_code, self.errors
        assert "Traceback" not in self.errors
        return result

    def shell(self, text, **how):
        return self.run("bash", "-c", text, **how)

    def running(self, text="sleep 1000 & echo $! > child; echo $$ > started; wait"):
        """A run whose command continues, and the pids of its processes."""
        (self.folder / "started").unlink(missing_ok=True)
        process = self.start("bash", "-c", text)
        next_event(process, "start")
        wait_for(lambda: self.noted("started"), "the command")
        return process, [self.noted("started"), self.noted("child")]

    def noted(self, name):
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / name).read_text())
        return None

    def backup(self):
        """Make a backup, which has to be right."""
        result = self.run(TAKE_IMAGES)
        for disk in self.vm.disks:
            image = self.folder / "images" / result["run"] / f"{disk}.raw"
            assert image.read_bytes() == self.vm.content(disk), disk
        self.assert_clean(1)
        return result

    def state(self):
        return self.vm.checkpoints(), self.token.read_bytes() if self.token.exists() else None

    def assert_clean(self, checkpoints):
        assert not self.vm.job_active() and len(self.vm.checkpoints()) == checkpoints
        assert os.listdir(self.scratch) == [] and not list(self.folder.glob("*.new"))
        assert not list(Path(os.environ["NBDPULL_STATE_DIR"], self.vm.uuid).glob("*"))


def is_alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@pytest.fixture
def script(machine, tmp_path):
    def make(disks, **options):
        folder = tmp_path / "script"
        folder.mkdir()
        return Script(machine(disks, **options), folder)

    return make


def test_images_of_a_chain(script):
    """Full and increments, with one token file; no bitmap has what a disk lost when it was shrunk and grown."""
    mine = script({"vda": 8 * MIB, "vdb": MIB})
    vm, chance = mine.vm, random.Random(1)
    vm.write_bytes("vda", 3 * MIB, chance.randbytes(5 * MIB))
    first = mine.backup()
    assert [disk["mode"] for disk in first["disks"]] == ["full", "full"] and first["since"] is None
    vm.write_bytes("vda", MIB, chance.randbytes(70 << 10))
    vm.write_zeroes("vda", 4 * MIB, 128 << 10)
    second = mine.backup()
    assert [disk["mode"] for disk in second["disks"]] == ["incremental"] * 2 and second["since"] == first["run"]
    vm.resize("vda", 6 * MIB)
    vm.resize("vda", 8 * MIB)
    vm.write_bytes("vdb", 0, chance.randbytes(512))
    third = mine.backup()
    assert third["since"] == second["run"] and len(third["dropped_checkpoints"]) == 1


def test_the_environment_of_a_command(script):
    """The same in variables and in JSON; the export has the named bitmap."""
    mine = script({"vda": 8 * MIB})
    mine.shell("true")
    mine.vm.write("vda", MIB, 65536)
    mine.shell(
        'cp "$NBDPULL_JSON" told; env > env; nbdinfo --map="$NBDPULL_VDA_CONTEXT" "$NBDPULL_VDA_URI" > map; '
        'cp "$NBDPULL_VDA_EXTENTS" extents; echo said'
    )
    result = json.loads((mine.folder / "told").read_text())
    env = dict(line.partition("=")[::2] for line in (mine.folder / "env").read_text().splitlines())
    [disk] = result.pop("disks")
    assert env["NBDPULL_DISKS"] == disk["name"] == "vda" and env["NBDPULL_VDA_SIZE"] == str(8 * MIB)
    assert {name: env[f"NBDPULL_VDA_{name.upper()}"] for name in disk if name not in ("name", "size")} == {
        name: value for name, value in disk.items() if name not in ("name", "size")
    }
    assert result.pop("run") == env["NBDPULL_RUN_ID"]
    assert {name: env[f"NBDPULL_{name.upper()}"] for name in result} == result
    dirty = [line.split()[:2] for line in (mine.folder / "map").read_text().splitlines() if line.split()[2] == "1"]
    assert dirty == [[str(MIB), "65536"]]
    assert f"{MIB} 65536 data" in (mine.folder / "extents").read_text().splitlines()
    assert "said" in mine.errors, "standard output has the events alone"


def test_a_command_that_fails(script):
    mine = script({"vda": MIB})
    mine.shell("true")
    before = mine.state()
    for command, why in (
        (["sh", "-c", "exit 7"], "exit code 7"),
        (["sh", "-c", "kill -KILL $$"], "killed by SIGKILL"),
        (["/nowhere/take"], "was not found"),
        (["/etc/passwd"], "may not be executed"),
    ):
        result = mine.run(*command, exit_code=14)
        assert result["code"] == "command-failed" and why in result["message"]
        assert mine.state() == before
        mine.assert_clean(1)
    mine.vm.write("vda", 0, 512)
    assert mine.shell("true")["disks"][0]["mode"] == "incremental"


def test_a_job_that_is_aborted(script):
    mine = script({"vda": MIB})
    mine.shell("true")
    before = mine.state()
    process, pids = mine.running()
    mine.vm.domain.abortJob()
    output, errors = process.communicate(timeout=60)
    assert last_event(output)["code"] == "job-lost", errors
    assert not any(map(is_alive, pids)) and mine.state() == before
    mine.assert_clean(1)


def test_a_command_that_fails_as_its_job_is_lost(script):
    """The lost job is the cause, and is what the message says."""
    mine = script({"vda": MIB})
    abort = ["virsh", "-c", mine.vm.bed.uri, "domjobabort", mine.vm.name]
    result = mine.run("sh", "-c", '"$@"; exit 1', "sh", *abort, exit_code=6)
    assert result["code"] == "job-lost"
    mine.assert_clean(0)


def test_a_signal_ends_the_command(script):
    mine = script({"vda": MIB})
    process, pids = mine.running()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, last_event(output)["code"]) == (143, "interrupted"), errors
    assert not any(map(is_alive, pids)) and not mine.token.exists()
    mine.assert_clean(0)


def test_nbdpull_is_killed(script):
    """The command ends, too; the next run removes what is left, and starts from the same base."""
    mine = script({"vda": MIB})
    mine.backup()
    before = mine.token.read_bytes()
    process, pids = mine.running()
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(is_alive, pids)), "the end of the command")
    assert mine.vm.job_active() and mine.token.read_bytes() == before
    mine.vm.write("vda", 0, 512)
    assert mine.backup()["disks"][0]["mode"] == "incremental"


def test_killed_between_the_token_and_the_commit(script):
    """The token is useless then, which costs a full backup."""
    mine = script({"vda": MIB})
    mine.backup()
    before = mine.token.read_bytes()
    process = mine.start("true", program=(HELD, "token-written", mine.folder / "never"))
    next_event(process, "held")
    process.kill()
    process.communicate()
    assert mine.token.read_bytes() != before
    assert mine.backup()["disks"][0]["mode"] == "full"


def test_a_limit_ends_the_command(script):
    mine = script({"vda": MIB})
    result = mine.run("sleep", "1000", options=["--max-duration", "1s"], exit_code=12)
    assert result["code"] == "limit-reached"
    mine.assert_clean(0)


def test_an_existing_token_is_kept(script):
    """Only the one that is read is replaced; a file that is not a token is no reason for a full backup."""
    mine = script({"vda": MIB})
    mine.token.write_text("precious")
    result = mine.run("true", token=False, options=["--token", mine.token], exit_code=9)
    assert result["code"] == "output-exists"
    assert "no token" in mine.run("true", exit_code=2)["message"] or "not a token" in mine.errors
    assert mine.token.read_text() == "precious"
    mine.assert_clean(0)


def test_a_domain_that_is_off(script):
    """The exports are at a socket without a name, which a command can use nevertheless."""
    mine = script({"vda": MIB})
    mine.vm.write("vda", 0, 65536)
    content = mine.vm.content("vda")
    mine.vm.destroy()
    result = mine.run(TAKE_IMAGES, options=["--offline=read"])
    assert (mine.folder / "images" / result["run"] / "vda.raw").read_bytes() == content
    assert mine.run("true", options=["--offline=read"])["disks"][0]["reason"] == "no-checkpoint"


def test_a_server_at_a_port(script):
    mine = script({"vda": MIB})
    options = ["--nbd", f"tcp:127.0.0.1:{free_port()}"]
    mine.shell('nbdinfo --size "$NBDPULL_VDA_URI" > size', options=options)
    assert (mine.folder / "size").read_text() == f"{MIB}\n"


def test_without_a_token_no_checkpoint_is_made(script):
    mine = script({"vda": MIB})
    assert mine.run("true", token=False)["token"] is None
    mine.assert_clean(0)


def test_a_disk_in_an_io_thread(script):
    """QEMU before 9.0 would crash when the command hangs up."""
    mine = script({"vda": MIB}, iothreads=1)
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True).stdout.split()[3]
    if int(version.split(".")[0]) >= 9:
        mine.backup()
        return
    result = mine.run("true", exit_code=6)
    assert result["code"] == "unsupported" and "nbdpull pull" in result["message"]
    assert mine.vm.active
    mine.assert_clean(0)


def test_a_command_is_missing():
    done = start_nbdpull("run", "vm1", env=environment())
    assert "a command is missing" in done.communicate()[1] and done.returncode == 2
