"""The device mesh and the two shardings of data-parallel training."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pc2seg_jax.types import Tree


class Shardings(NamedTuple):
    """mesh: 1-D, axis `data`. replicated: for state and metrics. data: for arrays split along their first axis."""

    mesh: Mesh
    replicated: NamedSharding
    data: NamedSharding


def make_shardings(num_devices: int | None = None, devices: Sequence[jax.Device] | None = None) -> Shardings:
    """A 1-D mesh over the first `num_devices` (by default all) of `devices` (by default those at hand).

    The axis type is Auto: batch-wide reductions such as a confusion matrix are then partitioned by the compiler.
    """
    devices = (jax.devices() if devices is None else devices)[:num_devices]
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    return Shardings(mesh, NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data")))


def shard_batch(batch: Tree, sharding: NamedSharding) -> Tree:
    """Places this host's rows of a batch; leaves become global arrays split along their first axis."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def prefetch_to_devices(batches: Iterable[Tree], sharding: NamedSharding, ahead: int = 1) -> Iterator[Tree]:
    """`shard_batch` of every batch, begun `ahead` batches before its turn: it is copied while the devices compute."""
    queue = deque()
    for batch in batches:
        queue.append(shard_batch(batch, sharding))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue
