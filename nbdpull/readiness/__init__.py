"""Whether all is fit for pulls: this machine, its libvirt and QEMU, a domain. Looks only, and changes nothing."""
