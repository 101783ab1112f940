"""Xception-65 of DeepLab: separable convolutions throughout, strides by convolution instead of pooling.

Source: the DeepLab-v3+ release (xception_65); Chollet 2017 for the modules.
"""

from typing import Any

import jax
from flax import nnx

from pc2seg_jax.models.layers import ConvNorm, call_block, place_strides, truncated

KERNEL_INIT = truncated(0.09)

# Per block: name, units, channels of the three separable convolutions in 64ths of the width, shortcut, nominal stride.
BLOCKS = (
    ("entry_flow_block1", 1, (128, 128, 128), "conv", 2),
    ("entry_flow_block2", 1, (256, 256, 256), "conv", 2),
    ("entry_flow_block3", 1, (728, 728, 728), "conv", 2),
    ("middle_flow_block1", 16, (728, 728, 728), "sum", 1),
    ("exit_flow_block1", 1, (728, 1024, 1024), "conv", 2),
    ("exit_flow_block2", 1, (1536, 1536, 2048), "none", 1),
)
FEATURES = {"conv3": "entry_flow_block3", "conv4": "exit_flow_block1", "conv5": "exit_flow_block2"}


def channels(published: int, width: int) -> int:
    """Channels of a layer in a network of another width than the published 64."""
    return max(1, published * width // 64)


class XceptionModule(nnx.Module):
    """Three separable convolutions, the stride in the last one, and a shortcut from the module's input.

    A separable convolution is 3x3 depthwise, normalised, then 1x1, normalised. With `relu_inside` both are followed by
    ReLU; otherwise ReLU is applied to the input of every separable convolution and nowhere else. The shortcut is a 1x1
    convolution with normalisation ("conv"), the input ("sum") or nothing ("none"). No ReLU follows the addition.

    Call returns (output, second separable convolution).
    """

    def __init__(
        self,
        channels_in: int,
        widths: tuple[int, int, int],
        *,
        shortcut: str,
        stride: int,
        dilations: tuple[int, int, int],
        relu_inside: bool,
        rngs: nnx.Rngs,
        **norm: Any,
    ):
        settings = {"relu": relu_inside, "kernel_init": KERNEL_INIT, "rngs": rngs, **norm}
        before = channels_in
        for i, (width, dilation) in enumerate(zip(widths, dilations, strict=True), start=1):
            depthwise = ConvNorm(
                before, before, kernel=3, stride=stride if i == 3 else 1, dilation=dilation, depthwise=True, **settings
            )
            setattr(self, f"separable_conv{i}_depthwise", depthwise)
            setattr(self, f"separable_conv{i}_pointwise", ConvNorm(before, width, **settings))
            before = width
        if shortcut == "conv":
            self.shortcut = ConvNorm(channels_in, before, stride=stride, **settings)
        self.shortcut_kind = shortcut
        self.relu_inside = relu_inside

    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        residual, second = x, x
        for i in (1, 2, 3):
            residual = residual if self.relu_inside else jax.nn.relu(residual)
            residual = getattr(self, f"separable_conv{i}_depthwise")(residual, train=train)
            residual = getattr(self, f"separable_conv{i}_pointwise")(residual, train=train)
            second = residual if i == 2 else second
        if self.shortcut_kind == "none":
            return residual, second
        return residual + (self.shortcut(x, train=train) if self.shortcut_kind == "conv" else x), second


class XceptionBlock(nnx.Module):
    """Equal modules one after the other; call returns the output and the second separable convolution of the last."""

    def __init__(
        self,
        channels_in: int,
        widths: tuple[int, int, int],
        placed: list[tuple[int, tuple[int, int, int]]],
        **rest: Any,
    ):
        self.units = len(placed)
        for unit, (stride, dilations) in enumerate(placed, start=1):
            module = XceptionModule(channels_in, widths, stride=stride, dilations=dilations, **rest)
            setattr(self, f"unit{unit}", module)
            channels_in = widths[-1]

    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        second = x
        for unit in range(1, self.units + 1):
            x, second = getattr(self, f"unit{unit}")(x, train=train)
        return x, second


class Xception(nnx.Module):
    """Two 3x3 convolutions (width / 2, width channels; strides 2, 1), entry, middle and exit flow.

    Args:
      width: 64 is the published network.
      output_stride: 8, 16 or 32.
      multi_grid: dilation factors of the three separable convolutions of the last module.
      remat: see `call_block`.
      norm: `epsilon`, `group_size` and `dtype` of every `ConvNorm`.
      rngs: unused but required by Flax.

    Call: images [B, H, W, 3], preprocessed -> dict of `low_level`, the second separable convolution of the second entry
    block [B, h4, w4, 4 * width], and `conv3`, `conv4`, `conv5`: outputs of the third entry block and of the two exit
    blocks (the paper's ExitFlow2 is `conv5`).
    """

    def __init__(
        self,
        *,
        width: int,
        output_stride: int,
        multi_grid: tuple[int, ...],
        remat: bool,
        rngs: nnx.Rngs,
        **norm: Any,
    ):
        settings = {"kernel_init": KERNEL_INIT, "rngs": rngs, **norm}
        self.conv1_1 = ConvNorm(3, channels(32, width), kernel=3, stride=2, **settings)
        self.conv1_2 = ConvNorm(channels(32, width), channels(64, width), kernel=3, **settings)
        nominal = [(stride, 1) for _, units, _, _, stride in BLOCKS for _ in range(units)]
        placed = iter(place_strides(nominal, start=2, output_stride=output_stride))
        before = channels(64, width)
        for name, units, widths, shortcut, _ in BLOCKS:
            last = name == BLOCKS[-1][0]
            factors = tuple(multi_grid) if last else (1, 1, 1)
            entries = [
                (stride, tuple(rate * factor for factor in factors))
                for stride, rate in (next(placed) for _ in range(units))
            ]
            widths = tuple(channels(w, width) for w in widths)
            block = XceptionBlock(before, widths, entries, shortcut=shortcut, relu_inside=last, rngs=rngs, **norm)
            setattr(self, name, block)
            before = widths[-1]
        self.remat = remat

    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        x = self.conv1_2(self.conv1_1(x, train=train), train=train)
        outputs, features = {}, {}
        for name, *_ in BLOCKS:
            x, second = call_block(getattr(self, name), x, train=train, remat=self.remat)
            outputs[name] = x
            if name == "entry_flow_block2":
                features["low_level"] = second
        return features | {feature: outputs[name] for feature, name in FEATURES.items()}
