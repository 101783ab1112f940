"""From images to class probabilities: once, or averaged over scales, mirror images and sliding windows."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pc2seg_jax.errors import UserError
from pc2seg_jax.models.functional import Model
from pc2seg_jax.resize import resize_bilinear
from pc2seg_jax.types import Array, Tree


class InferenceViews(NamedTuple):
    """What the probabilities of an image are averaged over; by default the image alone, the paper's protocol.

    scales: factors of the sides. flip: every scale also mirrored left to right. window: side of the squares that are
    looked at one by one where the (scaled) image is larger, of the form 16k + 1; 0: the whole image at once. Windows
    overlap by a third.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int = 0

    def name(self) -> str:
        """For the names of files: "" for the paper's protocol, else such as "scales0.5-1_flip_window513"."""
        parts = [f"scales{'-'.join(f'{s:g}' for s in self.scales)}" if self.scales != (1.0,) else ""]
        parts += ["flip" if self.flip else "", f"window{self.window}" if self.window else ""]
        return "_".join(filter(None, parts))


ONE_VIEW = InferenceViews()


def parse_views(scales: list[str], flip: bool, window: int) -> InferenceViews:
    """`InferenceViews` from the texts of flags.

    Raises:
      UserError: naming the flag.
    """
    try:
        factors = tuple(float(scale) for scale in scales)
    except ValueError:
        factors = ()
    if not factors or not all(0.1 <= factor <= 4 for factor in factors) or len(set(factors)) < len(factors):
        raise UserError(
            f"--scales={','.join(scales)} must be different numbers from 0.1 to 4, separated by commas, e.g. "
            "--scales=0.5,0.75,1,1.25,1.5,1.75"
        )
    if window and window % 16 != 1:
        near = max(1, round((window - 1) / 16)) * 16 + 1
        raise UserError(f"--window={window} must be 0 (whole images) or of the form 16k + 1, e.g. --window={near}")
    return InferenceViews(factors, flip, window)


def predict_probabilities(model: Model, params: Tree, batch_stats: Tree, images: Array) -> Array:
    """Class probabilities at image resolution, [B, H, W, C] float32, with running batch-norm statistics."""
    outputs, _ = model.apply(params, batch_stats, images, train=False)
    return jax.nn.softmax(resize_bilinear(outputs.logits, images.shape[1:3]))


def window_starts(side: int, window: int) -> list[int]:
    """Where windows begin along a side: every 2/3 of a window, the last one at the end; one where the side is short."""
    last, stride = max(0, side - window), max(1, 2 * window // 3)
    return [*range(0, last, stride), last]


def _sliding(predict: Callable, window: int) -> Callable:
    """`predict` by windows; a pixel has the mean of the windows that hold it."""

    def slide(params: Tree, batch_stats: Tree, images: Array) -> Array:
        size = images.shape[1:3]
        if max(size) <= window:
            return predict(params, batch_stats, images)
        shape = tuple(min(window, side) for side in size)
        tops, lefts = (window_starts(side, window) for side in size)
        corners = list(itertools.product(tops, lefts))
        count = np.zeros((*size, 1), np.float32)
        for top, left in corners:
            count[top : top + shape[0], left : left + shape[1]] += 1

        def add(total: Array, corner: Array) -> tuple[Array, None]:
            start = (0, corner[0], corner[1], 0)
            part = jax.lax.dynamic_slice(images, start, (len(images), *shape, images.shape[-1]))
            found = predict(params, batch_stats, part)
            before = jax.lax.dynamic_slice(total, start, found.shape)
            return jax.lax.dynamic_update_slice(total, before + found, start), None

        one = jax.ShapeDtypeStruct((len(images), *shape, images.shape[-1]), images.dtype)
        classes = jax.eval_shape(predict, params, batch_stats, one).shape[-1]
        total, _ = jax.lax.scan(add, jnp.zeros((len(images), *size, classes)), jnp.array(corners))
        return total / count

    return slide


def make_probabilities(model: Model, views: InferenceViews = ONE_VIEW) -> Callable:
    """`probabilities(params, batch_stats, images [B, H, W, 3] float32) -> [B, H, W, C]` float32, pure, to be jitted.

    The mean of softmax over the views, each resized back to H x W (corner-aligned bilinear), as in the DeepLab
    evaluation. Sides of a scaled image are rounded to the form 16k + 1.
    """
    predict = functools.partial(predict_probabilities, model)
    return average_views(_sliding(predict, views.window) if views.window else predict, views)


def average_views(predict: Callable, views: InferenceViews) -> Callable:
    """The mean of `predict` over scales and mirror images; see `make_probabilities`."""

    def probabilities(params: Tree, batch_stats: Tree, images: Array) -> Array:
        size, found = images.shape[1:3], []
        for scale in views.scales:
            scaled = size if scale == 1 else tuple(16 * max(1, round(scale * (side - 1) / 16)) + 1 for side in size)
            seen = resize_bilinear(images, scaled)
            for step in (1, -1) if views.flip else (1,):
                mirrored = predict(params, batch_stats, seen[:, :, ::step])[:, :, ::step]
                found.append(resize_bilinear(mirrored, size))
        return sum(found) / len(found)

    return probabilities
