"""What probabilities are averaged over: scales, mirror images, windows; each against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pc2seg_jax import inference, prediction, restoring
from pc2seg_jax.errors import UserError
from pc2seg_jax.inference import InferenceViews
from pc2seg_jax.resize import resize_bilinear


@pytest.fixture(scope="module")
def run(tiny_run, make_parts):
    return restoring.restore(tiny_run.workdir, "latest", make_parts(tiny_run.config).shardings)


def noise(size, count=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3)).astype(np.float32)


def of_pixels(params, batch_stats, images):
    """A network that sees a pixel at a time: windows must not change it."""
    del batch_stats
    return jax.nn.softmax(images @ params)


PIXELWISE = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32) / 100


def test_the_mirror_average_is_that_of_its_definition(run):
    images = noise((49, 65), 2)
    predict = jax.jit(inference.make_probabilities(run.model))
    straight = predict(run.params, run.batch_stats, images)
    mirrored = predict(run.params, run.batch_stats, images[:, :, ::-1])[:, :, ::-1]
    both = jax.jit(inference.make_probabilities(run.model, InferenceViews(flip=True)))
    found = both(run.params, run.batch_stats, images)
    np.testing.assert_allclose(found, (straight + mirrored) / 2, atol=1e-6)
    assert np.abs(straight - mirrored).max() > 20e-6, "the network must not be symmetric by itself"


def test_the_average_over_scales_is_that_of_its_definition(run):
    images = noise((49, 65))
    predict = jax.jit(inference.make_probabilities(run.model))
    expected = []
    for size in ((33, 33), (49, 65), (97, 129)):  # 0.5, 1 and 2 times 48 and 64, to the next multiple of 16
        found = predict(run.params, run.batch_stats, resize_bilinear(jnp.asarray(images), size))
        expected.append(resize_bilinear(found, (49, 65)))
    views = InferenceViews(scales=(0.5, 1.0, 2.0))
    found = jax.jit(inference.make_probabilities(run.model, views))(run.params, run.batch_stats, images)
    np.testing.assert_allclose(found, np.mean(expected, 0), atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("size", [(97, 97), (33, 129), (130, 47), (34, 33)])
def test_windows_do_not_change_a_network_that_sees_pixels(size):
    """On an image that is constant, too: every window then is the whole image in small."""
    for images in (noise(size, 2), np.full((2, *size, 3), 77, np.float32)):
        slid = jax.jit(inference._sliding(of_pixels, 33))(PIXELWISE, None, images)
        np.testing.assert_allclose(slid, of_pixels(PIXELWISE, None, images), atol=1e-6)


def test_windows_as_large_as_the_image_are_the_image(run):
    images = noise((49, 65))
    whole = jax.jit(inference.make_probabilities(run.model))(run.params, run.batch_stats, images)
    window = jax.jit(inference.make_probabilities(run.model, InferenceViews(window=65)))
    np.testing.assert_array_equal(window(run.params, run.batch_stats, images), whole)


def test_windows_are_averaged_over_those_that_hold_a_pixel(run):
    images = noise((33, 97))
    predict = jax.jit(inference.make_probabilities(run.model))
    total, count = np.zeros((33, 97, 7)), np.zeros((33, 97, 1))
    for left in (0, 32, 48):
        total[:, left : left + 49] += predict(run.params, run.batch_stats, images[:, :, left : left + 49])[0]
        count[:, left : left + 49] += 1
    found = jax.jit(inference.make_probabilities(run.model, InferenceViews(window=49)))
    np.testing.assert_allclose(found(run.params, run.batch_stats, images)[0], total / count, atol=1e-6)


@pytest.mark.parametrize("size", [(97, 97), (65, 145), (161, 113)])
def test_prediction_slides_as_evaluation_does(run, size):
    image = noise(size)[0].astype(np.uint8)
    views = InferenceViews(window=49)
    on_device = jax.jit(inference.make_probabilities(run.model, views))
    expected = on_device(run.params, run.batch_stats, image[None].astype(np.float32))[0]
    predictor = prediction.Predictor(run, views)
    strips = list(predictor.strips(image))
    assert len(strips) > 1
    np.testing.assert_allclose(np.concatenate(strips), expected, atol=1e-5)


def test_prediction_by_windows_has_one_scale(run):
    """In several scales, evaluation scales first and cuts then, prediction would do it the other way round."""
    with pytest.raises(UserError, match=r"^--window=49 with --scales=0.5,1: prediction by windows has one scale"):
        prediction.Predictor(run, InferenceViews(scales=(0.5, 1.0), window=49))
    prediction.Predictor(run, InferenceViews(scales=(0.5, 1.0)))
    prediction.Predictor(run, InferenceViews(flip=True, window=49))


def test_windows_cover_every_pixel():
    for side, window in ((97, 33), (98, 33), (33, 33), (10, 33), (1, 1), (500, 49)):
        starts = inference.window_starts(side, window)
        covered = np.zeros(side, int)
        for start in starts:
            assert 0 <= start <= max(0, side - window)
            covered[start : start + window] += 1
        assert covered.min() > 0
        assert len(set(starts)) == len(starts)


@pytest.mark.parametrize(
    ("scales", "window", "words"),
    [
        (["1", "big"], 0, "--scales=1,big must be different numbers"),
        (["1", "1.0"], 0, "must be different numbers"),
        (["0"], 0, "from 0.1 to 4"),
        ([], 0, "separated by commas"),
        (["1"], 512, "--window=512 must be 0 .* e.g. --window=513"),
    ],
)
def test_flags_that_cannot_be_meant_are_named(scales, window, words):
    with pytest.raises(UserError, match=words):
        inference.parse_views(scales, False, window)


def test_protocols_have_names_of_their_own():
    assert InferenceViews().name() == ""
    assert InferenceViews((0.5, 1.0), True, 513).name() == "scales0.5-1_flip_window513"
