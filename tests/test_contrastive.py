import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pc2seg_jax.ops.contrastive import pixel_contrast, pixel_contrast_literal
from pc2seg_jax.ops.losses import masked_mean
from pc2seg_jax.ops.sampling import STRATEGIES, Candidates, exponential_clocks, sampling_weights

IGNORE, TEMPERATURE = 255, 0.07
KEY = jax.random.key(7)
STATIC = ("contrast", "strategy", "num_negatives", "method", "window", "block_size", "pairs_at_once")
FAST_COMPILE = {"xla_backend_optimization_level": 0}  # these tests compile much and compute little


def inputs(groups=2, images=2, size=5, dim=16, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    shape = (groups, images, size, size)
    return {
        "weak": rng.standard_normal((*shape, dim)).astype(np.float32),
        "strong": rng.standard_normal((*shape, dim)).astype(np.float32),
        "probs": rng.dirichlet(np.full(classes, 0.3), shape).astype(np.float32),
        "valid": rng.random(shape) > 0.2,
        "label": rng.choice([*range(classes), IGNORE], shape).astype(np.int32),
    }


def run_eagerly(x, key=KEY, contrast=pixel_contrast, strategy="pseudo_label", num_negatives=6, **options):
    """(loss, mask, stats)"""
    if contrast is pixel_contrast:
        options = {"method": "full"} | options
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x["weak"])))
    arguments = (x["weak"], x["strong"], x["probs"], x["valid"], keys)
    return contrast(*arguments, label=x["label"], strategy=strategy, num_negatives=num_negatives, **options)


def evaluate_eagerly(x, **options):
    """((mean loss, (loss, mask, stats)), gradients of the mean loss to weak and strong features and probabilities)"""

    def mean_loss(weak, strong, probs):
        loss, mask, stats = run_eagerly({**x, "weak": weak, "strong": strong, "probs": probs}, **options)
        return masked_mean(loss, stats.valid), (loss, mask, stats)

    return jax.value_and_grad(mean_loss, argnums=(0, 1, 2), has_aux=True)(x["weak"], x["strong"], x["probs"])


evaluate = jax.jit(evaluate_eagerly, static_argnames=STATIC, compiler_options=FAST_COMPILE)


def run(x, **options):
    return evaluate(x, **options)[0][1]


def loss_and_gradient(x, **options):
    (loss, _), gradient = evaluate(x, **options)
    return loss, gradient


def relative_error(value, expected):
    value, expected = (np.concatenate([np.ravel(v) for v in jax.tree.leaves(t)]) for t in (value, expected))
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)


