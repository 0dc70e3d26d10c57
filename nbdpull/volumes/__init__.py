"""What a pull from KubeVirt is made of: the series of a virtual machine, where its increments begin, its new point."""
