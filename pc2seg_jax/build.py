"""From a configuration to the objects it names: dataset, augmentation, model, objective, compiled functions."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from pc2seg_jax import optim
from pc2seg_jax.errors import UserError
from pc2seg_jax.inference import make_probabilities
from pc2seg_jax.models.backbones import BACKBONES
from pc2seg_jax.models.functional import CONTRAST_LAYERS, Model, create_model
from pc2seg_jax.objective import FEATURE_LOSSES, LABEL_LOSSES, OBJECTIVES, FeatureSettings
from pc2seg_jax.ops.contrastive import METHODS
from pc2seg_jax.ops.sampling import STRATEGIES
from pc2seg_jax.parallel import Shardings
from pc2seg_jax.step import make_binding, make_eval_step, make_gradient_norms, make_init, make_train_step
from pc2seg_jax.types import COLOR_OPERATIONS, Crops, LabeledCrops, UnlabeledCrops

if TYPE_CHECKING:  # TensorFlow stays out of runs on ready-made batches
    from pc2seg_jax.data.augment import AugmentParams
    from pc2seg_jax.data.sources import Dataset

DATASETS = ("shapes", "folder", "voc2012", "cityscapes", "coco")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
CHOICES = {
    "objective": tuple(OBJECTIVES),
    "data.dataset": DATASETS,
    "model.backbone": tuple(BACKBONES),
    "model.contrast_layers": CONTRAST_LAYERS,
    "model.dtype": tuple(DTYPES),
    "loss.strategy": tuple(STRATEGIES),
    "loss.label_loss": tuple(LABEL_LOSSES),
    "loss.feature_loss": FEATURE_LOSSES,
    "loss.sampling": METHODS,
}


def build_dataset(config: ml_collections.ConfigDict) -> "Dataset":
    """Loads and checks the dataset.

    Raises:
      UserError: when a folder's files are missing, damaged or inconsistent, or a dataset is not prepared.
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
    lists = {
        "labeled": data.labeled,
        "unlabeled": data.unlabeled,
        "val": data.val,
        "max_side": data.max_side,
        "masks_for_unlabeled": data.unlabeled_masks,
    }
    if data.dataset == "folder":
        from pc2seg_jax.data.folder import load_folder

        return load_folder(data.root, ignore_id=data.ignore_id, **lists)
    from pc2seg_jax.data.catalog import load_prepared

    return load_prepared(data.dataset, data_dir=data.root, rule=data.rule, **lists)


def mean_pixel(config: ml_collections.ConfigDict) -> tuple[float, float, float]:
    """The colour, RGB 0..255, that fills padding and Cutout: what the backbone's preprocessing turns into 0."""
    return BACKBONES[config.model.backbone].mean


def build_augmentation(config: ml_collections.ConfigDict) -> "AugmentParams":
    """The settings of the input pipeline."""
    from pc2seg_jax.data.augment import AugmentParams

    return AugmentParams(**config.augment.to_dict())


def group_size(config: ml_collections.ConfigDict) -> int:
    """Images that share batch-norm statistics and negatives."""
    return config.group_size or config.batch_labeled


def build_model(config: ml_collections.ConfigDict, num_classes: int) -> Model:
    """The network as pure functions."""
    settings = config.model.to_dict()
    settings["dtype"] = DTYPES[settings["dtype"]]
    return create_model(num_classes=num_classes, group_size=group_size(config), **settings)


def build_objective(config: ml_collections.ConfigDict, ignore_id: int, shardings: Shardings | None = None) -> Callable:
    """`(model, params, batch_stats, batch, keys, *, teacher) -> objective.Result` with its settings filled in."""
    settings = config.loss.to_dict()
    for other in ("mask_cutout", "delay"):  # of the views and of the loop
        del settings[other]
    return functools.partial(
        OBJECTIVES[config.objective],
        group_size=group_size(config),
        ignore_id=ignore_id,
        features=FeatureSettings(**{name: settings.pop(name) for name in FeatureSettings._fields}),
        mesh=shardings and shardings.mesh,
        **settings,
    )


