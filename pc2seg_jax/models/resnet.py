"""ResNet-v1 "beta": the backbone of DeepLab, three 3x3 convolutions as stem and the stride in the last unit of a block.

Source: the DeepLab-v3+ release (resnet_v1_beta), He et al. 2016 for the units.
"""

from typing import Any

import jax
from flax import nnx

from pc2seg_jax.errors import UserError
from pc2seg_jax.models.layers import ConvNorm, max_pool

# Units per block. 26 layers is for small experiments; 50 and 101 are the published networks.
BACKBONES = {
    "resnet26_beta": (2, 2, 2, 2),
    "resnet50_beta": (3, 4, 6, 3),
    "resnet101_beta": (3, 4, 23, 3),
}
OUTPUT_STRIDES = (8, 16, 32)


def schedule(units: tuple[int, ...], output_stride: int, multi_grid: tuple[int, ...]) -> list[list[tuple[int, int]]]:
    """Stride and dilation of the 3x3 convolution of every unit.

    The nominal stride is 2 in the last unit of blocks 1 to 3 and 1 elsewhere. Walking through the units from stride 4:
    once the output stride is reached a unit runs with stride 1 and dilation rate * multi_grid, and afterwards the rate
    is multiplied by the unit's nominal stride.

    Args:
      units: units per block.
      output_stride: 8, 16 or 32.
      multi_grid: one factor per unit of the last block; it is 1 in the other blocks.

    Returns:
      For every block a list of (stride, dilation), one entry per unit.

    Raises:
      UserError: unknown output stride, or multi_grid of another length than the last block.

    Source: DeepLab, `stack_blocks_dense`.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise UserError(f"output_stride is {output_stride}; expected one of {OUTPUT_STRIDES}; change it.")
    if len(multi_grid) != units[-1]:
        raise UserError(
            f"multi_grid is {tuple(multi_grid)}; expected {units[-1]} factors, one per unit of block 4; change it."
        )
    current, rate = 4, 1
    blocks = []
    for block, count in enumerate(units):
        is_last_block = block == len(units) - 1
        entries = []
        for unit in range(count):
            nominal = 2 if unit == count - 1 and not is_last_block else 1
            factor = multi_grid[unit] if is_last_block else 1
            if current == output_stride:
                entries.append((1, rate * factor))
                rate *= nominal
            else:
                entries.append((nominal, factor))
                current *= nominal
        blocks.append(entries)
    return blocks


class Bottleneck(nnx.Module):
    """Residual unit 1x1 -> 3x3 (stride, dilation) -> 1x1, plus shortcut, then ReLU.

    The shortcut is a 1x1 convolution with normalisation where the depth changes, otherwise the input itself, taken at
    every stride-th pixel. Call returns (output, third convolution before the addition).
    """

    def __init__(self, channels_in: int, width: int, *, stride: int, dilation: int, rngs: nnx.Rngs, **norm: Any):
        self.conv1 = ConvNorm(channels_in, width, rngs=rngs, **norm)
        self.conv2 = ConvNorm(width, width, kernel=3, stride=stride, dilation=dilation, rngs=rngs, **norm)
        self.conv3 = ConvNorm(width, 4 * width, relu=False, rngs=rngs, **norm)
        if channels_in != 4 * width:
            self.shortcut = ConvNorm(channels_in, 4 * width, stride=stride, relu=False, rngs=rngs, **norm)
        self.stride = stride

    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        if hasattr(self, "shortcut"):
            shortcut = self.shortcut(x, train=train)
        else:
            shortcut = x[:, :: self.stride, :: self.stride]
        residual = self.conv3(self.conv2(self.conv1(x, train=train), train=train), train=train)
        return jax.nn.relu(shortcut + residual), residual


class Block(nnx.Module):
    """Units 1, 2, ... of one block; call returns the output and the third convolution of every unit."""

    def __init__(self, channels_in: int, width: int, entries: list[tuple[int, int]], *, rngs: nnx.Rngs, **norm: Any):
        self.units = len(entries)
        for unit, (stride, dilation) in enumerate(entries, start=1):
            module = Bottleneck(channels_in, width, stride=stride, dilation=dilation, rngs=rngs, **norm)
            setattr(self, f"unit{unit}", module)
            channels_in = 4 * width

    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, list[jax.Array]]:
        residuals = []
        for unit in range(1, self.units + 1):
            x, residual = getattr(self, f"unit{unit}")(x, train=train)
            residuals.append(residual)
        return x, residuals


class ResNetBeta(nnx.Module):
    """Stem (width, width, 2 * width channels; strides 2, 1, 1), 3x3 max-pool of stride 2, four blocks.

    Bottleneck widths are width * (1, 2, 4, 8), block outputs four times that; width 64 is the published network.

    Args:
      units: units per block.
      width: of the stem.
      output_stride: 8, 16 or 32.
      multi_grid: dilation factor of every unit of block 4.
      norm: `epsilon`, `group_size` and `dtype` of every `ConvNorm`.
      rngs: unused but required by Flax.

    Call: images [B, H, W, 3] in -1..1 -> dict of `low_level` [B, h4, w4, 4 * width] (see below) and `conv2`..`conv5`,
    the outputs of blocks 1..4.

    `low_level` is the third convolution, normalised but before the addition, of unit 2 of block 1. Where unit 2 is the
    last unit it carries the stride and would be at stride 8, so unit 1 is taken (as DeepLab does for ResNet-18 beta).
    """

    def __init__(
        self,
        units: tuple[int, ...],
        *,
        width: int,
        output_stride: int,
        multi_grid: tuple[int, ...],
        rngs: nnx.Rngs,
        **norm: Any,
    ):
        self.conv1_1 = ConvNorm(3, width, kernel=3, stride=2, rngs=rngs, **norm)
        self.conv1_2 = ConvNorm(width, width, kernel=3, rngs=rngs, **norm)
        self.conv1_3 = ConvNorm(width, 2 * width, kernel=3, rngs=rngs, **norm)
        channels_in = 2 * width
        for block, entries in enumerate(schedule(units, output_stride, multi_grid)):
            bottleneck = width * 2**block
            setattr(self, f"block{block + 1}", Block(channels_in, bottleneck, entries, rngs=rngs, **norm))
            channels_in = 4 * bottleneck
        self.low_level_unit = max(1, min(2, units[0] - 1))
        self.blocks = len(units)

    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        x = self.conv1_1(x, train=train)
        x = self.conv1_3(self.conv1_2(x, train=train), train=train)
        x = max_pool(x)
        features = {}
        for block in range(1, self.blocks + 1):
            x, residuals = getattr(self, f"block{block}")(x, train=train)
            features[f"conv{block + 1}"] = x
            if block == 1:
                features["low_level"] = residuals[self.low_level_unit - 1]
        return features