def contrast_loops(x, strategy, num_negatives):
    """Eq. 4 anchor by anchor in float64; only the clocks come from the code under test."""
    groups, images, size, _, dim = x["weak"].shape
    pixels = images * size * size
    anchors = 2 * pixels
    losses, masks = np.zeros((groups, anchors)), np.zeros((groups, anchors), bool)
    negative_cosine, false_rate = np.zeros((groups, anchors)), np.zeros((groups, anchors))
    for g in range(groups):
        z = np.concatenate([x["weak"][g].reshape(pixels, dim), x["strong"][g].reshape(pixels, dim)]).astype(np.float64)
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        label = np.tile(x["label"][g].ravel(), 2)
        c = Candidates(
            image=np.tile(np.arange(pixels) // size**2, 2),
            pixel=np.tile(np.arange(pixels), 2),
            probs=np.tile(x["probs"][g].reshape(pixels, -1), (2, 1)),
            valid=np.tile(x["valid"][g].ravel(), 2),
            label=np.where(label == IGNORE, -1, label),
        )
        weights = np.asarray(sampling_weights(strategy, c, c))
        group_key = jax.random.fold_in(KEY, g)
        keys = jnp.stack([jax.random.fold_in(group_key, a) for a in range(anchors)])
        clocks = np.asarray(exponential_clocks(keys, anchors))
        for a in range(anchors):
            possible = np.flatnonzero(weights[a])
            negatives = possible[np.argsort(clocks[a, possible] / weights[a, possible])[:num_negatives]]
            if len(negatives) == 0:
                continue
            positive = z[a] @ z[(a + pixels) % anchors]
            cosines = [z[a] @ z[j] for j in negatives]
            q = sum(np.exp(cosine / TEMPERATURE) for cosine in cosines)
            p = np.exp(positive / TEMPERATURE)
            masks[g, a], losses[g, a] = True, -np.log(p / (p + q))
            negative_cosine[g, a] = np.mean(cosines)
            known = [j for j in negatives if c.label[j] >= 0 and c.label[a] >= 0]
            false_rate[g, a] = np.mean([c.label[j] == c.label[a] for j in known]) if known else 0
    # [G, K * g * h * w] -> [G, g, K, h, w]
    found = losses, masks, negative_cosine, false_rate
    return [np.moveaxis(y.reshape(groups, 2, images, size, size), 1, 2) for y in found]


@pytest.mark.parametrize("strategy", ["pseudo_label", "oracle"])
def test_loss_mask_and_statistics_equal_the_loop(strategy):
    x = inputs(size=3)
    loss, mask, stats = run(x, strategy=strategy)
    expected_loss, expected_mask, negative_cosine, false_rate = contrast_loops(x, strategy, 6)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats.negative_cosine, negative_cosine, atol=1e-6)
    np.testing.assert_allclose(stats.false_negative_rate, false_rate, atol=1e-6)
    assert (false_rate.max() == 0) == (strategy == "oracle")
    assert 0 < np.mean(mask) < 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_mask_form_equals_the_literal_form_in_loss_and_gradient(strategy):
    x = inputs(images=3 if strategy == "different_image_pseudo_label" else 2)
    options = {"strategy": strategy, "num_negatives": 20}
    loss, gradient = loss_and_gradient(x, block_size=32, **options)
    expected_loss, expected_gradient = loss_and_gradient(x, contrast=pixel_contrast_literal, **options)
    assert relative_error(loss, expected_loss) < 1e-6
    assert relative_error(gradient[0], expected_gradient[0]) < 1e-6
    assert relative_error(gradient[1], expected_gradient[1]) < 1e-6


def test_the_literal_form_has_the_same_mask_and_statistics():
    x = inputs(size=3)
    _, mask, stats = run(x)
    _, literal_mask, literal_stats = run(x, contrast=pixel_contrast_literal)
    np.testing.assert_array_equal(mask, literal_mask)
    for name, value in stats._asdict().items():
        np.testing.assert_allclose(value, getattr(literal_stats, name), atol=1e-6, err_msg=name)


def test_result_does_not_depend_on_the_block_size():
    x = inputs(size=3)  # 36 anchors: chunks of 12 fit, chunks of 16 leave a remainder, the default is one chunk
    (_, (whole_loss, whole_mask, whole_stats)), whole_gradient = evaluate(x)
    for size in (12, 16):
        (_, (loss, mask, stats)), gradient = evaluate(x, block_size=size)
        np.testing.assert_array_equal(mask, whole_mask)
        np.testing.assert_allclose(loss, whole_loss, rtol=2e-6)
        # The same negatives are drawn: the label counts among them agree for every anchor.
        np.testing.assert_array_equal(stats.num_negatives, whole_stats.num_negatives)
        np.testing.assert_array_equal(stats.false_negative_rate, whole_stats.false_negative_rate)
        assert relative_error(gradient, whole_gradient) < 1e-6


def test_jit_equals_eager():
    x = inputs(size=3)
    (loss, mask, _), (eager_loss, eager_mask, _) = run(x), run_eagerly(x)
    np.testing.assert_allclose(loss, eager_loss, rtol=2e-6)
    np.testing.assert_array_equal(mask, eager_mask)


def test_more_negatives_than_candidates_uses_all_of_them():
    x = inputs(size=3)
    loss, _, stats = run(x, strategy="different_image", num_negatives=1000)
    other_images = 2 * (x["valid"].sum((1, 2, 3), keepdims=True) - x["valid"].sum((2, 3), keepdims=True))
    expected = np.where(x["valid"], other_images, 0)[:, :, None]
    np.testing.assert_array_equal(stats.num_negatives, np.broadcast_to(expected, stats.num_negatives.shape))
    np.testing.assert_array_equal(stats.num_candidates, stats.num_negatives)
    literal = run(x, contrast=pixel_contrast_literal, strategy="different_image", num_negatives=1000)
    np.testing.assert_allclose(literal[0], loss, rtol=2e-6)


