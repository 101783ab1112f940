"""The device mesh and the two shardings of data-parallel training."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pc2seg_jax.types import Array, GroupSpan, Tree


class Shardings(NamedTuple):
    """mesh: 1-D, axis `data`. replicated: for state and metrics. data: for arrays split along their first axis."""

    mesh: Mesh
    replicated: NamedSharding
    data: NamedSharding


def make_shardings(num_devices: int | None = None, devices: Sequence[jax.Device] | None = None) -> Shardings:
    """A 1-D mesh over the first `num_devices` (by default all) of `devices` (by default those at hand).

    Devices of one process are neighbours, so that every host has consecutive rows of a batch. The axis type is Auto:
    batch-wide reductions such as a confusion matrix are then partitioned by the compiler.
    """
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id)) if devices is None else devices
    mesh = Mesh(np.array(devices[:num_devices]), ("data",), axis_types=(AxisType.Auto,))
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


def to_groups(tree: Tree, groups: int) -> Tree:
    """[groups * g, ...] -> [groups, g, ...] of every leaf."""
    return jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), tree)


def map_groups(function: Callable, images: Tree, keys: Array, *, group_size: int, mesh: Mesh | None = None) -> Tree:
    """`function(images [G, g', ...], keys [G], span) -> [G, g', ...]` on every device with the images it holds.

    A device with whole groups needs no other one. Where devices share a group (their images divide it), `span` gathers
    what the function asks for among them alone, and the gradient of what was gathered is summed and scattered among
    them alone: no other communication. In any other case the compiler decides, to the same result.

    Args:
      images: [U, ...] leaves, consecutive images form groups. keys: [U / group_size].
      mesh: None or one device: nothing is shared.

    Returns:
      [U, ...] leaves.
    """
    count = len(jax.tree.leaves(images)[0])
    groups = count // group_size
    devices = 1 if mesh is None else mesh.size
    at_hand = count // devices
    regular = count % devices == 0 and (at_hand % group_size == 0 or group_size % at_hand == 0)

    def ungroup(tree: Tree) -> Tree:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

    if devices == 1 or not regular:
        return ungroup(function(to_groups(images, groups), keys, GroupSpan()))

    def with_own_groups(images: Tree, keys: Array) -> Tree:
        return ungroup(function(to_groups(images, len(keys)), keys, GroupSpan()))

    def with_a_part(images: Tree, keys: Array) -> Tree:
        index = jax.lax.axis_index("data")
        team, place = index // sharing, index % sharing
        span = GroupSpan(gather, place * at_hand)
        return ungroup(function(to_groups(images, 1), jax.lax.dynamic_slice_in_dim(keys, team, 1), span))

    def gather(x: Array) -> Array:
        return jax.lax.all_gather(x, "data", axis_index_groups=teams, axis=1, tiled=True)

    sharing = max(1, group_size // at_hand)
    teams = [list(range(start, start + sharing)) for start in range(0, devices, sharing)]
    split, whole = PartitionSpec("data"), PartitionSpec()
    on_device, keys_are = (with_own_groups, split) if sharing == 1 else (with_a_part, whole)
    run = jax.shard_map(on_device, mesh=mesh, in_specs=(split, keys_are), out_specs=split, check_vma=False)
    return run(images, keys)