def check_devices(config: ml_collections.ConfigDict, shardings: Shardings) -> None:
    """Checks that the batches can be split over the devices.

    Raises:
      UserError: naming the key that cannot.
    """
    for key in ("batch_labeled", "batch_unlabeled"):
        if config[key] % shardings.mesh.size:
            raise UserError(f"config.{key} is {config[key]}, expected a multiple of the {shardings.mesh.size} devices")


def batch_shapes(config: ml_collections.ConfigDict) -> Crops:
    """Shapes and types of one global batch, as `jax.ShapeDtypeStruct`s."""

    def shapes(kind: type, count: int, **dtypes: tuple) -> LabeledCrops | UnlabeledCrops:
        return kind(**{name: jax.ShapeDtypeStruct((count, *shape), dtype) for name, (shape, dtype) in dtypes.items()})

    size, window, colors = tuple(config.augment.crop_size), ((4,), jnp.int32), (len(COLOR_OPERATIONS),)
    image, label = ((*size, 3), jnp.uint8), (size, jnp.uint8)
    labeled = shapes(LabeledCrops, config.batch_labeled, image=image, label=label, window=window)
    if config.objective == "supervised":
        return Crops(labeled)
    unlabeled = shapes(
        UnlabeledCrops,
        config.batch_unlabeled,
        image=image,
        window=window,
        cutout=window,
        order=(colors, jnp.int32),
        amounts=(colors, jnp.float32),
        contrast_mean=((3,), jnp.float32),
        **({"label": label} if config.data.unlabeled_masks else {}),
    )
    return Crops(labeled, unlabeled)


class Functions(NamedTuple):
    """What a run compiles: `make_init`, `make_train_step`, ... of `step`, and the model in them.

    supervised_step, supervised_norms: those of the baseline, which a run takes `delay` times first.
    """

    model: Model
    init: Callable
    train_step: Callable
    supervised_step: Callable
    gradient_norms: Callable
    supervised_norms: Callable
    eval_step: Callable
    delay: int

    def step(self, number: int) -> Callable:
        """The training step that a run takes as its `number`-th, from 1."""
        return self.supervised_step if number <= self.delay else self.train_step

    def norms(self, number: int) -> Callable:
        """The gradient norms of the losses that the `number`-th step learns from."""
        return self.supervised_norms if number <= self.delay else self.gradient_norms


def build_functions(
    config: ml_collections.ConfigDict, *, num_classes: int, ignore_id: int, shardings: Shardings
) -> Functions:
    """The functions of a run, not compiled yet."""
    model = build_model(config, num_classes)
    schedule = optim.make_schedule(
        learning_rate=config.optim.learning_rate, power=config.optim.power, steps=config.steps
    )
    optimizer = optim.make_optimizer(schedule, momentum=config.optim.momentum, weight_decay=config.optim.weight_decay)
    parts = {"parts": config.accumulate, "group_size": group_size(config), "shardings": shardings}

    def bind(config: ml_collections.ConfigDict) -> Callable:
        return make_binding(
            model,
            build_objective(config, ignore_id, shardings),
            seed=config.seed,
            mean_pixel=mean_pixel(config),
            ignore_id=ignore_id,
            mask_cutout=config.loss.mask_cutout,
        )

    def train_step(config: ml_collections.ConfigDict) -> Callable:
        return make_train_step(
            model, bind(config), optimizer, schedule, teacher_momentum=config.teacher_momentum, **parts
        )

    supervised = config.copy_and_resolve_references()
    supervised.objective = "supervised"
    return Functions(
        model,
        make_init(model, optimizer, with_teacher=config.teacher_momentum > 0, shardings=shardings),
        train_step(config),
        train_step(supervised),
        make_gradient_norms(bind(config), **parts),
        make_gradient_norms(bind(supervised), **parts),
        make_eval_step(
            make_probabilities(model),
            num_classes=num_classes,
            mean_pixel=mean_pixel(config),
            ignore_id=ignore_id,
            shardings=shardings,
        ),
        config.loss.delay,
    )
