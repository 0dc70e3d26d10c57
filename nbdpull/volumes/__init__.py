"""The parts of a pull from KubeVirt: the series of a virtual machine, where its increments start, its new point."""
