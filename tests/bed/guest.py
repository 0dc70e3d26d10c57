"""A real Linux guest that boots in seconds: kernel, agent and busybox of Debian packages, an ext4 on vda.

`build` makes its parts once, in a cache directory: packages are fetched with apt's own metadata and unpacked, not
installed. Must not know what is tested with the guest.
"""

import base64
import contextlib
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from bed import BedError, Unavailable
from bed.libvirtd import libvirt
from bed.machine import MIB, Disk, Machine, libvirt_qemu, wait_for

KERNEL = "linux-image-cloud-amd64"
# Each needs the ones before it. What a kernel has built in is not among its files, and left out; ext4 is built in.
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
)
UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}  # of time, as ioping prints them
PROGRAM_FOLDERS = ("bin", "sbin", "x86_64-linux-gnu")
INIT = Path(__file__).with_name("guest_init")
COMMAND_LINE = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check 8250.nr_uarts=1"


@dataclass(frozen=True)
class Parts:
    """The files that a Guest is made of; disk is an ext4 in a qcow2, to be copied."""

    kernel: Path
    initrd: Path
    disk: Path


class Guest(Machine):
    """A guest: `with Guest(bed, folder, build(cache_folder())) as vm: vm.wait_agent(); vm.run("ls /mnt")`.

    vda (an ext4, by default a copy of parts.disk) is mounted at /mnt, vdb at /mnt2 if it holds an ext4. With
    writer=True, the guest writes from its boot on; kvm=True is for machines where KVM is known to boot Linux.
    """

    def __init__(self, bed, folder, parts, disks=None, name=None, writer=False, kvm=False, memory=128, iothreads=0):
        self.parts = parts
        self.writer = writer
        self.kvm = kvm
        self.memory = memory
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        disks = dict(disks or {})
        if "vda" not in disks:
            copy = folder / "vda.qcow2"
            shutil.copyfile(parts.disk, copy)
            disks = {"vda": Disk(path=copy), **disks}
        super().__init__(bed, folder, disks, name=name, paused=False, iothreads=iothreads)

    @property
    def console(self):
        """The file that receives the guest's console output."""
        return self.folder / f"{self.name}.console"

    def wait_agent(self, seconds=100):
        """Wait until the guest's agent answers."""
        try:
            wait_for(self._agent_answers, "an answer of the guest's agent", seconds)
        except BedError as error:
            tail = self.console.read_text(errors="replace")[-2000:]
            raise BedError(f"{error}; the guest's console ends so:\n{tail}") from None

    def run(self, command, seconds=30, check=True):
        """Run a shell command in the guest; return its standard output. With check, a status other than 0 is an
        error."""
        started = self.agent("guest-exec", path="/bin/sh", arg=["-c", command], **{"capture-output": True})
        status = {}

        def ended():
            status.update(self.agent("guest-exec-status", pid=started["pid"]))
            return status["exited"]

        wait_for(ended, f"end of: {command}", seconds)
        output, errors = (
            base64.b64decode(status.get(key, "")).decode(errors="replace") for key in ("out-data", "err-data")
        )
        if check and status.get("exitcode") != 0:
            raise BedError(
                f"in the guest: {command}: status {status.get('exitcode', status.get('signal'))}: {errors or output}"
            )
        return output

    def begin(self, command):
        """Start a shell command, and wait for nothing: the guest or its agent may be stopped before it answers."""
        with contextlib.suppress(libvirt.libvirtError):
            self.agent("guest-exec", path="/bin/sh", arg=["-c", command])

    def agent(self, command, **arguments):
        """Send one command to the agent; return its answer."""
        text = json.dumps({"execute": command, "arguments": arguments} if arguments else {"execute": command})
        return json.loads(libvirt_qemu.qemuAgentCommand(self.domain, text, 10, 0))["return"]

    def start_writer(self):
        """Start writing, rewriting and removing files in /mnt/churn."""
        self.run("touch /run/write")

    def stop_writer(self):
        """Stop the writing, and sync what was written."""
        self.run("rm -f /run/write; flock /run/writer true; sync")

    def start_ioping(self, disk, block=4096):
        """Start writing blocks of an unmounted disk, one after the other, at random places, past the guest's page
        cache. The disk's content is lost."""
        self.run(f"ioping -D -WWW -i 0 -s {block} /dev/{disk} >/run/ioping 2>&1 & echo $! >/run/ioping.pid")

    def stop_ioping(self):
        """Stop those writes; return the seconds that each took."""
        self.run("pid=$(cat /run/ioping.pid); kill -INT $pid; while kill -0 $pid 2>/dev/null; do sleep 0.1; done")
        said = self.run("cat /run/ioping")
        times = [float(number) * UNITS[unit] for number, unit in re.findall(r"time=([\d.]+) (\w+)", said)]
        if not times:
            raise BedError(f"ioping in the guest: {said[-500:]}")
        return times

    def ask_to_shut_down(self):
        """Have the agent shut the guest down. It never answers that; libvirt sometimes finds its end of the socket
        closed before it hears of the guest's end, and reports that as an error."""
        try:
            self.domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_AGENT_UNRESPONSIVE):
                raise

    def shutdown(self, seconds=30):
        """Shut the guest down in an orderly way: its file systems are clean, and QEMU stores its bitmaps."""
        self.ask_to_shut_down()
        wait_for(lambda: not self.active, "end of the guest", seconds)

    def _agent_answers(self):
        if not self.active:
            raise BedError("the guest is shut off")
        try:
            return self.agent("guest-ping") is not None
        except libvirt.libvirtError:
            return False

    def _xml(self):
        boot = (
            f"<kernel>{escape(str(self.parts.kernel))}</kernel><initrd>{escape(str(self.parts.initrd))}</initrd>"
            f"<cmdline>{COMMAND_LINE}{' bed.writer' if self.writer else ''}</cmdline>"
        )
        devices = "".join(map(self._disk_xml, self.disks)) + (
            f"<serial type='file'><source path={quoteattr(str(self.console))}/></serial>"
            "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        )
        return self._domain_xml(devices, kind="kvm" if self.kvm else "qemu", memory=self.memory, boot=boot)


# -- the parts --------------------------------------------------------------------------------------------------------


def build(cache_dir):
    """Make the guest's parts in a directory of cache_dir, or find those that an earlier call made."""
    recipe = hashlib.sha256(INIT.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:12]
    folder = Path(cache_dir) / f"guest-{recipe}"
    parts = Parts(folder / "vmlinuz", folder / "initrd", folder / "disk.qcow2")
    if not folder.is_dir():
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix="making-") as work:
            made = _build_in(Path(work), Path(cache_dir) / "packages")
            try:
                os.rename(made, folder)  # whole or not at all, also when two beds build at once
            except OSError:
                if not folder.is_dir():
                    raise
    return parts


