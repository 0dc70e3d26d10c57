"""Points of a store of the tests that are copied into another one. Knows nothing of what is then to be there."""

from stores import Vm

from nbdpull.core.throttle import Throttle
from nbdpull.repository import half_points, incoming


def over(vm, root):
    """The Vm as if its pulls had gone into another store: what is there is compared with what it knows."""
    other = Vm(root, vm.name, vm.uuid)
    other.images = vm.images
    return other


def take(vm, other, *points):
    """Copy these points, or all; what was copied for each."""
    with half_points.writing(other.series):
        taking = incoming.Incoming(vm.series, other.series, other.series.points(), Throttle())
        return [taking.take(point) for point in points or vm.points]
