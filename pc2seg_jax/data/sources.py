"""Random access to the images and masks of a dataset, and the one place that decodes files.

Pillow opens everything: it keeps the indices of palette PNGs, and never takes a truncated file for a whole one. Pixels
are taken in stored order; an EXIF orientation is not applied, because masks carry none.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from pc2seg_jax.data.resampling import resize_image, round_to_bytes
from pc2seg_jax.errors import UserError

# What Pillow raises for files that are missing, truncated, mislabelled or absurdly large.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class Source(NamedTuple):
    """Random access to n examples.

    ids: n names. read_image: index -> uint8 [h, w, 3], RGB. read_mask: index -> uint8 [h, w], class ids or the ignore
    id; None for a source without masks. sizes: [n, 2] int, (height, width) as read. name: of the list, for people. Both
    functions may be called from several threads at once.
    """

    ids: tuple[str, ...]
    read_image: Callable[[int], np.ndarray]
    read_mask: Callable[[int], np.ndarray] | None
    sizes: np.ndarray
    name: str


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


def array_source(images: np.ndarray, masks: np.ndarray | None, ids: Sequence[str], name: str = "") -> Source:
    """Source over arrays in memory.

    Args:
      images: [n, h, w, 3] uint8.
      masks: [n, h, w] uint8, or None for a source without masks.
      ids: n names.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or len(ids) != len(images):
        raise ValueError(f"images must be uint8 [{len(ids)}, h, w, 3], got {images.dtype} {images.shape}")
    if masks is not None and (masks.shape != images.shape[:3] or masks.dtype != np.uint8):
        raise ValueError(f"masks must be uint8 {images.shape[:3]}, got {masks.dtype} {masks.shape}")
    sizes = np.tile(np.array(images.shape[1:3]), (len(ids), 1))
    return Source(tuple(ids), images.__getitem__, None if masks is None else masks.__getitem__, sizes, name)


def file_source(
    image_paths: Sequence[str | Path],
    mask_paths: Sequence[str | Path] | None,
    ids: Sequence[str],
    *,
    sizes: np.ndarray,
    max_side: int = 0,
    name: str = "",
) -> Source:
    """Source over JPEG and PNG files, decoded when an example is read.

    Args:
      image_paths: n files; other images become RGB, see `to_rgb`.
      mask_paths: n index PNGs, or None: then no mask is ever opened.
      ids: n names.
      sizes: [n, 2], (height, width) as stored in the files.
      max_side: see `shrunk`.

    Raises:
      UserError: while reading, for a file that cannot be decoded or has changed its size.
    """
    stored = np.asarray(sizes, np.int64).reshape(len(ids), 2)

    def load(path: str | Path, decode: Callable, index: int) -> np.ndarray:
        array = decode(path)
        if array.shape[:2] != tuple(stored[index]):
            raise UserError(f"{path} changed its size while it was in use: restart with the final files.")
        return array

    def read_image(index: int) -> np.ndarray:
        return load(image_paths[index], decode_image, index)

    def read_mask(index: int) -> np.ndarray:
        return load(mask_paths[index], decode_mask, index)

    return shrunk(Source(tuple(ids), read_image, None if mask_paths is None else read_mask, stored, name), max_side)


def shrunk(source: Source, max_side: int) -> Source:
    """A source whose images (anti-aliased bilinear, rounded) and masks (nearest, half-pixel centres) are made smaller.

    Args:
      max_side: where positive, the longer side becomes at most this; never enlarged.
    """
    target = shrunk_sizes(source.sizes, max_side)
    if (target == source.sizes).all():
        return source

    def read_image(index: int) -> np.ndarray:
        return round_to_bytes(resize_image(source.read_image(index), tuple(map(int, target[index]))))

    def read_mask(index: int) -> np.ndarray:
        height, width = map(int, target[index])
        return cv2.resize(source.read_mask(index), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)

    return source._replace(
        read_image=read_image, read_mask=None if source.read_mask is None else read_mask, sizes=target
    )


def shrunk_sizes(sizes: np.ndarray, max_side: int) -> np.ndarray:
    """Sizes [n, 2] after shrinking so that the longer side is at most `max_side` (0: unchanged); at least 1 pixel."""
    if not max_side:
        return sizes
    longer = sizes.max(1, keepdims=True)
    return np.where(longer > max_side, np.maximum(1, np.floor(sizes * max_side / longer + 0.5)), sizes).astype(np.int64)


def decode_image(path: str | Path) -> np.ndarray:
    """Decodes a JPEG or PNG file fully to uint8 [h, w, 3]; UserError where that fails."""
    try:
        return decode_image_bytes(Path(path).read_bytes())
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from error


def decode_image_bytes(encoded: bytes) -> np.ndarray:
    """Decodes JPEG or PNG bytes fully to RGB uint8 [h, w, 3].

    OpenCV decodes an ordinary JPEG a third faster than Pillow, to the same pixels, but invents the rest of a truncated
    one, which therefore must have its end marker.

    Raises:
      one of DECODE_ERRORS.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        if image.format == "JPEG" and image.mode == "RGB" and encoded.endswith(b"\xff\xd9"):
            flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
            pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
            if pixels is not None:  # of a damaged one, Pillow says what is wrong
                return pixels
        return np.asarray(to_rgb(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Grey, palette, CMYK and alpha images as RGB; transparent pixels are laid on black."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("RGB")


def check_image(path: str | Path) -> None:
    """Decodes a file with Pillow, which finds damage that OpenCV passes over; UserError where that fails."""
    try:
        with Image.open(path) as image:
            image.load()
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from error


def decode_mask(path: str | Path) -> np.ndarray:
    """Decodes the indices of an index or palette PNG to uint8 [h, w]; UserError where that fails."""
    try:
        return decode_mask_bytes(Path(path).read_bytes())
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from error


def decode_mask_bytes(encoded: bytes) -> np.ndarray:
    """Decodes the indices of an index or palette PNG to uint8 [h, w].

    Raises:
      one of DECODE_ERRORS.
    """
    with Image.open(io.BytesIO(encoded)) as mask:
        return np.asarray(mask).astype(np.uint8)


def unreadable(path: str | Path, error: Exception) -> UserError:
    """The error for a file that Pillow cannot read."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"Cannot read {path} ({reason}): replace the file, or remove it from the lists.")
