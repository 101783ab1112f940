"""From the crops that travel to the views that the objective sees: padding, colour and Cutout, on the device.

The host sends 8-bit crops and a few numbers per image, an eighth of the bytes of three float32 arrays.
"""

import jax
import jax.numpy as jnp

from pc2seg_jax.ops.color import jitter
from pc2seg_jax.types import Array, Batch, Crops, Labeled, LabeledCrops, Unlabeled, UnlabeledCrops


def inside(window: Array, size: tuple[int, int]) -> Array:
    """Pixels of the rectangles (top, left, bottom, right), the last two exclusive: [N, 4] -> [N, H, W] bool."""
    top, left, bottom, right = (window[:, i, None, None] for i in range(4))
    row, column = jnp.arange(size[0])[:, None], jnp.arange(size[1])
    return (top <= row) & (row < bottom) & (left <= column) & (column < right)


def _fill(image: Array, real: Array, mean_pixel: tuple[float, float, float]) -> Array:
    return jnp.where(real[..., None], image, jnp.array(mean_pixel, jnp.float32))


def labeled_views(crops: LabeledCrops, *, mean_pixel: tuple[float, float, float], ignore_id: int) -> Labeled:
    """Padding becomes the mean pixel, which the network's preprocessing turns into exactly 0, and the ignore id."""
    real = inside(crops.window, crops.image.shape[1:3])
    label = jnp.where(real, crops.label.astype(jnp.int32), ignore_id)
    return Labeled(_fill(crops.image.astype(jnp.float32), real, mean_pixel), label)


def unlabeled_views(
    crops: UnlabeledCrops, *, mean_pixel: tuple[float, float, float], ignore_id: int, mask_cutout: bool = True
) -> Unlabeled:
    """The weak view, and the strong one: the same pixels with other colours and without the Cutout square.

    mask_cutout: the pixels of the square are not valid.
    """
    size = crops.image.shape[1:3]
    real = inside(crops.window, size)
    seen = real & ~inside(crops.cutout, size)
    valid = seen if mask_cutout else real
    weak = crops.image.astype(jnp.float32)
    strong = 255 * jax.vmap(jitter)(weak / 255, crops.order, crops.amounts, crops.contrast_mean)
    label = None if crops.label is None else jnp.where(valid, crops.label.astype(jnp.int32), ignore_id)
    return Unlabeled(_fill(weak, real, mean_pixel), _fill(strong, seen, mean_pixel), valid, label)


def make_views(
    crops: Crops, *, mean_pixel: tuple[float, float, float], ignore_id: int, mask_cutout: bool = True
) -> Batch:
    """What the objective sees of a batch: `labeled_views` and `unlabeled_views`.

    Args:
      mean_pixel: RGB 0..255, fills padding and Cutout.
      ignore_id: label of padding, and of pixels that are not valid.
      mask_cutout: pixels under Cutout are not valid.
    """
    settings = {"mean_pixel": mean_pixel, "ignore_id": ignore_id}
    unlabeled = None
    if crops.unlabeled is not None:
        unlabeled = unlabeled_views(crops.unlabeled, **settings, mask_cutout=mask_cutout)
    return Batch(labeled_views(crops.labeled, **settings), unlabeled)
