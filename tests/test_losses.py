import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pc2seg_jax.ops.losses import cosine_consistency, cross_entropy, masked_mean

IGNORE = 255


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def cosine_consistency_loops(weak, strong, temperature):
    weak, strong = np.asarray(weak, np.float64), np.asarray(strong, np.float64)
    loss = np.zeros(weak.shape[:-1])
    for i in np.ndindex(loss.shape):
        u, v = softmax(weak[i] / temperature), softmax(strong[i])
        loss[i] = 1 - u @ v / (np.linalg.norm(u) * np.linalg.norm(v))
    return loss


def logits(seed, shape=(2, 3, 4, 5), scale=3.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def test_cross_entropy_equals_the_loop():
    x = logits(0)
    labels = np.random.default_rng(1).choice([0, 1, 2, 3, 4, IGNORE], size=x.shape[:-1]).astype(np.int32)
    expected = np.zeros(labels.shape)
    for i in np.ndindex(labels.shape):
        if labels[i] != IGNORE:
            expected[i] = -np.log(softmax(x[i].astype(np.float64))[labels[i]])
    assert (labels == IGNORE).any()
    for f in (cross_entropy, jax.jit(cross_entropy, static_argnames="ignore_id")):
        np.testing.assert_allclose(f(x, labels, ignore_id=IGNORE), expected, rtol=1e-5, atol=1e-6)


def test_cross_entropy_of_ignored_pixels_is_exactly_zero_with_zero_gradient():
    x = logits(2)
    labels = np.full(x.shape[:-1], 3, np.int32)
    labels[0] = IGNORE
    loss, gradient = jax.value_and_grad(lambda x: jnp.sum(cross_entropy(x, labels, ignore_id=IGNORE)[0]))(x)
    assert loss == 0
    assert not np.any(gradient[0])


def test_an_ignore_id_that_is_a_class_id_still_ignores():
    assert cross_entropy(np.zeros((1, 3), np.float32), np.array([0], np.int32), ignore_id=0)[0] == 0


def test_cross_entropy_gradient_is_softmax_minus_one_hot():
    x, label = logits(3, (5,)), 2
    gradient = jax.grad(lambda x: cross_entropy(x, jnp.asarray(label), ignore_id=IGNORE))(x)
    np.testing.assert_allclose(gradient, softmax(x) - np.eye(5)[label], atol=1e-6)


def test_cross_entropy_is_finite_for_forbidden_classes_and_float32_for_bfloat16_logits():
    x = np.array([[1.0, -np.inf, 2.0]], np.float32)
    assert np.isfinite(cross_entropy(x, np.array([0], np.int32), ignore_id=IGNORE)).all()
    low = jnp.asarray(logits(4), jnp.bfloat16)
    labels = np.zeros(low.shape[:-1], np.int32)
    loss = cross_entropy(low, labels, ignore_id=IGNORE)
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, cross_entropy(low.astype(jnp.float32), labels, ignore_id=IGNORE))


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_cosine_consistency_equals_the_loop(temperature):
    weak, strong = logits(5), logits(6)
    expected = cosine_consistency_loops(weak, strong, temperature)
    for f in (cosine_consistency, jax.jit(cosine_consistency, static_argnames="temperature")):
        np.testing.assert_allclose(f(weak, strong, temperature=temperature), expected, rtol=1e-5, atol=1e-6)


def test_cosine_consistency_sharpens_the_weak_view_only():
    weak, strong = logits(7), logits(8)
    sharpened = cosine_consistency(2 * weak, strong, temperature=1.0)
    np.testing.assert_allclose(cosine_consistency(weak, strong), sharpened, rtol=1e-6)
    # The sharpened weak prediction equal to the strong one: no loss.
    np.testing.assert_allclose(cosine_consistency(weak, 2 * weak), 0, atol=1e-6)


def test_cosine_consistency_gradient_equals_finite_differences():
    weak, strong = logits(9, (2, 4)), logits(10, (2, 4)).astype(np.float64)
    gradient = jax.grad(lambda s: jnp.sum(cosine_consistency(weak, s)))(strong.astype(np.float32))
    step, expected = 1e-5, np.zeros_like(strong)
    for i in np.ndindex(strong.shape):
        up, down = strong.copy(), strong.copy()
        up[i] += step
        down[i] -= step
        difference = cosine_consistency_loops(weak, up, 0.5) - cosine_consistency_loops(weak, down, 0.5)
        expected[i] = difference.sum() / (2 * step)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_cosine_consistency_has_no_gradient_to_the_weak_view():
    gradient = jax.grad(lambda w: jnp.sum(cosine_consistency(w, logits(12))))(logits(11))
    assert not np.any(gradient)


@pytest.mark.parametrize("sign", [1, -1])
def test_cosine_consistency_is_finite_for_saturated_predictions(sign):
    weak = np.array([[1e4, 0.0, -1e4]], np.float32)
    loss, gradient = jax.value_and_grad(lambda s: jnp.sum(cosine_consistency(weak, s)))(sign * weak)
    assert loss == (0 if sign > 0 else 1)
    assert np.isfinite(gradient).all()


def test_masked_mean_equals_numpy():
    values = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
    mask = np.random.default_rng(1).integers(0, 2, (3, 7)).astype(np.uint8)
    np.testing.assert_allclose(masked_mean(values, mask), values[mask == 1].mean(), rtol=1e-6)


def test_masked_mean_of_nothing_is_zero_with_zero_gradient():
    mask = np.zeros(4, bool)
    loss, gradient = jax.value_and_grad(masked_mean)(np.ones(4, np.float32), mask)
    assert loss == 0
    assert not np.any(gradient)


def test_masked_mean_ignores_masked_nan():
    assert masked_mean(np.array([1.0, np.nan, 3.0], np.float32), np.array([True, False, True])) == 2


def test_masked_mean_sums_bfloat16_in_float32():
    assert masked_mean(jnp.ones(1000, jnp.bfloat16), np.ones(1000, bool)) == 1
