"""Every augmentation step against a slow numpy twin, and the whole against their composition."""

import colorsys
import itertools
from math import floor

import numpy as np
import pytest
import tensorflow as tf

from pc2seg_jax.data import augment
from pc2seg_jax.data.augment import AugmentParams, Draws

SMALL = AugmentParams(crop_size=(33, 33), cutout_size=10, mean_pixel=(120.0, 110.5, 100.25))
PLAIN = SMALL._replace(brightness=0, contrast=0, saturation=0, hue=0, cutout_size=0)


def example(height, width, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, rng.integers(0, classes, (height, width), dtype=np.int32)


def draws_of(seed):
    return Draws(*(x.numpy() for x in augment.draw(tf.constant(seed, tf.int64))))


def fixed_draws(**values):
    return Draws(**{name: tf.constant(values.get(name, 0.0), tf.float32) for name in Draws._fields})


def twin_resize(image, out_h, out_w):
    """Triangle filter with half-pixel centres, widened by in / out when shrinking."""

    def weights(size_in, size_out):
        ratio = size_in / size_out
        matrix = np.zeros((size_out, size_in))
        for i in range(size_out):
            centre = (i + 0.5) * ratio - 0.5
            for j in range(size_in):
                matrix[i, j] = max(0.0, 1 - abs(j - centre) / max(ratio, 1.0))
        return matrix / matrix.sum(1, keepdims=True)

    rows, columns = weights(image.shape[0], out_h), weights(image.shape[1], out_w)
    return np.einsum("Hh,Ww,hwc->HWc", rows, columns, image.astype(np.float64))


def twin_resize_label(label, out_h, out_w):
    def source(i, size_in, size_out):
        return 0 if size_out == 1 else floor((2 * i * (size_in - 1) + (size_out - 1)) / (2 * (size_out - 1)))

    h, w = label.shape
    return np.array([[label[source(i, h, out_h), source(j, w, out_w)] for j in range(out_w)] for i in range(out_h)])


def twin_hsv(image, change):
    pixels = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in image.reshape(-1, 3)]
    return np.array(pixels).reshape(image.shape)


def twin_jitter(image, draws, params):
    def amount(uniform, strength):
        return (2 * float(uniform) - 1) * strength

    delta, turn = amount(draws.brightness, params.brightness), amount(draws.hue, params.hue)
    contrast = 1 + amount(draws.contrast, params.contrast)
    saturation = 1 + amount(draws.saturation, params.saturation)
    operations = [
        lambda x: x + delta,
        lambda x: (x - x.mean((0, 1))) * contrast + x.mean((0, 1)),
        lambda x: twin_hsv(x, lambda h, s, v: (h, min(s * saturation, 1.0), v)),
        lambda x: twin_hsv(x, lambda h, s, v: ((h + turn) % 1.0, s, v)),
    ]
    x = image / 255
    for operation in list(itertools.permutations(operations))[int(draws.order * 24)]:
        x = np.clip(operation(x), 0, 1)
    return x * 255


def twin_crop(x, draws, size, fill):
    out = np.empty((*size, *x.shape[2:]))
    out[:] = fill
    row = int(draws.row * (max(x.shape[0] - size[0], 0) + 1))
    column = int(draws.column * (max(x.shape[1] - size[1], 0) + 1))
    part = x[row : row + size[0], column : column + size[1]]
    out[: part.shape[0], : part.shape[1]] = part
    return out


def twin_cutout(x, draws, side, fill):
    x = x.copy()
    row, column = int(draws.cutout_row * x.shape[0]), int(draws.cutout_column * x.shape[1])
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            if row - side // 2 <= i < row + side // 2 and column - side // 2 <= j < column + side // 2:
                x[i, j] = fill
    return x


def twin_augment(image, mask, seed, params):
    draws = draws_of(seed)
    scale = params.scales[int(draws.scale * len(params.scales))]
    size = int(image.shape[0] * scale), int(image.shape[1] * scale)
    scaled, label = twin_resize(image, *size), twin_resize_label(mask, *size)
    weak = twin_crop(scaled, draws, params.crop_size, params.mean_pixel)
    strong = twin_crop(twin_jitter(scaled, draws, params), draws, params.crop_size, params.mean_pixel)
    valid = twin_crop(np.ones(size), draws, params.crop_size, 0)
    label = twin_crop(label, draws, params.crop_size, params.ignore_id)
    fills = (params.mean_pixel, 0, params.ignore_id)
    erased = [twin_cutout(x, draws, params.cutout_size, f) for x, f in zip((strong, valid, label), fills, strict=True)]
    results = (weak, label, *erased)
    return [x[:, ::-1] if draws.flip < params.flip_probability else x for x in results]


