"""What is secret in a domain's definition is in no file of a store, no message, and no command line."""

from pathlib import Path

import pytest
from bed.machine import MIB
from rig import Rig

libvirt = pytest.importorskip("libvirt")

SECRET = "Geheim77"
GRAPHICS = f"<graphics type='vnc' passwd='{SECRET}'><listen type='none'/></graphics>"


def command_lines():
    """Return the command lines of all processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes()
        except OSError:  # it has ended
            continue


def test_a_password_of_the_definition(machine, tmp_path):
    vm = machine({"vda": MIB})
    xml = vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    vm.bed.connection().defineXML(xml.replace("</devices>", f"{GRAPHICS}</devices>"))
    assert SECRET in vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    rig = Rig(vm, tmp_path)
    log = tmp_path / "log"
    rig.start("-vv", "--log-file", log, phase="begun")
    running = list(command_lines())
    code, result, said = rig.end()
    assert code == 0, said
    logged = log.read_text()
    for step in ("libvirt: backupBegin (", "nbd: connected to export", "pull: vda: full (", "pull: journal written",
                 "pull: backup job started: ", "pull: vda: map read, ", "pull: vda: done: ", "store: point ",
                 "libvirt: abortJob ("):  # fmt: skip
        assert step in said and step in logged, step
    kept = [path for path in rig.store.rglob("*") if path.is_file()]
    assert any(b"<graphics" in path.read_bytes() for path in kept)
    assert not any(SECRET.encode() in data for data in [*running, *(path.read_bytes() for path in kept)])
    assert SECRET not in said + str(result) + logged
    for words in (["plan", vm.name, "-o", rig.store], ["doctor", vm.name], ["cleanup", vm.name]):
        done = rig.run(*words, "-c", vm.bed.uri, "--json", "-vv")
        assert SECRET not in done.stdout + done.stderr
