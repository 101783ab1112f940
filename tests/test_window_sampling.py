"""Window sampling draws what full sampling draws, or says that it did not."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_contrastive import IGNORE, TEMPERATURE, evaluate, inputs, loss_and_gradient, run, run_eagerly

from pc2seg_jax.ops.arrivals import CHUNK, NO_MARK, Arrivals, draw_arrivals, draw_from_arrivals
from pc2seg_jax.ops.blocks import choose_window, count_blocks, cut_into_blocks, golden_share, join_blocks
from pc2seg_jax.ops.sampling import Candidates, sampling_weights

KEY = jax.random.key(7)


@functools.partial(jax.jit, static_argnums=2)  # eagerly, every one of hundreds of draws is traced
def arrive(key, first_marks, k):
    return draw_arrivals(key, lambda number: first_marks[number], len(first_marks), k)


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


def draw(key, m, k):
    key, key_marks = jax.random.split(key)
    return arrive(key, jax.random.bits(key_marks, (m,)), k)


def stream(key, m, k):
    return jax.device_get(draw(key, m, k))


@pytest.mark.parametrize(("m", "k"), [(40, 40), (300, 40), (1000, 900)])
def test_an_arrival_knows_the_earlier_marks_of_its_candidate(m, k):
    arrivals = stream(KEY, m, k)
    smallest = {}
    for order, mark, earlier in zip(*arrivals, strict=True):
        assert order in smallest or order == len(smallest)  # numbered by first arrival
        assert earlier == smallest.get(order, np.float32(NO_MARK))
        assert 0 < mark < earlier
        smallest[order] = mark
    assert max(smallest) < m
    assert len(smallest) < k  # some came again


def first_arrivals_of_use(rng, m, k):
    """The stream as it is defined: one of m, each alike, with a mark, until k arrivals counted for some weight."""
    number, smallest, found = {}, {}, []
    while len(found) < k:
        candidate, mark = rng.integers(m), rng.random()
        order = number.setdefault(candidate, len(number))
        if mark < smallest.get(order, NO_MARK):
            found.append(order)
            smallest[order] = mark
    return tuple(found)


def test_the_stream_has_the_law_of_its_definition():
    """How often every sequence of the first three of use comes: 0 1 2, 0 1 1, 0 1 0, 0 0 1, 0 0 0."""
    trials, m, k = 60_000, 3, 3
    # What comes after the k-th is cut off, and what is not of use does not count: one sequence in 70 is too short.
    arrivals = jax.device_get(jax.jit(jax.vmap(lambda key: draw(key, m, k)))(jax.random.split(KEY, trials)))
    complete = (arrivals.mark < arrivals.earlier).all(axis=1)
    assert complete.mean() > 0.999
    rng = np.random.default_rng(0)
    expected = collections.Counter(first_arrivals_of_use(rng, m, k) for _ in range(trials))
    found = collections.Counter(map(tuple, arrivals.order[complete].tolist()))
    assert len(expected) == 5
    for sequence in expected | found:
        assert abs(found[sequence] - expected[sequence]) < 5 * np.sqrt(2 * expected[sequence])


def test_a_draw_is_the_first_arrivals_that_count():
    """Row by row and arrival by arrival; 300 arrivals are three chunks, the last of them not full."""
    rng = np.random.default_rng(0)
    arrivals = stream(KEY, 400, k := 300)
    weights = np.where(rng.random((60, 400)) < rng.random((60, 1)), rng.random((60, 400)), 0).astype(np.float32)
    weights[0], weights[1] = 0, 1
    weights = weights[:, arrivals.order]  # of a candidate that comes again, the same
    for n in (1, 40, CHUNK, 200, 1000):
        expected = np.zeros(weights.shape, bool)
        for row, w in enumerate(weights):
            drawn = set()
            for t in range(k):
                if arrivals.mark[t] < w[t] and arrivals.order[t] not in drawn and len(drawn) < n:
                    drawn.add(arrivals.order[t])
                    expected[row, t] = True
        assert expected.sum(1).max() == min(n, len(set(arrivals.order)))
        for f in (draw_from_arrivals, jax.jit(draw_from_arrivals, static_argnums=2)):
            found, possible = f(arrivals, weights, n)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(possible, (weights > 0).sum(1))


def test_a_longer_stream_draws_no_other_candidates_and_what_is_certified_stays():
    rng = np.random.default_rng(3)
    arrivals = stream(KEY, 100, 100)
    weights = np.where(rng.random((400, 100)) < rng.random((400, 1)), rng.random((400, 100)), 0).astype(np.float32)
    weights = weights[:, arrivals.order]
    whole = np.asarray(draw_from_arrivals(arrivals, weights, 8)[0])
    part = np.asarray(draw_from_arrivals(Arrivals(*(x[:30] for x in arrivals)), weights[:, :30], 8)[0])
    np.testing.assert_array_equal(part, whole[:, :30])
    certified = part.sum(1) == 8
    assert 0.1 < certified.mean() < 0.9
    assert not whole[certified, 30:].any()
    assert whole[~certified, 30:].any()


WEIGHTS = np.array([0.1, 1.0, 0.0, 0.45, 0.02, 0.9, 0.0, 0.3, 1.0, 0.7, 0.6, 0.0, 0.5, 0.8], np.float32)
WEIGHTS = np.tile(WEIGHTS, 4)


def test_inclusion_frequencies_of_the_window_are_those_of_draws_without_replacement():
    trials, m, k, numbers = 200_000, len(WEIGHTS), 44, (1, 2, 3)

    def draw_of(key):
        key_circle, key_arrivals = jax.random.split(key)
        arrivals = draw(key_arrivals, m, k)
        places = jax.random.permutation(key_circle, m)[arrivals.order]
        weights = jnp.asarray(WEIGHTS)[places][None]
        drawn = [draw_from_arrivals(arrivals, weights, n)[0][0] for n in numbers]
        return [jnp.zeros(m, jnp.int32).at[places].add(x) for x in drawn]

    found = jax.device_get(jax.jit(jax.vmap(draw_of))(jax.random.split(KEY, trials)))
    for n, drawn in zip(numbers, found, strict=True):
        assert drawn.max() == 1  # none twice
        assert (drawn.sum(1) == n).all()  # 44 arrivals of 56 candidates, a third of which comes again, are enough
        expected = inclusion_probabilities(WEIGHTS, n)
        standard_error = np.sqrt(expected * (1 - expected) / trials)
        assert (np.abs(drawn.mean(0) - expected) <= 5 * standard_error).all()


def window_loops(x, strategy, num_negatives, window, block_anchors):
    """Eq. 4 anchor by anchor in float64 with the windows of its block; permutation and arrivals from the code."""
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
        weights = np.asarray(sampling_weights(strategy, c, c))
        key_circle, key_marks, key_arrivals = jax.random.split(jax.random.fold_in(KEY, g), 3)
        bits = np.asarray(jax.random.bits(key_marks, (2 * pixels,)))
        circle = np.asarray(jax.random.permutation(key_circle, 2 * pixels))
        blocks_of_image = count_blocks(-(-2 * size**2 // block_anchors), size)
        blocks = images * blocks_of_image
        for a in range(2 * pixels):
            view, image, cell = a // pixels, c.image[a], a % size**2
            block = (2 * cell + view) % blocks_of_image * images + image
            turn = np.uint32(block * (2**32 * golden_share(blocks) // blocks) % 2**32)
            ahead = np.roll(np.arange(2 * pixels), -(block * 2 * pixels // blocks))
            if strategy.startswith("different_image"):
                ahead = ahead[c.image[circle[ahead]] != image]
            arrivals = jax.device_get(arrive(jax.random.fold_in(key_arrivals, block), bits[ahead] + turn, window))
            places = circle[ahead[arrivals.order]]
            came = [j for j, mark in zip(places, arrivals.mark, strict=True) if mark < weights[a, j]]
            negatives = list(dict.fromkeys(came))[:num_negatives]
            found[g, a] = len(negatives)
            q = sum(np.exp(z[a] @ z[j] / TEMPERATURE) for j in negatives)
            p = np.exp(z[a] @ z[(a + pixels) % (2 * pixels)] / TEMPERATURE)
            losses[g, a] = np.log1p(q / p) if c.valid[a] else 0
    return [np.moveaxis(y.reshape(groups, 2, images, size, size), 1, 2) for y in (losses, found)]


@pytest.mark.parametrize(
    ("strategy", "window", "block_size"),
    [
        ("pseudo_label", 12, 18),
        ("pseudo_label", 20, 6),
        ("pseudo_label", 30, 4),
        ("different_image_pseudo_label", 9, 18),
        ("different_image_pseudo_label", 15, 6),
        ("different_image", 12, 4),
    ],
)
def test_window_loss_equals_the_loop(strategy, window, block_size):
    """Eighteen anchors of an image: one block, three, and four and a half, the last of which are filled up."""
    x = inputs(size=3)
    loss, _, stats = run(x, strategy=strategy, method="window", window=window, block_size=block_size)
    expected, found = window_loops(x, strategy, 6, window, block_size)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(stats.num_negatives, found)
    np.testing.assert_array_equal(stats.exact, found == 6)
    if window in (9, 12):  # a certificate that fails is reported
        assert 0 < np.asarray(stats.exact)[np.asarray(stats.valid)].mean() < 1


def test_blocks_side_by_side_are_blocks_one_after_the_other():
    """Nine cells in blocks of one, in two images: three blocks at once, nine, and five, which does not divide 18."""
    settings = {"method": "window", "window": 20, "block_size": 2}
    expected = loss_and_gradient(inputs(size=3), **settings)
    for blocks in (3, 5, 9):
        found = loss_and_gradient(inputs(size=3), pairs_at_once=blocks * 2 * 2 * 20, **settings)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), found, expected)


def run_many(x, count, **options):
    """What `run` returns, for so many keys."""
    keys = jax.random.split(KEY, count)
    return jax.device_get(jax.jit(jax.vmap(lambda key: run_eagerly(x, key=key, **options)))(keys))


def test_window_and_full_have_the_same_expectation():
    x = inputs(groups=1, size=3)
    x["valid"][:] = True
    means = {}
    for method in ("window", "full"):
        losses = run_many(x, 600, method=method, window=30, block_size=12, strategy="uniform")[0]
        losses = losses.reshape(600, -1).mean(1)
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


@pytest.mark.parametrize(("blocks", "width"), [(1, 7), (2, 7), (3, 7), (14, 21), (35, 33), (5, 10), (40, 20)])
def test_a_cell_and_its_neighbours_are_in_different_blocks(blocks, width):
    number = np.arange(2 * 30 * width).reshape(1, 30, width, 2)
    views = jnp.moveaxis(jnp.asarray(number), -1, 0).reshape(2, 1, -1)
    found = count_blocks(blocks, width)
    assert blocks <= found <= blocks + 2
    block_of = np.zeros(number.size, int)
    for block, members in enumerate(np.asarray(cut_into_blocks(views, found))[::-1]):  # copies fill the last blocks
        block_of[members] = found - 1 - block
    view, down, right = (np.moveaxis(block_of.reshape(30, width, 2), axis, 0) for axis in (2, 0, 1))
    for apart in (view, down, right) if blocks > 1 else ():
        assert (apart[1:] != apart[:-1]).all()


@pytest.mark.parametrize("blocks", [1, 3, 4, 9])
def test_joining_undoes_cutting(blocks):
    """70 anchors of an image: one block, 24 each, 18 that become 24, and 8."""
    x = np.arange(2 * 2 * 3 * 35).reshape(2, 2, 3, 35)
    cut = jnp.stack([cut_into_blocks(jnp.asarray(group), blocks) for group in x])
    assert cut.shape == (2, 3 * blocks, {1: 70, 3: 24, 4: 24, 9: 8}[blocks])
    np.testing.assert_array_equal(join_blocks(cut, (2, 3, 5, 7)), np.moveaxis(x, 1, 2).reshape(2, 3, 2, 5, 7))


@pytest.mark.parametrize("blocks", [2, 5, 14, 35, 69, 132])
def test_marks_of_neighbouring_blocks_are_far_apart_all_around_the_circle(blocks):
    turns = np.arange(blocks) * golden_share(blocks) / blocks % 1
    apart = np.abs(turns - np.roll(turns, 1))
    assert (np.minimum(apart, 1 - apart) > 0.33).all()
    assert len(set(turns)) == blocks  # and no two the same


def test_blocks_draw_apart_from_one_another():
    """Under `uniform` the anchors of a block draw the same pixels; blocks that did too would waste their number."""
    x = inputs(groups=1, size=6, images=1)
    x["valid"][:] = True
    x["label"] = (np.random.default_rng(0).random(x["label"].shape) < 0.2).astype(np.int32)

    def spread(block_size):
        options = {"strategy": "uniform", "num_negatives": 4, "method": "window", "window": 40}
        _, _, stats = run_many(x, 1000, block_size=block_size, **options)
        return np.std(stats.false_negative_rate.reshape(1000, -1).mean(1))

    assert spread(2) < 0.3 * spread(72)


@pytest.mark.parametrize(
    ("n", "m", "eligible", "window"),
    [
        (200, 8712, 8712, 1024),
        (50, 8712, 8712, 1024),
        (1600, 8712, 8712, 8064),
        (1600, 2000, 2000, 2000),
        (20, 784, 784, 784),
        (200, 8712, 6534, 768),
        (1600, 8712, 6534, 6016),
        (20, 1024, 768, 768),
    ],
)
def test_the_default_window(n, m, eligible, window):
    assert choose_window(n, m, eligible) == window


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
