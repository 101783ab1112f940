"""Colour, Cutout and padding on the device against slow twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from conftest import IGNORE

from pc2seg_jax.ops import color, views
from pc2seg_jax.types import COLOR_OPERATIONS

MEAN = (120.0, 110.5, 100.25)


def colors(seed=0, count=400):
    """Random colours in 0..1, and all corners, greys and edges of the cube."""
    rng = np.random.default_rng(seed)
    corners = np.array([[i, j, k] for i in (0, 0.5, 1) for j in (0, 0.5, 1) for k in (0, 0.5, 1)])
    return np.concatenate([rng.random((count, 3)), corners])[None]


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.5, 30.0])
def test_saturation_is_that_of_hsv(factor):
    x = colors()
    expected = twins.hsv_pixelwise(x, lambda h, s, v: (h, min(s * factor, 1.0), v))
    np.testing.assert_allclose(color.adjust_hsv(np.float32(x), factor, 0), expected, atol=1e-6)
    np.testing.assert_allclose(twins.saturate(x, factor), expected, atol=1e-12)


@pytest.mark.parametrize("turn", [-0.25, -0.1, 0.0, 1 / 6, 0.25, 0.9])
def test_hue_is_that_of_hsv(turn):
    x = colors()
    expected = twins.hsv_pixelwise(x, lambda h, s, v: ((h + turn) % 1.0, s, v))
    np.testing.assert_allclose(color.adjust_hsv(np.float32(x), 1, turn), expected, atol=2e-6)
    np.testing.assert_allclose(twins.turn_hue(x, turn), expected, atol=1e-9)


@pytest.mark.parametrize("place", range(4))
def test_jitter_takes_the_operations_in_their_order(place):
    order = np.roll(np.arange(4), place).astype(np.int32)
    amounts, mean = np.array([0.3, 1.4, 0.6, -0.2], np.float32), np.array([0.2, 0.5, 0.9])
    x = colors(place)
    expected = twins.jitter(x, order, amounts, mean)[0]
    np.testing.assert_allclose(color.jitter(np.float32(x), order, amounts, np.float32(mean)), expected, atol=3e-6)
    other = twins.jitter(x, order[::-1], amounts, mean)[0]
    assert np.abs(expected - other).max() > 0.1


def test_neutral_amounts_change_nothing():
    x = np.float32(colors())
    neutral = np.array([0, 1, 1, 0], np.float32)
    found = color.jitter(x, np.arange(len(COLOR_OPERATIONS), dtype=np.int32), neutral, np.full(3, 0.4, np.float32))
    np.testing.assert_allclose(found, x, atol=1e-6)  # float32, there and back


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("joined", [False, True])
def test_colours_do_not_depend_on_what_the_compiler_fuses_them_with(tiny_config, make_crops, joined, dtype):
    """Alone, and as the network reads them: operations that are computed more than once may round in other ways."""
    crops = make_crops(tiny_config())

    def network_input(crops, strong):
        images = [strong, jnp.asarray(crops.labeled.image, jnp.float32)] if joined else [strong]
        return (jnp.concatenate(images) / 127.5 - 1).astype(dtype)

    def strong(crops):
        return views.make_views(crops, mean_pixel=MEAN, ignore_id=IGNORE).unlabeled.strong

    with jax.disable_jit():
        expected = network_input(crops, strong(jax.tree.map(jnp.asarray, crops)))
    found = jax.jit(lambda crops: network_input(crops, strong(crops)))(crops)
    atol = {"float32": 1e-5, "bfloat16": 2**-8}[dtype]
    np.testing.assert_allclose(np.float32(found), np.float32(expected), rtol=0, atol=atol)


def test_rectangles():
    windows = np.array([[0, 0, 5, 7], [1, 2, 3, 4], [2, 3, 2, 5], [0, 6, 5, 7]], np.int32)
    expected = np.zeros((4, 5, 7), bool)
    for n, (top, left, bottom, right) in enumerate(windows):
        expected[n, top:bottom, left:right] = True
    np.testing.assert_array_equal(views.inside(windows, (5, 7)), expected)


@pytest.mark.parametrize("with_labels", [True, False])
def test_padding_and_cutout(tiny_config, make_crops, with_labels):
    crops = make_crops(tiny_config(), with_labels=with_labels)
    batch = jax.jit(lambda crops: views.make_views(crops, mean_pixel=MEAN, ignore_id=IGNORE))(crops)
    real = np.asarray(views.inside(crops.labeled.window, (33, 33)))
    assert not real.all()
    np.testing.assert_array_equal(batch.labeled.image, np.where(real[..., None], crops.labeled.image, np.float32(MEAN)))
    np.testing.assert_array_equal(batch.labeled.label, np.where(real, crops.labeled.label, IGNORE))

    real = np.asarray(views.inside(crops.unlabeled.window, (33, 33)))
    valid = real & ~np.asarray(views.inside(crops.unlabeled.cutout, (33, 33)))
    assert 0 < valid.sum() < real.sum() < real.size
    np.testing.assert_array_equal(batch.unlabeled.valid, valid)
    np.testing.assert_array_equal(batch.unlabeled.weak[real], crops.unlabeled.image[real])
    np.testing.assert_array_equal(batch.unlabeled.weak[~real], np.broadcast_to(np.float32(MEAN), ((~real).sum(), 3)))
    np.testing.assert_array_equal(
        batch.unlabeled.strong[~valid], np.broadcast_to(np.float32(MEAN), ((~valid).sum(), 3))
    )
    assert np.abs(batch.unlabeled.strong - batch.unlabeled.weak)[valid].mean() > 5
    if with_labels:
        np.testing.assert_array_equal(batch.unlabeled.label, np.where(valid, crops.unlabeled.label, IGNORE))
    else:
        assert batch.unlabeled.label is None


def test_supervised_batches_have_no_unlabelled_views(tiny_config, make_crops):
    crops = make_crops(tiny_config())._replace(unlabeled=None)
    assert views.make_views(crops, mean_pixel=MEAN, ignore_id=IGNORE).unlabeled is None
