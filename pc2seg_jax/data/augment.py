"""Weak and strong augmentation as in the PseudoSeg code that the paper follows.

Every step is a small function, deterministic given its drawn values; `draw` is the only place with randomness.
Images are float32, RGB 0..255.
"""

import functools
import itertools
from typing import NamedTuple

from pc2seg_jax.data.quiet_tensorflow import tf


class AugmentParams(NamedTuple):
    """Settings of the augmentation; the defaults are those of the paper's VOC experiments.

    crop_size: (H, W) pixels. scales: equally likely factors. brightness: largest shift, of an image in 0..1.
    contrast, saturation: largest deviation of the factor from 1. hue: largest shift in turns. A strength of 0 leaves
    the operation out. cutout_size: side of the erased square, pixels, even. mean_pixel: fill of padding and Cutout.
    """

    crop_size: tuple[int, int] = (513, 513)
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    flip_probability: float = 0.5
    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.25
    cutout_size: int = 100
    mean_pixel: tuple[float, float, float] = (127.5, 127.5, 127.5)
    ignore_id: int = 255


DEFAULTS = AugmentParams()


class Draws(NamedTuple):
    """The random numbers of one example: independent float32 scalars, uniform in [0, 1)."""

    scale: tf.Tensor
    row: tf.Tensor
    column: tf.Tensor
    flip: tf.Tensor
    brightness: tf.Tensor
    contrast: tf.Tensor
    saturation: tf.Tensor
    hue: tf.Tensor
    order: tf.Tensor
    cutout_row: tf.Tensor
    cutout_column: tf.Tensor


def draw(seed: tf.Tensor) -> Draws:
    """Draws all random numbers of one example in one call, a pure function of `seed` ([2] int32 or int64)."""
    return Draws(*tf.unstack(tf.random.stateless_uniform([len(Draws._fields)], seed, alg="philox")))


def below(uniform: tf.Tensor, count) -> tf.Tensor:
    """Turns a uniform number of [0, 1) into an integer of 0 .. count - 1, int32."""
    return tf.cast(tf.floor(uniform * tf.cast(count, tf.float32)), tf.int32)


