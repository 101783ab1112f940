"""Colour operations of the strong view, on images in 0..1 [..., 3]; amounts broadcast over the last axis.

Saturation and hue are those of HSV, without converting: with v = max and c = max - min over the channels, x = v - c t,
where t in 0..1 depends on the hue alone.
"""

import jax
import jax.numpy as jnp

from pc2seg_jax.types import COLOR_OPERATIONS, Array


def adjust_brightness(x: Array, shift: Array) -> Array:
    """clip(x + shift, 0, 1)."""
    return jnp.clip(x + shift, 0, 1)


def adjust_contrast(x: Array, factor: Array, mean: Array) -> Array:
    """clip((x - mean) factor + mean, 0, 1), with one mean per channel."""
    return jnp.clip((x - mean) * factor + mean, 0, 1)


def adjust_saturation(x: Array, factor: Array) -> Array:
    """S <- min(S factor, 1) in HSV: v - (v - x) min(factor, v / c)."""
    v, c = _value_and_chroma(x)
    return v - (v - x) * jnp.minimum(factor, v / jnp.where(c > 0, c, 1))


def adjust_hue(x: Array, turn: Array) -> Array:
    """H <- (H + turn) mod 1 in HSV, turn in turns: x_n = v - c clip(min(k, 4 - k), 0, 1), k = (n + 6 H) mod 6."""
    v, c = _value_and_chroma(x)
    red, green, blue = (x[..., i : i + 1] for i in range(3))
    divisor = jnp.where(c > 0, c, 1)
    sextant = jnp.where(
        v == red,
        (green - blue) / divisor,
        jnp.where(v == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    k = (jnp.array([5.0, 3.0, 1.0], x.dtype) + sextant + 6 * turn) % 6
    return v - c * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def _value_and_chroma(x: Array) -> tuple[Array, Array]:
    v = x.max(-1, keepdims=True)
    return v, v - x.min(-1, keepdims=True)


def jitter(image: Array, order: Array, amounts: Array, contrast_mean: Array) -> Array:
    """Changes brightness, contrast, saturation and hue of one image in the given order, each clipped to 0..1.

    All four are computed at every place and one is taken: products without branches, which the compiler fuses.

    Args:
      image: [H, W, 3] float32, 0..1.
      order: [4] int32, a permutation of the numbers of `COLOR_OPERATIONS`.
      amounts: [4] float32 in the order of `COLOR_OPERATIONS`: shift, factor, factor, turns.
      contrast_mean: [3] float32.
    """
    shift, contrast, saturation, turn = amounts
    for place in range(len(COLOR_OPERATIONS)):
        results = (
            adjust_brightness(image, shift),
            adjust_contrast(image, contrast, contrast_mean),
            adjust_saturation(image, saturation),
            adjust_hue(image, turn),
        )
        image = jax.lax.select_n(order[place], *results)
    return image
