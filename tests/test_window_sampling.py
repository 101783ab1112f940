"""Window sampling draws what full sampling draws, or says that it did not."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_contrastive import IGNORE, TEMPERATURE, evaluate, inputs, loss_and_gradient, run

from pc2seg_jax.ops.contrastive import choose_window
from pc2seg_jax.ops.sampling import Candidates, draw_mask, exponential_clocks, sampling_weights, sorted_clocks

KEY = jax.random.key(7)


def inclusion_probabilities(weights, n):
    """Sum over all ordered draws of n without replacement."""
    weights, included = np.asarray(weights, np.float64), np.zeros(len(weights))
    for order in itertools.permutations(np.flatnonzero(weights), n):
        probability, left = 1.0, weights.sum()
        for j in order:
            probability *= weights[j] / left
            left -= weights[j]
        included[list(order)] += probability
    return included


def test_sorted_clocks_have_the_law_of_sorted_exponentials():
    trials, m, k = 40_000, 9, 5
    times, horizon = jax.vmap(lambda key: sorted_clocks(key, m, k))(jax.random.split(KEY, trials))
    found = np.concatenate([times, horizon[:, None]], axis=1)
    assert (np.diff(found, axis=1) > 0).all()
    expected = np.cumsum(1 / (m - np.arange(k + 1)))  # mean of the order statistics
    spread = np.sqrt(np.cumsum(1 / (m - np.arange(k + 1)) ** 2))  # and their standard deviation
    assert (np.abs(found.mean(0) - expected) < 5 * spread / np.sqrt(trials)).all()
    np.testing.assert_allclose(found.std(0), spread, rtol=0.03)
    slow = np.sort(np.random.default_rng(0).exponential(size=(trials, m)), axis=1)[:, : k + 1]
    quantiles = np.linspace(0.05, 0.95, 7)
    np.testing.assert_allclose(np.quantile(found, quantiles, 0), np.quantile(slow, quantiles, 0), rtol=0.08)


def test_a_window_that_holds_all_has_no_horizon():
    times, horizon = sorted_clocks(KEY, 6, 6)
    assert times.shape == (6,)
    assert np.isposinf(horizon)


@pytest.mark.parametrize(("n", "k"), [(3, 20), (8, 20), (8, 30), (8, 40)])
def test_a_window_draws_the_first_of_the_full_draw_and_certifies_the_rest(n, k):
    """With the same clocks for both: never another candidate, and all of them where the certificate holds."""
    rows, m = 400, 40
    rng = np.random.default_rng(n)
    weights = np.where(rng.random((rows, m)) < rng.random((rows, 1)), rng.random((rows, m)), 0).astype(np.float32)
    clocks = np.sort(np.asarray(exponential_clocks(jax.random.split(KEY, rows), m)), axis=1)
    horizon = np.append(clocks, np.full((rows, 1), np.inf, np.float32), axis=1)[:, k]
    full = np.asarray(draw_mask(clocks, weights, n))
    drawn = np.asarray(draw_mask(clocks[:, :k], weights[:, :k], n, horizon))
    assert not (drawn & ~full[:, :k]).any()
    assert not full[:, k:].any() or k < m
    certified = drawn.sum(1) == n
    np.testing.assert_array_equal(drawn[certified], full[certified, :k])
    assert not full[certified, k:].any()
    if k < m:
        assert 0 < certified.mean() < 1
        race = np.where(weights > 0, clocks / np.where(weights > 0, weights, 1), np.inf)
        with np.errstate(invalid="ignore"):
            nth = np.sort(race[:, :k], axis=1)[:, n - 1]
        np.testing.assert_array_equal(certified, nth <= horizon)


WEIGHTS = np.array([0.1, 1.0, 0.0, 0.45, 0.02, 0.9, 0.0, 0.3, 1.0, 0.7, 0.6, 0.0, 0.5, 0.8], np.float32)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_inclusion_frequencies_of_the_window_are_those_of_draws_without_replacement(n):
    trials, m, k = 200_000, len(WEIGHTS), 12

    @jax.jit
    def draw(key):
        key_order, key_clocks = jax.random.split(key)
        order = jax.random.permutation(key_order, m)[:k]
        times, horizon = sorted_clocks(key_clocks, m, k)
        drawn = draw_mask(times, jnp.asarray(WEIGHTS)[order][None], n, horizon)[0]
        return jnp.zeros(m, bool).at[order].set(drawn)

    drawn = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(n), trials)))
    uncertified = (drawn.sum(1) < n).mean()
    assert uncertified < (0.0, 1e-5, 2e-4, 5e-3)[n]
    expected = inclusion_probabilities(WEIGHTS, n)
    standard_error = np.sqrt(expected * (1 - expected) / trials)
    # A draw that is not certified lacks something, so it can only miss.
    difference = drawn.mean(0) - expected
    assert (difference <= 5 * standard_error).all()
    assert (difference >= -5 * standard_error - uncertified).all()
    assert not drawn[:, WEIGHTS == 0].any()


def window_loops(x, num_negatives, window, block_cells):
    """Eq. 4 anchor by anchor in float64 with the windows of its block; permutation and clocks from the code."""
    groups, images, size, _, dim = x["weak"].shape
    pixels = images * size * size
    losses, found = np.zeros((groups, 2 * pixels)), np.zeros((groups, 2 * pixels))
    for g in range(groups):
        z = np.concatenate([x["weak"][g].reshape(pixels, dim), x["strong"][g].reshape(pixels, dim)]).astype(np.float64)
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        c = Candidates(
            image=np.tile(np.arange(pixels) // size**2, 2),
            pixel=np.tile(np.arange(pixels), 2),
            probs=np.tile(x["probs"][g].reshape(pixels, -1), (2, 1)),
            valid=np.tile(x["valid"][g].ravel(), 2),
        )
        weights = np.asarray(sampling_weights("pseudo_label", c, c))
        key_order, key_clocks = jax.random.split(jax.random.fold_in(KEY, g))
        circle = np.asarray(jax.random.permutation(key_order, 2 * pixels))
        blocks = -(-(size**2) // block_cells)
        for a in range(2 * pixels):
            block = a % size**2 // block_cells
            times, horizon = sorted_clocks(jax.random.fold_in(key_clocks, block), 2 * pixels, window)
            order = np.roll(circle, -(block * 2 * pixels // blocks))[:window]
            clocks = zip(np.asarray(times), order, strict=True)
            race = [(t / weights[a, j], j) for t, j in clocks if weights[a, j] > 0]
            negatives = [j for t, j in sorted(race) if t <= horizon][:num_negatives]
            found[g, a] = len(negatives)
            q = sum(np.exp(z[a] @ z[j] / TEMPERATURE) for j in negatives)
            p = np.exp(z[a] @ z[(a + pixels) % (2 * pixels)] / TEMPERATURE)
            losses[g, a] = np.log1p(q / p) if c.valid[a] else 0
    return [np.moveaxis(y.reshape(groups, 2, images, size, size), 1, 2) for y in (losses, found)]


@pytest.mark.parametrize(("window", "block_cells"), [(12, 9), (20, 3), (30, 2)])
def test_window_loss_equals_the_loop(window, block_cells):
    """Nine cells: one block, three, and four and a half, the last of which is filled up."""
    x = inputs(size=3)
    loss, _, stats = run(x, method="window", window=window, block_size=4 * block_cells)
    expected, found = window_loops(x, 6, window, math.ceil(9 / math.ceil(9 / block_cells)))
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(stats.num_negatives, found)
    np.testing.assert_array_equal(stats.exact, found == 6)
    if window == 12:  # a certificate that fails is reported
        assert 0 < np.asarray(stats.exact)[np.asarray(stats.valid)].mean() < 1


def test_blocks_side_by_side_are_blocks_one_after_the_other():
    """Nine cells in blocks of one: three blocks at once, all nine, and five, which does not divide them."""
    settings = {"method": "window", "window": 20, "block_size": 4}
    expected = loss_and_gradient(inputs(size=3), **settings)
    for blocks in (3, 5, 9):
        found = loss_and_gradient(inputs(size=3), pairs_at_once=blocks * 4 * 20, **settings)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), found, expected)


def test_window_and_full_have_the_same_expectation():
    x = inputs(groups=1, size=3)
    x["valid"][:] = True
    keys = jax.random.split(KEY, 600)
    means = {}
    for method in ("window", "full"):
        losses = [
            float(np.mean(run(x, key=key, method=method, window=30, block_size=12, strategy="uniform")[0]))
            for key in keys
        ]
        means[method] = np.mean(losses), np.std(losses) / np.sqrt(len(losses))
    (a, spread_a), (b, spread_b) = means.values()
    assert abs(a - b) < 4 * np.hypot(spread_a, spread_b)


def test_too_small_a_window_draws_less_and_never_something_else():
    """All candidates of other classes are outside the reach of a small window: the anchors say so and draw few."""
    x = inputs(size=5, classes=2)
    x["probs"][..., 0], x["probs"][..., 1] = 0.99, 0.01
    x["probs"][:, :, 0, 0] = (0.01, 0.99)
    options = {"strategy": "pseudo_label", "num_negatives": 4, "method": "window"}
    _, _, small = run(x, window=10, **options)
    _, _, whole = run(x, window=100, **options)
    common = np.asarray(small.valid) & (np.asarray(x["probs"])[..., 0] > 0.5)[:, :, None]
    assert np.mean(np.asarray(small.exact)[common]) < 0.3
    assert np.asarray(whole.exact).all()
    assert np.asarray(small.num_negatives)[common].mean() < 2 < np.asarray(whole.num_negatives)[common].mean()


def test_the_gradient_of_the_window_is_the_slope_of_its_loss():
    """The draw depends on the probabilities alone, so that the loss is smooth in the features."""
    x = inputs(size=3)
    rng = np.random.default_rng(1)
    options = {"strategy": "different_image", "method": "window", "window": 20, "block_size": 12}
    _, gradient = loss_and_gradient(x, **options)
    for name, slopes in zip(("weak", "strong"), gradient, strict=False):
        direction = rng.standard_normal(slopes.shape).astype(np.float32)
        up, down = (run({**x, name: x[name] + step * direction}, **options)[0] for step in (1e-2, -1e-2))
        valid = np.broadcast_to(x["valid"][:, :, None], up.shape)
        found = (np.asarray(up, np.float64) - np.asarray(down, np.float64))[valid].mean() / 2e-2
        np.testing.assert_allclose(found, np.sum(np.multiply(slopes, direction, dtype=np.float64)), rtol=1e-2)


def test_blocks_draw_apart_from_one_another():
    """Under `uniform` the anchors of a block draw the same pixels; blocks that did too would waste their number."""
    x = inputs(groups=1, size=6, images=1)
    x["valid"][:] = True
    x["label"] = (np.random.default_rng(0).random(x["label"].shape) < 0.2).astype(np.int32)

    def spread(block_size):
        options = {"strategy": "uniform", "num_negatives": 4, "method": "window", "window": 40}
        stats = [run(x, key=jax.random.key(i), block_size=block_size, **options)[2] for i in range(100)]
        return np.std([np.mean(s.false_negative_rate) for s in stats])

    assert spread(2) < 0.3 * spread(72)


@pytest.mark.parametrize(
    ("n", "m", "window"), [(200, 8712, 1024), (50, 8712, 1024), (1600, 8712, 8064), (1600, 2000, 2000), (20, 784, 784)]
)
def test_the_default_window(n, m, window):
    assert choose_window(n, m) == window


@pytest.mark.parametrize("method", ["window", "full"])
@pytest.mark.parametrize("case", ["two_classes", "one_class", "ignored", "no_candidates", "many_negatives"])
def test_degenerate_inputs_have_finite_losses_and_gradients(method, case):
    x = inputs(size=3, classes=2)
    options = {"num_negatives": 6, "strategy": "pseudo_label"}
    if case == "one_class":
        x["probs"][..., 0], x["probs"][..., 1] = 1, 0
    elif case == "ignored":
        x["valid"][:] = False
        x["label"][:] = IGNORE
    elif case == "no_candidates":
        x["valid"][:, 1:] = False
        options["strategy"] = "different_image"
    elif case == "many_negatives":
        options["num_negatives"] = 10_000
    (loss, (_, mask, stats)), gradient = evaluate(x, method=method, **options)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in gradient)
    drawn = case in ("two_classes", "many_negatives")
    assert (loss > 0) == drawn
    assert np.any(mask) == drawn
    assert np.asarray(stats.exact).all()  # 36 candidates are all looked at
    assert np.any(gradient[0]) == drawn
