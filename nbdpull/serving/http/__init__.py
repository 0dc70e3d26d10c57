"""Volumes over HTTP: those of an open backup, or the disks of a point."""
