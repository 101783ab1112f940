"""The embedded dataset as sources in memory."""

import numpy as np

from pc2seg_jax.data.folder import voc_palette
from pc2seg_jax.data.sources import Dataset, array_source
from pc2seg_jax.data.synthetic import CLASS_NAMES, scene


def load_shapes(
    *,
    num_labeled: int,
    num_unlabeled: int = 1000,
    num_val: int = 200,
    size: int = 97,
    seed: int = 0,
    masks_for_unlabeled: bool = False,
) -> Dataset:
    """Generates the `shapes` dataset in memory (a few seconds for the default sizes).

    The labelled images are the first `num_labeled` of the unlabelled ones (the unlabelled set contains the labelled
    set, as in the paper), so larger labelled sets contain the smaller ones.

    Raises:
      ValueError: when `num_labeled` is not in 1..num_unlabeled.
    """
    if not 1 <= num_labeled <= num_unlabeled:
        raise ValueError(f"num_labeled is {num_labeled}, expected 1..{num_unlabeled} (num_unlabeled)")
    train = [scene(seed, 0, i, size) for i in range(num_unlabeled)]
    val = [scene(seed, 1, i, size) for i in range(num_val)]
    images, masks = (np.stack(part) for part in zip(*train, strict=True))
    val_images, val_masks = (np.stack(part) for part in zip(*val, strict=True))
    ids = [f"train_{i:05d}" for i in range(num_unlabeled)]
    return Dataset(
        class_names=CLASS_NAMES,
        palette=voc_palette(),
        ignore_id=255,
        labeled=array_source(images[:num_labeled], masks[:num_labeled], ids[:num_labeled]),
        unlabeled=array_source(images, masks if masks_for_unlabeled else None, ids),
        val=array_source(val_images, val_masks, [f"val_{i:05d}" for i in range(num_val)]),
    )
