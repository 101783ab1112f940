"""Anchors against their drawn negatives: values and the hand-written gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pc2seg_jax.ops.info_nce import SMALLEST_TEMPERATURE, compare_with_negatives


def inputs(seed=0, anchors=9, candidates=14, dim=6):
    rng = np.random.default_rng(seed)
    a, b, p = (rng.standard_normal((n, dim)) for n in (anchors, candidates, anchors))
    a, b, p = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b, p))
    drawn = rng.random((anchors, candidates)) < 0.4
    drawn[3] = False
    return a.astype(np.float32), np.sum(a * p, 1).astype(np.float32), b.astype(np.float32), drawn


def loops(a, positive, b, drawn, temperature):
    """log sum_n e^((q_n - p) / temperature) and sum_n q_n in float64."""
    a, positive, b = (x.astype(np.float64) for x in (a, positive, b))
    ratios, cosines = [], []
    for i in range(len(a)):
        q = [a[i] @ b[j] for j in np.flatnonzero(drawn[i])]
        ratios.append(np.logaddexp.reduce([(x - positive[i]) / temperature for x in q]) if q else -1e30)
        cosines.append(sum(q))
    return np.array(ratios), np.array(cosines)


TEMPERATURES = [0.5, 0.07, SMALLEST_TEMPERATURE, 0.01, 0.002]


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_values_equal_the_loop(temperature):
    """At 0.002, e^(q - p) is up to e^1000, which no float32 holds."""
    x = inputs()
    for f in (compare_with_negatives, jax.jit(compare_with_negatives, static_argnums=4)):
        for found, expected in zip(f(*x, temperature), loops(*x, temperature), strict=True):
            assert found.dtype == jnp.float32
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 / temperature)


def written_out(a, positive, b, drawn, temperature):
    q = jnp.where(drawn, a @ b.T / temperature, -1e30)
    return jax.nn.logsumexp(q, axis=1) - positive / temperature


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_is_that_of_the_formula(temperature):
    x = inputs(1)
    weights = np.random.default_rng(0).standard_normal(len(x[0])).astype(np.float32)

    def total(function):
        return lambda a, p, b: jnp.sum(jnp.asarray(weights) * jax.nn.softplus(function(a, p, b, x[3], temperature)))

    found = jax.grad(total(lambda *args: compare_with_negatives(*args)[0]), (0, 1, 2))(*x[:3])
    expected = jax.grad(total(written_out), (0, 1, 2))(*x[:3])
    for value, true in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, true, rtol=1e-4, atol=1e-5 * np.abs(true).max())
    assert not np.any(found[0][3])  # nothing drawn
    assert found[1][3] == 0


def test_the_sum_of_cosines_has_no_gradient():
    x = inputs()
    gradients = jax.grad(lambda a, p, b: jnp.sum(compare_with_negatives(a, p, b, x[3], 0.07)[1]), (0, 1, 2))(*x[:3])
    assert not any(np.any(g) for g in gradients)


def test_features_in_bfloat16_have_sums_in_float32():
    """2,000 terms of about one size: a sum of them in bfloat16 would not go beyond 256 of them."""
    a, p, b, _ = inputs(dim=32, candidates=2000)
    drawn = np.ones((len(a), len(b)), bool)
    exact = compare_with_negatives(a, p, b, drawn, 1.0)
    rough = compare_with_negatives(a.astype(jnp.bfloat16), p, b.astype(jnp.bfloat16), drawn, 1.0)
    np.testing.assert_allclose(rough[0], exact[0], atol=2e-3)

    def slopes(dtype):
        def ratio(a, p, b):
            return jnp.sum(compare_with_negatives(a.astype(dtype), p, b.astype(dtype), drawn, 1.0)[0])

        return jax.grad(ratio, (0, 1, 2))(a, p, b)

    for value, true in zip(slopes(jnp.bfloat16), slopes(jnp.float32), strict=True):
        assert value.dtype == jnp.float32
        assert np.linalg.norm(value - true) < 0.01 * np.linalg.norm(true)
