"""ResNet-v1 in the two layouts that ImageNet weights exist in.

"Beta", the backbone of DeepLab: three 3x3 convolutions as stem, the stride in the last unit of a block. "Torch": one
7x7 convolution as stem, the stride in the 3x3 convolution of the first unit. Weights of one layout give another
function in the other.

Source: the DeepLab-v3+ release (resnet_v1_beta) and torchvision; He et al. 2016 for the units.
"""

from typing import Any

import jax
from flax import nnx

from pc2seg_jax.models.layers import ConvNorm, call_block, max_pool, place_strides

Units = tuple[int, ...]  # residual units per block


def beta_schedule(units: Units, output_stride: int, multi_grid: tuple[int, ...]) -> list[list[tuple[int, int]]]:
    """Stride and dilation of the 3x3 convolution of every unit of the beta layout.

    The nominal stride is 2 in the last unit of blocks 1 to 3 and 1 elsewhere; `place_strides` makes it real.

    Args:
      units: units per block.
      output_stride: 8, 16 or 32.
      multi_grid: one factor per unit of the last block; it is 1 in the other blocks.

    Returns:
      For every block a list of (stride, dilation), one entry per unit.

    Source: DeepLab, `stack_blocks_dense`.
    """
    nominal = [
        (2 if unit == count - 1 and block < len(units) - 1 else 1, multi_grid[unit] if block == len(units) - 1 else 1)
        for block, count in enumerate(units)
        for unit in range(count)
    ]
    entries = iter(place_strides(nominal, start=4, output_stride=output_stride))
    return [[next(entries) for _ in range(count)] for count in units]


def torch_schedule(units: Units, output_stride: int, multi_grid: tuple[int, ...]) -> list[list[tuple[int, int]]]:
    """The same of the torch layout: the stride of blocks 2 to 4 is in their first unit.

    A block whose stride is replaced by dilation doubles the rate; its first unit, which would have had the stride,
    keeps the former rate.

    Source: torchvision, `replace_stride_with_dilation`.
    """
    current, rate = 4, 1
    blocks = []
    for block, count in enumerate(units):
        first_stride, former = 1, rate
        if block > 0 and current < output_stride:
            first_stride, current = 2, 2 * current
        elif block > 0:
            rate *= 2
        factors = multi_grid if block == len(units) - 1 else (1,) * count
        dilations = [(former if unit == 0 else rate) * factors[unit] for unit in range(count)]
        blocks.append([(first_stride if unit == 0 else 1, dilation) for unit, dilation in enumerate(dilations)])
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
            shortcut = x
            for axis in (1, 2) if self.stride > 1 else ():
                # Not x[:, ::stride]: with the symbolic sizes of an export, indexing would become a gather.
                shortcut = jax.lax.slice_in_dim(shortcut, 0, None, self.stride, axis)
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


class ResNet(nnx.Module):
    """Stem, 3x3 max-pool of stride 2, four blocks with bottlenecks of width * (1, 2, 4, 8), outputs of four times that.

    Args:
      units: units per block.
      layout: "beta" (stem of width, width, 2 * width channels, strides 2, 1, 1) or "torch" (stem of width channels).
      width: 64 is the published network.
      output_stride: 8, 16 or 32.
      multi_grid: dilation factor of every unit of block 4.
      remat: see `call_block`.
      norm: `epsilon`, `group_size` and `dtype` of every `ConvNorm`.
      rngs: unused but required by Flax.

    Call: images [B, H, W, 3], preprocessed -> dict of `low_level` [B, h4, w4, 4 * width] (see below) and
    `conv2`..`conv5`, the outputs of blocks 1..4.

    `low_level` is, in the beta layout, the third convolution, normalised but before the addition, of unit 2 of block
    1; where unit 2 is the last unit it carries the stride and would be at stride 8, so unit 1 is taken (as DeepLab does
    for ResNet-18 beta). In the torch layout, whose block 1 ends at stride 4, it is the output of block 1.
    """

    def __init__(
        self,
        units: Units,
        layout: str,
        *,
        width: int,
        output_stride: int,
        multi_grid: tuple[int, ...],
        remat: bool,
        rngs: nnx.Rngs,
        **norm: Any,
    ):
        if layout == "beta":
            self.conv1_1 = ConvNorm(3, width, kernel=3, stride=2, rngs=rngs, **norm)
            self.conv1_2 = ConvNorm(width, width, kernel=3, rngs=rngs, **norm)
            self.conv1_3 = ConvNorm(width, 2 * width, kernel=3, rngs=rngs, **norm)
            self.low_level_unit = max(1, min(2, units[0] - 1))
        else:
            self.conv1 = ConvNorm(3, width, kernel=7, stride=2, rngs=rngs, **norm)
        channels_in = 2 * width if layout == "beta" else width
        schedule = beta_schedule if layout == "beta" else torch_schedule
        for block, entries in enumerate(schedule(units, output_stride, multi_grid)):
            bottleneck = width * 2**block
            setattr(self, f"block{block + 1}", Block(channels_in, bottleneck, entries, rngs=rngs, **norm))
            channels_in = 4 * bottleneck
        self.layout = layout
        self.blocks = len(units)
        self.remat = remat

    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        if self.layout == "beta":
            x = self.conv1_1(x, train=train)
            x = self.conv1_3(self.conv1_2(x, train=train), train=train)
        else:
            x = self.conv1(x, train=train)
        x = max_pool(x)
        features = {}
        for block in range(1, self.blocks + 1):
            x, residuals = call_block(getattr(self, f"block{block}"), x, train=train, remat=self.remat)
            features[f"conv{block + 1}"] = x
            if block == 1:
                features["low_level"] = residuals[self.low_level_unit - 1] if self.layout == "beta" else x
        return features
