"""Layers alone: grouped normalisation, depthwise convolution, dropout, initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pc2seg_jax.models import create_model
from pc2seg_jax.models.deeplab_v3plus import Head
from pc2seg_jax.models.layers import (
    GroupedBatchNorm,
    Pointwise,
    depthwise_convolution,
    glorot_uniform,
    initial_state,
    shifted_depthwise,
)


def twin_moments(x, group_size):
    """Per group: mean, biased variance, unbiased variance, each [G, C], by a plain loop in float64."""
    groups = [x[start : start + group_size] for start in range(0, len(x), group_size)]
    mean, var, unbiased = [], [], []
    for group in groups:
        values = group.reshape(-1, x.shape[-1]).astype(np.float64)
        mean.append(values.mean(0))
        var.append(values.var(0))
        unbiased.append(values.var(0) * (len(values) / max(len(values) - 1, 1)))
    return np.stack(mean), np.stack(var), np.stack(unbiased)


@pytest.mark.parametrize(("size", "running_mean"), [((3, 5), [47.0, 52.0]), ((1, 1), [0.0, 0.0])])
@pytest.mark.parametrize("group_size", [1, 2, 4, None])
def test_training_normalisation_equals_twin(group_size, size, running_mean):
    """Maps where the running mean is near, and pooled features, whose normalisation does not need one."""
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(4, *size, 2)) * 3 + 50).astype(np.float32)  # large mean: E[x^2] - E[x]^2 would fail
    layer = GroupedBatchNorm(2, epsilon=1e-5, group_size=group_size, dtype=jnp.float32)
    layer.mean.set_value(jnp.asarray(running_mean))
    layer.scale.set_value(jnp.asarray([1.5, 0.5]))
    layer.bias.set_value(jnp.asarray([-1.0, 2.0]))
    y = layer(x, train=True)
    size = group_size or 4
    mean, var, unbiased = twin_moments(x, size)
    for image in range(4):
        g = image // size
        expected = (x[image] - mean[g]) / np.sqrt(var[g] + 1e-5) * np.array([1.5, 0.5]) + np.array([-1.0, 2.0])
        np.testing.assert_allclose(y[image], expected, rtol=0, atol=1e-4)
    assert layer.mean.shape == (4 // size, 2)
    np.testing.assert_allclose(layer.mean[...], mean, rtol=1e-6)
    np.testing.assert_allclose(layer.var[...], unbiased, rtol=1e-4)


def test_the_running_mean_changes_rounding_alone():
    """Where it is five deviations off, float32 is left with about 1e-5."""
    x = jnp.asarray(np.random.default_rng(1).normal(1.0, 2.0, (4, 9, 9, 3)), jnp.float32)
    weights = jnp.cos(jnp.arange(x.size).reshape(x.shape))

    def outputs(running_mean):
        def layer(x):
            layer = GroupedBatchNorm(3, epsilon=1e-5, group_size=2, dtype=jnp.float32)
            layer.mean.set_value(running_mean)
            return layer(x, train=True), layer.mean[...], layer.var[...]

        return *layer(x), jax.grad(lambda x: jnp.sum(weights * layer(x)[0]))(x)

    near, far = outputs(jnp.ones(3)), outputs(jnp.asarray([-9.0, 0.0, 11.0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), near, far)


def test_normalisation_of_one_value_per_channel_is_finite():
    layer = GroupedBatchNorm(2, epsilon=1e-5, group_size=1, dtype=jnp.float32)
    y = layer(jnp.ones((3, 1, 1, 2)), train=True)
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(layer.var[...], 0)


def test_evaluation_normalisation_equals_twin():
    layer = GroupedBatchNorm(2, epsilon=1e-3, group_size=3, dtype=jnp.float32)
    layer.scale.set_value(jnp.asarray([1.5, 0.5]))
    layer.mean.set_value(jnp.asarray([3.0, -1.0]))
    layer.var.set_value(jnp.asarray([4.0, 0.25]))
    x = np.random.default_rng(2).normal(size=(4, 3, 3, 2)).astype(np.float32)
    expected = (x - [3.0, -1.0]) / np.sqrt(np.array([4.0, 0.25]) + 1e-3) * [1.5, 0.5]
    np.testing.assert_allclose(layer(x, train=False), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dilation", "stride"), [(1, 1), (3, 1), (7, 1), (1, 2)])
def test_depthwise_sum_of_shifted_products_equals_convolution(dilation, stride):
    """The form used on CPU and the form used elsewhere, values and gradients; 7 reaches beyond the feature map."""
    rng = np.random.default_rng(dilation)
    x = rng.normal(size=(2, 5, 6, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 1, 3)).astype(np.float32)
    strides = (stride, stride)
    padding = ((dilation, dilation), (dilation, dilation))
    numbers = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    grouped = {"rhs_dilation": (dilation, dilation), "feature_group_count": 3, "dimension_numbers": numbers}
    forms = [
        lambda x, kernel: shifted_depthwise(x, kernel, strides, padding, (dilation, dilation)),
        lambda x, kernel: depthwise_convolution(x, kernel, strides, padding, **grouped),
        lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, strides, padding, **grouped),
    ]
    values = [form(x, kernel) for form in forms]
    gradients = [jax.grad(lambda *a, form=form: jnp.sum(form(*a) ** 2), argnums=(0, 1))(x, kernel) for form in forms]
    assert values[0].shape == (2, *(-(-side // stride) for side in x.shape[1:3]), 3)
    for value, gradient in zip(values[:2], gradients[:2], strict=True):
        np.testing.assert_allclose(value, values[2], rtol=0, atol=1e-5)
        for one, other in zip(gradient, gradients[2], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


def test_a_depthwise_kernel_has_its_gradient_in_bfloat16_too():
    """Within the rounding of the inputs, although it is a sum over 8 x 129 x 129 products."""
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.normal(size=(8, 129, 129, 4)) + 0.5, jnp.bfloat16) for _ in range(2))
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 4)), jnp.bfloat16)

    def total(x, kernel):
        y = shifted_depthwise(x, kernel, (1, 1), ((1, 1), (1, 1)), (1, 1))
        assert y.dtype == x.dtype
        return jnp.sum(y.astype(jnp.float32) * weights.astype(jnp.float32))

    exact = jax.grad(total, argnums=(0, 1))(x.astype(jnp.float32), kernel.astype(jnp.float32))
    for rough, expected in zip(jax.grad(total, argnums=(0, 1))(x, kernel), exact, strict=True):
        assert rough.dtype == jnp.bfloat16
        error = np.linalg.norm(rough.astype(np.float32) - expected) / np.linalg.norm(expected)
        assert error < 0.01


def test_dropout_zeroes_its_share_and_rescales_the_rest():
    """The decoder is replaced by a probe that returns what it is given."""
    rate, seen = 0.25, []

    class Probe(nnx.Module):
        def __call__(self, encoder, low_level, size, *, train):
            seen.append(encoder)
            return encoder

    norm = {"epsilon": 1e-5, "group_size": None, "dtype": jnp.float32}
    head = Head(
        4, 4, num_classes=3, head_width=32, low_level_width=4, rates=(1,), dropout_rate=rate, rngs=nnx.Rngs(0), **norm
    )
    head.concat_projection.bn.bias.set_value(jnp.ones((32,)))  # kernels of a bare head are 0: the encoder becomes 1
    head.decoder = Probe()
    outputs = head(jnp.ones((4, 9, 9, 4)), None, (9, 9), train=True, keys=jax.random.split(jax.random.key(0), 4))
    np.testing.assert_array_equal(outputs["encoder"], 1)
    dropped = np.asarray(seen[0])
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / (1 - rate))}
    assert (dropped == 0).mean() == pytest.approx(rate, abs=0.02)
    head(jnp.ones((4, 9, 9, 4)), None, (9, 9), train=False, keys=None)
    assert np.all(np.asarray(seen[1]) > 0)


def test_initial_values():
    init = jax.jit(
        create_model(
            backbone="resnet26_beta", num_classes=3, width=16, head_width=64, multi_grid=(1, 1), projection_dim=6
        ).init
    )
    params = jax.device_get(init(jax.random.key(1))[0])
    params = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name, leaf in params.items():
        if name.endswith("scale"):
            np.testing.assert_array_equal(leaf, 1)
        elif name.endswith("bias"):
            np.testing.assert_array_equal(leaf, 0)
    cut = 0.8796  # deviation of a unit normal cut at two deviations
    deviations = {
        "backbone/block4/unit1/conv2/conv/kernel": cut * np.sqrt(2.6 / (9 * 128)),
        "head/aspp1_depthwise/conv/kernel": cut * 0.33,
        "head/aspp1_pointwise/conv/kernel": cut * 0.06,
        "head/decoder/decoder_conv1_pointwise/conv/kernel": cut * 0.06,
        "head/logits/conv/kernel": cut * 0.01,
        "head/concat_projection/conv/kernel": np.sqrt(2 / (5 * 64 + 64)),
        "head/aspp0/conv/kernel": np.sqrt(2 / (512 + 64)),
        "projection/conv5/weak/conv/kernel": np.sqrt(2 / (512 + 6)),
    }
    for name, deviation in deviations.items():
        leaf = np.asarray(params[name])
        assert leaf.std() == pytest.approx(deviation, rel=4 / np.sqrt(leaf.size)), name
    aspp = np.asarray(params["head/aspp1_depthwise/conv/kernel"])
    assert 0.6 < np.abs(aspp).max() <= 0.66


def test_a_pointwise_layer_multiplies_in_the_type_of_its_input():
    """In bfloat16: kernel and incoming gradient rounded, sums and result float32, nothing else; in float32, exact."""
    module = Pointwise(48, 5, kernel_init=glorot_uniform, rngs=nnx.Rngs(0))
    params, _ = initial_state(module, jax.random.key(0))
    params["conv"]["bias"] = jnp.arange(5.0)
    graph, rng = nnx.graphdef(module), np.random.default_rng(0)
    x, slopes = rng.standard_normal((2, 3, 4, 48)), rng.standard_normal((2, 3, 4, 5)).astype(np.float32)

    def rounded(values):
        return np.asarray(jnp.asarray(values).astype(jnp.bfloat16).astype(jnp.float32), np.float64)

    kernel = np.asarray(params["conv"]["kernel"][0, 0])
    for dtype, cut in ((jnp.bfloat16, rounded), (jnp.float32, lambda values: np.asarray(values, np.float64))):
        given = jnp.asarray(x).astype(dtype)
        found, gradient = jax.vjp(lambda p, x: nnx.merge(graph, p)(x), params, given)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, cut(given) @ cut(kernel) + np.arange(5), rtol=1e-5, atol=1e-5)
        of_params, of_x = gradient(slopes)
        assert of_x.dtype == dtype
        assert of_params["conv"]["kernel"].dtype == jnp.float32
        expected = np.einsum("bhwc,bhwd->cd", cut(given), cut(slopes))
        np.testing.assert_allclose(of_params["conv"]["kernel"][0, 0], expected, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(of_params["conv"]["bias"], slopes.sum((0, 1, 2)), rtol=1e-5)
        # The gradient of a bfloat16 input is one, too: of 8 bits: half a unit in the last place is up to 2^-8.
        np.testing.assert_allclose(
            cut(of_x), cut(slopes) @ cut(kernel).T, rtol=2**-8 if cut is rounded else 1e-5, atol=1e-5
        )
