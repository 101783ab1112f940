"""Colour operations of the strong view, on images in 0..1 [..., 3].

Saturation and hue are those of HSV, without converting: with v = max and c = max - min over the channels, x = v - c t,
where t in 0..1 depends on the hue alone.
"""

import jax.numpy as jnp

from pc2seg_jax.types import COLOR_OPERATIONS, Array

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(len(COLOR_OPERATIONS))


def adjust_affine(x: Array, factor: Array, offset: Array) -> Array:
    """clip(x factor + offset, 0, 1): brightness is the factor 1, contrast around m the offset m (1 - factor)."""
    return jnp.clip(x * factor + offset, 0, 1)


def adjust_hsv(x: Array, saturation: Array, turn: Array) -> Array:
    """S <- min(S saturation, 1) and H <- (H + turn) mod 1 in HSV, both of which leave the other alone.

    x_n = v - c' clip(min(k, 4 - k), 0, 1) with k = (n + 6 H) mod 6, n = 5, 3, 1, and c' = min(c saturation, v).
    """
    red, green, blue = x[..., 0], x[..., 1], x[..., 2]
    v = jnp.maximum(jnp.maximum(red, green), blue)
    c = v - jnp.minimum(jnp.minimum(red, green), blue)
    inverse = 1 / jnp.where(c > 0, c, 1)
    # Which channel is v? Never by v == red: a compiler that computes the channels twice, with and without a fused
    # multiply-add, would find none. Wrong orders are harmless, as the hue is continuous where two channels are equal.
    sextant = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) * inverse,
        jnp.where(green >= blue, 2 + (blue - red) * inverse, 4 + (red - green) * inverse),
    )
    sextant = sextant + 6 * turn
    chroma = jnp.minimum(c * saturation, v)

    def channel(n: int) -> Array:
        k = n + sextant
        k = k - 6 * jnp.floor(k / 6)
        return v - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def jitter(image: Array, order: Array, amounts: Array, contrast_mean: Array) -> Array:
    """Changes brightness, contrast, saturation and hue of one image in the given order, each clipped to 0..1.

    At every place both kinds of operation are carried out, of which one is the identity: no branches, so that the
    compiler fuses everything into one pass over the pixels.

    Args:
      image: [H, W, 3] float32, 0..1.
      order: [4] int32, a permutation of the numbers of `COLOR_OPERATIONS`.
      amounts: [4] float32 in the order of `COLOR_OPERATIONS`: shift, factor, factor, turns.
      contrast_mean: [3] float32.
    """
    for place in range(len(COLOR_OPERATIONS)):
        now = order[place]
        factor = jnp.where(now == CONTRAST, amounts[CONTRAST], 1)
        offset = jnp.where(now == BRIGHTNESS, amounts[BRIGHTNESS], contrast_mean * (1 - factor))
        image = adjust_affine(image, factor, offset)
        saturation = jnp.where(now == SATURATION, amounts[SATURATION], 1)
        image = adjust_hsv(image, saturation, jnp.where(now == HUE, amounts[HUE], 0))
    return image
