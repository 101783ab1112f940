"""The schema of a run: every key with its paper default, and how it is stored."""

import difflib
import json

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
    c.loss.window = 0  # of so many candidates; 0: five per negative, 1024 or more, less those of images that offer none
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
    c.data.root = ""  # folder: where images/, masks/ and the lists are; others: data_dir of `prepare`, or its default
    c.data.labeled = "labeled.txt"  # labelled images: a file (in root, or a path), a name (data/splits.py) or a rule
    c.data.unlabeled = "train.txt"  # list of images to learn from without masks
    c.data.val = "val.txt"  # list of evaluation images, with masks
    c.data.ignore_id = 255  # folder: mask id that counts nowhere
    c.data.max_side = 0  # shrink so that the longer side is at most this; 0 keeps every size
    c.data.rule = ""  # coco: how instances become labels, e.g. crowd_ignored (prepare --dataset=coco_seg/crowd_ignored)
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


def flatten(c: ml_collections.ConfigDict | dict, prefix: str = "") -> dict:
    """{'model.width': 64, ...}: every leaf under its dotted key."""
    flat = {}
    for key, value in c.items():
        if isinstance(value, ml_collections.ConfigDict | dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def no_such_key(key: str) -> UserError:
    """The error for a key that no configuration has, with the one that may have been meant."""
    near = difflib.get_close_matches(key, flatten(default_config()), n=1, cutoff=0.8)
    hint = f"did you mean config.{near[0]}?" if near else "see pc2seg_jax/config.py for all keys"
    return UserError(f"there is no key config.{key}: {hint}")


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
