"""The schema of a run: every key with its paper default, and the checks that can be made before anything is loaded."""

import difflib
import json
import math

import ml_collections

from pc2seg_jax.errors import UserError
from pc2seg_jax.files import AnyPath, replace_text


def default_config() -> ml_collections.ConfigDict:
    """Every key of a run with the paper's value (VOC 2012, ResNet-50); files in `configs/` override it.

    Batch sizes are global: results do not depend on the number of devices. Lengths are pixels.
    """
    c = ml_collections.ConfigDict()
    c.objective = "pc2seg"  # pc2seg | supervised (the paired baseline: the same run without the unlabelled losses)
    c.seed = 0  # initial weights, data order, augmentation, dropout and negative sampling
    c.steps = 30_000
    c.batch_labeled = 64
    c.batch_unlabeled = 64  # every unlabelled image is seen in a weak and a strong view
    c.group_size = 4  # images that share batch-norm statistics and negatives (the paper's replica); 0: the global batch
    c.accumulate = 1  # parts that a batch is taken in, one after the other: less memory, the same result
    c.teacher_momentum = 0.0  # 0: the network itself sees the weak view; else its moving average does (VOC 1/16: 0.99)
    c.init_from = ""  # a run's folder, a file or a name of weights (README, Weights), or "" for random weights

    _set_data_defaults(c)

    c.model = ml_collections.ConfigDict()
    c.model.backbone = "resnet50_beta"
    c.model.width = 64  # channels of the first convolution; 64 is the paper's network
    c.model.head_width = 256  # channels of ASPP and decoder
    c.model.low_level_width = 48  # channels of the decoder's low-level input
    c.model.output_stride = 16  # 8 | 16
    c.model.multi_grid = (1, 2, 4)  # dilation factors of the units of block 4
    c.model.aspp_rates = (6, 12, 18)
    c.model.dropout_rate = 0.1
    c.model.backbone_decay = 0.0  # decay of the batch-norm running statistics; 0: the backbone's own (ResNet beta 0.95)
    c.model.head_decay = 0.9997
    c.model.contrast_layers = ("conv5",)  # of conv3, conv4, conv5, encoder, decoder; the losses of several add up
    c.model.projection_dim = 128
    c.model.shared_projection = False  # one projection for both views, not one for each (Sec. 4.3)
    c.model.remat = False  # compute every backbone block again in the backward pass: less memory, a third more time
    c.model.dtype = "bfloat16"  # activations; parameters, statistics and losses are float32

    c.loss = ml_collections.ConfigDict()
    c.loss.feature_loss = "pixel_contrast"  # pixel_contrast | pixel_consistency | image_contrast (columns of Tab. 9)
    c.loss.contrast_weight = 0.3  # lambda_1, of the feature loss; 0: none
    c.loss.label_loss = "cosine"  # cosine (eq. 3) | cross_entropy (rows of Tab. 9)
    c.loss.consistency_weight = 1.0  # lambda_2, of the label loss; 0: none
    c.loss.contrast_temperature = 0.07  # tau of eq. 4
    c.loss.sharpening_temperature = 0.5  # divides the weak logits in eq. 3
    c.loss.num_negatives = 200
    c.loss.strategy = "different_image_pseudo_label"
    c.loss.sampling = "window"  # window | full: candidates that an anchor looks at (ops/contrastive.py)
    c.loss.window = 0  # of so many candidates; 0: five per negative, 1024 or more
    c.loss.mask_cutout = True  # pixels under Cutout take no part in the unlabelled losses
    c.loss.delay = 0  # steps of supervised training before the unlabelled losses begin (Tab. 11)

    c.optim = ml_collections.ConfigDict()
    c.optim.learning_rate = 0.007
    c.optim.power = 0.9  # polynomial decay to 0 over all steps
    c.optim.momentum = 0.9
    c.optim.weight_decay = 1e-4  # on convolution kernels that are not depthwise

    c.eval = ml_collections.ConfigDict()
    c.eval.batch_size = 8
    c.eval.size = (0, 0)  # images are padded, never resized, to this height and width; 0: fits the largest val image
    c.eval.mean_without = ()  # names of classes: a second mean IoU leaves them out
    c.eval.every = 2_000  # steps between evaluations on val, each followed by a checkpoint

    c.checkpoint_every = 500  # steps between checkpoints, besides those of evaluations
    c.log_every = 50
    c.log_gradient_norms = False  # at logged steps measure the gradient of every loss alone: a backward pass for each
    return c