def ext4_image(path, size, source, label="bed"):
    """Make an ext4 of `size` bytes that holds the files below source, as qcow2 or raw; needs no mount and no root."""
    path = Path(path)
    raw = path if path.suffix == ".raw" else path.with_suffix(".raw.part")
    with open(raw, "wb") as file:
        file.truncate(size)
    try:
        subprocess.run(
            [_tool("mke2fs"), "-q", "-F", "-t", "ext4", "-L", label, "-d", str(source), str(raw)],
            check=True,
            capture_output=True,
            text=True,
        )
        if raw != path:
            subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)], check=True)
    except subprocess.CalledProcessError as error:
        raise BedError(f"{error.cmd[0]}: {error.stderr}") from None
    finally:
        if raw != path:
            raw.unlink()
    return path


def sample_files(folder, limit=12 * MIB):
    """Copy real files of this machine (Python's own library) into folder, about `limit` bytes."""
    source, total = Path(os.__file__).parent, 0
    for file in sorted(source.rglob("*.py")):
        if total >= limit:
            return
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        total += file.stat().st_size


def _build_in(work, packages):
    root, kernel_root, made = work / "root", work / "kernel", work / "made"
    made.mkdir()
    _unpack(_fetch(_kernel_package(), packages), kernel_root)
    for name in ["busybox-static", "ioping", *_with_libraries("qemu-guest-agent")]:
        _unpack(_fetch(name, packages), root)
    shutil.copy(next((kernel_root / "boot").glob("vmlinuz-*")), made / "vmlinuz")
    _make_initrd(root, kernel_root, work / "initramfs", made / "initrd")
    sample_files(work / "files")
    ext4_image(made / "disk.qcow2", 256 * MIB, work / "files")
    return made


