import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pc2seg_jax.ops import sampling
from pc2seg_jax.ops.sampling import (
    Candidates,
    draw_mask,
    exponential_clocks,
    gumbel_top_k,
    nth_smallest_by_search,
    nth_smallest_by_selection,
    sampling_weights,
)


def candidates(seed=0, images=3, pixels_per_image=4, classes=3):
    rng = np.random.default_rng(seed)
    pixels = images * pixels_per_image
    pixel = np.tile(np.arange(pixels), 2)
    probs = rng.dirichlet(np.ones(classes), pixels).astype(np.float32)
    probs[:3] = np.eye(classes)[0]
    return Candidates(
        image=(pixel // pixels_per_image).astype(np.int32),
        pixel=pixel.astype(np.int32),
        probs=np.tile(probs, (2, 1)),
        valid=np.tile(rng.random(pixels) > 0.2, 2),
        label=np.tile(rng.integers(-1, classes, pixels), 2).astype(np.int32),
    )


def weight_of_pair(strategy, c, i, j):
    if not (c.valid[i] and c.valid[j]):
        return 0.0
    own_pixel, same_image = c.pixel[i] == c.pixel[j], c.image[i] == c.image[j]
    disagreement = 1 - float(c.probs[i].astype(np.float64) @ c.probs[j].astype(np.float64))
    if disagreement < 1e-6:
        disagreement = 0.0
    return {
        "uniform": float(not own_pixel),
        "different_image": float(not same_image),
        "pseudo_label": 0.0 if own_pixel else disagreement,
        "different_image_pseudo_label": 0.0 if same_image else disagreement,
        "oracle": float(c.label[i] >= 0 and c.label[j] >= 0 and c.label[i] != c.label[j]),
    }[strategy]


def clocks(rows, m, seed=0):
    return exponential_clocks(jax.random.split(jax.random.key(seed), rows), m)


def inclusion_probabilities(weights, n):
    """Exact: sum over all ordered draws of n without replacement."""
    weights, included = np.asarray(weights, np.float64), np.zeros(len(weights))
    for order in itertools.permutations(np.flatnonzero(weights), n):
        probability, left = 1.0, weights.sum()
        for j in order:
            probability *= weights[j] / left
            left -= weights[j]
        included[list(order)] += probability
    return included


@pytest.mark.parametrize("strategy", sampling.STRATEGIES)
def test_weights_equal_the_loop_over_pairs(strategy):
    c = candidates()
    m = len(c.pixel)
    expected = np.array([[weight_of_pair(strategy, c, i, j) for j in range(m)] for i in range(m)])
    assert 0 < np.count_nonzero(expected) < expected.size
    for f in (sampling_weights, jax.jit(sampling_weights, static_argnums=0)):
        weights = np.asarray(f(strategy, c, c))
        np.testing.assert_allclose(weights, expected, atol=1e-6)
        np.testing.assert_array_equal(weights == 0, expected == 0)


@pytest.mark.parametrize("strategy", sampling.STRATEGIES)
def test_weights_of_some_anchors_are_rows_of_the_weights_of_all(strategy):
    c = candidates()
    some = jax.tree.map(lambda x: x[5:9], c)
    np.testing.assert_allclose(sampling_weights(strategy, some, c), sampling_weights(strategy, c, c)[5:9], atol=1e-7)


def test_identical_saturated_predictions_have_weight_exactly_zero():
    logits = 50 * np.random.default_rng(0).standard_normal((40, 7)).astype(np.float32)
    logits[np.arange(40), 3] = 200
    probs = jax.nn.softmax(logits * (1 + np.arange(40)[:, None] / 100), axis=-1)
    index = np.arange(40, dtype=np.int32)
    c = Candidates(image=index, pixel=index, probs=probs, valid=np.ones(40, bool))
    assert not np.any(sampling_weights("pseudo_label", c, c))


def test_weights_have_no_gradient():
    c = candidates()
    gradient = jax.grad(lambda p: jnp.sum(sampling_weights("pseudo_label", c._replace(probs=p), c)))(c.probs)
    assert not np.any(gradient)


def test_unknown_strategy_names_the_known_ones():
    with pytest.raises(ValueError, match="'nearest'; known: uniform, different_image, pseudo_label"):
        sampling_weights("nearest", candidates(), candidates())


def test_oracle_without_ground_truth_is_refused():
    c = candidates()._replace(label=None)
    with pytest.raises(ValueError, match="ground-truth"):
        sampling_weights("oracle", c, c)


def test_clocks_are_standard_exponential():
    e = np.sort(np.asarray(clocks(20, 5000), np.float64).ravel())
    assert e[0] > 0
    assert np.isfinite(e[-1])
    # Kolmogorov-Smirnov distance; 1.95 / sqrt(n) is exceeded with probability 1e-3.
    distance = np.abs(1 - np.exp(-e) - (np.arange(e.size) + 0.5) / e.size).max()
    assert distance < 1.95 / np.sqrt(e.size)


def test_small_clocks_are_distinct():
    e = np.sort(np.asarray(clocks(1, 1 << 20))[0])[: 1 << 14]
    # 23-bit uniforms repeat about a thousand times here.
    assert np.count_nonzero(np.diff(e) == 0) < 50


def test_clocks_depend_on_their_own_key_only():
    keys = jax.random.split(jax.random.key(3), 4)
    pieces = [exponential_clocks(keys[:2], 50), exponential_clocks(keys[2:], 50)]
    np.testing.assert_array_equal(exponential_clocks(keys, 50), np.concatenate(pieces))


WEIGHTS = np.array([0.1, 1.0, 0.0, 0.45, 0.02, 0.9, 0.0], np.float32)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_inclusion_frequencies_are_those_of_draws_without_replacement(n):
    trials = 100_000
    e = clocks(trials, len(WEIGHTS), seed=n)
    drawn = np.asarray(jax.jit(draw_mask, static_argnums=2)(e, jnp.broadcast_to(WEIGHTS, e.shape), n))
    assert (drawn.sum(axis=1) == n).all()
    expected = inclusion_probabilities(WEIGHTS, n)
    if n == 1:
        np.testing.assert_allclose(expected, WEIGHTS / WEIGHTS.sum(), rtol=1e-6)
    standard_error = np.sqrt(expected * (1 - expected) / trials)
    assert (np.abs(drawn.mean(axis=0) - expected) <= 5 * standard_error).all()


def ragged_weights(rows, m, seed=0):
    """Rows of every kind: dense, sparse, with one and with no positive weight, and with weights down to 1e-6."""
    rng = np.random.default_rng(seed)
    weights = rng.random((rows, m)) * (rng.random((rows, m)) < rng.random((rows, 1)))
    weights[0], weights[1], weights[2] = 0, np.eye(m)[m // 2], 1
    weights[3] = 10.0 ** rng.uniform(-6, 0, m)
    return np.where(weights < 1e-6, 0, weights).astype(np.float32)


@pytest.mark.parametrize("n", [1, 5, 40, 64, 100])
def test_draw_mask_equals_a_sort_and_gumbel_top_k(n):
    weights = ragged_weights(50, 64)
    e = clocks(50, 64, seed=n)
    with np.errstate(divide="ignore"):
        race = np.asarray(e) / weights
    expected = np.zeros(weights.shape, bool)
    np.put_along_axis(expected, np.argsort(race, axis=1)[:, :n], True, axis=1)
    expected &= weights > 0

    index, drawn = gumbel_top_k(e, weights, n)
    literal = np.zeros(weights.shape, bool)
    np.put_along_axis(literal, np.asarray(index), np.asarray(drawn), axis=1)

    for f in (draw_mask, jax.jit(draw_mask, static_argnums=2)):
        mask = np.asarray(f(e, weights, n))
        np.testing.assert_array_equal(mask, expected)
        np.testing.assert_array_equal(mask, literal)
        np.testing.assert_array_equal(mask.sum(axis=1), np.minimum(n, (weights > 0).sum(axis=1)))


@pytest.mark.parametrize("n", [1, 5, 40, 64, 100])
def test_search_and_selection_end_at_the_same_draw(n):
    weights = ragged_weights(50, 64)
    race = jnp.where(weights > 0, clocks(50, 64, seed=n) / jnp.where(weights > 0, weights, 1.0), jnp.inf)
    for latest in (jnp.full(50, 3.0), jnp.full(50, 1e30)):
        found = [
            race <= nth_smallest(race, latest, n)[:, None]
            for nth_smallest in (nth_smallest_by_search, nth_smallest_by_selection)
        ]
        np.testing.assert_array_equal(*found)


def test_scaling_the_weights_does_not_change_the_draw():
    weights, e = ragged_weights(20, 64), clocks(20, 64)
    np.testing.assert_array_equal(draw_mask(e, weights, 8), draw_mask(e, weights * 2.0**-10, 8))


def test_a_larger_draw_contains_the_smaller_one():
    weights, e = ragged_weights(20, 64), clocks(20, 64)
    small, large = np.asarray(draw_mask(e, weights, 8)), np.asarray(draw_mask(e, weights, 20))
    assert (large | ~small).all()
