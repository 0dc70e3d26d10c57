"""Exports to read and to write: libnbd, and QEMU's block layer without a guest."""
