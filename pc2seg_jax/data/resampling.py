"""Resizing of images and labels as in the PseudoSeg code: float32, exact, and only the pixels that are asked for."""

import math
from typing import NamedTuple

import cv2
import numpy as np

from pc2seg_jax.data.quiet_tensorflow import tf


class Window(NamedTuple):
    """A rectangle of pixels; bottom and right are exclusive."""

    top: int
    left: int
    bottom: int
    right: int


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """trunc(side * scale) of both sides, at least 1."""
    return tuple(max(1, int(side * scale)) for side in size)


def resize_image(image: np.ndarray, size: tuple[int, int], window: Window | None = None) -> np.ndarray:
    """Bilinear with half-pixel centres; where it shrinks, the triangle filter is widened by in / out (anti-aliased).

    Args:
      image: [h, w, 3] uint8.
      size: (H, W) of the whole resized image; both sides shrink or both grow.
      window: the part of the resized image that is wanted, by default all of it.

    Returns:
      [bottom - top, right - left, 3] float32, 0..255.
    """
    window = window or Window(0, 0, *size)
    if size == image.shape[:2]:
        return image[window.top : window.bottom, window.left : window.right].astype(np.float32)
    if size[0] < image.shape[0] or size[1] < image.shape[1]:
        return _shrink(image, size, window)
    rows = _aligned(image.shape[0], size[0], window.top, window.bottom)
    columns = _aligned(image.shape[1], size[1], window.left, window.right)
    part = image[rows.source, columns.source].astype(np.float32)
    part = cv2.resize(part, (columns.length, rows.length), interpolation=cv2.INTER_LINEAR)
    top, left = window.top - rows.start, window.left - columns.start
    return part[top : top + window.bottom - window.top, left : left + window.right - window.left]


class _Aligned(NamedTuple):
    """A range of source pixels that is resized like the whole; `start`, `length`: the range that it becomes."""

    source: slice
    start: int
    length: int


def _aligned(size_in: int, size_out: int, first: int, end: int) -> _Aligned:
    """The smallest source range whose resize holds the outputs first..end - 1 exactly as the resize of the whole.

    With size_in / size_out = p / q in lowest terms, source p k and output q k begin at the same place, so blocks of p
    source pixels can be cut out. One more block at either side keeps the border, which is extended, out of the result.
    """
    blocks = math.gcd(size_in, size_out)
    p, q = size_in // blocks, size_out // blocks
    start, stop = max(0, first // q - 1), min(blocks, -(-end // q) + 1)
    return _Aligned(slice(start * p, stop * p), start * q, (stop - start) * q)


def _shrink(image: np.ndarray, size: tuple[int, int], window: Window) -> np.ndarray:
    """Anti-aliased, computed in the window only."""
    shape = [window.bottom - window.top, window.right - window.left]
    return tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=shape,
        scale=[out / in_ for out, in_ in zip(size, image.shape[:2], strict=True)],
        translation=[-float(window.top), -float(window.left)],
        kernel_type="triangle",
        antialias=True,
    )[0].numpy()


def resize_label(label: np.ndarray, size: tuple[int, int], window: Window | None = None) -> np.ndarray:
    """Nearest, corner-aligned: output i reads input round-half-up(i (in - 1) / (out - 1)); arguments as `resize_image`.

    Ids are never mixed: [h, w] -> [bottom - top, right - left] of the same type.
    """
    top, left, bottom, right = window or Window(0, 0, *size)
    rows, columns = (
        _nearest(label.shape[axis], size[axis], first, end) for axis, first, end in ((0, top, bottom), (1, left, right))
    )
    return label[rows][:, columns]


def _nearest(size_in: int, size_out: int, first: int, end: int) -> np.ndarray:
    last_in, last_out = size_in - 1, max(size_out - 1, 1)
    # In integers: floor(x + 1/2) without a rounding error at the halves.
    return (2 * np.arange(first, end) * last_in + last_out) // (2 * last_out)


def round_to_bytes(image: np.ndarray) -> np.ndarray:
    """Non-negative float to the nearest uint8."""
    return cv2.convertScaleAbs(image)
