"""nbdpull: pull-mode incremental backups of libvirt/QEMU virtual machines."""

__version__ = "0.1.0"