def _make_initrd(root, kernel_root, tree, initrd):
    for folder in ("bin", "lib64", "lib/x86_64-linux-gnu", "modules"):
        (tree / folder).mkdir(parents=True)
    busybox, agent, ioping = (_find(root, name) for name in ("busybox", "qemu-ga", "ioping"))
    for program in (busybox, agent, ioping):
        shutil.copy(program, tree / "bin" / program.name)
    for library in _libraries(root, agent):  # ioping needs but libc, as the agent does
        folder = "lib64" if library.name.startswith("ld-linux") else "lib/x86_64-linux-gnu"
        shutil.copy(library, tree / folder / library.name)
    order = []
    for module in MODULES:
        for file in kernel_root.rglob(f"{module}.ko*"):
            data = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
            (tree / "modules" / f"{module}.ko").write_bytes(data)
            order.append(f"{module}.ko")
    (tree / "modules/order").write_text("\n".join(order))
    shutil.copy(INIT, tree / "init")
    (tree / "init").chmod(0o755)
    names = "\0".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    archive = subprocess.run(
        [_tool("cpio"), "-o", "-0", "-H", "newc", "-R", "0:0", "--quiet"],
        cwd=tree,
        input=names.encode(),
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    with open(initrd, "wb") as file:
        subprocess.run([_tool("gzip"), "-9nc"], input=archive, stdout=file, check=True)


def _libraries(root, program):
    """Return the shared libraries of an unpacked program, and the loader, as the unpacked loader resolves them."""
    loader = _find(root, "ld-linux-x86-64.so.2")
    folders = ":".join(str(root / folder) for folder in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"))
    listing = subprocess.run(
        [str(loader), "--inhibit-cache", "--library-path", folders, "--list", str(program)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return [loader, *map(Path, re.findall(rf"=> ({re.escape(str(root))}\S+)", listing))]


def _find(root, name):
    # by its folder: busybox-static also brings a script of that name for initramfs-tools
    return next(
        path
        for path in root.rglob(name)
        if path.is_file() and not path.is_symlink() and path.parent.name in PROGRAM_FOLDERS
    )


# -- packages ---------------------------------------------------------------------------------------------------------


def _kernel_package():
    """Return the package that the kernel's meta package depends on today."""
    return next(name for name in _depends(KERNEL) if name.startswith("linux-image-"))


def _with_libraries(name):
    """Return a package and the packages of its libraries, without perl, dpkg and the like, which only its installation
    needs."""
    wanted, todo = [], [name]
    while todo:
        wanted += todo
        todo = sorted({other for other in _depends(*todo) if other.startswith(("lib", "zlib"))} - set(wanted))
    return wanted


def _depends(*names):
    listing = _apt(["apt-cache", "depends", "--important", *names])  # one call for all: each reads its lists for 0.7 s
    return re.findall(r"^ +(?:Pre)?Depends: ([a-z0-9][^\s:]*)", listing, re.MULTILINE)


def _fetch(name, packages):
    """Return the package's file, downloaded into the directory unless it is already there."""
    packages.mkdir(parents=True, exist_ok=True)
    found = list(packages.glob(f"{name}_*.deb"))
    if not found:
        with tempfile.TemporaryDirectory(dir=packages) as folder:
            _apt(["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name], cwd=folder)
            file = next(Path(folder).glob("*.deb"))
            found = [packages / file.name]
            os.replace(file, found[0])
    return found[0]


def _unpack(package, root):
    root.mkdir(exist_ok=True)
    subprocess.run([_tool("dpkg-deb"), "-x", str(package), str(root)], check=True)


def _apt(command, cwd=None):
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    except FileNotFoundError:
        raise Unavailable("the Linux guest is made of Debian packages, and there is no apt here") from None
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()} (empty package lists? apt-get update)")
    return done.stdout


def _tool(name):
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise Unavailable(f"not installed: {name} (scripts/install --test installs it)")
    return found
