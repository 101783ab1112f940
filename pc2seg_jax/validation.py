"""The checks of a configuration that can be made before anything is loaded."""

import math

import ml_collections

from pc2seg_jax.config import default_config, flatten, no_such_key
from pc2seg_jax.errors import UserError

_KINDS = {bool: "True or False", int: "whole numbers", float: "numbers", str: "words"}
_POSITIVE = (
    "steps",
    "batch_labeled",
    "batch_unlabeled",
    "accumulate",
    "checkpoint_every",
    "log_every",
    "data.num_labeled",
    "data.num_val",
    "model.width",
    "model.head_width",
    "model.low_level_width",
    "model.projection_dim",
    "loss.contrast_temperature",
    "loss.sharpening_temperature",
    "loss.num_negatives",
    "optim.learning_rate",
    "eval.batch_size",
    "eval.every",
)
_NOT_NEGATIVE = (
    "group_size",
    "data.max_side",
    "loss.window",
    "loss.delay",
    "augment.cutout_size",
    "loss.contrast_weight",
    "loss.consistency_weight",
    "optim.weight_decay",
    "optim.power",
    "seed",
    "data.seed",
)
_AT_MOST_1 = (
    "augment.flip_probability",
    "augment.brightness",
    "augment.contrast",
    "augment.saturation",
    "augment.hue",
)
_BELOW_1 = ("teacher_momentum", "model.dropout_rate", "model.backbone_decay", "model.head_decay", "optim.momentum")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def validate(c: ml_collections.ConfigDict, choices: dict[str, tuple[str, ...]]) -> None:
    """Checks every key that can be checked without data.

    Args:
      c: a full configuration. choices: the names registered for a key, e.g. {"model.backbone": ("resnet50_beta", ...)}.

    Raises:
      UserError: naming the key, its value and what it may be.
    """
    flat = flatten(c)
    _validate_keys(flat)
    for key, names in choices.items():
        values = flat[key] if isinstance(flat[key], tuple) else (flat[key],)
        kind = "different ones" if isinstance(flat[key], tuple) else "one"
        fits = values and all(value in names for value in values) and len(set(values)) == len(values)
        _require(fits, f"config.{key} is {flat[key]!r}, expected {kind} of: {', '.join(names)}")
    for key in _POSITIVE:
        _require(flat[key] > 0, f"config.{key} is {flat[key]}, expected a positive number")
    for key in _NOT_NEGATIVE:
        _require(flat[key] >= 0, f"config.{key} is {flat[key]}, expected 0 or more")
    for key in ("seed", "data.seed"):
        _require(flat[key] < 2**31, f"config.{key} is {flat[key]}, expected less than 2147483648")
    for key in _AT_MOST_1:
        _require(0 <= flat[key] <= 1, f"config.{key} is {flat[key]}, expected a number from 0 to 1")
    for key in _BELOW_1:
        _require(0 <= flat[key] < 1, f"config.{key} is {flat[key]}, expected a number from 0 to below 1")
    for key, fewest in (("model.aspp_rates", 1), ("model.multi_grid", 0)):
        fits = len(flat[key]) >= fewest and all(rate > 0 for rate in flat[key])
        _require(fits, f"config.{key} is {flat[key]}, expected positive whole numbers")
    for key in ("augment.crop_size", "eval.size"):
        _require(len(flat[key]) == 2, f"config.{key} is {flat[key]}, expected two numbers: height, width")
    for side in c.augment.crop_size:
        near = max(1, round((side - 1) / 16)) * 16 + 1
        _require(
            side > 1 and side % 16 == 1,
            f"config.augment.crop_size has side {side}, expected sides of the form 16k + 1, e.g. {near}",
        )
    scales = c.augment.scales
    _require(len(scales) > 0 and min(scales) > 0, f"config.augment.scales is {scales}, expected positive factors")
    for side in c.eval.size:
        _require(side == 0 or side % 16 == 1, f"config.eval.size has side {side}, expected 0 or the form 16k + 1")
    stride = c.model.output_stride
    _require(stride in (8, 16), f"config.model.output_stride is {stride}, expected 8 or 16")
    _require(
        c.data.dataset != "shapes" or c.data.num_labeled <= c.data.num_unlabeled,
        f"config.data.num_labeled is {c.data.num_labeled}, expected at most config.data.num_unlabeled "
        f"({c.data.num_unlabeled})",
    )
    _require(
        c.data.dataset != "folder" or c.data.root,
        "config.data.root is empty: set --config.data.root=FOLDER, the folder that holds images/, masks/ and the lists",
    )
    _require(
        "://" not in c.data.root,
        f"config.data.root is {c.data.root}, and images are read at random from a local disk: copy them to every host "
        "(gcloud storage cp -r), or mount the bucket with gcsfuse",
    )
    _validate_groups(c)