@pytest.mark.parametrize("scale", AugmentParams().scales)
@pytest.mark.parametrize("size", [(20, 31), (37, 14)])
def test_rescaling_matches_the_twins(size, scale):
    image, mask = example(*size)
    expected_size = int(size[0] * scale), int(size[1] * scale)
    image_out = augment.rescale_image(tf.constant(image), tf.constant(scale)).numpy()
    mask_out = augment.rescale_label(tf.constant(mask), tf.constant(scale)).numpy()
    np.testing.assert_allclose(image_out, twin_resize(image, *expected_size), atol=1e-3)
    np.testing.assert_array_equal(mask_out, twin_resize_label(mask, *expected_size))
    if scale == 1:
        np.testing.assert_array_equal(image_out, image)
        np.testing.assert_array_equal(mask_out, mask)


def test_label_rescaling_rounds_halves_up():
    label = tf.constant(np.arange(4, dtype=np.int32)[:, None])
    # 7 outputs of 4 inputs: 0, 0.5, 1, 1.5, 2, 2.5, 3
    out = augment.rescale_label(label, tf.constant(1.75))
    np.testing.assert_array_equal(out[:, 0], [0, 1, 1, 2, 2, 3, 3])


@pytest.mark.parametrize("order", range(24))
def test_jitter_matches_the_twin_in_every_order(order):
    image = example(7, 9, seed=order)[0].astype(np.float32)
    rng = np.random.default_rng(order)
    values = {name: float(rng.random(dtype=np.float32)) for name in ("brightness", "contrast", "saturation", "hue")}
    draws = fixed_draws(**values, order=(order + 0.5) / 24)
    out = augment.jitter(tf.constant(image), draws, SMALL).numpy()
    np.testing.assert_allclose(out, twin_jitter(image, Draws(*(x.numpy() for x in draws)), SMALL), atol=5e-3)
    assert out.min() >= 0
    assert out.max() <= 255


@pytest.mark.parametrize("size", [(20, 25), (33, 33), (50, 47), (20, 47), (47, 20)])
def test_crop_and_pad_matches_the_twin(size):
    image, mask = example(*size)
    for row, column in [(0.0, 0.0), (0.5, 0.3), (0.999, 0.999)]:
        draws = fixed_draws(row=row, column=column)
        out = augment.crop_and_pad(tf.constant(image, tf.float32), draws, (33, 33), SMALL.mean_pixel)
        np.testing.assert_array_equal(out, twin_crop(image, draws, (33, 33), SMALL.mean_pixel))
        out = augment.crop_and_pad(tf.constant(mask), draws, (33, 33), 255)
        np.testing.assert_array_equal(out, twin_crop(mask, draws, (33, 33), 255))


@pytest.mark.parametrize("centre", [(0.0, 0.0), (0.5, 0.2), (0.99, 0.999)])
@pytest.mark.parametrize("side", [10, 100])
def test_cutout_matches_the_twin_also_over_the_border(centre, side):
    image = example(33, 29)[0].astype(np.float32)
    draws = fixed_draws(cutout_row=centre[0], cutout_column=centre[1])
    out = augment.cutout(tf.constant(image), draws, side, SMALL.mean_pixel)
    np.testing.assert_array_equal(out, twin_cutout(image, draws, side, SMALL.mean_pixel))


@pytest.mark.parametrize("shape", [(25, 30), (70, 61)])
@pytest.mark.parametrize("seed", range(6))
def test_the_whole_matches_the_composition_of_the_twins(shape, seed):
    image, mask = example(*shape, seed=seed)
    weak, weak_label, strong, valid, label = twin_augment(image, mask, [3, seed], SMALL)
    out = augment.augment_unlabeled(tf.constant(image), tf.constant(mask), tf.constant([3, seed]), SMALL)
    np.testing.assert_allclose(out[0], weak, atol=1e-3)
    np.testing.assert_allclose(out[1], strong, atol=5e-3)
    np.testing.assert_array_equal(out[2], valid)
    np.testing.assert_array_equal(out[3], label)
    image_out, label_out = augment.augment_labeled(tf.constant(image), tf.constant(mask), tf.constant([3, seed]), SMALL)
    np.testing.assert_allclose(image_out, weak, atol=1e-3)
    np.testing.assert_array_equal(label_out, weak_label)


def test_the_whole_at_the_size_of_the_demo():
    image, mask = example(97, 97)
    params = SMALL._replace(crop_size=(97, 97), cutout_size=20)
    out = augment.augment_unlabeled(tf.constant(image), tf.constant(mask), tf.constant([0, 1]), params)
    assert [x.shape.as_list() for x in out] == [[97, 97, 3], [97, 97, 3], [97, 97], [97, 97]]
    assert [x.dtype for x in out] == [tf.float32, tf.float32, tf.uint8, tf.int32]
    _, _, strong, valid, label = twin_augment(image, mask, [0, 1], params)
    np.testing.assert_allclose(out[1], strong, atol=5e-3)
    np.testing.assert_array_equal(out[2], valid)
    np.testing.assert_array_equal(out[3], label)


