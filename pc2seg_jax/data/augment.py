"""Weak and strong augmentation as in the PseudoSeg code that the paper follows.

The host does the geometry: scale, crop, flip. Of the strong view it draws the recipe, colours and Cutout, which
`ops.views` carries out on the device. Every step is deterministic given its drawn values; `draw` is the only place with
randomness. *Deviation*: the scaled image is rounded to 8 bits, which makes batches four times smaller.
"""

import itertools
from typing import NamedTuple

import cv2
import numpy as np

from pc2seg_jax.data.resampling import Window, resize_image, resize_label, round_to_bytes, scaled_size
from pc2seg_jax.types import COLOR_OPERATIONS, LabeledCrops, UnlabeledCrops


class AugmentParams(NamedTuple):
    """Settings of the augmentation; the defaults are those of the paper's VOC experiments.

    crop_size: (H, W) pixels. scales: equally likely factors. brightness: largest shift, of an image in 0..1.
    contrast, saturation: largest deviation of the factor from 1. hue: largest shift in turns. cutout_size: side of the
    erased square, pixels.
    """

    crop_size: tuple[int, int] = (513, 513)
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    flip_probability: float = 0.5
    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.25
    cutout_size: int = 100


DEFAULTS = AugmentParams()
ORDERS = np.array(list(itertools.permutations(range(len(COLOR_OPERATIONS)))), np.int32)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(len(COLOR_OPERATIONS))


class Draws(NamedTuple):
    """The random numbers of one example, independent and uniform in [0, 1)."""

    scale: float
    row: float
    column: float
    flip: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: float
    cutout_row: float
    cutout_column: float


def draw(*key: int) -> Draws:
    """All random numbers of one example, a pure function of the key: seed, stream, epoch, example, say."""
    return Draws(*np.random.default_rng(key).random(len(Draws._fields)))


def below(uniform: float, count: int) -> int:
    """Turns a uniform number of [0, 1) into an integer of 0 .. count - 1."""
    return int(uniform * count)


class Geometry(NamedTuple):
    """Scale, crop and flip of one example. size: of the whole scaled image. window: the part of it in the crop."""

    size: tuple[int, int]
    window: Window
    flip: bool
    crop_size: tuple[int, int]

    def place(self, x: np.ndarray) -> np.ndarray:
        """Flips the scaled pixels of the window and pads them with 0 to the crop: at the bottom and the right of the
        image, so that a flipped one has its padding at the left."""
        if self.flip:
            x = cv2.flip(x, 1)
        crop = np.zeros((*self.crop_size, *x.shape[2:]), x.dtype)
        top, left, bottom, right = self.real()
        crop[top:bottom, left:right] = x
        return crop

    def real(self) -> Window:
        """Where the image is in the crop."""
        height, width = self.window.bottom - self.window.top, self.window.right - self.window.left
        left = self.crop_size[1] - width if self.flip else 0
        return Window(0, left, height, left + width)


def make_geometry(shape: tuple[int, int], draws: Draws, params: AugmentParams) -> Geometry:
    """A random scale, and a crop at a uniform offset; a side shorter than the crop is taken whole."""
    size = scaled_size(shape, params.scales[below(draws.scale, len(params.scales))])
    top, left = (
        below(uniform, max(side - crop, 0) + 1)
        for uniform, side, crop in zip((draws.row, draws.column), size, params.crop_size, strict=True)
    )
    bottom, right = (
        min(first + crop, side) for first, crop, side in zip((top, left), params.crop_size, size, strict=True)
    )
    return Geometry(size, Window(top, left, bottom, right), draws.flip < params.flip_probability, params.crop_size)


def draw_colors(draws: Draws, params: AugmentParams) -> tuple[np.ndarray, np.ndarray]:
    """Order [4] int32 and amounts [4] float32 of the colour operations, as `UnlabeledCrops` has them."""
    amounts = (
        (2 * draws.brightness - 1) * params.brightness,
        1 + (2 * draws.contrast - 1) * params.contrast,
        1 + (2 * draws.saturation - 1) * params.saturation,
        (2 * draws.hue - 1) * params.hue,
    )
    return ORDERS[below(draws.order, len(ORDERS))], np.array(amounts, np.float32)


