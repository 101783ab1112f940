"""The geometry and the recipes of the host against slow numpy twins, and the finished views at the paper's size."""

import numpy as np
import pytest
import twins
from hypothesis import given, settings
from hypothesis import strategies as st

from pc2seg_jax.data import augment
from pc2seg_jax.data.augment import AugmentParams, Draws
from pc2seg_jax.data.resampling import Window, resize_image, resize_label, round_to_bytes, scaled_size
from pc2seg_jax.ops.views import unlabeled_views

MEAN = (120.0, 110.5, 100.25)
IGNORE = 255


def example(height, width, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(rng.normal(0, 9, (height, width, 3)), axis=1) + rng.uniform(0, 255, 3)
    image = np.abs((smooth % 510) - 255).astype(np.uint8)  # waves of colour that reach black and white
    return image, rng.integers(0, classes, (height, width), dtype=np.uint8)


def fixed_draws(**values):
    return Draws(**{name: values.get(name, 0.0) for name in Draws._fields})


@pytest.mark.parametrize("scale", AugmentParams().scales)
@pytest.mark.parametrize("size", [(20, 31), (37, 14), (1, 1), (375, 500)])
def test_rescaling_matches_the_twins(size, scale):
    image, mask = example(*size)
    new = scaled_size(size, scale)
    assert new == tuple(max(1, int(side * scale)) for side in size)
    np.testing.assert_allclose(resize_image(image, new), twins.resize(image, *new), atol=5e-3)  # of 255 levels
    np.testing.assert_array_equal(resize_label(mask, new), twins.resize_label(mask, *new))
    if scale == 1:
        np.testing.assert_array_equal(resize_image(image, new), image)
        np.testing.assert_array_equal(resize_label(mask, new), mask)


def test_label_rescaling_rounds_halves_up():
    label = np.arange(4, dtype=np.uint8)[:, None]
    # 7 outputs of 4 inputs: 0, 0.5, 1, 1.5, 2, 2.5, 3
    np.testing.assert_array_equal(resize_label(label, (7, 1))[:, 0], [0, 1, 1, 2, 2, 3, 3])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_a_window_of_a_resized_image_is_that_part_of_the_whole(data):
    side = st.integers(1, 40)
    image, mask = example(data.draw(side), data.draw(side), seed=data.draw(st.integers(0, 3)))
    size = scaled_size(image.shape[:2], data.draw(st.sampled_from([*AugmentParams().scales, 0.3, 1.1, 3.0])))
    top, left = (data.draw(st.integers(0, side - 1)) for side in size)
    window = Window(top, left, data.draw(st.integers(top + 1, size[0])), data.draw(st.integers(left + 1, size[1])))
    part = np.s_[window.top : window.bottom, window.left : window.right]
    np.testing.assert_allclose(resize_image(image, size, window), twins.resize(image, *size)[part], atol=5e-3)
    np.testing.assert_array_equal(resize_label(mask, size, window), twins.resize_label(mask, *size)[part])


def test_rounding_is_to_the_nearest_byte():
    values = np.array([0.0, 0.0, 0.49, 0.51, 127.6, 254.6, 255.2], np.float32).reshape(1, -1, 1).repeat(3, 2)
    np.testing.assert_array_equal(round_to_bytes(values)[0, :, 0], [0, 0, 0, 1, 128, 255, 255])


@pytest.mark.parametrize("order", range(24))
def test_the_mean_of_contrast_is_that_of_the_whole_image_at_that_moment(order):
    image = example(23, 31, seed=order)[0]
    rng = np.random.default_rng(order)
    draws = fixed_draws(order=(order + 0.5) / 24, **dict(zip(Draws._fields[4:8], rng.random(4), strict=True)))
    found, amounts = augment.draw_colors(draws, AugmentParams())
    expected, expected_amounts = twins.colors(draws, AugmentParams())
    assert tuple(found) == expected
    np.testing.assert_allclose(amounts, expected_amounts, rtol=1e-6)
    mean = twins.jitter(image / 255, expected, expected_amounts)[1]
    np.testing.assert_allclose(augment.contrast_mean(image, found, amounts), mean, atol=2e-6)


def test_offsets_reach_both_ends():
    params = AugmentParams(crop_size=(10, 12), scales=(1.0,))
    almost = 1 - 2.0**-50
    first, last = (augment.make_geometry((15, 30), fixed_draws(row=u, column=u), params) for u in (0.0, almost))
    assert first.window == (0, 0, 10, 12)
    assert last.window == (5, 18, 15, 30)


def test_draws_are_uniform_independent_and_a_function_of_the_key():
    draws = np.array([augment.draw(0, 2, 1, i) for i in range(4000)])
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose(draws.mean(0), 0.5, atol=0.025)  # 5 standard errors
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(draws.shape[1]), atol=0.08)
    assert augment.draw(0, 2, 1, 5) == Draws(*draws[5])
    assert len({augment.draw(*key) for key in [(0, 2, 1, 5), (1, 2, 1, 5), (0, 3, 1, 5), (0, 2, 2, 5)]}) == 4


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    crop=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    cutout=st.integers(0, 30),
    key=st.integers(0, 2**31),
)
def test_labels_are_never_mixed_and_windows_are_exact(size, crop, cutout, key):
    """A constant image with the ids 7 and 9: whatever is neither is padding, and the window says where it is."""
    params = AugmentParams(crop_size=crop, cutout_size=cutout)
    mask = np.where(np.arange(size[1]) % 2, 7, 9)[None].repeat(size[0], 0).astype(np.uint8)
    image = np.full((*size, 3), 200, np.uint8)
    labeled = augment.augment_labeled(image, mask, (key,), params)
    unlabeled = augment.augment_unlabeled(image, mask, (key,), params)
    top, left, bottom, right = labeled.window
    real = np.zeros(crop, bool)
    real[top:bottom, left:right] = True
    scaled = scaled_size(size, params.scales[int(augment.draw(key).scale * 7)])
    assert (bottom - top, right - left) == tuple(np.minimum(scaled, crop))
    for crops in (labeled, unlabeled):
        np.testing.assert_array_equal(crops.window, labeled.window)
        assert set(np.unique(crops.label[real])) <= {7, 9}
        np.testing.assert_array_equal(crops.label[~real], 0)
        np.testing.assert_array_equal(crops.image[real], 200)
        np.testing.assert_array_equal(crops.image[~real], 0)
    square = np.zeros(crop, bool)
    square[unlabeled.cutout[0] : unlabeled.cutout[2], unlabeled.cutout[1] : unlabeled.cutout[3]] = True
    expected = twins.erased(augment.draw(key), crop, cutout)
    np.testing.assert_array_equal(square, expected[:, ::-1] if augment.draw(key).flip < 0.5 else expected)


