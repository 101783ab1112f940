"""Corner-aligned resizing, the only resizing that happens inside the network and its losses."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np


def interpolation_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Weights of one-dimensional corner-aligned linear interpolation.

    Output i reads source coordinate i * (size_in - 1) / (size_out - 1); a source of size 1 is repeated.

    Returns:
      [size_out, size_in] float32, every row sums to 1 and has at most two non-zero entries.
    """
    if size_in == 1 or size_out == 1:
        matrix = np.zeros((size_out, size_in), np.float32)
        matrix[:, 0] = 1
        return matrix
    position = np.arange(size_out) * ((size_in - 1) / (size_out - 1))
    distance = np.abs(position[:, None] - np.arange(size_in)[None, :])
    return np.maximum(0.0, 1.0 - distance).astype(np.float32)


def symbolic_interpolation_matrix(size_in: Any, size_out: Any) -> jax.Array:
    """`interpolation_matrix` of sizes that are known when the program runs (`jax.export.symbolic_shape`).

    Weight (i, j) = max(0, 1 - |i * (size_in - 1) - j * n| / n) with n = max(size_out - 1, 1): the difference is one of
    whole numbers, so that the only rounding is that of the quotient, however large the image.

    Returns:
      [size_out, size_in] float32. Sizes up to 46,000 (int32).
    """
    steps = jnp.maximum(jnp.asarray(size_out, jnp.int32) - 1, 1)
    reached = jnp.arange(size_out, dtype=jnp.int32) * (size_in - 1)
    offered = jnp.arange(size_in, dtype=jnp.int32) * steps
    distance = jnp.abs(reached[:, None] - offered[None, :])
    return jnp.maximum(0.0, 1.0 - distance.astype(jnp.float32) / steps.astype(jnp.float32))


def resize_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear, corner-aligned resize as two small matrix products (no gathers).

    Args:
      x: [B, h, w, C] of any float type.
      size: target (H, W).

    Returns:
      [B, H, W, C] in the type of `x`; `x` itself when the size already fits.

    Source: DeepLab-v3+ as used by the paper (`tf.image.resize_bilinear(align_corners=True)`).
    """
    if x.shape[1:3] == tuple(size):
        return x
    symbolic = any(jax.export.is_symbolic_dim(side) for side in (*x.shape[1:3], *size))
    matrix = symbolic_interpolation_matrix if symbolic else interpolation_matrix
    rows = jnp.asarray(matrix(x.shape[1], size[0]), x.dtype)
    columns = jnp.asarray(matrix(x.shape[2], size[1]), x.dtype)
    x = jnp.einsum("Hh,bhwc->bHwc", rows, x, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("Ww,bHwc->bHWc", columns, x, precision=jax.lax.Precision.HIGHEST)


def subsample_nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Corner-aligned nearest subsampling of masks and labels, index = round-half-up(i * (in - 1) / (out - 1)).

    Between sizes of the form 16k + 1 this is plain striding, e.g. [::16] from 513 to 33.

    Args:
      x: [B, H, W].
      size: target (h, w), not larger than (H, W).

    Returns:
      [B, h, w] in the type of `x`.
    """
    for axis, (size_in, size_out) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        if size_out == 1 or (size_in - 1) % (size_out - 1) == 0:
            stride = (size_in - 1) // (size_out - 1) if size_out > 1 else size_in
            x = jax.lax.slice_in_dim(x, 0, None, stride, axis)
        else:
            index = np.floor(np.arange(size_out) * ((size_in - 1) / (size_out - 1)) + 0.5).astype(np.int32)
            x = jnp.take(x, index, axis=axis)
    return x