def _set_data_defaults(c: ml_collections.ConfigDict) -> None:
    c.data = ml_collections.ConfigDict()
    c.data.dataset = "folder"  # shapes | folder | voc2012 | cityscapes | coco
    c.data.root = (
        ""  # folder: where images/, masks/ and the lists are; others: the data_dir of `prepare`, "": its default
    )
    c.data.labeled = (
        "labeled.txt"  # list of labelled images: a file (in root, or a path), a name (data/splits.py) or rule
    )
    c.data.unlabeled = "train.txt"  # list of images to learn from without masks
    c.data.val = "val.txt"  # list of evaluation images, with masks
    c.data.ignore_id = 255  # folder: mask id that counts nowhere
    c.data.max_side = 0  # shrink so that the longer side is at most this; 0 keeps every size
    c.data.rule = (
        ""  # coco: how instances become labels, e.g. crowd_ignored (`prepare --dataset=coco_seg/crowd_ignored`)
    )
    c.data.unlabeled_masks = False  # read masks of unlabelled images for measuring; needed by the oracle strategy
    c.data.num_labeled = 20  # shapes: labelled images
    c.data.num_unlabeled = 1000  # shapes: unlabelled images, the labelled ones among them
    c.data.num_val = 200  # shapes: evaluation images
    c.data.seed = 0  # shapes: seed of the generator

    c.augment = ml_collections.ConfigDict()
    c.augment.crop_size = (513, 513)  # height, width; each of the form 16k + 1
    c.augment.scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)  # one is drawn per image
    c.augment.flip_probability = 0.5
    c.augment.brightness = 0.5  # strong view: shift from U[-b, b) on 0..1
    c.augment.contrast = 0.5  # strong view: factor from U[1-c, 1+c)
    c.augment.saturation = 0.5  # strong view: factor from U[1-s, 1+s)
    c.augment.hue = 0.25  # strong view: turn from U[-h, h)
    c.augment.cutout_size = 100  # strong view: side of the erased square; 0: none


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
    for key in flat.keys() - known.keys():
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        hint = f"did you mean config.{near[0]}?" if near else "see pc2seg_jax/config.py for all keys"
        raise UserError(f"there is no key config.{key}: {hint}")
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


def flatten(c: ml_collections.ConfigDict | dict, prefix: str = "") -> dict:
    """{'model.width': 64, ...}: every leaf under its dotted key."""
    flat = {}
    for key, value in c.items():
        if isinstance(value, ml_collections.ConfigDict | dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def save(c: ml_collections.ConfigDict, path: AnyPath) -> None:
    """Writes the full configuration as JSON."""
    replace_text(path, json.dumps(c.to_dict(), indent=2) + "\n")


def load(path: AnyPath) -> ml_collections.ConfigDict:
    """Reads what `save` wrote.

    Raises:
      UserError: when the file is not such a JSON file, or lacks a key, or has one that this version does not know.
    """
    try:
        stored = flatten(json.loads(path.read_text()))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a configuration written by pc2seg_jax.train ({error})") from error
    c = default_config()
    unknown, missing = stored.keys() - flatten(c).keys(), flatten(c).keys() - stored.keys()
    if unknown or missing:
        raise UserError(
            f"{path} was written by another version: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}"
        )
    for key, value in stored.items():
        *parents, name = key.split(".")
        node = c
        for parent in parents:
            node = node[parent]
        try:
            node[name] = tuple(value) if isinstance(value, list) else value
        except TypeError as error:
            raise UserError(f"{path} has {key}: {value!r}, which is of another type ({error})") from error
    return c


def differences(a: ml_collections.ConfigDict, b: ml_collections.ConfigDict) -> list[str]:
    """['optim.learning_rate: 0.007 -> 0.01', ...] for every key whose values differ."""
    flat_a, flat_b = flatten(a), flatten(b)
    return [f"{key}: {flat_a[key]!r} -> {flat_b[key]!r}" for key in flat_a if flat_a[key] != flat_b[key]]
