"""Resizing of images and labels as in the PseudoSeg code: float32, exact, and only the pixels that are asked for."""

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np
import scipy.sparse

cv2.setNumThreads(0)  # the pipeline is parallel over examples; OpenCV's own threads would only get in their way


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
    """Anti-aliased, in the window only: rows, then columns, as products with sparse matrices."""
    (rows, source_rows), (columns, source_columns) = (
        _triangle_weights(image.shape[axis], size[axis], window[axis], window[axis + 2]) for axis in (0, 1)
    )
    part = image[source_rows, source_columns].astype(np.float32)
    x = (rows @ part.reshape(len(part), -1)).reshape(rows.shape[0], -1, 3)
    x = cv2.transpose(x)
    x = (columns @ x.reshape(len(x), -1)).reshape(columns.shape[0], -1, 3)
    return cv2.transpose(x)


@functools.lru_cache(maxsize=256)
def _triangle_weights(size_in: int, size_out: int, first: int, end: int) -> tuple[scipy.sparse.csr_array, slice]:
    """Weights of the outputs first..end - 1, [outputs, sources], and the range of source pixels that they need."""
    ratio = max(size_in / size_out, 1.0)
    centre = (np.arange(first, end) + 0.5) * size_in / size_out - 0.5
    source = np.floor(centre - ratio).astype(np.int64)[:, None] + 1 + np.arange(math.ceil(2 * ratio))
    weights = np.maximum(0, 1 - np.abs(source - centre[:, None]) / ratio) * ((source >= 0) & (source < size_in))
    weights /= weights.sum(1, keepdims=True)
    source = source.clip(0, size_in - 1)
    start, stop = int(source.min()), int(source.max()) + 1
    rows = np.repeat(np.arange(end - first), source.shape[1])
    shape = (end - first, stop - start)
    values = weights.astype(np.float32).ravel(), (rows, source.ravel() - start)
    return scipy.sparse.csr_array(values, shape=shape), slice(start, stop)


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
