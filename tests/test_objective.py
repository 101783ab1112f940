"""The objective against its slow composition: one forward pass per stream, losses as loops over pixels.

The tests run a toy network (one matrix, group normalisation, dropout) through the interface of the real one, so that
they need no compilation; `test_joined_streams.py` runs the real one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pc2seg_jax import build, objective, step
from pc2seg_jax.models.functional import Model
from pc2seg_jax.ops.contrastive import pixel_contrast
from pc2seg_jax.ops.losses import cosine_consistency, masked_mean
from pc2seg_jax.types import Batch, Outputs

GROUP, CLASSES, WIDTH, IGNORE = 2, 7, 5, 255
SETTINGS = {
    "teacher": {},
    "group_size": GROUP,
    "ignore_id": IGNORE,
    "label_loss": "cosine",
    "feature_loss": "pixel_contrast",
    "sampling": "window",
    "window": 0,
    "contrast_weight": 0.3,
    "consistency_weight": 1.0,
    "contrast_temperature": 0.07,
    "sharpening_temperature": 0.5,
    "num_negatives": 10_000,  # more than there are candidates: all of them are drawn, nothing is random
    "strategy": "different_image_pseudo_label",
}


def toy_model(dropout_rate=0.0):
    """Every fourth pixel times a matrix, normalised in groups; every fourth of those is a feature."""

    def apply(params, batch_stats, images, *, train, keys=None):
        x = (images[:, ::4, ::4] / 127.5 - 1) @ params["backbone"]["kernel"]
        grouped = x.reshape(-1, GROUP, *x.shape[1:])
        mean, var = grouped.mean((1, 2, 3)), grouped.var((1, 2, 3))
        if dropout_rate:
            x = x * jax.vmap(lambda key: jax.random.bernoulli(key, 1 - dropout_rate, x.shape[1:]))(keys)
        y = (x.reshape(grouped.shape) - mean[:, None, None, None]) / jnp.sqrt(var[:, None, None, None] + 1e-3)
        y = jax.nn.softplus(y.reshape(x.shape))
        moments = {"backbone": {"mean": mean, "var": var}}
        return Outputs(y @ params["head"]["kernel"], {"conv5": y[:, ::4, ::4]}), moments

    def project(params, features, *, branch):
        return {layer: x @ params["projection"][branch] for layer, x in features.items()}

    def update_statistics(batch_stats, moments):
        return jax.tree.map(lambda old, new: 0.8 * old + 0.2 * new.mean(0), batch_stats, moments)

    return Model(None, apply, project, update_statistics, None)


def toy_state():
    rng = np.random.default_rng(3)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {
        "backbone": {"kernel": normal(3, WIDTH)},
        "head": {"kernel": normal(WIDTH, CLASSES)},
        "projection": {"weak": normal(WIDTH, 4), "strong": normal(WIDTH, 4)},
    }
    return params, {"backbone": {"mean": jnp.zeros(WIDTH), "var": jnp.ones(WIDTH)}}


@pytest.fixture(scope="module")
def state():
    return toy_state()


@pytest.fixture(params=[(4, 8), (8, 4)], ids=str)
def batch(request, tiny_config, make_batch):
    labeled, unlabeled = request.param
    return make_batch(tiny_config(batch_labeled=labeled, batch_unlabeled=unlabeled), with_labels=True)


def keys_of(batch, seed=5):
    return step.image_keys(jax.random.key(seed), batch)


def finish(model, stats, result):
    """Loss, updated statistics, metrics."""
    loss = result.loss(result.counts())
    for moments in result.moments:
        stats = model.update_statistics(stats, moments)
    return loss, (stats, {"loss": loss} | {name: average.value() for name, average in result.terms.items()})


def run(model, state, batch, seed=5, **changes):
    settings = SETTINGS | changes
    features = objective.FeatureSettings(**{name: settings.pop(name) for name in objective.FeatureSettings._fields})
    result = objective.pc2seg(model, *state, batch, keys_of(batch, seed), features=features, **settings)
    return finish(model, state[1], result)


def gradient(model, state, batch, **changes):
    return jax.grad(lambda params: run(model, (params, state[1]), batch, **changes)[0])(state[0])


def project(model, params, weak, strong):
    views = (weak, "weak"), (strong, "strong")
    return [np.asarray(model.project(params, x.features, branch=name)["conv5"], np.float64) for x, name in views]


def assert_trees_close(a, b, **tolerances):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerances), a, b)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def slow_cross_entropy(logits, labels):
    """Corner-aligned bilinear interpolation and log-softmax, pixel by pixel; the last class may be missing."""
    scale = (logits.shape[1] - 1) / (labels.shape[1] - 1)
    values = []
    for b, i, j in np.argwhere(labels != IGNORE):
        y, x = i * scale, j * scale
        top, left = min(int(y), logits.shape[1] - 2), min(int(x), logits.shape[2] - 2)
        v, u = y - top, x - left
        patch = logits[b, top : top + 2, left : left + 2]
        pixel = (1 - v) * ((1 - u) * patch[0, 0] + u * patch[0, 1]) + v * ((1 - u) * patch[1, 0] + u * patch[1, 1])
        values.append(-np.log(softmax(pixel)[labels[b, i, j]]))
    return np.mean(values)


def slow_consistency(weak, strong, valid):
    values = []
    for b, i, j in np.argwhere(valid[:, ::4, ::4]):
        p, q = softmax(weak[b, i, j] / 0.5), softmax(strong[b, i, j])
        values.append(1 - p @ q / np.linalg.norm(p) / np.linalg.norm(q))
    return np.mean(values)


def slow_contrast(weak, strong, weak_logits, valid):
    """Eq. 4 with every pixel of another image of the group that may be of another class as a negative."""
    values = []
    for g in range(0, len(weak), GROUP):
        pixels = [(b, i, j) for b, i, j in np.argwhere(valid[:, ::16, ::16]) if g <= b < g + GROUP]
        unit = [{p: z[p] / np.linalg.norm(z[p]) for p in pixels} for z in (weak, strong)]
        for view in (0, 1):
            for anchor in pixels:
                z = unit[view][anchor]
                negatives = sum(
                    np.exp(z @ unit[v][other] / 0.07) for v in (0, 1) for other in pixels if other[0] != anchor[0]
                )
                positive = np.exp(z @ unit[1 - view][anchor] / 0.07)
                values.append(-np.log(positive / (positive + negatives)))
    return np.mean(values)


def test_the_losses_are_those_of_three_separate_passes(state, batch):
    model, (params, stats) = toy_model(), state
    streams = batch.labeled.image, batch.unlabeled.weak, batch.unlabeled.strong
    (labeled, m_labeled), (weak, m_weak), (strong, m_strong) = (
        model.apply(params, stats, images, train=True) for images in streams
    )
    loss, (new_stats, metrics) = run(model, state, batch)
    as_numpy = jax.tree.map(lambda x: np.asarray(x, np.float64), (labeled, weak, strong))
    labeled, weak, strong = as_numpy
    projected = project(model, params, weak, strong)
    valid = batch.unlabeled.valid
    slow = {
        "loss/supervised": slow_cross_entropy(labeled.logits, batch.labeled.label),
        "loss/consistency": slow_consistency(weak.logits, strong.logits, valid),
        "loss/contrast": slow_contrast(*projected, weak.logits, valid),
    }
    for name, value in slow.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)
    total = slow["loss/supervised"] + 0.3 * slow["loss/contrast"] + slow["loss/consistency"]
    np.testing.assert_allclose(loss, total, rtol=2e-5)
    assert float(metrics["loss"]) == float(loss)

    ordered = stats
    for moments in (m_labeled, m_weak, m_strong):
        ordered = model.update_statistics(ordered, moments)
    assert_trees_close(new_stats, ordered, rtol=1e-5, atol=1e-6)
    other = stats
    for moments in (m_weak, m_strong, m_labeled):
        other = model.update_statistics(other, moments)
    assert not np.allclose(new_stats["backbone"]["mean"], other["backbone"]["mean"], rtol=1e-4, atol=1e-5)


def test_the_weak_pass_is_a_constant_whose_projection_is_trained(state, batch):
    model, (params, stats) = toy_model(), state
    unlabeled = batch.unlabeled
    weak, _ = jax.tree.map(np.asarray, model.apply(params, stats, unlabeled.weak, train=True))
    groups = len(unlabeled.weak) // GROUP

    def grouped(x):
        return x.reshape(groups, GROUP, *x.shape[1:])

    def with_constants(params):
        labeled, _ = model.apply(params, stats, batch.labeled.image, train=True)
        strong, _ = model.apply(params, stats, unlabeled.strong, train=True)
        distance = cosine_consistency(weak.logits, strong.logits, temperature=0.5)
        values, mask, _ = pixel_contrast(
            grouped(model.project(params, weak.features, branch="weak")["conv5"]),
            grouped(model.project(params, strong.features, branch="strong")["conv5"]),
            grouped(jax.nn.softmax(weak.logits)[:, ::4, ::4]),
            grouped(unlabeled.valid[:, ::16, ::16] > 0),
            keys_of(batch).unlabeled[::GROUP],
            strategy=SETTINGS["strategy"],
            num_negatives=SETTINGS["num_negatives"],
            temperature=0.07,
        )
        supervised = objective._supervised_loss(labeled, batch.labeled, IGNORE).value()
        consistency = masked_mean(distance, unlabeled.valid[:, ::4, ::4])
        return supervised + consistency + 0.3 * masked_mean(values, mask)

    found = gradient(model, state, batch)
    assert_trees_close(found, jax.grad(with_constants)(params), rtol=1e-4, atol=1e-5)
    assert np.abs(found["projection"]["weak"]).max() > 1e-3
    assert np.abs(found["projection"]["strong"]).max() > 1e-3

    unlearned = jax.tree.map(jnp.subtract, found, gradient(model, state, batch, contrast_weight=0.0))
    assert np.abs(unlearned["head"]["kernel"]).max() < 1e-5  # contrast reaches the logits through neither view
    assert np.abs(unlearned["backbone"]["kernel"]).max() > 1e-3


def test_a_teacher_sees_the_weak_view_and_the_network_all_else(state, batch):
    model, (params, stats) = toy_model(), state
    teacher = {"params": jax.tree.map(lambda x: 0.5 * x + 0.1, params), "batch_stats": stats}
    loss, (new_stats, metrics) = run(model, state, batch, teacher=teacher)
    weak, _ = model.apply(teacher["params"], stats, batch.unlabeled.weak, train=True)
    strong, m_strong = model.apply(params, stats, batch.unlabeled.strong, train=True)
    _, m_labeled = model.apply(params, stats, batch.labeled.image, train=True)
    weak, strong = jax.tree.map(lambda x: np.asarray(x, np.float64), (weak, strong))
    valid = batch.unlabeled.valid
    np.testing.assert_allclose(
        metrics["loss/consistency"], slow_consistency(weak.logits, strong.logits, valid), rtol=2e-5
    )
    projected = project(model, params, weak, strong)
    np.testing.assert_allclose(metrics["loss/contrast"], slow_contrast(*projected, weak.logits, valid), rtol=2e-5)
    ordered = model.update_statistics(model.update_statistics(stats, m_labeled), m_strong)
    assert_trees_close(new_stats, ordered, rtol=1e-5, atol=1e-6)
    assert float(loss) != float(run(model, state, batch)[0])


def test_the_losses_of_two_contrast_layers_add_up(state, batch):
    """The second layer is a function of the first one, at another resolution."""
    one = toy_model()

    def apply(names, *args, **settings):
        outputs, moments = one.apply(*args, **settings)
        x = outputs.features["conv5"]
        layers = {"conv5": x, "encoder": jnp.sin(3 * x[:, ::2, ::2])}
        return outputs._replace(features={name: layers[name] for name in names}), moments

    subsets = ("conv5", "encoder"), ("conv5",), ("encoder",)
    models = [one._replace(apply=functools.partial(apply, names)) for names in subsets]
    both, first, second = (run(model, state, batch)[1][1] for model in models)
    np.testing.assert_allclose(both["loss/contrast_conv5"], first["loss/contrast"], rtol=1e-6)
    np.testing.assert_allclose(both["loss/contrast_encoder"], second["loss/contrast"], rtol=1e-6)
    np.testing.assert_allclose(both["loss"], first["loss"] + 0.3 * second["loss/contrast"], rtol=1e-6)


def test_without_contrast_the_objective_is_supervised_plus_consistency(state, batch):
    model = toy_model()
    full, (full_stats, full_metrics) = run(model, state, batch)
    loss, (stats, metrics) = run(model, state, batch, contrast_weight=0.0, strategy="not read", num_negatives=0)
    np.testing.assert_allclose(loss, metrics["loss/supervised"] + metrics["loss/consistency"], rtol=1e-6)
    np.testing.assert_allclose(full - loss, 0.3 * full_metrics["loss/contrast"], rtol=1e-4)
    assert not [name for name in metrics if "contrast" in name]
    assert_trees_close(stats, full_stats, rtol=0)
    contrast, (_, metrics) = run(model, state, batch, consistency_weight=0.0)
    np.testing.assert_allclose(contrast, full - full_metrics["loss/consistency"], rtol=1e-5)
    assert "loss/consistency" not in metrics


def test_supervised_is_the_cross_entropy_of_the_labelled_images_alone(state, batch):
    model, (params, stats) = toy_model(), state

    def loss(params, batch):
        result = objective.supervised(model, params, stats, batch, keys_of(batch), **SETTINGS)
        return result.loss(result.counts())

    def plain(params):
        outputs, _ = model.apply(params, stats, batch.labeled.image, train=True)
        return objective._supervised_loss(outputs, batch.labeled, IGNORE).value()

    outputs, moments = model.apply(params, stats, batch.labeled.image, train=True)
    np.testing.assert_allclose(
        loss(params, batch), slow_cross_entropy(np.asarray(outputs.logits, np.float64), batch.labeled.label), rtol=2e-5
    )
    assert_trees_close(jax.grad(loss)(params, batch), jax.grad(plain)(params), rtol=1e-6)
    assert_trees_close(jax.grad(loss)(params, Batch(batch.labeled)), jax.grad(plain)(params), rtol=1e-6)
    result = objective.supervised(model, params, stats, batch, keys_of(batch), **SETTINGS)
    _, (new_stats, metrics) = finish(model, stats, result)
    assert_trees_close(new_stats, model.update_statistics(stats, moments), rtol=0)
    assert set(metrics) == {"loss", "loss/supervised"}


@pytest.mark.parametrize("strategy", list(build.STRATEGIES))
def test_metrics_are_finite_and_say_what_the_strategy_promises(state, batch, strategy):
    loss, (_, metrics) = run(toy_model(), state, batch, strategy=strategy, num_negatives=6)
    assert np.isfinite(loss)
    per_class = {"consistency", "pseudo_label/share"}
    assert all(np.isfinite(value).all() for value in metrics.values()), metrics
    assert all(np.shape(value) == ((CLASSES,) if name in per_class else ()) for name, value in metrics.items())
    count = float(metrics["contrast/num_negatives"])
    assert 5 < count < 6 if strategy == "oracle" else count == 6  # anchors that are ignored have no oracle negatives
    rate = float(metrics["contrast/false_negative_rate"])
    assert rate == 0 if strategy == "oracle" else 0 < rate < 0.5


def test_ground_truth_is_read_by_the_oracle_alone(state, batch):
    model = toy_model()
    blind = batch._replace(unlabeled=batch.unlabeled._replace(label=None))
    seeing, (_, metrics) = run(model, state, batch)
    loss, (_, blind_metrics) = run(model, state, blind)
    assert float(seeing) == float(loss)
    assert set(metrics) - set(blind_metrics) == {"contrast/false_negative_rate", "pseudo_label/accuracy"}
    with pytest.raises(ValueError, match="oracle"):
        run(model, state, blind, strategy="oracle")


def test_nothing_valid_means_no_unlabelled_loss_and_finite_gradients(state, batch):
    empty = batch._replace(unlabeled=batch.unlabeled._replace(valid=np.zeros_like(batch.unlabeled.valid)))
    loss, (_, metrics) = run(toy_model(), state, empty)
    assert float(loss) == float(metrics["loss/supervised"])
    found = gradient(toy_model(), state, empty)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert not np.any(found["projection"]["weak"])


def test_dropout_differs_between_the_passes_and_depends_on_the_key_alone(state, batch):
    model = toy_model(dropout_rate=0.5)
    same = batch._replace(unlabeled=batch.unlabeled._replace(strong=batch.unlabeled.weak))
    _, (_, without) = run(toy_model(), state, same)
    loss, (_, metrics) = run(model, state, same)
    assert metrics["loss/consistency"] > without["loss/consistency"] + 1e-2
    assert float(run(model, state, same)[0]) == float(loss)
    assert float(run(model, state, same, seed=6)[0]) != float(loss)