def _validate_keys(flat: dict) -> None:
    """Checks that a configuration has the keys of this version and values of their types, which a file may change."""
    known = flatten(default_config())
    if unknown := flat.keys() - known.keys():
        raise no_such_key(min(unknown))
    for key, default in known.items():
        _require(key in flat, f"config.{key} is missing: begin from default_config() of pc2seg_jax/config.py")
        value = flat[key]
        several = isinstance(default, tuple)
        kind = type(default[0] if default else "") if several else type(default)
        fits = (int, float) if kind is float else kind
        values = value if several and isinstance(value, tuple) else (value,)
        _require(
            isinstance(value, tuple) == several
            and all(isinstance(x, fits) and isinstance(x, bool) == (kind is bool) for x in values),
            f"config.{key} is {value!r}, expected {'a tuple of ' if several else ''}{_KINDS[kind]}",
        )
        _require(
            kind is not float or all(map(math.isfinite, values)), f"config.{key} is {value!r}, expected finite numbers"
        )


def _validate_groups(c: ml_collections.ConfigDict) -> None:
    """Checks what batch norm and the negatives need of a group."""
    for key in ("batch_labeled", "batch_unlabeled"):
        _require(
            c.group_size == 0 or c[key] % c.group_size == 0,
            f"config.{key} is {c[key]}, expected a multiple of config.group_size ({c.group_size})",
        )
        groups = c[key] // (c.group_size or c[key])
        _require(
            groups % c.accumulate == 0,
            f"config.accumulate is {c.accumulate}, expected a divisor of the {groups} groups of config.{key} "
            f"({c[key]}); a smaller config.group_size ({c.group_size}, 0: the batch) makes more groups",
        )
    if c.objective == "supervised":
        return
    _require(
        c.loss.delay < c.steps,
        f"config.loss.delay is {c.loss.delay}, expected less than config.steps ({c.steps}): the unlabelled losses "
        "would never begin; use --config.objective=supervised for that",
    )
    _require(
        c.group_size > 0 or c.batch_labeled == c.batch_unlabeled,
        f"config.group_size is 0 (one group per stream), which needs config.batch_labeled ({c.batch_labeled}) equal to "
        f"config.batch_unlabeled ({c.batch_unlabeled})",
    )
    _require(
        c.loss.contrast_weight > 0 or c.loss.consistency_weight > 0,
        "config.loss.contrast_weight and config.loss.consistency_weight are both 0: use --config.objective=supervised",
    )
    if c.loss.contrast_weight == 0:
        return
    group = c.group_size or c.batch_unlabeled
    _require(
        group > 1 or c.loss.feature_loss != "image_contrast",
        "config.loss.feature_loss is 'image_contrast', whose negatives are the other images of a group, but a group "
        "holds one image: set config.group_size to 2 or more",
    )
    if c.loss.feature_loss != "pixel_contrast":
        return
    window = c.loss.window
    _require(
        window == 0 or window >= c.loss.num_negatives,
        f"config.loss.window is {window}, expected at least config.loss.num_negatives ({c.loss.num_negatives}), better "
        "five times as many, or 0 for that",
    )
    _require(
        group > 1 or not c.loss.strategy.startswith("different_image"),
        f"config.loss.strategy is {c.loss.strategy!r}, which needs negatives from another image, but a group holds one "
        "image: set config.group_size to 2 or more, or use the strategy pseudo_label",
    )
    _require(
        c.loss.strategy != "oracle" or c.data.unlabeled_masks,
        "config.loss.strategy is 'oracle', which reads the masks of unlabelled images: allow it with "
        "--config.data.unlabeled_masks=true",
    )