def test_neither_input_is_changed():
    image, mask = example(20, 30)
    before = image.copy(), mask.copy()
    params = AugmentParams(crop_size=(17, 17), scales=(1.0,))
    augment.augment_labeled(image, mask, (0,), params)
    augment.augment_unlabeled(image, mask, (0,), params)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


@pytest.mark.parametrize("size", [(375, 500), (120, 90), (700, 530)])
def test_finished_views_at_513_match_the_twin(size):
    """Smaller and larger than the crop, with a key for every scale, either flip among them."""
    params, image_and_mask = AugmentParams(), example(*size)
    flips = set()
    for index, scale in enumerate(params.scales):
        key = next(k for k in range(1000) if int(augment.draw(k).scale * 7) == index)
        flips.add(augment.draw(key).flip < params.flip_probability)
        check_views(*image_and_mask, key, scale, params)
    assert flips == {True, False}


def check_views(image, mask, key, scale, params):
    draws, crop_size = augment.draw(key), params.crop_size
    new = int(image.shape[0] * scale), int(image.shape[1] * scale)
    exact = twins.resize(image, *new)
    scaled = np.clip(np.rint(exact), 0, 255)
    order, amounts = twins.colors(draws, params)
    mean = twins.jitter(scaled / 255, order, amounts)[1]
    label, real = twins.resize_label(mask, *new), np.ones(new, bool)
    exact, scaled, label, real = (twins.crop(x, draws, crop_size, 0) for x in (exact, scaled, label, real))
    valid = real & ~twins.erased(draws, crop_size, params.cutout_size)
    if draws.flip < params.flip_probability:
        exact, scaled, label, real, valid = (x[:, ::-1] for x in (exact, scaled, label, real, valid))

    labeled = augment.augment_labeled(image, mask, (key,), params)
    unlabeled = augment.augment_unlabeled(image, mask, (key,), params)
    clear = np.abs(exact % 1 - 0.5) > 0.02  # where float32 coordinates leave no doubt about the nearest byte
    assert clear.mean() > 0.9
    for crops in (labeled, unlabeled):
        np.testing.assert_array_equal(crops.image[clear], scaled[clear])
        assert np.abs(crops.image - scaled).max() <= 1
        np.testing.assert_array_equal(crops.label, label)

    views = unlabeled_views(type(unlabeled)(*(x[None] for x in unlabeled)), mean_pixel=MEAN, ignore_id=IGNORE)
    weak = np.where(real[..., None], unlabeled.image, MEAN)
    strong = 255 * twins.jitter(unlabeled.image / 255, order, amounts, mean)[0]
    np.testing.assert_array_equal(views.valid[0], valid)
    np.testing.assert_array_equal(views.label[0], np.where(valid, label, IGNORE))
    np.testing.assert_allclose(views.weak[0], weak, atol=1e-4)
    np.testing.assert_allclose(views.strong[0], np.where(valid[..., None], strong, MEAN), atol=5e-3)
