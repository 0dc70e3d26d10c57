"""A domain's definition: libvirt's XML as values, and its rewriting. Calls no libvirt."""