def rescale_image(image: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Resizes [h, w, 3] to trunc(size * scale), float32: bilinear, half-pixel centres, anti-aliased when shrinking."""
    size = scaled_size(image, scale)
    return tf.cond(  # anti-aliasing changes nothing when enlarging, but its general kernel takes four times as long
        scale < 1,
        lambda: tf.image.resize(image, size, antialias=True),
        lambda: tf.image.resize(image, size, antialias=False),
    )


def rescale_label(label: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Resizes [h, w] to trunc(size * scale): nearest, corner-aligned, index = round-half-up(i (in - 1) / (out - 1))."""
    size = scaled_size(label, scale)
    for axis in (0, 1):
        last_in, last_out = tf.shape(label)[axis] - 1, tf.maximum(size[axis] - 1, 1)
        # in integers: floor(x + 1/2) without a rounding error at the halves
        index = (2 * tf.range(size[axis]) * last_in + last_out) // (2 * last_out)
        label = tf.gather(label, index, axis=axis)
    return label


def scaled_size(x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """New (height, width), int32, each at least 1."""
    return tf.maximum(tf.cast(tf.cast(tf.shape(x)[:2], tf.float32) * scale, tf.int32), 1)


def adjust_brightness(image: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    """image + delta, of an image in 0..1."""
    return image + delta


def jitter(image: tf.Tensor, draws: Draws, params: AugmentParams) -> tf.Tensor:
    """Changes brightness, contrast, saturation and hue in a random order, clipping to 0..1 after each.

    Brightness adds a scalar; contrast is (x - m) f + m with the mean m of each channel over this image; saturation and
    hue act in HSV. An image whose four strengths are 0 is returned unchanged.

    Args:
      image: [h, w, 3] float32, 0..255, scaled but neither padded nor cropped.
    """
    amounts = (  # name of the strength, operation, amount at strength s and uniform u
        (adjust_brightness, params.brightness, (2 * draws.brightness - 1) * params.brightness),
        (tf.image.adjust_contrast, params.contrast, 1 + (2 * draws.contrast - 1) * params.contrast),
        (tf.image.adjust_saturation, params.saturation, 1 + (2 * draws.saturation - 1) * params.saturation),
        (tf.image.adjust_hue, params.hue, (2 * draws.hue - 1) * params.hue),
    )
    operations = [(operation, amount) for operation, strength, amount in amounts if strength]
    if not operations:
        return image

    orders = tf.constant(list(itertools.permutations(range(len(operations)))))
    order = orders[below(draws.order, orders.shape[0])]
    x = image / 255
    for place in range(len(operations)):
        branches = [functools.partial(operation, x, amount) for operation, amount in operations]
        x = tf.clip_by_value(tf.switch_case(order[place], branches), 0.0, 1.0)
    return x * 255


def crop_and_pad(x: tf.Tensor, draws: Draws, crop_size: tuple[int, int], fill) -> tf.Tensor:
    """Crops [h, w, ...] at the drawn offset and pads with `fill` at the bottom and the right.

    A side is either longer than the crop (then it is cropped) or padded (then its offset is 0), so cropping first gives
    what padding first would.
    """
    height, width = crop_size
    row = below(draws.row, tf.maximum(tf.shape(x)[0] - height, 0) + 1)
    column = below(draws.column, tf.maximum(tf.shape(x)[1] - width, 0) + 1)
    x = x[row : row + height, column : column + width]
    return pad(x, crop_size, fill)


def pad(x: tf.Tensor, size: tuple[int, int], fill) -> tf.Tensor:
    """Pads [h, w, ...] with `fill` (a scalar, or one value per channel) at the bottom and the right to `size`."""
    height, width = tf.shape(x)[0], tf.shape(x)[1]
    x = tf.concat([x, block(x, height, size[1] - width, fill)], 1)
    x = tf.concat([x, block(x, size[0] - height, size[1], fill)], 0)
    return tf.ensure_shape(x, [*size, *x.shape[2:]])


def block(like: tf.Tensor, height, width, fill) -> tf.Tensor:
    """[height, width, ...] of `fill`, with the channels and type of `like`; joining blocks is faster than `where`."""
    return tf.broadcast_to(tf.cast(fill, like.dtype), [height, width, *like.shape[2:]])


def cutout(x: tf.Tensor, draws: Draws, side: int, fill) -> tf.Tensor:
    """Erases the square [c - side/2, c + side/2) around a uniform centre c of [H, W, ...], clipped at the border."""
    height, width = x.shape[:2]
    row, column = below(draws.cutout_row, height), below(draws.cutout_column, width)
    top, bottom = tf.maximum(row - side // 2, 0), tf.minimum(row + side // 2, height)
    left, right = tf.maximum(column - side // 2, 0), tf.minimum(column + side // 2, width)
    middle = [x[top:bottom, :left], block(x, bottom - top, right - left, fill), x[top:bottom, right:]]
    return tf.ensure_shape(tf.concat([x[:top], tf.concat(middle, 1), x[bottom:]], 0), x.shape)


def flip(x: tf.Tensor, draws: Draws, probability: float) -> tf.Tensor:
    """Mirrors [H, W, ...] left to right where the drawn number is below `probability`."""
    return tf.cond(draws.flip < probability, lambda: tf.reverse(x, [1]), lambda: x)


def pick_scale(draws: Draws, scales: tuple[float, ...]) -> tf.Tensor:
    """One of `scales`, equally likely."""
    return tf.constant(scales, tf.float32)[below(draws.scale, len(scales))]


def augment_labeled(image, mask, seed, params: AugmentParams = DEFAULTS):
    """Weak augmentation of a labelled example: random scale, pad, crop, flip.

    Args:
      image: [h, w, 3] uint8 or float, 0..255.
      mask: [h, w] int32.
      seed: [2] int32 or int64; the result is a pure function of the example and the seed.

    Returns:
      image [H, W, 3] float32, 0..255, and label [H, W] int32; padding is the mean pixel and the ignore id.
    """
    draws = draw(seed)
    scale = pick_scale(draws, params.scales)
    image = crop_and_pad(rescale_image(image, scale), draws, params.crop_size, params.mean_pixel)
    label = crop_and_pad(rescale_label(mask, scale), draws, params.crop_size, params.ignore_id)
    return flip(image, draws, params.flip_probability), flip(label, draws, params.flip_probability)


def augment_unlabeled(image, mask, seed, params: AugmentParams = DEFAULTS):
    """Weak and strong views of one example, aligned pixel for pixel: they differ by colour jitter and Cutout only.

    Args:
      image: [h, w, 3] uint8 or float, 0..255.
      mask: [h, w] int32, or None where there is no ground truth.
      seed: [2] int32 or int64; the result is a pure function of the example and the seed.

    Returns:
      weak and strong [H, W, 3] float32, 0..255; valid [H, W] uint8, 0 on padding and under Cutout; label [H, W] int32,
      the ignore id where not valid, or None.
    """
    draws = draw(seed)
    scale = pick_scale(draws, params.scales)
    scaled = rescale_image(image, scale)
    inside = tf.ones(tf.shape(scaled)[:2], tf.uint8)
    views = [  # before cropping, fill, erased by Cutout
        (scaled, params.mean_pixel, False),
        (jitter(scaled, draws, params), params.mean_pixel, True),
        (inside, 0, True),
    ]
    if mask is not None:
        views.append((rescale_label(mask, scale), params.ignore_id, True))

    def finish(x, fill, erased):
        x = crop_and_pad(x, draws, params.crop_size, fill)
        if erased and params.cutout_size:
            x = cutout(x, draws, params.cutout_size, fill)
        return flip(x, draws, params.flip_probability)

    weak, strong, valid, *label = (finish(*view) for view in views)
    return weak, strong, valid, label[0] if label else None


def pad_to(image, mask, size: tuple[int, int], mean_pixel, ignore_id: int):
    """Pads an evaluation image [h, w, 3] and its mask [h, w] to `size` without resizing: float32 0..255, int32."""
    return pad(tf.cast(image, tf.float32), size, mean_pixel), pad(mask, size, ignore_id)
