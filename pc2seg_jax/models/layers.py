"""The building blocks every network here is made of: convolution, grouped batch normalisation, initialisers."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from pc2seg_jax.types import Tree


class Distribution(NamedTuple):
    """Initial values of a kernel: `scale` times a uniform number in -1..1 or a unit normal cut at two deviations.

    TensorFlow does not re-normalise after cutting, so the resulting deviation is 0.88 * scale.
    """

    truncated: bool
    scale: float


def truncated(deviation: float) -> Callable[[int, int], Distribution]:
    """Normal of the given deviation, cut at two deviations, whatever the fan of the kernel."""
    return lambda fan_in, fan_out: Distribution(True, deviation)


def he_truncated(fan_in: int, fan_out: int) -> Distribution:
    """TF-slim's He initialiser: normal of deviation sqrt(1.3 * 2 / fan_in), cut at two deviations."""
    return Distribution(True, math.sqrt(2.6 / fan_in))


def glorot_uniform(fan_in: int, fan_out: int) -> Distribution:
    """Uniform in +-sqrt(6 / (fan_in + fan_out))."""
    return Distribution(False, math.sqrt(6.0 / (fan_in + fan_out)))


def initial_state(module: nnx.Module, key: jax.Array) -> tuple[Tree, Tree]:
    """Parameters and statistics of a freshly built module, kernels drawn from their `Distribution`.

    All kernels are slices of one draw, because a generator per kernel takes minutes to compile for a deep network.

    Args:
      module: its kernels carry a `distribution` in their metadata and their values are ignored.
      key: PRNG key.

    Returns:
      (params, batch_stats), plain nested dicts of float32 arrays.
    """
    _, params, batch_stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    kernels = [variable for _, variable in nnx.to_flat_state(params) if variable.get_metadata().get("distribution")]
    uniform = jax.random.uniform(key, (sum(kernel.size for kernel in kernels),), jnp.float32, -1.0, 1.0)
    # Inverse of the distribution function of a normal restricted to -2..2.
    normal = jnp.clip(math.sqrt(2.0) * jax.lax.erf_inv(uniform * math.erf(math.sqrt(2.0))), -2.0, 2.0)
    start = 0
    for kernel in kernels:
        distribution = kernel.get_metadata()["distribution"]
        numbers = jax.lax.slice_in_dim(normal if distribution.truncated else uniform, start, start + kernel.size)
        start += kernel.size
        kernel.set_value(distribution.scale * numbers.reshape(kernel.shape))
    return nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def place_strides(nominal: list[tuple[int, int]], *, start: int, output_stride: int) -> list[tuple[int, int]]:
    """Stride and dilation of every unit of a backbone that stops shrinking at `output_stride`.

    Walking through the units: once the output stride is reached, a unit runs with stride 1 and dilation rate * factor,
    and afterwards the rate is multiplied by the unit's nominal stride; before, it runs as it is, with dilation factor.

    Args:
      nominal: (stride, multi-grid factor) of every unit. start: the stride before the first unit.

    Returns:
      (stride, dilation) of every unit.

    Source: DeepLab, `stack_blocks_dense`.
    """
    current, rate, placed = start, 1, []
    for stride, factor in nominal:
        if current == output_stride:
            placed.append((1, rate * factor))
            rate *= stride
        else:
            placed.append((stride, factor))
            current *= stride
    return placed


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 max-pool of stride 2 with a border of -infinity: [B, h, w, F] -> [B, ceil(h/2), ceil(w/2), F].

    Written as maxima of strided slices because XLA scatters the gradient of a window reduction element by element on
    CPU: measured 30 times slower than this form, as much as the rest of a narrow network.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        padding = [(0, 0)] * 4
        padding[axis] = (1, 1)
        padded = jnp.pad(x, padding, constant_values=-jnp.inf)
        first, second, third = (jax.lax.slice_in_dim(padded, i, i + size, 2, axis) for i in range(3))
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x


def shifted_depthwise(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: tuple, dilation: tuple[int, int]
) -> jax.Array:
    """Depthwise convolution as a sum of shifted products: [B, h, w, F] by [kh, kw, 1, F].

    In float32 whatever the inputs, as the gradient of a kernel is a sum over all pixels: in bfloat16 it would be wrong
    by tens of percents. The casts are fused into the products and the sums.
    """
    dtype, kernel = x.dtype, kernel.astype(jnp.float32)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0))).astype(jnp.float32)
    height, width = (x.shape[1 + axis] - dilation[axis] * (kernel.shape[axis] - 1) for axis in range(2))
    total = 0.0
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            top, left = i * dilation[0], j * dilation[1]
            # Not x[:, a:b:c]: with the symbolic sizes of an export, indexing would become a gather.
            end = x.shape[0], top + height, left + width, x.shape[3]
            total += jax.lax.slice(x, (0, top, left, 0), end, (1, *strides, 1)) * kernel[i, j, 0]
    return total.astype(dtype)