@pytest.mark.parametrize("options", [{}, {"block_size": 16}])
def test_nothing_valid_gives_zero_loss_and_zero_gradient(options):
    x = inputs(size=3)
    x["valid"][:] = False
    loss, gradient = loss_and_gradient(x, **options)
    assert loss == 0
    assert not any(np.any(g) for g in gradient)


def test_an_image_alone_in_its_group_has_no_loss_and_zero_gradient():
    x = inputs(size=3)
    x["valid"][0, 1] = False
    loss, mask, _ = run(x, strategy="different_image", num_negatives=1000)
    assert not np.any(mask[0])
    assert not np.any(loss[0])
    assert np.any(mask[1])
    gradient = loss_and_gradient(x, strategy="different_image", num_negatives=1000)[1]
    assert np.isfinite(gradient[0]).all()
    assert not np.any(gradient[0][0])
    assert np.any(gradient[0][1])


def test_zero_features_have_no_gradient():
    x = inputs(size=3)
    x["weak"][0, 0] = 0
    loss, gradient = loss_and_gradient(x)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in gradient)
    assert not np.any(gradient[0][0, 0])
    assert np.any(gradient[0][0, 1])


@pytest.mark.parametrize("options", [{}, {"method": "window", "window": 24}])
def test_what_is_not_a_number_is_not_hidden_by_an_empty_draw(options):
    x = inputs(size=3)
    for name in ("weak", "strong", "probs"):
        x[name][0, 1, 2, 2] = np.nan
    x["valid"][0, 1, 2, 2] = True
    loss, _, stats = run(x, **options)
    assert np.isnan(loss[0, 1, :, 2, 2]).all()
    assert (stats.num_negatives[0, 1, :, 2, 2] > 0).all()
    assert np.isfinite(loss[1]).all()


@pytest.mark.parametrize("options", [{}, {"block_size": 16}])
def test_features_of_both_views_have_a_gradient_and_the_probabilities_have_none(options):
    _, (weak, strong, probs) = loss_and_gradient(inputs(size=3), **options)
    assert np.any(weak)
    assert np.any(strong)
    assert not np.any(probs)


def test_groups_do_not_see_each_other_and_scale_does_not_matter():
    x = inputs(size=3)
    changed = x["weak"].copy()
    changed[0] *= 8
    changed[1] += 1
    loss, other = run(x)[0], run({**x, "weak": changed})[0]
    np.testing.assert_allclose(other[0], loss[0], rtol=1e-6)
    assert not np.allclose(other[1], loss[1])


def test_the_key_decides_the_draw():
    x = inputs(size=3)
    np.testing.assert_array_equal(run(x)[0], run(x)[0])
    assert not np.array_equal(run(x, key=jax.random.key(8))[0], run(x)[0])


def test_without_labels_nothing_is_measured_and_the_loss_is_the_same():
    x = inputs(size=3)
    loss, _, stats = run({**x, "label": None})
    assert not np.any(stats.measured)
    assert not np.any(stats.false_negative_rate)
    np.testing.assert_allclose(loss, run(x)[0], rtol=1e-6)


def test_unknown_strategy_and_oracle_without_labels_are_refused():
    x = inputs(size=3)
    with pytest.raises(ValueError, match="known: uniform"):
        run(x, strategy="nearest")
    with pytest.raises(ValueError, match="ground-truth"):
        run({**x, "label": None}, strategy="oracle")


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
def test_groups_on_eight_devices_give_the_same_result_without_exchanging_features():
    x = inputs(groups=8, size=3, dim=8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    data, replicated = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))

    def step(x, key):
        (loss, _), gradient = evaluate_eagerly(x, key=key, strategy="different_image_pseudo_label", block_size=16)
        return loss, gradient

    sharded = jax.jit(
        step, in_shardings=(data, replicated), out_shardings=(replicated, data), compiler_options=FAST_COMPILE
    )
    compiled = sharded.lower(x, KEY).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    for collective in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in text
    result = compiled(*jax.device_put((x, KEY), (data, replicated)))
    expected = jax.jit(step, compiler_options=FAST_COMPILE)(x, KEY)
    assert relative_error(result, expected) < 1e-6
