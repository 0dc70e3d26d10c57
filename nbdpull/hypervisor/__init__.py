"""libvirt, and the QEMU that runs a domain."""
