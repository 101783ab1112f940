"""Models as pure functions over plain nested dicts: the only interface of this folder.

NNX modules are rebuilt inside `apply`, which is only ever traced, so no NNX object crosses a `jax.jit` boundary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from pc2seg_jax.errors import UserError
from pc2seg_jax.models.deeplab_v3plus import DeepLabV3Plus, Head, Projections, preprocess
from pc2seg_jax.models.layers import he_truncated, initial_state
from pc2seg_jax.models.resnet import BACKBONES, ResNetBeta
from pc2seg_jax.types import Outputs, Tree

# conv3, conv4, conv5: outputs of blocks 2, 3, 4; encoder: pyramid before dropout; decoder: last feature before logits.
CONTRAST_LAYERS = ("conv3", "conv4", "conv5", "encoder", "decoder")


class Model(NamedTuple):
    """A segmentation model as four pure functions.

    init(key) -> (params, batch_stats): plain nested dicts of float32 arrays; params has `backbone`, `head`,
      `projection` (`weak`, `strong`), batch_stats has `backbone`, `head`.
    apply(params, batch_stats, images, *, train, key=None) -> (Outputs, moments): images [B, H, W, 3] RGB 0..255 with
      sides of the form output_stride * k + 1; logits are float32 at stride 4. With train=True the batch is normalised
      in consecutive groups of `group_size` images, dropout draws from `key`, and `moments` has the structure of
      batch_stats with mean [G, C] and unbiased variance [G, C] of every group. With train=False the running statistics
      are used and `moments` is {}. Running statistics are deliberately *not* updated here: one pass may hold groups of
      several streams, and the caller decides in which order they enter the averages.
      Raises ValueError when group_size does not divide B or the key is missing, UserError for other image sides.
    project(params, features, *, branch) -> [B, h, w, D] float32: linear map of features [B, h, w, F] by the `weak` or
      the `strong` projection.
    update_statistics(batch_stats, moments) -> batch_stats: one update, running = decay * running + (1 - decay) * mean
      of the moments over their groups, with the decay of each part. Slice the G axis to update stream by stream.
    """

    init: Callable
    apply: Callable
    project: Callable
    update_statistics: Callable


class Classifier(NamedTuple):
    """An image classifier as three pure functions, to pretrain a backbone.

    As `Model`, but params has `backbone` (the same tree) and `classifier`, batch_stats has `backbone`, and apply
    returns (logits [B, C] float32, moments) for images with sides of any length; there is no dropout and no key.
    """

    init: Callable
    apply: Callable
    update_statistics: Callable


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
    backbone_decay: float = 0.95,
    head_decay: float = 0.9997,
    epsilon: float = 1e-5,
    group_size: int | None = 4,
    contrast_layer: str = "conv5",
    projection_dim: int = 128,
    dtype: Any = jnp.float32,
) -> Model:
    """DeepLab-v3+ with projections for the contrastive loss; the defaults are the published network.

    Args:
      backbone: a key of `BACKBONES`.
      num_classes: C.
      width: channels of the stem; bottlenecks have 1, 2, 4, 8 times, block outputs 4, 8, 16, 32 times as many.
      head_width: channels of pyramid and decoder.
      low_level_width: channels of the reduced low-level feature.
      output_stride: of the backbone, 8, 16 or 32; the decoder always ends at 4.
      multi_grid: dilation factor of every unit of block 4.
      aspp_rates: dilations of the pyramid, used as given (6, 12, 18 belong to stride 16, twice that to stride 8).
      dropout_rate: after the pyramid.
      backbone_decay, head_decay: of the running statistics.
      epsilon: of every batch normalisation.
      group_size: images normalised together in training; None is the whole batch.
      contrast_layer: one of `CONTRAST_LAYERS`, returned as `Outputs.features`.
      projection_dim: D.
      dtype: of convolutions and activations; parameters, statistics, logits and projections stay float32.

    Raises:
      UserError: unknown backbone, contrast layer or output stride, multi_grid of the wrong length.
    """
    units = backbone_units(backbone)
    if contrast_layer not in CONTRAST_LAYERS:
        raise UserError(f"contrast_layer is {contrast_layer!r}; expected one of {CONTRAST_LAYERS}; change it.")
    norm = {"epsilon": epsilon, "group_size": group_size, "dtype": dtype}
    contrast_width = {"conv3": 8 * width, "conv4": 16 * width, "conv5": 32 * width}.get(contrast_layer, head_width)

    def build(rngs: nnx.Rngs) -> DeepLabV3Plus:
        trunk = ResNetBeta(
            units, width=width, output_stride=output_stride, multi_grid=tuple(multi_grid), rngs=rngs, **norm
        )
        head = Head(
            32 * width,
            4 * width,
            num_classes=num_classes,
            head_width=head_width,
            low_level_width=low_level_width,
            rates=tuple(aspp_rates),
            dropout_rate=dropout_rate,
            rngs=rngs,
            **norm,
        )
        return DeepLabV3Plus(trunk, head, Projections(contrast_width, projection_dim, rngs=rngs), dtype=dtype)

    init, run = functions_of(build, group_size)
    projection_graph = nnx.graphdef(
        nnx.eval_shape(lambda: Projections(contrast_width, projection_dim, rngs=nnx.Rngs(0)))
    )

    def apply(params, batch_stats, images, *, train, key=None):
        if any((side - 1) % output_stride for side in images.shape[1:3]):
            raise UserError(
                f"images are {images.shape[1]} x {images.shape[2]} pixels; expected sides of the form "
                f"{output_stride}k + 1 for output_stride {output_stride}; change the crop size."
            )
        outputs, moments = run(params, batch_stats, images, train=train, key=key)
        return Outputs(logits=outputs["logits"], features=outputs[contrast_layer]), moments

    def project(params, features, *, branch):
        return getattr(nnx.merge(projection_graph, params["projection"]), branch)(features)

    decays = {"backbone": backbone_decay, "head": head_decay}
    return Model(init, apply, project, statistics_update(decays))


class ClassifierNetwork(nnx.Module):
    """Backbone, global average pool, linear layer."""

    def __init__(self, backbone: ResNetBeta, classifier: nnx.Linear, *, dtype: Any):
        self.backbone = backbone
        self.classifier = classifier
        self.dtype = dtype

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        feature = self.backbone(preprocess(images, self.dtype), train=train)["conv5"]
        return self.classifier(jnp.mean(feature, axis=(1, 2), dtype=jnp.float32))


def create_classifier(
    *,
    backbone: str,
    num_classes: int,
    width: int = 64,
    output_stride: int = 32,
    multi_grid: tuple[int, ...] = (1, 1, 1),
    backbone_decay: float = 0.95,
    epsilon: float = 1e-5,
    group_size: int | None = 4,
    dtype: Any = jnp.float32,
) -> Classifier:
    """Global average pool of the backbone's last feature and a linear layer; arguments as in `create_model`.

    Raises:
      UserError: unknown backbone or output stride, multi_grid of the wrong length.
    """
    units = backbone_units(backbone)
    norm = {"epsilon": epsilon, "group_size": group_size, "dtype": dtype}

    def build(rngs: nnx.Rngs) -> ClassifierNetwork:
        trunk = ResNetBeta(
            units, width=width, output_stride=output_stride, multi_grid=tuple(multi_grid), rngs=rngs, **norm
        )
        linear = nnx.Linear(
            32 * width,
            num_classes,
            dtype=jnp.float32,
            kernel_init=nnx.initializers.zeros_init(),
            kernel_metadata={"distribution": he_truncated(32 * width, num_classes)},
            rngs=rngs,
        )
        return ClassifierNetwork(trunk, linear, dtype=dtype)

    init, run = functions_of(build, group_size)

    def apply(params, batch_stats, images, *, train):
        return run(params, batch_stats, images, train=train)

    return Classifier(init, apply, statistics_update({"backbone": backbone_decay}))


def backbone_units(backbone: str) -> tuple[int, ...]:
    """Units per block of a backbone; raises UserError for an unknown name."""
    if backbone not in BACKBONES:
        raise UserError(f"backbone is {backbone!r}; expected one of {tuple(BACKBONES)}; change it.")
    return BACKBONES[backbone]


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
