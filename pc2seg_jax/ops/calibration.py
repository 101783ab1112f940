"""Calibration: is a network that is 90 % sure right in 90 % of the pixels?"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BINS = 15


class CalibrationCounts(NamedTuple):
    """Per bin of confidence, of every image or summed: pixels, those predicted correctly, sum of confidences; [..., K].

    Bin k holds confidences in (k / K, (k + 1) / K].
    """

    pixels: jax.Array
    correct: jax.Array
    confidence: jax.Array


def calibration_counts(labels: jax.Array, probabilities: jax.Array, *, ignore_id: int) -> CalibrationCounts:
    """Counts of the K = 15 bins of every image.

    Args:
      labels: [B, H, W] integers, `ignore_id` where nothing is counted.
      probabilities: [B, H, W, C] float32; the confidence is the largest of a pixel.

    Returns:
      [B, K] int32, int32, float32.
    """
    counted = labels != ignore_id
    confidence = probabilities.max(-1)
    correct = probabilities.argmax(-1) == labels
    of_pixel = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)

    def count(k: jax.Array) -> tuple:
        inside = counted & (of_pixel == k)
        pixels, right = (jnp.sum(x, (1, 2), dtype=jnp.int32) for x in (inside, inside & correct))
        return pixels, right, jnp.sum(jnp.where(inside, confidence, 0), (1, 2))

    counts = jax.lax.map(count, jnp.arange(BINS, dtype=jnp.int32))
    return CalibrationCounts(*(jnp.moveaxis(x, 0, -1) for x in counts))


def expected_calibration_error(counts: CalibrationCounts) -> float:
    """sum over bins of (pixels in the bin / all pixels) |accuracy - mean confidence|, 0..1; nan without pixels.

    Source: Guo et al., On Calibration of Modern Neural Networks (ICML 2017), eq. 3.

    Args:
      counts: summed over a split, [K].
    """
    total = np.sum(counts.pixels)
    gaps = np.abs(np.float64(counts.correct) - np.float64(counts.confidence))
    return float(gaps.sum() / total) if total else float("nan")
