"""Which foreign tensor is which of ours, and putting them in place: each exactly once, or an error that names it."""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pc2seg_jax.errors import UserError
from pc2seg_jax.models.tensor_names import TENSORFLOW_SCOPES, tensorflow_name, torch_name
from pc2seg_jax.types import Tree
from pc2seg_jax.weights import named
from pc2seg_jax.weights.readers import Tensors, read

# Variables of optimisers and moving averages that training programs keep beside the weights.
_SLOTS = ("/Momentum", "/RMSProp", "/RMSProp_1", "/ExponentialMovingAverage", "/Adam", "/Adam_1")
_LOGITS = "params/head/logits/"


class Weights(NamedTuple):
    """Weights in our names and layouts.

    values: {path: array}, where a path is e.g. `params/backbone/conv1_1/conv/kernel`; the whole backbone, and where the
      source has them the head, with or without its logits.
    source: for messages. class_names: those of the logits, where they are known.
    """

    values: dict[str, np.ndarray]
    source: str
    class_names: tuple[str, ...] | None = None


def flatten(params: Tree, batch_stats: Tree) -> dict[str, np.ndarray]:
    """{path: leaf} of both trees."""

    def walk(tree: Tree, prefix: str) -> dict:
        flat = {}
        for name, value in tree.items():
            flat |= walk(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
        return flat

    return walk(params, "params/") | walk(batch_stats, "batch_stats/")


def unflatten(values: dict) -> tuple[Tree, Tree]:
    """(params, batch_stats) of what `flatten` gives."""
    trees: dict = {}
    for path, value in values.items():
        *parents, name = path.split("/")
        node = trees
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return trees["params"], trees["batch_stats"]


def load(init_from: str, backbone: str, params: Tree, batch_stats: Tree) -> Weights:
    """Reads weights for a network from a file or by name.

    Args:
      init_from: a name of `named.NAMES`, or a path to what `readers.read` reads.
      backbone: the network's, a key of `BACKBONES`.
      params, batch_stats: trees of the network, for the names and shapes.

    Raises:
      UserError: when nothing can be read there, or it is not for this backbone.
    """
    if init_from in named.NAMES:
        tensors = read(named.fetch(init_from))
    else:
        try:
            tensors = read(pathlib.Path(init_from))
        except UserError as error:
            names = ", ".join(named.NAMES)
            raise UserError(f"{error}, the folder of a run, or one of the names {names}") from error
    shapes = {path: leaf.shape for path, leaf in flatten(params, batch_stats).items()}
    return Weights(_to_ours(tensors, backbone, shapes, init_from), init_from)


def _to_ours(tensors: Tensors, backbone: str, shapes: dict[str, tuple], source: str) -> dict[str, np.ndarray]:
    values = tensors.values
    _refuse_other_layouts(tensors, backbone, source)
    if tensors.format == "npz":
        foreign = sorted(name for name in values if name.split("/")[1:2] not in (["backbone"], ["head"]))
        if foreign:
            raise UserError(f"{source} holds {_list(foreign)}: expected a file of pc2seg_jax.convert or pretrain")
        return values
    if tensors.format == "torch":
        ignored = [name for name in values if name.startswith("fc.") or name.endswith(".num_batches_tracked")]
        return _rename(values, torch_name, _from_torch, _paths(shapes, "backbone"), ignored, source)
    scope = TENSORFLOW_SCOPES[backbone]
    ignored = [
        name
        for name in values
        if name.startswith((f"{scope}/logits/", "logits/", "_CHECKPOINTABLE"))
        or name.endswith((*_SLOTS, "/mean_rgb"))
        or values[name].ndim == 0  # steps, rates and the like
    ]
    paths = _paths(shapes, "backbone")
    if "concat_projection/weights" in values:  # a whole segmentation network
        paths += [path for path in _paths(shapes, "head") if not path.startswith(_LOGITS)]
    rename = functools.partial(tensorflow_name, backbone=backbone)
    return _rename(values, rename, _from_tensorflow, paths, ignored, source)


def _refuse_other_layouts(tensors: Tensors, backbone: str, source: str) -> None:
    """Networks that share names and shapes, or nearly, but are different functions."""
    torch_style = backbone in ("resnet50", "resnet101")
    prefix = f"{source} does not fit config.model.backbone={backbone!r}:"
    if tensors.format == "torch" and not torch_style:
        reason = (
            "it is a torchvision layout (7x7 stem, stride in the first unit of a block), and in DeepLab's (three 3x3 "
            "convolutions as stem, stride in the last unit) the same weights are another function"
            if backbone.endswith("_beta")
            else "PyTorch files are read for torch-style ResNets"
        )
        raise UserError(f"{prefix} {reason}; use --config.model.backbone=resnet50 or resnet101 with it")
    if tensors.format == "tensorflow" and (torch_style or backbone not in TENSORFLOW_SCOPES):
        raise UserError(
            f"{prefix} it is a TensorFlow checkpoint in the layout of DeepLab's model zoo, whose ResNets have the "
            "stride in the last unit of a block; use resnet50_beta, resnet101_beta or xception65 with it"
        )
    stem = f"{TENSORFLOW_SCOPES.get(backbone)}/conv1/weights"
    if tensors.format == "tensorflow" and stem in tensors.values:
        raise UserError(
            f"{prefix} it is the plain ResNet with a 7x7 stem ({stem}), but 'beta' has three 3x3 convolutions there; "
            "fetch the beta checkpoint of the DeepLab model zoo"
        )


def _paths(shapes: dict[str, tuple], part: str) -> list[str]:
    return [path for path in shapes if path.split("/")[1] == part]


def _rename(
    values: dict, rename: Callable, transpose: Callable, paths: list[str], ignored: list[str], source: str
) -> dict[str, np.ndarray]:
    """{our path: array} for `paths`.

    Args:
      rename: our path without its collection -> foreign name. transpose: (path, array) -> array in our layout.
      ignored: foreign names that are not for us; every other one must be used.
    """
    names = {path: rename(path.split("/", 1)[1]) for path in paths}
    missing = sorted(set(names.values()) - values.keys())
    left = sorted(values.keys() - set(names.values()) - set(ignored))
    if missing or left:
        faults = [f"{what} {_list(which)}" for what, which in (("lacks", missing), ("has besides", left)) if which]
        raise UserError(f"{source} does not fit this backbone: it {' and '.join(faults)}; check config.model.backbone")
    return {path: transpose(path, values[name]) for path, name in names.items()}


def _list(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _from_torch(path: str, value: np.ndarray) -> np.ndarray:
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


def _from_tensorflow(path: str, value: np.ndarray) -> np.ndarray:
    """[kh, kw, C, 1] of depthwise kernels to [kh, kw, 1, C]."""
    return value.transpose(0, 1, 3, 2) if "_depthwise/" in path and value.ndim == 4 else value


def place(weights: Weights, params: Tree, batch_stats: Tree, class_names: tuple[str, ...] = ()) -> tuple:
    """Puts weights into freshly initialised trees.

    The backbone is always replaced, the head where the weights have one, its logits only where the classes are the
    same by name: an ImageNet checkpoint fills the backbone, a run of ours on the same classes everything but the
    projections, which start afresh.

    Returns:
      (params, batch_stats, text): new trees with float32 arrays; what was replaced, for the log.

    Raises:
      UserError: when a name or a shape is not this network's.
    """
    expected = flatten(params, batch_stats)
    heads = [path for path in weights.values if path.split("/")[1] == "head"]
    same_classes = weights.class_names is not None and weights.class_names == tuple(class_names)
    parts = ("backbone", "head") if heads else ("backbone",)

    def wanted(path: str) -> bool:
        return path.split("/")[1] in parts and (same_classes or not path.startswith(_LOGITS))

    filled = {}
    for path in sorted({*filter(wanted, expected), *filter(wanted, weights.values)}):
        have = weights.values[path].shape if path in weights.values else "nothing"
        want = expected[path].shape if path in expected else "nothing"
        if have != want:
            raise UserError(
                f"{weights.source} does not fit this network: for {path} it holds {have}, expected {want}; check "
                "config.model.backbone, config.model.width and the other keys of config.model"
            )
        filled[path] = jnp.asarray(weights.values[path], jnp.float32)

    def rebuild(tree: Tree, prefix: str) -> Tree:
        return {
            name: rebuild(value, f"{prefix}{name}/")
            if isinstance(value, dict)
            else filled.get(f"{prefix}{name}", value)
            for name, value in tree.items()
        }

    replaced = "backbone" if not heads else "backbone, head and logits" if same_classes else "backbone and head"
    return rebuild(params, "params/"), rebuild(batch_stats, "batch_stats/"), f"{replaced} from {weights.source}"


def save(path: pathlib.Path, values: dict[str, np.ndarray], dtype: type) -> None:
    """Writes {path: array} as a .npz file that `load` reads."""
    with path.open("wb") as file:
        np.savez(file, **{name: np.asarray(value, dtype) for name, value in values.items()})
