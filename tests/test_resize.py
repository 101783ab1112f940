"""Corner-aligned resizing against slow twins."""

import jax.numpy as jnp
import numpy as np
import pytest

from pc2seg_jax.resize import (
    interpolation_matrix,
    resize_bilinear,
    subsample_nearest,
    symbolic_interpolation_matrix,
)


def twin_bilinear(x, size):
    """One output pixel at a time, from its four neighbours."""
    batch, height, width, channels = x.shape
    y = np.zeros((batch, *size, channels))
    for i in range(size[0]):
        for j in range(size[1]):
            row = i * (height - 1) / (size[0] - 1) if size[0] > 1 else 0.0
            column = j * (width - 1) / (size[1] - 1) if size[1] > 1 else 0.0
            top, left = int(row), int(column)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            a, b = row - top, column - left
            upper = (1 - b) * x[:, top, left] + b * x[:, top, right]
            lower = (1 - b) * x[:, bottom, left] + b * x[:, bottom, right]
            y[:, i, j] = (1 - a) * upper + a * lower
    return y


@pytest.mark.parametrize(
    ("source", "target"),
    [((3, 5), (9, 17)), ((9, 17), (3, 5)), ((5, 4), (7, 11)), ((1, 1), (4, 3)), ((1, 3), (2, 9)), ((4, 4), (1, 1))],
)
def test_bilinear_equals_twin(source, target):
    x = np.random.default_rng(0).normal(size=(2, *source, 3)).astype(np.float32)
    y = resize_bilinear(jnp.asarray(x), target)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, twin_bilinear(x, target), rtol=0, atol=1e-5)


def test_weights_from_33_to_129_are_quarters():
    matrix = interpolation_matrix(33, 129)
    assert matrix.shape == (129, 33)
    np.testing.assert_array_equal(matrix * 4, np.round(matrix * 4))
    np.testing.assert_array_equal(matrix.sum(1), 1)
    assert ((matrix > 0).sum(1) <= 2).all()
    np.testing.assert_array_equal(matrix[5, :3], [0, 0.75, 0.25])


@pytest.mark.parametrize(
    ("size_in", "size_out"),
    [(1, 1), (1, 5), (5, 1), (2, 2), (33, 129), (129, 33), (60, 241), (401, 1601), (1376, 5501)],
)
def test_weights_of_sizes_that_are_known_at_run_time_are_the_same(size_in, size_out):
    matrix = symbolic_interpolation_matrix(size_in, size_out)
    np.testing.assert_allclose(matrix, interpolation_matrix(size_in, size_out), rtol=0, atol=2e-7)


def test_reduction_129_to_33_is_plain_striding():
    x = np.random.default_rng(1).normal(size=(1, 129, 129, 2)).astype(np.float32)
    np.testing.assert_array_equal(resize_bilinear(jnp.asarray(x), (33, 33)), x[:, ::4, ::4])


def test_corners_keep_their_values_and_the_same_size_is_untouched():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 6, 7, 2)).astype(np.float32))
    y = resize_bilinear(x, (15, 10))
    np.testing.assert_allclose(y[:, [0, 0, -1, -1], [0, -1, 0, -1]], x[:, [0, 0, -1, -1], [0, -1, 0, -1]], rtol=1e-6)
    assert resize_bilinear(x, (6, 7)) is x


def test_bilinear_keeps_its_type():
    assert resize_bilinear(jnp.ones((1, 3, 3, 1), jnp.bfloat16), (5, 5)).dtype == jnp.bfloat16


def twin_nearest(x, size):
    index = [
        [int(np.floor(i * (n - 1) / (m - 1) + 0.5)) if m > 1 else 0 for i in range(m)]
        for n, m in zip(x.shape[1:], size, strict=True)
    ]
    y = np.zeros((len(x), *size), x.dtype)
    for i, row in enumerate(index[0]):
        for j, column in enumerate(index[1]):
            y[:, i, j] = x[:, row, column]
    return y


@pytest.mark.parametrize(
    ("source", "target"), [((65, 33), (5, 3)), ((10, 7), (4, 3)), ((8, 6), (3, 6)), ((5, 5), (1, 1))]
)
def test_nearest_equals_twin(source, target):
    x = np.arange(2 * source[0] * source[1]).reshape(2, *source).astype(np.int32)
    y = subsample_nearest(jnp.asarray(x), target)
    assert y.dtype == jnp.int32
    np.testing.assert_array_equal(y, twin_nearest(x, target))


@pytest.mark.parametrize(("source", "target", "stride"), [(513, 129, 4), (129, 33, 4), (513, 33, 16), (769, 49, 16)])
def test_nearest_indices_between_network_sizes_are_a_stride(source, target, stride):
    """Unlike legacy nearest, whose 513 -> 129 starts 0, 3, 7, 11, 15."""
    x = jnp.arange(source)[None, :, None] * jnp.ones((1, 1, source), jnp.int32)
    y = subsample_nearest(x, (target, target))
    np.testing.assert_array_equal(y[0, :, 0], np.arange(target) * stride)


def test_nearest_rounds_halves_up():
    x = jnp.arange(4)[None, :, None] * jnp.ones((1, 1, 4), jnp.int32)
    np.testing.assert_array_equal(subsample_nearest(x, (3, 3))[0, :, 0], [0, 2, 3])
