"""Slow, obvious numpy versions of the augmentation, in float64, for the tests."""

import colorsys
import itertools
from math import floor

import numpy as np


def resize(image, out_h, out_w):
    """Triangle filter with half-pixel centres, widened by in / out when shrinking."""

    def weights(size_in, size_out):
        ratio = size_in / size_out
        centre = (np.arange(size_out)[:, None] + 0.5) * ratio - 0.5
        matrix = np.maximum(0, 1 - np.abs(np.arange(size_in) - centre) / max(ratio, 1.0))
        return matrix / matrix.sum(1, keepdims=True)

    rows, columns = weights(image.shape[0], out_h), weights(image.shape[1], out_w)
    return np.tensordot(np.tensordot(rows, image.astype(np.float64), (1, 0)), columns, (1, 1)).transpose(0, 2, 1)


def resize_label(label, out_h, out_w):
    def source(i, size_in, size_out):
        return 0 if size_out == 1 else floor((2 * i * (size_in - 1) + (size_out - 1)) / (2 * (size_out - 1)))

    h, w = label.shape
    rows, columns = [source(i, h, out_h) for i in range(out_h)], [source(j, w, out_w) for j in range(out_w)]
    return label[np.ix_(rows, columns)]


def hsv_pixelwise(image, change):
    """By the standard library, pixel by pixel."""
    pixels = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in image.reshape(-1, 3)]
    return np.array(pixels).reshape(image.shape)


def saturate(image, factor):
    """S <- min(S f, 1) leaves V, and scales the distance from it."""
    v = image.max(-1, keepdims=True)
    s = (v - image.min(-1, keepdims=True)) / np.where(v > 0, v, 1)
    return v - (v - image) * np.where(s > 0, np.minimum(s * factor, 1) / np.where(s > 0, s, 1), 0)


def turn_hue(image, turn):
    """H <- H + turn, sextant by sextant."""
    r, g, b = np.moveaxis(image, -1, 0)
    v, m = image.max(-1), image.min(-1)
    c = np.where(v > m, v - m, 1)
    h = np.where(v == r, (g - b) / c, np.where(v == g, 2 + (b - r) / c, 4 + (r - g) / c))
    h = (h / 6 + turn) % 1 * 6
    x = m + (v - m) * (1 - np.abs(h % 2 - 1))
    sextants = [(v, x, m), (x, v, m), (m, v, x), (m, x, v), (x, m, v), (v, m, x)]
    return np.stack([np.choose(h.astype(int) % 6, [sextant[i] for sextant in sextants]) for i in range(3)], -1)


def jitter(image, order, amounts, mean=None):
    """Image 0..1; the mean of contrast is that of the image unless another is given. Returns the image and the mean."""
    shift, contrast, saturation, turn = (float(x) for x in amounts)
    used = None
    for operation in order:
        if operation == 0:
            image = image + shift
        elif operation == 1:
            used = image.mean((0, 1)) if mean is None else mean
            image = (image - used) * contrast + used
        elif operation == 2:
            image = saturate(image, saturation)
        else:
            image = turn_hue(image, turn)
        image = np.clip(image, 0, 1)
    return image, used


def colors(draws, params):
    """Order and amounts from the uniform numbers."""

    def signed(uniform):
        return 2 * uniform - 1

    order = list(itertools.permutations(range(4)))[int(draws.order * 24)]
    amounts = (
        signed(draws.brightness) * params.brightness,
        1 + signed(draws.contrast) * params.contrast,
        1 + signed(draws.saturation) * params.saturation,
        signed(draws.hue) * params.hue,
    )
    return order, amounts


def crop(x, draws, size, fill):
    """Pads at the bottom and the right, then crops at the drawn offset."""
    padded = np.empty((*(max(a, b) for a, b in zip(x.shape[:2], size, strict=True)), *x.shape[2:]), x.dtype)
    padded[:] = fill
    padded[: x.shape[0], : x.shape[1]] = x
    row = int(draws.row * (padded.shape[0] - size[0] + 1))
    column = int(draws.column * (padded.shape[1] - size[1] + 1))
    return padded[row : row + size[0], column : column + size[1]]


def erased(draws, size, side):
    """[H, W] bool, the Cutout square."""
    row, column = int(draws.cutout_row * size[0]), int(draws.cutout_column * size[1])
    i, j = np.mgrid[: size[0], : size[1]]
    return (row - side // 2 <= i) & (i < row + side // 2) & (column - side // 2 <= j) & (j < column + side // 2)
