"""Defines a restored domain in libvirt. Owns: that no other domain is replaced by mistake. Must not know: the store."""

from __future__ import annotations

from . import definition, domain, domain_files, errors


def require_definable(xml, uri, force):
    """Raise unless the definition can be given to libvirt; force: it may replace the one of its own name and uuid."""
    name, uuid = definition.identity(xml)
    with domain.connected(uri) as connection, domain.translated(f"cannot look for domain '{name}'"):
        by_name, by_uuid = _found(connection.lookupByName, name), uuid and _found(connection.lookupByUUIDString, uuid)
        where = connection.getURI()
        if by_name and by_name.UUIDString() != uuid:
            raise errors.DomainExists(f"another domain '{name}' exists at {where}: give --name N --new-uuid")
        if by_uuid and by_uuid.name() != name:
            raise errors.DomainExists(f"domain '{by_uuid.name()}' at {where} has this uuid {uuid}: give --new-uuid")
        if by_name and by_name.isActive():
            raise errors.DomainExists(f"domain '{name}' runs at {where}: shut it down, or give --name N --new-uuid")
        if by_name and not force:
            raise errors.DomainExists(
                f"domain '{name}' exists at {where}: give --force to replace its definition, or --name N --new-uuid"
            )


def define(xml, uri, restored):
    """Define the domain, and put the restored files of its TPM in place; return ({"name", "uuid", "uri"}, warnings)."""
    name, _ = definition.identity(xml)
    with domain.connected(uri) as connection, domain.translated(f"cannot define domain '{name}'"):
        defined = connection.defineXML(xml)
        told = {"name": defined.name(), "uuid": defined.UUIDString(), "uri": connection.getURI()}
    return told, domain_files.place_tpm(xml, told["uuid"], told["uri"], restored)


def _found(look_up, key):
    """The domain, None where libvirt says that there is none: any other error says nothing of that."""
    return domain.unless((domain.libvirt.VIR_ERR_NO_DOMAIN,), lambda: look_up(key))