@pytest.mark.parametrize("seed", range(8))
def test_views_are_equal_without_jitter_and_cutout(seed):
    image, mask = example(40, 28, seed=seed)
    weak, strong, _, _ = augment.augment_unlabeled(image, mask, tf.constant([seed, 0]), PLAIN)
    np.testing.assert_array_equal(weak, strong)


@pytest.mark.parametrize("seed", range(8))
def test_views_differ_only_under_cutout_without_jitter(seed):
    image, _ = example(40, 40, seed=seed)
    params = PLAIN._replace(cutout_size=12, scales=(1.0, 2.0))
    weak, strong, valid, label = augment.augment_unlabeled(image, None, tf.constant([seed, 0]), params)
    kept = valid.numpy() == 1
    np.testing.assert_array_equal(weak.numpy()[kept], strong.numpy()[kept])
    np.testing.assert_array_equal(strong.numpy()[~kept], np.broadcast_to(SMALL.mean_pixel, ((~kept).sum(), 3)))
    assert 0 < (~kept).sum() <= 12 * 12
    assert label is None


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize(("size", "scale"), [((20, 60), 1.0), ((20, 30), 0.75), ((30, 12), 1.5), ((40, 40), 2.0)])
def test_valid_marks_exactly_the_pixels_of_the_scaled_image(size, scale, flip):
    image, mask = example(*size)
    params = PLAIN._replace(scales=(scale,), flip_probability=flip)
    _, _, valid, label = augment.augment_unlabeled(image, mask, tf.constant([1, 2]), params)
    expected = np.zeros((33, 33), np.uint8)
    expected[: int(size[0] * scale), : int(size[1] * scale)] = 1
    np.testing.assert_array_equal(valid, expected[:, ::-1] if flip else expected)
    np.testing.assert_array_equal(label.numpy() == 255, valid.numpy() == 0)


@pytest.mark.parametrize("seed", range(8))
def test_labels_are_never_mixed(seed):
    image, _ = example(29, 41, seed=seed)
    mask = np.random.default_rng(seed).choice(np.array([0, 7, 19, 255], np.int32), (29, 41))
    _, label = augment.augment_labeled(image, mask, tf.constant([seed, 5]), SMALL)
    assert set(np.unique(label)) <= {0, 7, 19, 255}
    _, _, _, label = augment.augment_unlabeled(image, mask, tf.constant([seed, 5]), SMALL)
    assert set(np.unique(label)) <= {0, 7, 19, 255}


def test_the_result_is_a_pure_function_of_the_seed():
    image, mask = example(40, 40)
    first = augment.augment_unlabeled(image, mask, tf.constant([1, 2]), SMALL)
    again = augment.augment_unlabeled(image, mask, tf.constant([1, 2], tf.int64), SMALL)
    other = augment.augment_unlabeled(image, mask, tf.constant([1, 3]), SMALL)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first[1].numpy() != other[1].numpy()).any()


def test_draws_are_uniform_and_independent():
    seeds = tf.data.Dataset.counter().map(lambda k: tf.stack(augment.draw(tf.stack([0, k]))))
    draws = next(seeds.batch(2000).as_numpy_iterator())
    assert draws.shape == (2000, len(Draws._fields))
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose(draws.mean(0), 0.5, atol=4 * np.sqrt(1 / 12 / 2000))
    correlation = np.corrcoef(draws.T) - np.eye(len(Draws._fields))
    assert np.abs(correlation).max() < 4.5 / np.sqrt(2000)
    orders = np.bincount(augment.below(tf.constant(draws[:, Draws._fields.index("order")]), 24), minlength=24)
    assert orders.min() > 83 - 5 * 9
    assert orders.max() < 83 + 5 * 9


def test_pad_to_keeps_the_image_and_ignores_the_padding():
    image, mask = example(20, 31)
    padded, label = augment.pad_to(tf.constant(image), tf.constant(mask), (33, 49), SMALL.mean_pixel, 255)
    np.testing.assert_array_equal(padded[:20, :31], image)
    np.testing.assert_array_equal(padded[20:], np.broadcast_to(SMALL.mean_pixel, (13, 49, 3)))
    np.testing.assert_array_equal(label[:20, :31], mask)
    assert (label.numpy()[:, 31:] == 255).all()
    assert padded.dtype == tf.float32
