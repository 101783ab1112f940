"""Two streams of images in one batch, block by block; a device that holds whole groups of both keeps its images."""

import jax
import jax.numpy as jnp
import numpy as np

from pc2seg_jax.parallel import to_groups
from pc2seg_jax.types import Array, Tree


def join(a: Array, b: Array, blocks: int) -> Array:
    """Joins two batches block by block: [blocks * a] and [blocks * b] images -> [blocks * (a + b)].

    Joining whole batches along the sharded axis would move images between devices; within a block nothing moves.
    """
    x = jnp.concatenate([to_groups(a, blocks), to_groups(b, blocks)], axis=1)
    return x.reshape(-1, *x.shape[2:])


def split(tree: Tree, size_a: int, size_b: int, blocks: int) -> tuple[Tree, Tree]:
    """Undoes `join` for every leaf: [size_a + size_b, ...], an entry per image, -> [size_a, ...] and [size_b, ...]."""
    a, b = size_a // blocks, size_b // blocks

    def part(x: Array, start: int, size: int) -> Array:
        return x.reshape(blocks, a + b, *x.shape[1:])[:, start : start + size].reshape(-1, *x.shape[1:])

    return jax.tree.map(lambda x: part(x, 0, a), tree), jax.tree.map(lambda x: part(x, a, b), tree)


def average(moments: Tree, groups_a: int, groups_b: int, blocks: int) -> tuple[Tree, Tree]:
    """Means [1, C] over the groups of either stream, of moments [G, C] of batches that `join` has joined.

    As weighted sums, which the devices add up with everything else that they sum: to slice the axis of groups, devices
    that share groups would pass on the moments of every layer.
    """
    a, b = groups_a // blocks, groups_b // blocks
    of_a = np.tile(np.arange(a + b) < a, blocks)

    def mean(members: np.ndarray) -> Tree:
        weights = (members / members.sum()).astype(np.float32)[:, None]
        return jax.tree.map(lambda x: jnp.sum(weights * x, axis=0, keepdims=True), moments)

    return mean(of_a), mean(~of_a)