def depthwise_convolution(
    lhs: jax.Array, rhs: jax.Array, strides: tuple, padding: tuple, *, rhs_dilation: tuple, **options: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated` for depthwise kernels, arguments as there.

    XLA's grouped convolution is 5 to 10 times slower on CPU, gradient included, than the sum of shifted products, and
    on GPU it is a library call whose gradient has no fast algorithm for thousands of groups, where the sum is bound by
    memory alone. The platform is known when the program is lowered, so TPUs keep the convolution.
    """
    return jax.lax.platform_dependent(
        lhs,
        rhs,
        tpu=lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, strides, padding, rhs_dilation=rhs_dilation, **options
        ),
        default=lambda x, kernel: shifted_depthwise(x, kernel, strides, padding, rhs_dilation),
    )


def call_block(block: nnx.Module, x: jax.Array, *, train: bool, remat: bool) -> Any:
    """block(x), and with `remat` only the input is kept for the backward pass."""
    call = lambda block, x: block(x, train=train)  # noqa: E731
    return (nnx.remat(call) if remat and train else call)(block, x)


class GroupedBatchNorm(nnx.Module):
    """Batch normalisation inside groups of consecutive images, statistics always in float32.

    Training: the batch [B] is G = B / group_size consecutive groups and every group is normalised by its own biased
    mean and variance over (group, H, W), y = (x - mean) / sqrt(var + epsilon) * scale + bias. Afterwards the
    statistics variables hold the moments of the groups, mean [G, C] and *unbiased* variance [G, C], instead of running
    averages; the caller reads them out. Evaluation: running statistics.

    Groups stand for the replicas of the original training, which never shared statistics. A group that lives on one
    device needs no communication.
    """

    def __init__(self, channels: int, *, epsilon: float, group_size: int | None, dtype: Any):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))
        self.epsilon = epsilon
        self.group_size = group_size
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not train:
            factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.epsilon)
            return ((x.astype(jnp.float32) - self.mean[...]) * factor + self.bias[...]).astype(self.dtype)
        batch, *_, channels = x.shape
        size = self.group_size or batch
        grouped = x.reshape(batch // size, size, *x.shape[1:]).astype(jnp.float32)
        axes = tuple(range(1, grouped.ndim - 1))
        # One pass over a map for both moments, as neither waits for the other, and one less in the gradient. E[x^2] -
        # E[x]^2 loses the digits in which the mean is large against the deviation: hence around the running mean, and
        # pooled features, which are few and much alike, around their own.
        pooled = x.shape[1] * x.shape[2] == 1
        centre = jax.lax.stop_gradient(jnp.mean(grouped, axes, keepdims=True) if pooled else self.mean[...])
        shifted = grouped - centre
        first = jnp.mean(shifted, axes, keepdims=True)
        second = jnp.mean(jnp.square(shifted), axes, keepdims=True)
        var = jnp.maximum(second - jnp.square(first), 0.0)
        y = (shifted - first) * (self.scale[...] * jax.lax.rsqrt(var + self.epsilon)) + self.bias[...]
        count = grouped.size // (grouped.shape[0] * channels)
        self.mean.set_value((centre + first).reshape(-1, channels))
        self.var.set_value(var.reshape(-1, channels) * (count / max(count - 1, 1)))
        return y.reshape(x.shape).astype(self.dtype)


class ConvNorm(nnx.Module):
    """Convolution without bias, grouped batch normalisation and, where asked for, ReLU.

    The padding is dilation * (kernel - 1) / 2 zeros on every side, also where the convolution is strided: sizes of the
    form s * k + 1 then keep their corners aligned, which TensorFlow's SAME would not.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        relu: bool = True,
        kernel_init: Callable[[int, int], Distribution] = he_truncated,
        epsilon: float,
        group_size: int | None,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        padding = dilation * (kernel - 1) // 2
        # A depthwise kernel sees one channel; its distributions do not depend on the fan.
        distribution = kernel_init(kernel * kernel * channels_in, kernel * kernel * channels)
        self.conv = nnx.Conv(
            channels_in,
            channels,
            kernel_size=(kernel, kernel),
            strides=stride,
            padding=((padding, padding), (padding, padding)),
            kernel_dilation=dilation,
            feature_group_count=channels_in if depthwise else 1,
            use_bias=False,
            dtype=dtype,
            param_dtype=jnp.float32,
            kernel_init=nnx.initializers.zeros_init(),
            kernel_metadata={"distribution": distribution},
            conv_general_dilated=depthwise_convolution if depthwise else jax.lax.conv_general_dilated,
            rngs=rngs,
        )
        self.bn = GroupedBatchNorm(channels, epsilon=epsilon, group_size=group_size, dtype=dtype)
        self.relu = relu

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.bn(self.conv(x), train=train)
        return jax.nn.relu(x) if self.relu else x


@jax.custom_vjp
def multiply_in_type_of(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel, [..., C] by [C, D] float32 -> [..., D] float32, multiplied in x's type and summed in float32.

    The gradient multiplies in x's type, too. Left to itself, it would widen x, the largest array here, in memory.
    """
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)


def _multiply_forward(x, kernel):
    return multiply_in_type_of(x, kernel), (x, kernel)


def _multiply_backward(kept, gradient):
    x, kernel = kept
    gradient = gradient.astype(x.dtype)
    of_x = jnp.matmul(gradient, kernel.astype(x.dtype).T)
    return of_x, jnp.einsum("...c,...d->cd", x, gradient, preferred_element_type=jnp.float32)


multiply_in_type_of.defvjp(_multiply_forward, _multiply_backward)


class Pointwise(nnx.Module):
    """1x1 convolution with bias and without normalisation, float32 out: logits and projections.

    Inputs of other types are not widened, see `multiply_in_type_of`.

    Args:
      channels_in, channels: sizes of the last axis before and after.
      kernel_init: distribution of the kernel, from its fans; the bias starts at 0.
      rngs: unused but required by Flax.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        *,
        kernel_init: Callable[[int, int], Distribution],
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            channels_in,
            channels,
            kernel_size=(1, 1),
            dtype=jnp.float32,
            kernel_init=nnx.initializers.zeros_init(),
            kernel_metadata={"distribution": kernel_init(channels_in, channels)},
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        if x.dtype == jnp.float32:
            return self.conv(x)
        return multiply_in_type_of(x, self.conv.kernel[...][0, 0]) + self.conv.bias[...]
