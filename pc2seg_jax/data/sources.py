"""Random access to the images and masks of a dataset, and the one place that decodes files.

Everything is decoded by Pillow: it keeps the indices of palette PNGs (TensorFlow turns them into colours), and the
checks at load time and the reads during training then agree about which file is good. Pixels are taken in stored
order; an EXIF orientation is not applied, because masks carry none.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pc2seg_jax.data.quiet_tensorflow import tf
from pc2seg_jax.errors import UserError

# What Pillow raises for files that are missing, truncated, mislabelled or absurdly large.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class Source(NamedTuple):
    """Random access to n examples.

    ids: n names. read_image: int64 scalar index -> uint8 [h, w, 3], RGB. read_mask: index -> int32 [h, w], class ids or
    the ignore id; None for a source without masks. sizes: [n, 2] int, (height, width) as read. Both functions are
    traced inside `tf.data`.
    """

    ids: tuple[str, ...]
    read_image: Callable[[tf.Tensor], tf.Tensor]
    read_mask: Callable[[tf.Tensor], tf.Tensor] | None
    sizes: np.ndarray


class Dataset(NamedTuple):
    """Three sources with one class list.

    palette: [256, 3] uint8, the colour of every id. unlabeled: has no masks unless they were asked for.
    """

    class_names: tuple[str, ...]
    palette: np.ndarray
    labeled: Source
    unlabeled: Source
    val: Source
    ignore_id: int


def array_source(images: np.ndarray, masks: np.ndarray | None, ids: Sequence[str]) -> Source:
    """Source over arrays in memory.

    Args:
      images: [n, h, w, 3] uint8.
      masks: [n, h, w] uint8, or None for a source without masks.
      ids: n names.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or len(ids) != len(images):
        raise ValueError(f"images must be uint8 [{len(ids)}, h, w, 3], got {images.dtype} {images.shape}")
    if masks is not None and masks.shape != images.shape[:3]:
        raise ValueError(f"masks must be {images.shape[:3]}, got {masks.shape}")
    with tf.device("CPU"):  # converted here once, so that the arrays are captured and not copied into the graph
        image_table = tf.constant(images)
        mask_table = None if masks is None else tf.constant(masks)

    def read_mask(index):
        return tf.cast(mask_table[index], tf.int32)

    sizes = np.tile(np.array(images.shape[1:3]), (len(ids), 1))
    return Source(tuple(ids), lambda index: image_table[index], None if masks is None else read_mask, sizes)


def file_source(
    image_paths: Sequence[str | Path],
    mask_paths: Sequence[str | Path] | None,
    ids: Sequence[str],
    *,
    sizes: np.ndarray,
    max_side: int = 0,
) -> Source:
    """Source over JPEG and PNG files, decoded when an example is read.

    Args:
      image_paths: n files; grey, palette and alpha images become RGB.
      mask_paths: n index PNGs, or None: then no mask is ever opened.
      ids: n names.
      sizes: [n, 2], (height, width) as stored in the files.
      max_side: where positive, images (anti-aliased bilinear, rounded) and masks (nearest, half-pixel centres) are
        shrunk so that the longer side is at most this; never enlarged.

    Raises:
      UserError: while reading, through `explain`, for a file that cannot be decoded or has changed its size.
    """
    stored = np.asarray(sizes, np.int64).reshape(len(ids), 2)
    target = shrunk_sizes(stored, max_side)
    shrinks = bool((stored != target).any())
    target_table = tf.constant(target, tf.int32)

    def reader(paths, decode, channels):
        paths = [str(path) for path in paths]

        def load(index):
            array = decode(paths[index])
            if array.shape[:2] != tuple(stored[index]):
                raise UserError(f"{paths[index]} changed its size while it was in use: restart with the final files.")
            return array

        def read(index):
            array = tf.numpy_function(load, [index], tf.uint8, stateful=False)
            array.set_shape([None, None, *channels])
            return array

        return read

    load_image = reader(image_paths, decode_image, (3,))
    load_mask = None if mask_paths is None else reader(mask_paths, decode_mask, ())

    def read_image(index):
        image = load_image(index)
        if not shrinks:
            return image
        resized = tf.image.resize(image, target_table[index], antialias=True)
        return tf.saturate_cast(tf.round(resized), tf.uint8)

    def read_mask(index):
        mask = load_mask(index)
        if shrinks:
            mask = tf.image.resize(mask[..., None], target_table[index], method="nearest")[..., 0]
        return tf.cast(mask, tf.int32)

    return Source(tuple(ids), read_image, None if mask_paths is None else read_mask, target)


def shrunk_sizes(sizes: np.ndarray, max_side: int) -> np.ndarray:
    """Sizes [n, 2] after shrinking so that the longer side is at most `max_side` (0: unchanged); at least 1 pixel."""
    if not max_side:
        return sizes
    longer = sizes.max(1, keepdims=True)
    return np.where(longer > max_side, np.maximum(1, np.floor(sizes * max_side / longer + 0.5)), sizes).astype(np.int64)


def decode_image(path: str | Path) -> np.ndarray:
    """Decodes a JPEG or PNG file fully to uint8 [h, w, 3]; UserError where that fails."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from error


def decode_mask(path: str | Path) -> np.ndarray:
    """Decodes the indices of an index or palette PNG to uint8 [h, w]; UserError where that fails."""
    try:
        with Image.open(path) as mask:
            return np.asarray(mask).astype(np.uint8)
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: Exception) -> UserError:
    """The error for a file that Pillow cannot read."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"Cannot read {path} ({reason}): replace the file, or remove it from the lists.")


def explain(error: Exception) -> UserError | None:
    """Recovers the UserError that a read raised inside `tf.data`, which reports it as one of its own errors."""
    found = re.search(r"UserError: ([^\n]+)", str(error))
    return UserError(found.group(1)) if found else None
