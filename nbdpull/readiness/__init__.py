"""Whether this machine, its libvirt and QEMU, and a domain are fit for pulls. Only checks; changes nothing."""
