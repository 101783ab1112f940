"""From a configuration to the objects it names: dataset, augmentation, model, objective."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax.numpy as jnp
import ml_collections

from pc2seg_jax.models.backbones import BACKBONES
from pc2seg_jax.models.functional import CONTRAST_LAYERS, Model, create_model
from pc2seg_jax.objective import OBJECTIVES
from pc2seg_jax.ops.sampling import STRATEGIES

if TYPE_CHECKING:  # TensorFlow stays out of runs on ready-made batches
    from pc2seg_jax.data.augment import AugmentParams
    from pc2seg_jax.data.sources import Dataset

DATASETS = ("shapes", "folder")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
CHOICES = {
    "objective": tuple(OBJECTIVES),
    "data.dataset": DATASETS,
    "model.backbone": tuple(BACKBONES),
    "model.contrast_layers": CONTRAST_LAYERS,
    "model.dtype": tuple(DTYPES),
    "loss.strategy": tuple(STRATEGIES),
}


def build_dataset(config: ml_collections.ConfigDict) -> "Dataset":
    """Loads and checks the dataset.

    Raises:
      UserError: when a folder's files are missing, damaged or inconsistent.
    """
    data = config.data
    if data.dataset == "shapes":
        from pc2seg_jax.data.shapes import load_shapes

        return load_shapes(
            num_labeled=data.num_labeled,
            num_unlabeled=data.num_unlabeled,
            num_val=data.num_val,
            seed=data.seed,
            masks_for_unlabeled=data.unlabeled_masks,
        )
    from pc2seg_jax.data.folder import load_folder

    return load_folder(
        data.root,
        labeled=data.labeled,
        unlabeled=data.unlabeled,
        val=data.val,
        ignore_id=data.ignore_id,
        max_side=data.max_side,
        masks_for_unlabeled=data.unlabeled_masks,
    )


def mean_pixel(config: ml_collections.ConfigDict) -> tuple[float, float, float]:
    """The colour, RGB 0..255, that fills padding and Cutout: what the backbone's preprocessing turns into 0."""
    return BACKBONES[config.model.backbone].mean


def build_augmentation(config: ml_collections.ConfigDict, ignore_id: int) -> "AugmentParams":
    """The settings of the input pipeline."""
    from pc2seg_jax.data.augment import AugmentParams

    return AugmentParams(**config.augment.to_dict(), ignore_id=ignore_id, mean_pixel=mean_pixel(config))


def build_model(config: ml_collections.ConfigDict, num_classes: int) -> Model:
    """The network as pure functions."""
    settings = config.model.to_dict()
    settings["dtype"] = DTYPES[settings["dtype"]]
    group_size = config.group_size or config.batch_labeled
    return create_model(num_classes=num_classes, group_size=group_size, **settings)


def build_objective(config: ml_collections.ConfigDict, ignore_id: int) -> Callable:
    """`(model, params, batch_stats, batch, key) -> (loss, (batch_stats, metrics))` with its settings filled in."""
    return functools.partial(
        OBJECTIVES[config.objective],
        group_size=config.group_size or config.batch_labeled,
        ignore_id=ignore_id,
        **config.loss.to_dict(),
    )
