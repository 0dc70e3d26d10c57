"""Volumes over HTTP: a backup that is open, or the disks of a point."""
