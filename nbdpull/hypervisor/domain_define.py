"""Defines a restored domain in libvirt.

Owns: that no other domain is replaced by mistake, and that what would be refused at the end is refused before anything
is restored. Must not know: the store.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, Callable, Optional

from ..core import errors
from ..definitions import definition, host_fit, host_reach
from . import domain_files, domain_offer, libvirt_uri
from .bindings import libvirt
from .connection import connected
from .libvirt_error import translated, unless

Identity = tuple[str, Optional[str]]  # name and uuid of a domain

_GONE = (libvirt.VIR_ERR_NO_DOMAIN,)
_OTHERWISE = "restore without --define, correct domain.xml, and run virsh define"


def prepared(
    xml: str,
    uri: Optional[str],
    force: bool,
    original: Optional[Identity] = None,
    own: Iterable[str] = (),
    trusted: bool = False,
) -> tuple[str, list[str]]:
    """Return (XML, warnings): the definition adapted to this libvirt; raise if libvirt cannot take it.

    force: it may replace the definition of the same name and uuid; original: name and uuid of the pulled domain; if
    that domain exists here, what its definition names on this host needs no warning; own: paths that the restore
    creates; trusted: it may name what no host offers.
    """
    name, _ = definition.identity(xml)
    with connected(uri) as connection:
        with translated(f"cannot look for domain '{name}'"):
            _require_free(connection, xml, force)
            known = _named_by(connection, *(original or definition.identity(xml)))
            uri = connection.getURI()
        with translated(domain_offer.DOING):
            offer = domain_offer.offer(connection, xml)
        is_remote = libvirt_uri.is_remote(uri)
        look = (lambda _path: host_fit.UNKNOWN) if is_remote else functools.lru_cache(None)(domain_files.look)
        fitted, warnings = host_fit.fitted(xml, offer, look, trusted)
        if not trusted:
            homes = domain_files.variables_homes(name, uri)
            host_fit.require_known(fitted, offer, look, [*own, *homes], known)
        return fitted, [*warnings, *_without_trials(connection), *_judged(connection, fitted)]


def _without_trials(connection: Any) -> list[str]:
    """Remove the trial domains of restores that were killed before they did it; return warnings.

    One of them may belong to a restore that is running: that restore does without it. What cannot be removed is no
    obstacle.
    """
    reports = []
    with contextlib.suppress(libvirt.libvirtError):
        for dom in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_INACTIVE):
            is_named_so = dom.name().startswith(definition.TRIAL)
            if is_named_so and definition.is_trial(dom.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)):
                _undefine(dom)
                reports.append(f"domain '{dom.name()}' was left by a killed restore, and was removed")
    return reports


def _undefine(trial: Any) -> None:
    unless(_GONE, lambda: trial.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM))


def _judged(connection: Any, xml: str) -> list[str]:
    """Let libvirt judge a definition. Raise if libvirt would not define it; return its objections to a start.

    Converting it to QEMU's command line has no effects, and requires more than a definition must fulfil. If libvirt
    refuses the conversion, define the domain briefly under another name.
    """
    name, _ = definition.identity(xml)
    trial = definition.for_trial(xml)
    with translated(f"cannot define domain '{name}'", (errors.HypervisorError, _OTHERWISE)):
        try:
            connection.domainXMLToNative("qemu-argv", trial, 0)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:  # no libvirt for QEMU
                return []
            _undefine(connection.defineXML(trial))
            return [f"libvirt would define domain '{name}', but not start it: {' '.join(str(error).split())}"]
    return []


def _require_free(connection: Any, xml: str, force: bool) -> None:
    """Raise DomainExists if another domain would be replaced."""
    name, uuid = definition.identity(xml)
    by_name, by_uuid = _found(connection.lookupByName, name), uuid and _found(connection.lookupByUUIDString, uuid)
    where = connection.getURI()
    if by_name and by_name.UUIDString() != uuid:
        raise errors.DomainExists(f"another domain '{name}' exists at {where}: use --name N --new-uuid")
    if by_uuid and by_uuid.name() != name:
        raise errors.DomainExists(f"domain '{by_uuid.name()}' at {where} has the same UUID {uuid}: use --new-uuid")
    if by_name and by_name.isActive():
        raise errors.DomainExists(f"domain '{name}' runs at {where}: shut it down, or use --name N --new-uuid")
    if by_name and not force:
        raise errors.DomainExists(
            f"domain '{name}' exists at {where}: use --force to replace its definition, or --name N --new-uuid"
        )
    if by_name and by_name.hasManagedSaveImage(0):  # virsh start would go on from it, with the disks of that time
        raise errors.DomainExists(
            f"domain '{name}' at {where} has a saved state (managedsave), from which its next start would continue "
            f"instead of the restored disks: remove it with virsh managedsave-remove {shlex.quote(name)}, or use "
            "--name N --new-uuid"
        )


def _named_by(connection: Any, name: str, uuid: Optional[str]) -> Iterable[host_reach.Reach]:
    """Return what the domain of this name and UUID names on the host; nothing if there is no such domain."""
    found = uuid and _found(connection.lookupByUUIDString, uuid)
    if not found or found.name() != name:
        return ()
    return host_reach.reaches(definition.parse(found.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)))


def define(
    xml: str, uri: Optional[str], restored: Mapping[str, str], autostart: bool = False
) -> tuple[dict[str, str], list[str]]:
    """Define the domain, and put the restored files of its TPM in place; return ({"name", "uuid", "uri"}, warnings).

    autostart: let it start with its host; if not, a definition that is replaced keeps its own setting.
    """
    name, _ = definition.identity(xml)
    with connected(uri) as connection, translated(f"cannot define domain '{name}'"):
        defined = connection.defineXML(xml)
        about = {"name": defined.name(), "uuid": defined.UUIDString(), "uri": connection.getURI()}
        warnings = _autostarted(defined) if autostart else []
    return about, [*warnings, *domain_files.place_tpm(xml, about["uuid"], about["uri"], restored)]


def _autostarted(dom: Any) -> list[str]:
    try:
        dom.setAutostart(1)
    except libvirt.libvirtError as error:
        return [f"the domain started with its host, and libvirt refuses that here: {' '.join(str(error).split())}"]
    return []


def _found(look_up: Callable[[str], Any], key: str) -> Any:
    """Return the domain, None if libvirt reports that it does not exist. No other error means that."""
    return unless(_GONE, lambda: look_up(key))
