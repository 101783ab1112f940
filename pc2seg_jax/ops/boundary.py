"""Boundary IoU: how well outlines fit, where a plain IoU is decided by the inside of large regions.

Source: Cheng et al., Boundary IoU (CVPR 2021). A class's boundary is what of its mask lies within d pixels of its
outline, d = 2 % of the image's diagonal; the edge of the image is an outline, too. A pixel is that near exactly if
the square of side 2 d + 1 around it holds another label, so that two filters serve all classes at once.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

WIDTH = 0.02  # of the diagonal


def boundary_width(height: jax.Array, width: jax.Array) -> jax.Array:
    """d in pixels for images of these sides, at least 1; int32."""
    diagonal = jnp.sqrt(height.astype(jnp.float32) ** 2 + width.astype(jnp.float32) ** 2)
    return jnp.maximum(1, jnp.round(WIDTH * diagonal)).astype(jnp.int32)


def _near_another(labels: jax.Array, width: jax.Array, largest: int) -> jax.Array:
    """Pixels with another label, or the outside, at most `width` [B] pixels away in both directions; [B, H, W] bool."""

    def spread(x: jax.Array, choose) -> jax.Array:  # over squares of side 3
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-1)
        x = choose(choose(x[:, :-2], x[:, 1:-1]), x[:, 2:])
        return choose(choose(x[:, :, :-2], x[:, :, 1:-1]), x[:, :, 2:])

    def widen(k: jax.Array, extremes: tuple) -> tuple:
        grows = (k < width)[:, None, None]
        chosen = zip(extremes, (jnp.minimum, jnp.maximum), strict=True)
        return tuple(jnp.where(grows, spread(x, choose), x) for x, choose in chosen)

    low, high = jax.lax.fori_loop(0, largest, widen, (labels, labels))
    return (low != labels) | (high != labels)


def boundary_counts(
    labels: jax.Array, predictions: jax.Array, sizes: jax.Array, *, num_classes: int, ignore_id: int
) -> jax.Array:
    """Pixels of every image and class on the boundary of both maps, of the truth, and of the prediction.

    Ignored pixels, padding among them, belong to no class in either map.

    Args:
      labels: [B, H, W] integers, `ignore_id` where nothing is counted. predictions: [B, H, W] integers in 0..C-1.
      sizes: [B, 2] (height, width) of the images inside of H and W, from which d is taken.

    Returns:
      [B, 3, C] int32. IoU of class c over a split: both / (truth + prediction - both), of the sums over images.
    """
    largest = round(WIDTH * math.hypot(*labels.shape[1:])) + 1
    width = boundary_width(sizes[:, 0], sizes[:, 1])
    counted = labels != ignore_id
    truth, predicted = (jnp.where(counted, x.astype(jnp.int32), -1) for x in (labels, predictions))
    on_truth, on_predicted = (_near_another(x, width, largest) for x in (truth, predicted))

    def count(c: jax.Array) -> jax.Array:
        t, p = (truth == c) & on_truth, (predicted == c) & on_predicted
        return jnp.stack([jnp.sum(x, (1, 2), dtype=jnp.int32) for x in (t & p, t, p)], axis=-1)

    return jnp.moveaxis(jax.lax.map(count, jnp.arange(num_classes, dtype=jnp.int32)), 0, -1)


def boundary_iou(counts: np.ndarray) -> np.ndarray:
    """IoU of every class from summed counts [3, C], 0..1; nan for a class without a boundary in either map."""
    both, truth, predicted = np.asarray(counts, np.float64)
    union = truth + predicted - both
    return np.divide(both, union, out=np.full(union.shape, np.nan), where=union > 0)
