"""KubeVirt's pull endpoint as a source: its maps and bytes over HTTP, and the objects of a cluster that provide it."""
