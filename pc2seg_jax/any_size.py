"""A trained model as one function of 8-bit images of any size: what `export` writes, and what it is compared with."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pc2seg_jax.inference import predict_probabilities
from pc2seg_jax.models.functional import Model
from pc2seg_jax.types import Array, Tree

# Of the strides of every network here: sides of the form 16k + 1 keep their corners aligned at all of them.
STRIDE = 16


def padded_side(side: Any) -> Any:
    """The next number of the form 16k + 1, at least `side`: of an int or of a symbolic dimension."""
    return (side + STRIDE - 2) // STRIDE * STRIDE + 1


def infer(model: Model, params: Tree, batch_stats: Tree, images: Array, *, mean_pixel: tuple) -> Array:
    """Class probabilities of images of any size, which may be symbolic (`jax.export`).

    The images are padded at the bottom and at the right to sides of the form 16k + 1 with `mean_pixel`, and the logits
    resized, corners aligned, to that size; softmax; the padding is cut off.

    Args:
      images: [B, h, w, 3] uint8, RGB.
      mean_pixel: what the model's preprocessing turns into 0.

    Returns:
      [B, h, w, C] float32.
    """
    batch, height, width = images.shape[:3]
    rows, columns = padded_side(height), padded_side(width)
    padding = ((0, 0, 0), (0, rows - height, 0), (0, columns - width, 0), (0, 0, 0))
    padded = jax.lax.pad(images.astype(jnp.float32), np.float32(0), padding)
    inside = (jnp.arange(rows) < height)[:, None] & (jnp.arange(columns) < width)[None, :]
    canvas = jnp.where(inside[None, :, :, None], padded, np.asarray(mean_pixel, np.float32))
    probabilities = predict_probabilities(model, params, batch_stats, canvas)
    return jax.lax.slice(probabilities, (0, 0, 0, 0), (batch, height, width, probabilities.shape[-1]))
