"""A private libvirt daemon: its namespace or directories, its start, its restart and its certain end.

As root it is a system daemon (qemu:///system) in a mount namespace that this process enters, so that everything started
from then on (virsh, qemu-img, the program under test) talks to it and to no other. For any other user it is a session
daemon (qemu:///session) with directories apart from the user's own. Must not know what runs on it.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bed import BedError, Unavailable
from bed.started import Started

try:
    import libvirt
except ImportError:  # the reason is given when a bed is asked for, not when this file is imported
    libvirt = None

CLONE_NEWNS = 0x00020000
MS_REC, MS_PRIVATE, MNT_DETACH = 0x4000, 0x40000, 2

SYSTEM_FOLDERS = ("/run/libvirt", "/var/lib/libvirt", "/etc/libvirt", "/var/log/libvirt", "/var/cache/libvirt")

# stdio_handler="file": no virtlogd to start, and QEMU's messages are in the log the moment they are printed.
# capability_filters: at each start libvirt would ask QEMU for every feature of the CPU by a command of its own. QEMU
# reads its monitor byte by byte, so these commands are five sixths of the CPU time of a start, and of its duration.
QEMU_CONF = """
security_driver = "none"
stdio_handler = "file"
capability_filters = [ "cpu-unavailable-features" ]
"""
# namespaces=[]: otherwise a file system mounted after a VM's start does not exist for that VM's scratch files.
QEMU_CONF_OF_ROOT = """
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
"""
# With --listen it is on unless this says otherwise, as a test may that changes the file and restarts the daemon.
LIBVIRTD_CONF = 'auth_unix_rw = "none"\nauth_unix_ro = "none"\nunix_sock_rw_perms = "0700"\n'
LIBVIRTD_LISTEN = "listen_tls = 0\n"


def _display_ports():
    """Return a range of display ports of its own, so that two daemons of this machine do not choose the same free
    one."""
    first = 6100 + os.getpid() % 500 * 50
    return f"remote_display_port_min = {first}\nremote_display_port_max = {first + 49}\n"


def cache_folder():
    """Return where the bed keeps what is slow to make and safe to keep (QEMU's capabilities, the guest's kernel)."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("NBDPULL_BED_CACHE") or os.path.join(base, "nbdpull-bed"))


