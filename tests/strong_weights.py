"""Weights under which the classes differ between pixels, so that a comparison of probabilities says something."""

import jax
import numpy as np


def strong(tree, rng):
    """A tree of parameters or statistics (anything with shapes), drawn; with the initial ones every class is as likely.

    Kernels: normal, of variance 2 / fan; all others around what they are at the beginning.
    """

    def draw(path, leaf):
        noise = rng.normal(0, 1, leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return noise * np.float32(2 / np.prod(leaf.shape[:3])) ** np.float32(0.5)
        start = {"scale": 1, "var": 1}.get(path[-1].key, 0)
        return np.abs(start + np.float32(0.3) * noise)

    return jax.tree_util.tree_map_with_path(draw, tree)
