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

    The labelled images are the first of the unlabelled ones in `balanced_order`: as in the paper the unlabelled set
    contains the labelled set, and few labels are balanced over the classes. Larger labelled sets contain the smaller.

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
    shown = np.array([[np.any(mask == k) for k in range(1, len(CLASS_NAMES))] for mask in masks])
    labeled = balanced_order(shown)[:num_labeled]
    name = f"shapes/seed {seed}"
    return Dataset(
        class_names=CLASS_NAMES,
        palette=voc_palette(),
        ignore_id=255,
        labeled=array_source(images[labeled], masks[labeled], [ids[i] for i in labeled], name),
        unlabeled=array_source(images, masks if masks_for_unlabeled else None, ids, name),
        val=array_source(val_images, val_masks, [f"val_{i:05d}" for i in range(num_val)], name),
    )


def balanced_order(shown: np.ndarray) -> list[int]:
    """Order of images in which every class is shown about equally often by every beginning of the list.

    The next image is the first remaining one that shows the class shown least so far (of equals, the first class).

    Args:
      shown: [N, K] bool, image n shows class k.

    Returns:
      A permutation of 0..N-1.
    """
    remaining = list(range(len(shown)))
    counts = np.zeros(shown.shape[1], int)
    order = []
    while remaining:
        by_need = (i for k in np.argsort(counts, kind="stable") for i in remaining if shown[i, k])
        chosen = next(by_need, remaining[0])
        remaining.remove(chosen)
        order.append(chosen)
        counts += shown[chosen]
    return order
