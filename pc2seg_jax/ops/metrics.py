"""Segmentation metrics: a confusion matrix on the device, everything derived from it on the host."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Pixels per one-hot product. Bounds memory (images * 8192 * classes numbers) and keeps every float32 count far below
# 2^24, where float32 stops being exact; the products are summed as integers.
_PIXELS_AT_ONCE = 8192


def confusion_matrices(labels: jax.Array, predictions: jax.Array, *, num_classes: int, ignore_id: int) -> jax.Array:
    """Counts of (true class, predicted class) over the pixels of every image that have a label.

    One-hot matrix products, a few thousand pixels at a time.

    Args:
      labels: [B, H, W] integers, 0..C-1; `ignore_id` and anything else out of range is not counted.
      predictions: [B, H, W] integers in 0..C-1.
      num_classes: C.
      ignore_id: label of the pixels that are not counted.

    Returns:
      [B, C, C] int32, rows = truth, columns = prediction; exact below 2^31 pixels.
    """
    images = labels.shape[0]
    classes = jnp.arange(num_classes, dtype=jnp.int32)

    def chunks(x):  # [B, H, W] -> [chunks, B, pixels], filled up with -1, which is no class
        x = x.astype(jnp.int32).reshape(images, -1)
        pixels = min(_PIXELS_AT_ONCE, x.shape[1])
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % pixels)), constant_values=-1)
        return jnp.swapaxes(x.reshape(images, -1, pixels), 0, 1)

    def add(counts, pair):
        truth, predicted = ((x[..., None] == classes).astype(jnp.float32) for x in pair)
        return counts + jnp.einsum("bpt,bpq->btq", truth, predicted).astype(jnp.int32), None

    labels = jnp.where(labels == ignore_id, -1, labels.astype(jnp.int32))
    start = jnp.zeros((images, num_classes, num_classes), jnp.int32)
    counts, _ = jax.lax.scan(add, start, (chunks(labels), chunks(predictions)))
    return counts


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of every class, diagonal / (row + column - diagonal).

    Args:
      confusion: [C, C] counts accumulated over the whole split, int64.

    Returns:
      [C] float64 in 0..1; nan for a class that is neither present nor predicted.
    """
    confusion = np.asarray(confusion, np.int64)
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray, without: Sequence[int] = ()) -> float:
    """Mean of `iou_per_class` over the classes that are present or predicted, 0..1; nan if there are none.

    Source: the DeepLab evaluation, which skips a class with an empty union instead of counting it as 0.

    Args:
      without: ids of classes that are left out of the mean; their pixels still count where other classes took them.
    """
    iou = iou_per_class(confusion)
    iou[list(without)] = np.nan
    found = ~np.isnan(iou)
    return float(iou[found].mean()) if found.any() else float("nan")


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of the counted pixels that are predicted correctly, 0..1; nan if there are none."""
    confusion = np.asarray(confusion, np.int64)
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")