def contrast_mean(image: np.ndarray, order: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """Mean colour of the whole scaled image at the moment when its contrast is changed, [3] float32 in 0..1.

    The only thing that the strong view needs of pixels outside the crop, so only what comes before is carried out.

    Args:
      image: [h, w, 3] uint8. order, amounts: of `draw_colors`.
    """
    before = [int(operation) for operation in order[: list(order).index(CONTRAST)]]
    levels = np.arange(256, dtype=np.float32) / 255
    if before[:1] == [BRIGHTNESS]:
        levels = np.clip(levels + amounts[BRIGHTNESS], 0, 1)
        before = before[1:]
    x = cv2.LUT(image, levels)
    for in_rgb, operations in itertools.groupby(before, lambda operation: operation == BRIGHTNESS):
        if in_rgb:
            np.clip(np.add(x, amounts[BRIGHTNESS], out=x), 0, 1, out=x)
        else:
            _change_hsv(x, set(operations), amounts)
    return np.array(cv2.mean(x)[:3], np.float32)


def _change_hsv(x: np.ndarray, operations: set[int], amounts: np.ndarray) -> None:
    """Saturation, hue, or both, in place."""
    hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)  # hue in degrees, which may grow but not become negative; else in 0..1
    if SATURATION in operations:
        np.multiply(hsv[..., 1], amounts[SATURATION], out=hsv[..., 1])
        np.minimum(hsv[..., 1], 1, out=hsv[..., 1])
    if HUE in operations:
        np.add(hsv[..., 0], 360 * (amounts[HUE] % 1), out=hsv[..., 0])
    cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=x)


def cutout_window(draws: Draws, geometry: Geometry, side: int) -> Window:
    """The square [c - side // 2, c + side // 2) around a uniform centre c of the crop, clipped, and flipped with it."""
    height, width = geometry.crop_size
    row, column = below(draws.cutout_row, height), below(draws.cutout_column, width)
    left, right = max(column - side // 2, 0), min(column + side // 2, width)
    if geometry.flip:
        left, right = width - right, width - left
    return Window(max(row - side // 2, 0), left, min(row + side // 2, height), right)


def augment_labeled(
    image: np.ndarray, mask: np.ndarray, key: tuple[int, ...], params: AugmentParams = DEFAULTS
) -> LabeledCrops:
    """Weak augmentation of a labelled example: random scale, pad, crop, flip.

    Args:
      image: [h, w, 3] uint8.
      mask: [h, w] uint8.
      key: non-negative integers; the result is a pure function of the example and the key.

    Returns:
      `LabeledCrops` of one example: without the axis B.
    """
    geometry = make_geometry(image.shape[:2], draw(*key), params)
    scaled = round_to_bytes(resize_image(image, geometry.size, geometry.window))
    label = resize_label(mask, geometry.size, geometry.window)
    return LabeledCrops(geometry.place(scaled), geometry.place(label), np.array(geometry.real(), np.int32))


def augment_unlabeled(
    image: np.ndarray, mask: np.ndarray | None, key: tuple[int, ...], params: AugmentParams = DEFAULTS
):
    """The weak view of one example and the recipe of the strong one; arguments as `augment_labeled`.

    Args:
      mask: [h, w] uint8, or None where there is no ground truth.

    Returns:
      `UnlabeledCrops` of one example: without the axis U.
    """
    draws = draw(*key)
    geometry = make_geometry(image.shape[:2], draws, params)
    window = geometry.window
    scaled = round_to_bytes(resize_image(image, geometry.size))
    order, amounts = draw_colors(draws, params)
    return UnlabeledCrops(
        image=geometry.place(scaled[window.top : window.bottom, window.left : window.right]),
        window=np.array(geometry.real(), np.int32),
        cutout=np.array(cutout_window(draws, geometry, params.cutout_size), np.int32),
        order=order,
        amounts=amounts,
        contrast_mean=contrast_mean(scaled, order, amounts) if params.contrast else np.zeros(3, np.float32),
        label=None if mask is None else geometry.place(resize_label(mask, geometry.size, window)),
    )
