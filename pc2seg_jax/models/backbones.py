"""The backbones by name, each with the constants that belong to it."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from pc2seg_jax.errors import UserError
from pc2seg_jax.models.resnet import ResNet
from pc2seg_jax.models.xception import Xception, channels

OUTPUT_STRIDES = (8, 16, 32)


class Backbone(NamedTuple):
    """A backbone and what ImageNet weights for it expect.

    build: called with width, output_stride, multi_grid, rngs and the settings of `ConvNorm`; gives a module that maps
      preprocessed images to a dict of features, `low_level` and `conv5` among them.
    feature_widths: width -> channels of every feature.
    num_multi_grid: length of multi_grid.
    mean, std: preprocessing (x - mean) / std of RGB 0..255; the mean also fills padding and Cutout.
    decay, epsilon: of batch normalisation in the backbone.
    """

    build: Callable
    feature_widths: Callable[[int], dict[str, int]]
    num_multi_grid: int
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    decay: float = 0.95
    epsilon: float = 1e-5


def _resnet_widths(width: int) -> dict[str, int]:
    return {"low_level": 4 * width, "conv3": 8 * width, "conv4": 16 * width, "conv5": 32 * width}


def _xception_widths(width: int) -> dict[str, int]:
    published = {"low_level": 256, "conv3": 728, "conv4": 1024, "conv5": 2048}
    return {name: channels(count, width) for name, count in published.items()}


def resnet_beta(units: tuple[int, ...]) -> Backbone:
    """DeepLab's ResNet with the given units per block."""
    return Backbone(functools.partial(ResNet, units, "beta"), _resnet_widths, units[-1])


def resnet_torch(units: tuple[int, ...]) -> Backbone:
    """torchvision's ResNet with the given units per block."""
    return Backbone(
        functools.partial(ResNet, units, "torch"),
        _resnet_widths,
        units[-1],
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
        decay=0.9,
    )


# 26 layers are for small experiments and 14 to see whether everything works; the others are published networks.
BACKBONES = {
    "resnet14_beta": resnet_beta((1, 1, 1, 1)),
    "resnet26_beta": resnet_beta((2, 2, 2, 2)),
    "resnet50_beta": resnet_beta((3, 4, 6, 3)),
    "resnet101_beta": resnet_beta((3, 4, 23, 3)),
    "resnet50": resnet_torch((3, 4, 6, 3)),
    "resnet101": resnet_torch((3, 4, 23, 3)),
    "xception65": Backbone(Xception, _xception_widths, 3, decay=0.9997, epsilon=1e-3),
}


def find_backbone(name: str, output_stride: int, multi_grid: tuple[int, ...]) -> Backbone:
    """The backbone of that name, for these settings.

    Raises:
      UserError: unknown backbone or output stride, or multi_grid of another length than this backbone takes.
    """
    if name not in BACKBONES:
        raise UserError(f"backbone is {name!r}; expected one of {tuple(BACKBONES)}; change it.")
    if output_stride not in OUTPUT_STRIDES:
        raise UserError(f"output_stride is {output_stride}; expected one of {OUTPUT_STRIDES}; change it.")
    backbone = BACKBONES[name]
    if len(multi_grid) != backbone.num_multi_grid:
        raise UserError(
            f"multi_grid is {tuple(multi_grid)}; expected {backbone.num_multi_grid} factors for {name}: one per unit "
            "of its last block (Xception: per convolution of its last module); change it."
        )
    return backbone