def missing():
    """Return which of the bed's programs are not installed, as text; empty if none is missing."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    wanted = ("libvirtd", "virsh", "qemu-system-x86_64", "qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon")
    absent = [name for name in wanted if not shutil.which(name, path=path)]
    if libvirt is None:
        absent.append("libvirt's Python bindings")
    return ", ".join(absent)


def version(program):
    """Return the installed version of "libvirt" or "qemu", as three numbers; None if it is not installed."""
    if program == "libvirt":
        number = libvirt.getVersion() if libvirt else 0
        return (number // 1_000_000, number // 1000 % 1000, number % 1000) if libvirt else None
    try:
        said = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return None
    return tuple(map(int, re.search(r"version (\d+)\.(\d+)\.(\d+)", said).groups()))


_session_folder = None


class PrivateLibvirt(Started):
    """One daemon for this process and its children; `with PrivateLibvirt() as bed:`.

    As root, enter this before the process starts other threads: these would stay outside the namespace.
    """

    def __init__(self, cache=None):
        absent = missing()
        if absent:
            raise Unavailable(f"not installed: {absent} (scripts/install --test installs it)")
        self.cache = Path(cache or cache_folder()) / f"capabilities-{os.getuid()}"
        self.root = os.geteuid() == 0
        self.uri = "qemu:///system" if self.root else "qemu:///session"
        self._saved_environ = {}
        self._connection = None
        self._supervisor = None
        self.folder = None

    def __enter__(self):
        self.folder = self._make_folder()
        return super().__enter__()

    def start(self):
        if self.root:
            self._enter_namespace()
        self._lay_out()
        self._start_supervisor()
        self.start_daemon()

    # -- the daemon ---------------------------------------------------------------------------------------------------

    def start_daemon(self):
        """Start the daemon and wait until it answers and knows QEMU."""
        self._order("start")
        deadline = time.monotonic() + 60
        while True:
            try:
                self._connection = _open(self.uri)
                self._connection.getVersion()  # probes QEMU where the cache knows nothing
                break
            except libvirt.libvirtError:
                if not self.alive or time.monotonic() > deadline:
                    raise BedError(f"libvirtd does not answer:\n{self.daemon_log()}") from None
                time.sleep(0.01)
        _copy_new(self.capabilities, self.cache)

    def stop_daemon(self, hard=False):
        """End the daemon (with SIGKILL if hard); the VMs keep running."""
        self._order("kill" if hard else "term")

    @property
    def alive(self):
        """Return whether the daemon runs."""
        return self._order("alive") == "ok"

    def restart(self, hard=False):
        """Restart the daemon as in a package upgrade (or a crash, if hard): every connection breaks, the VMs keep
        running."""
        self.stop_daemon(hard)
        self.start_daemon()

    def connection(self):
        """Return a libvirt connection that works now: the existing one, or a new one after a restart of the daemon."""
        try:
            self._connection.getLibVersion()
        except libvirt.libvirtError:
            self._connection = _open(self.uri)
        return self._connection

    def daemon_log(self):
        return (self.folder / "libvirtd.log").read_text(errors="replace")

    def virsh(self, *args, check=True):
        """Run virsh on this libvirt; return its standard output."""
        done = subprocess.run(
            ["virsh", "-q", "-c", self.uri, *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if check and done.returncode:
            raise BedError(f"virsh {' '.join(map(str, args))}: {done.stderr.strip()}")
        return done.stdout

    def end_domains(self):
        """End and undefine every domain; return their names."""
        names = self.virsh("list", "--all", "--name").split()
        for name in names:
            self.virsh("destroy", name, check=False)
            self.virsh("undefine", name, "--nvram", "--managed-save", "--checkpoints-metadata", "--snapshots-metadata",
                       check=False)  # fmt: skip
        return names

    def qemu_pid(self, domain):
        """Return the process id of the QEMU of the domain with this name; None if it does not run."""
        folder = self.run / "qemu" if self.root else self.run / "qemu/run"
        try:
            return int((folder / f"{domain}.pid").read_text())
        except FileNotFoundError:
            return None

    def qemu_log(self, domain):
        """Return the path of QEMU's log of the domain with this name."""
        return self.logs / f"{domain}.log"

    # -- set-up and end -----------------------------------------------------------------------------------------------

    def _make_folder(self):
        """Make a new directory in /tmp instead of TMPDIR: the path of a Unix socket has at most 107 bytes."""
        global _session_folder
        if not self.root and _session_folder:
            # libvirt's client reads XDG_RUNTIME_DIR once: a second bed of this process needs the same path
            _session_folder.mkdir(mode=0o700)
            return _session_folder
        folder = Path(tempfile.mkdtemp(prefix="bed", dir="/tmp"))
        if not self.root:
            _session_folder = folder
        return folder

    def _enter_namespace(self):
        for folder in SYSTEM_FOLDERS:
            os.makedirs(folder, exist_ok=True)
        libc = ctypes.CDLL(None, use_errno=True)
        _checked(libc.unshare(CLONE_NEWNS), "unshare")
        _checked(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "make / private")
        for folder in SYSTEM_FOLDERS:
            _checked(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, b"mode=0755"), f"mount {folder}")

    def _lay_out(self):
        """Set the directories (self.run, self.logs, self.capabilities), the daemon's configuration and our
        environment."""
        if self.root:
            self.run, config = Path("/run/libvirt"), Path("/etc/libvirt")
            self.logs, self.capabilities = Path("/var/log/libvirt/qemu"), Path("/var/cache/libvirt/qemu/capabilities")
            (config / "qemu.conf").write_text(QEMU_CONF + QEMU_CONF_OF_ROOT + _display_ports())
        else:
            folders = {"XDG_RUNTIME_DIR": "r", "XDG_CONFIG_HOME": "c", "XDG_CACHE_HOME": "k", "XDG_DATA_HOME": "d"}
            for name, folder in folders.items():
                (self.folder / folder).mkdir(mode=0o700)
                self._setenv(name, str(self.folder / folder))
            self.run, config = self.folder / "r/libvirt", self.folder / "c/libvirt"
            qemu = self.folder / "k/libvirt/qemu"
            self.logs, self.capabilities = qemu / "log", qemu / "cache/capabilities"
            config.mkdir()
            (config / "qemu.conf").write_text(QEMU_CONF + _display_ports())
        (config / "libvirtd.conf").write_text(LIBVIRTD_CONF + LIBVIRTD_LISTEN * self.root)
        self.run.mkdir(mode=0o755, exist_ok=True)
        # a program that forgets to name the URI gets the bed too, and not the machine's own libvirt
        self._setenv("LIBVIRT_DEFAULT_URI", self.uri)
        self._setenv("LIBVIRT_AUTOSTART", "0")  # a session client would start a second daemon while ours starts
        # Probing QEMU takes 4 s for each architecture. libvirt itself checks a kept result against the binaries'
        # times, the kernel and KVM. Copied and not bind-mounted: two beds at once would write the same file in place.
        _copy_new(self.cache, self.capabilities)

    def _start_supervisor(self):
        daemon = shutil.which("libvirtd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        program = Path(__file__).with_name("supervisor.py")
        with open(self.folder / "libvirtd.log", "ab") as log:
            self._supervisor = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    str(program),
                    str(self.folder),
                    daemon,
                    "--pid-file",
                    str(self.run / "libvirtd.pid"),
                    *["--listen"] * self.root,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,
            )  # a Ctrl-C on the terminal is for the tests, not for the daemon

    def _order(self, word):
        self._supervisor.stdin.write(word.encode() + b"\n")
        answer = self._supervisor.stdout.readline().decode().strip()
        if not answer:
            raise BedError(f"the bed's supervisor is gone:\n{self.daemon_log()}")
        return answer

    def close(self):
        """End the daemon and each of its QEMUs, and remove the directory. Our namespace remains, with nothing
        mounted."""
        if self._supervisor:
            _copy_new(self.capabilities, self.cache)
            self._supervisor.stdin.close()
            self._supervisor.wait(30)
            self._supervisor.stdout.close()
            self._supervisor = None
        self._connection = None
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.root:
            libc = ctypes.CDLL(None)
            for folder in SYSTEM_FOLDERS:
                libc.umount2(folder.encode(), MNT_DETACH)
        self._restore_environ()

    def _setenv(self, name, value):
        self._saved_environ.setdefault(name, os.environ.get(name))
        os.environ[name] = value

    def _restore_environ(self):
        for name, value in self._saved_environ.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._saved_environ = {}


def _open(uri):
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # libvirt prints every error otherwise
    return libvirt.open(uri)


def _checked(result, what):
    if result != 0:
        raise Unavailable(f"{what}: {os.strerror(ctypes.get_errno())} (root here may make no namespace of its own)")


def _copy_new(source, target):
    """Copy the files that target lacks or has in an older version; each appears whole or not at all."""
    if not source.is_dir():
        return
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.xml"):
        there = target / file.name
        if there.exists() and there.stat().st_mtime >= file.stat().st_mtime:
            continue
        part = target / f"{file.name}.{os.getpid()}.part"
        shutil.copy2(file, part)
        os.replace(part, there)
