"""Images as people have them, for prediction: any size, orientation, depth and number of channels."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pc2seg_jax.data.resampling import resize_image, round_to_bytes
from pc2seg_jax.data.sources import DECODE_ERRORS, shrunk_sizes, to_rgb
from pc2seg_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 exchange height and width


class Header(NamedTuple):
    """What can be told of an image before it is decoded: (height, width) as it is shown, and as it will be read."""

    path: Path
    size: tuple[int, int]
    read_size: tuple[int, int]


def find_photos(patterns: Sequence[str]) -> list[Path]:
    """The images that files, folders (their direct contents) and patterns such as 'photos/*.jpg' name, sorted.

    Raises:
      UserError: without a pattern, where a name stands for no image, or two images would write the same mask.
    """
    if not patterns:
        raise UserError("--images= names nothing: name files, folders, or patterns in quotes")
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            here = [x for x in path.iterdir() if x.suffix.lower() in SUFFIXES and x.is_file()]
            if not here:
                raise UserError(f"--images={pattern} holds no image: expected files that end in {', '.join(SUFFIXES)}")
        elif path.is_file():
            here = [path]
        else:
            here = [Path(x) for x in glob.glob(pattern, recursive=True) if Path(x).suffix.lower() in SUFFIXES]
            if not here:
                raise UserError(
                    f"--images={pattern} is neither a file nor a folder, and as a pattern it fits no image: name "
                    "files, folders, or patterns in quotes, e.g. --images='photos/*.jpg'"
                )
        found += here
    paths = sorted(set(found))
    stems: dict[str, Path] = {}
    for path in paths:
        other = stems.setdefault(path.stem, path)
        if other != path:
            raise UserError(f"{other} and {path} would write the same mask: rename one of them, or predict them apart")
    return paths


def read_size_of(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """(height, width) in which an image is read whose longer side is to be at most `max_side` (0: any)."""
    return tuple(shrunk_sizes(np.array([size]), max_side)[0].tolist())


def read_header(path: Path, max_side: int) -> Header:
    """Opens an image without decoding its pixels.

    Raises:
      UserError: when the file is not an image.
    """
    try:
        with Image.open(path) as image:
            # Of a TIFF, Pillow tells the size as it is shown.
            turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            size = image.size if turned else image.size[::-1]
    except DECODE_ERRORS as error:
        raise _unreadable(path, error) from error
    return Header(path, tuple(size), read_size_of(size, max_side))


def as_rgb(image: Path | Image.Image) -> np.ndarray:
    """RGB uint8 [h, w, 3] of a file or an opened image, decoded to its end and turned as EXIF says.

    Grey becomes RGB, 16 bits become 8, CMYK is converted, transparent pixels are laid on black.

    Raises:
      UserError: when a file cannot be decoded.
    """
    if isinstance(image, Image.Image):
        return np.asarray(_convert(ImageOps.exif_transpose(image)))
    try:
        with Image.open(image) as opened:
            return as_rgb(opened)
    except DECODE_ERRORS as error:
        raise _unreadable(image, error) from error


def shrink(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, 3] in a smaller size, anti-aliased, as in training; unchanged in its own."""
    return pixels if pixels.shape[:2] == size else round_to_bytes(resize_image(pixels, size))


def _convert(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16-bit grey, which Pillow's own conversion cuts off at 255
        values = np.asarray(image).astype(np.float64)
        values = values / 257 if image.mode.startswith("I") else 255 * values
        image = Image.fromarray(np.clip(values.round(), 0, 255).astype(np.uint8))
    return to_rgb(image)


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"{path} is not an image of a kind that can be read")
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{path} cannot be decoded ({reason})")


def most_probable(probabilities: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Classes and their probabilities in another size, by bilinear interpolation (half-pixel centres), class by class.

    Args:
      probabilities: [h, w, C] float32. size: (H, W).

    Returns:
      [H, W] uint8, the lowest of equally probable ones; [H, W] float32.
    """
    ids, best = np.zeros(size, np.uint8), np.full(size, -1, np.float32)
    for c in range(probabilities.shape[-1]):
        plane = np.ascontiguousarray(probabilities[..., c])
        if plane.shape != tuple(size):
            plane = cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR)
        higher = plane > best
        ids[higher], best[higher] = c, plane[higher]
    return ids, best
