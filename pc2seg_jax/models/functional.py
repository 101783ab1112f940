"""Models as pure functions over plain nested dicts: the only interface of this folder.

NNX modules are rebuilt inside `apply`, which is only ever traced, so no NNX object crosses a `jax.jit` boundary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from pc2seg_jax.errors import UserError
from pc2seg_jax.models.backbones import Backbone, find_backbone
from pc2seg_jax.models.deeplab_v3plus import DeepLabV3Plus, Head, Projections, preprocess
from pc2seg_jax.models.layers import he_truncated, initial_state
from pc2seg_jax.types import Outputs, Tree

# conv3, conv4, conv5: outputs of the backbone's last three blocks (ResNet: 2, 3, 4; Xception: see there); encoder:
# pyramid before dropout; decoder: last feature before the logits.
CONTRAST_LAYERS = ("conv3", "conv4", "conv5", "encoder", "decoder")
HEAD_EPSILON = 1e-5  # of batch normalisation in pyramid and decoder, whatever the backbone


class Model(NamedTuple):
    """A segmentation model as five pure functions.

    init(key) -> (params, batch_stats): plain nested dicts of float32 arrays; params has `backbone`, `head`,
      `projection` (by layer `weak` and `strong`, or `shared`), batch_stats has `backbone`, `head`.
    apply(params, batch_stats, images, *, train, keys=None) -> (Outputs, moments): images [B, H, W, 3] RGB 0..255 with
      sides of the form output_stride * k + 1; logits are float32 at stride 4. With train=True the batch is normalised
      in consecutive groups of `group_size` images, dropout draws from `keys` [B], one random key per image, and
      `moments` has the structure of batch_stats with mean [G, C] and unbiased variance [G, C] of every group. With
      train=False the running statistics are used and `moments` is {}. Running statistics are deliberately *not* updated
      here: one pass may hold groups of several streams, and the caller decides in which order they enter the averages.
      Raises ValueError when group_size does not divide B or the keys are missing, UserError for other image sides.
      `Outputs.features` is a dict with one entry [B, h, w, F] per contrast layer.
    project(params, features, *, branch) -> dict of [B, h, w, D] float32: linear map of every feature by its layer's
      projection for the `weak` or the `strong` view.
    update_statistics(batch_stats, moments) -> batch_stats: one update, running = decay * running + (1 - decay) * mean
      of the moments over their groups, with the decay of each part. Average or slice G to update stream by stream.
    features: as apply, with a dict of everything the network computes instead of `Outputs`.
    """

    init: Callable
    apply: Callable
    project: Callable
    update_statistics: Callable
    features: Callable


class Classifier(NamedTuple):
    """An image classifier as three pure functions, to pretrain a backbone.

    As `Model`, but params has `backbone` (the same tree) and `classifier`, batch_stats has `backbone`, and apply
    returns (logits [B, C] float32, moments) for images with sides of any length; there is no dropout and no key.
    """

    init: Callable
    apply: Callable
    update_statistics: Callable


@functools.lru_cache(maxsize=16)  # JAX keeps what it has traced of a function, and tracing a deep network takes seconds
def create_model(
    *,
    backbone: str,
    num_classes: int,
    width: int = 64,
    head_width: int = 256,
    low_level_width: int = 48,
    output_stride: int = 16,
    multi_grid: tuple[int, ...] = (1, 1, 1),
    aspp_rates: tuple[int, ...] = (6, 12, 18),
    dropout_rate: float = 0.1,
    remat: bool = False,
    backbone_decay: float = 0.0,
    head_decay: float = 0.9997,
    group_size: int | None = 4,
    contrast_layers: tuple[str, ...] = ("conv5",),
    projection_dim: int = 128,
    shared_projection: bool = False,
    dtype: Any = jnp.float32,
) -> Model:
    """DeepLab-v3+ with projections for the contrastive loss; the defaults are the published network.

    Args:
      backbone: a key of `BACKBONES`.
      num_classes: C.
      width: 64 for the published networks; all channels of the backbone change in proportion.
      head_width: channels of pyramid and decoder.
      low_level_width: channels of the reduced low-level feature.
      output_stride: of the backbone, 8, 16 or 32; the decoder always ends at 4.
      multi_grid: dilation factors of the last block (ResNet: per unit; Xception: per convolution of its last module).
      aspp_rates: dilations of the pyramid, used as given (6, 12, 18 belong to stride 16, twice that to stride 8).
      dropout_rate: after the pyramid.
      remat: the backward pass computes every block of the backbone again instead of keeping its activations.
      backbone_decay, head_decay: of the running statistics; 0 for the backbone takes its own.
      group_size: images normalised together in training; None is the whole batch.
      contrast_layers: of `CONTRAST_LAYERS`, returned as `Outputs.features`.
      projection_dim, shared_projection: D; one projection for both views instead of one for each.
      dtype: of convolutions and activations; parameters, statistics, logits and projections are float32.

    Raises:
      UserError: unknown backbone, contrast layer or output stride, multi_grid of the wrong length.
    """
    if not contrast_layers or not set(contrast_layers) <= set(CONTRAST_LAYERS):
        raise UserError(f"contrast_layers is {contrast_layers!r}; expected some of {CONTRAST_LAYERS}; change it.")
    spec = find_backbone(backbone, output_stride, multi_grid)
    widths = spec.feature_widths(width) | {"encoder": head_width, "decoder": head_width}
    contrast_widths = {layer: widths[layer] for layer in contrast_layers}

    norm = {"group_size": group_size, "dtype": dtype}
    build_projections = functools.partial(Projections, contrast_widths, projection_dim, shared=shared_projection)

    def build(rngs: nnx.Rngs) -> DeepLabV3Plus:
        trunk = build_backbone(spec, width, output_stride, multi_grid, remat=remat, rngs=rngs, **norm)
        head = Head(
            widths["conv5"],
            widths["low_level"],
            num_classes=num_classes,
            head_width=head_width,
            low_level_width=low_level_width,
            rates=aspp_rates,
            dropout_rate=dropout_rate,
            epsilon=HEAD_EPSILON,
            rngs=rngs,
            **norm,
        )
        projections = build_projections(rngs=rngs)
        return DeepLabV3Plus(trunk, head, projections, mean=spec.mean, std=spec.std, dtype=dtype)

    init, run = functions_of(build, group_size)
    projection_graph = nnx.graphdef(nnx.eval_shape(lambda: build_projections(rngs=nnx.Rngs(0))))

    def features(params, batch_stats, images, *, train, keys=None):
        _check_sides(images, output_stride)
        return run(params, batch_stats, images, train=train, keys=keys)

    def apply(params, batch_stats, images, *, train, keys=None):
        outputs, moments = features(params, batch_stats, images, train=train, keys=keys)
        return Outputs(outputs["logits"], {layer: outputs[layer] for layer in contrast_layers}), moments

    def project(params, features, *, branch):
        projections = nnx.merge(projection_graph, params["projection"])
        return {layer: getattr(projections, layer)(branch, x) for layer, x in features.items()}

    decays = {"backbone": backbone_decay or spec.decay, "head": head_decay}
    return Model(init, apply, project, statistics_update(decays), features)


def _check_sides(images: jax.Array, output_stride: int) -> None:
    if any((side - 1) % output_stride for side in images.shape[1:3]):
        raise UserError(
            f"images are {images.shape[1]} x {images.shape[2]} pixels; expected sides of the form "
            f"{output_stride}k + 1 for output_stride {output_stride}; change the crop size."
        )


def build_backbone(
    spec: Backbone, width: int, output_stride: int, multi_grid: tuple[int, ...], *, remat: bool = False, **settings: Any
) -> nnx.Module:
    """The module of a backbone with its own batch-norm constant."""
    settings |= {"epsilon": spec.epsilon, "remat": remat}
    return spec.build(width=width, output_stride=output_stride, multi_grid=tuple(multi_grid), **settings)


class ClassifierNetwork(nnx.Module):
    """Backbone, global average pool, linear layer."""

    def __init__(self, backbone: nnx.Module, classifier: nnx.Linear, *, mean: tuple, std: tuple, dtype: Any):
        self.backbone = backbone
        self.classifier = classifier
        self.mean, self.std = mean, std
        self.dtype = dtype

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        feature = self.backbone(preprocess(images, self.mean, self.std, self.dtype), train=train)["conv5"]
        return self.classifier(jnp.mean(feature, axis=(1, 2), dtype=jnp.float32))


def create_classifier(
    *,
    backbone: str,
    num_classes: int,
    width: int = 64,
    output_stride: int = 32,
    multi_grid: tuple[int, ...] = (1, 1, 1),
    backbone_decay: float = 0.0,
    group_size: int | None = 4,
    dtype: Any = jnp.float32,
) -> Classifier:
    """Global average pool of the backbone's last feature and a linear layer; arguments as in `create_model`.

    Raises:
      UserError: unknown backbone or output stride, multi_grid of the wrong length.
    """
    spec = find_backbone(backbone, output_stride, multi_grid)
    features = spec.feature_widths(width)["conv5"]

    def build(rngs: nnx.Rngs) -> ClassifierNetwork:
        trunk = build_backbone(spec, width, output_stride, multi_grid, group_size=group_size, dtype=dtype, rngs=rngs)
        linear = nnx.Linear(
            features,
            num_classes,
            dtype=jnp.float32,
            kernel_init=nnx.initializers.zeros_init(),
            kernel_metadata={"distribution": he_truncated(features, num_classes)},
            rngs=rngs,
        )
        return ClassifierNetwork(trunk, linear, mean=spec.mean, std=spec.std, dtype=dtype)

    init, run = functions_of(build, group_size)

    def apply(params, batch_stats, images, *, train):
        return run(params, batch_stats, images, train=train)

    return Classifier(init, apply, statistics_update({"backbone": backbone_decay or spec.decay}))


def functions_of(build: Callable[[nnx.Rngs], nnx.Module], group_size: int | None) -> tuple[Callable, Callable]:
    """Functions init(key) and run(params, batch_stats, images, *, train, ...) of the module that `build` makes."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        return initial_state(build(nnx.Rngs(0)), key)

    def run(params: Tree, batch_stats: Tree, images: jax.Array, *, train: bool, **kwargs: Any) -> tuple[Any, Tree]:
        if train and group_size is not None and images.shape[0] % group_size:
            raise ValueError(
                f"a training batch of {images.shape[0]} images cannot be divided into groups of {group_size}; "
                "make the batch a multiple of the batch normalisation group size."
            )
        module = nnx.merge(graph, params, batch_stats)
        outputs = module(images, train=train, **kwargs)
        # In training the statistics variables of this temporary module now hold the groups' moments.
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)) if train else {}

    return init, run


def statistics_update(decays: dict[str, float]) -> Callable[[Tree, Tree], Tree]:
    """The function update_statistics for the decay of every top-level entry of batch_stats."""

    def update_statistics(batch_stats: Tree, moments: Tree) -> Tree:
        return {
            part: jax.tree.map(
                lambda running, new, decay=decay: decay * running + (1.0 - decay) * jnp.mean(new, axis=0),
                batch_stats[part],
                moments[part],
            )
            for part, decay in decays.items()
        }

    return update_statistics
