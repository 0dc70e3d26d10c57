"""A strict stub of KubeVirt's pull backups, in three generations: the API of a cluster, the export server, a model VM.

Written from KubeVirt's sources (v1.8.4, v1.9.0, main of August 2026, and for `status.links` pull request 18537),
without regard to our client. It knows nothing of nbdpull: it is an independent witness. What a real cluster would
refuse, and what it would silently ignore (an unknown field, an unknown parameter), is refused here, and noted in
`Cluster.complaints`.

    with Cluster("v1.9", folder) as cluster:
        vm = cluster.add_vm("ns1", "vm1", {"rootdisk": MIB})
        vm.disks["rootdisk"].write(0, b"...")
        cluster.kubeconfig                            # a path
        cluster.faults.on("data", "cut", 1000, after=2)   # the third request for data ends after 1000 bytes

disks.py has the bytes, the allocation and the dirty bitmaps; objects.py what the API server stores; schema.py what it
refuses; api.py its HTTP; status.py what each generation reports of a backup; controller.py how a backup proceeds;
exports.py the HTTP of the export server; faults.py when a fault occurs; tls.py the certificates.
"""

from .cluster import Cluster
from .disks import BLOCK, CLUSTER
from .status import GENERATIONS

__all__ = ["BLOCK", "CLUSTER", "GENERATIONS", "Cluster"]
