"""Every setting of the losses changes what it says, and nothing else; slow twins of the losses of Tab. 9."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_objective import CLASSES, GROUP, SETTINGS, gradient, keys_of, project, run, softmax, toy_model, toy_state

from pc2seg_jax import build, objective
from pc2seg_jax.compile_report import abstract_inputs
from pc2seg_jax.errors import UserError
from pc2seg_jax.models.functional import create_model
from pc2seg_jax.ops.image_contrast import image_contrast
from pc2seg_jax.ops.losses import average_per_class, cosine_distance, cross_entropy_consistency
from pc2seg_jax.ops.views import make_views
from pc2seg_jax.parallel import make_shardings
from pc2seg_jax.step import make_gradient_norms
from pc2seg_jax.training import warn_of_draws
from pc2seg_jax.types import TrainState
from pc2seg_jax.validation import validate


@pytest.fixture(scope="module")
def state():
    return toy_state()


@pytest.fixture
def batch(tiny_config, make_batch):
    return make_batch(tiny_config(batch_labeled=4, batch_unlabeled=8), with_labels=True)


def norm(tree):
    return np.sqrt(sum(float(jnp.sum(x * x)) for x in jax.tree.leaves(tree)))


def views(model, state, batch):
    (params, stats), unlabeled = state, batch.unlabeled
    outputs = (model.apply(params, stats, x, train=True)[0] for x in (unlabeled.weak, unlabeled.strong))
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tuple(outputs))


def test_cross_entropy_consistency_equals_the_loop():
    rng = np.random.default_rng(0)
    weak, strong = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))
    found = cross_entropy_consistency(weak, strong, temperature=0.5)
    for i, j in np.ndindex(2, 3):
        p, q = softmax(weak[i, j] / 0.5), softmax(strong[i, j])
        np.testing.assert_allclose(found[i, j], -sum(p * np.log(q)), rtol=1e-5)
    gradients = jax.grad(lambda w, s: cross_entropy_consistency(w, s).sum(), (0, 1))(weak, strong)
    assert not np.any(gradients[0])
    np.testing.assert_allclose(gradients[1], softmax(strong) - softmax(weak / 0.5), atol=1e-6)


def test_cosine_distance_equals_the_loop_and_zero_vectors_have_no_gradient():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 6)).astype(np.float32)
    expected = [1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(cosine_distance(a, b), expected, atol=1e-6)
    a[0] = 0
    gradients = jax.grad(lambda a, b: cosine_distance(a, b).sum(), (0, 1))(a, b)
    assert not any(np.any(g[0]) for g in gradients)
    assert all(np.any(g[1:], axis=-1).all() for g in gradients)
    assert cosine_distance(a, b)[0] == 1


def test_average_per_class_equals_the_loop():
    rng = np.random.default_rng(0)
    values, classes, mask = rng.random((3, 4)), rng.integers(0, 4, (3, 4)), rng.random((3, 4)) < 0.6
    found = average_per_class(values, classes, mask, 3)
    for c in range(3):
        chosen = values[(classes == c) & mask]
        np.testing.assert_allclose([found.total[c], found.count[c]], [chosen.sum(), len(chosen)], rtol=1e-6)
    nothing = average_per_class(values, classes, mask & False, 3)
    assert np.isnan(nothing.measured()).all()
    assert not np.any(nothing.value())


def slow_image_contrast(weak, strong, valid, tau=0.07):
    """Pooled features of every image in turn; weak, strong: [G, g, h, w, D]."""
    losses = np.zeros((*weak.shape[:2], 2))
    for group in range(len(weak)):
        pooled = {
            (i, view): x[group, i][valid[group, i]].mean(0)
            for view, x in enumerate((weak, strong))
            for i in range(weak.shape[1])
            if valid[group, i].any()
        }
        unit = {key: z / np.linalg.norm(z) for key, z in pooled.items()}
        for (i, view), z in unit.items():
            positive = np.exp(z @ unit[i, 1 - view] / tau)
            negatives = sum(np.exp(z @ other / tau) for (j, _), other in unit.items() if j != i)
            losses[group, i, view] = -np.log(positive / (positive + negatives))
    return losses


def test_image_contrast_equals_the_loop_and_leaves_empty_images_out():
    rng = np.random.default_rng(0)
    weak, strong = rng.normal(size=(2, 2, 3, 4, 4, 6))
    valid = rng.random((2, 3, 4, 4)) < 0.7
    valid[1, 2] = False
    loss, mask = image_contrast(weak.astype(np.float32), strong.astype(np.float32), valid)
    np.testing.assert_allclose(loss, slow_image_contrast(weak, strong, valid), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(mask, np.broadcast_to(valid.any((2, 3))[..., None], mask.shape))
    alone = valid & (np.arange(3) == 0)[:, None, None]
    gradients = jax.grad(lambda w, s: image_contrast(w, s, alone)[0].sum(), (0, 1))(weak, strong)
    assert all(np.isfinite(g).all() for g in gradients)
    assert not np.any(image_contrast(weak, strong, alone)[0])


def test_label_loss_changes_the_consistency_alone(state, batch):
    model = toy_model()
    _, (_, cosine) = run(model, state, batch)
    _, (_, metrics) = run(model, state, batch, label_loss="cross_entropy")
    weak, strong = views(model, state, batch)
    values = -(softmax(weak.logits / 0.5) * np.log(softmax(strong.logits))).sum(-1)
    valid = batch.unlabeled.valid[:, ::4, ::4]
    np.testing.assert_allclose(metrics["loss/consistency"], values[valid].mean(), rtol=1e-5)
    predicted = weak.logits.argmax(-1)
    for c in range(CLASSES):
        chosen = values[valid & (predicted == c)]
        np.testing.assert_allclose(metrics["consistency"][c], chosen.mean() if len(chosen) else 0, rtol=1e-4)
    same = [name for name in cosine if name not in ("loss", "loss/consistency", "consistency")]
    for name in same:
        np.testing.assert_array_equal(metrics[name], cosine[name], err_msg=name)


@pytest.mark.parametrize("kind", ["pixel_consistency", "image_contrast"])
def test_feature_loss_replaces_the_pixel_contrast_alone(state, batch, kind):
    model = toy_model()
    _, (_, before) = run(model, state, batch)
    loss, (_, metrics) = run(model, state, batch, feature_loss=kind)
    weak, strong = project(model, state[0], *views(model, state, batch))
    valid = batch.unlabeled.valid[:, ::16, ::16]
    if kind == "pixel_consistency":
        name = "loss/feature_consistency"
        unit = [z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (weak, strong)]
        expected = (1 - (unit[0] * unit[1]).sum(-1))[valid].mean()
    else:
        name = "loss/image_contrast"
        grouped = (x.reshape(-1, GROUP, *x.shape[1:]) for x in (weak, strong, valid))
        expected = slow_image_contrast(*grouped).mean()
    np.testing.assert_allclose(metrics[name], expected, rtol=1e-4)
    unlabelled = 0.3 * metrics[name] + metrics["loss/consistency"]
    np.testing.assert_allclose(loss, metrics["loss/supervised"] + unlabelled, rtol=1e-6)
    assert not [other for other in metrics if other.startswith("contrast")]
    for other in ("loss/supervised", "loss/consistency", "pseudo_label/confidence"):
        assert float(metrics[other]) == float(before[other])
    found = gradient(model, state, batch, feature_loss=kind, consistency_weight=0.0)
    assert np.abs(found["projection"]["weak"]).max() > 1e-4


def test_pseudo_labels_are_described(state, batch):
    model = toy_model()
    _, (_, metrics) = run(model, state, batch)
    weak, _ = views(model, state, batch)
    valid, label = batch.unlabeled.valid[:, ::4, ::4], batch.unlabeled.label[:, ::4, ::4]
    predicted = weak.logits.argmax(-1)
    shares = [(predicted[valid] == c).mean() for c in range(CLASSES)]
    np.testing.assert_allclose(metrics["pseudo_label/share"], shares, atol=1e-6)
    known = valid & (label != 255)
    np.testing.assert_allclose(metrics["pseudo_label/accuracy"], (predicted == label)[known].mean(), rtol=1e-5)
    negatives = float(metrics["contrast/num_negatives"])
    assert 0 < float(metrics["contrast/loss_at_chance"]) <= np.log(negatives + 1) + 1e-4  # log is concave
    assert float(metrics["contrast/exact_fraction"]) == 1


@pytest.mark.parametrize("change", [{"sampling": "full"}, {"window": 9}])
def test_sampling_and_window_change_the_contrast_alone(state, batch, change):
    few = {"num_negatives": 5, "window": 14}  # of the 18 candidates of the other image
    _, (stats, before) = run(toy_model(), state, batch, **few)
    _, (other_stats, metrics) = run(toy_model(), state, batch, **few | change)
    assert float(metrics["loss/contrast"]) != float(before["loss/contrast"])
    np.testing.assert_allclose(metrics["loss/contrast"], before["loss/contrast"], rtol=0.2)  # the same expectation
    for name in before:
        if "contrast" not in name and name != "loss":
            np.testing.assert_array_equal(metrics[name], before[name], err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, stats, other_stats)


@pytest.mark.parametrize(
    ("change", "term"),
    [({"contrast_temperature": 0.2}, "loss/contrast"), ({"sharpening_temperature": 1.0}, "loss/consistency")],
)
def test_a_temperature_changes_its_own_loss(state, batch, change, term):
    _, (_, before) = run(toy_model(), state, batch)
    _, (_, metrics) = run(toy_model(), state, batch, **change)
    changed = {name for name in before if not np.array_equal(metrics[name], before[name])}
    assert changed == {"loss", term} | ({"consistency"} if term == "loss/consistency" else set())


def test_masking_of_cutout_changes_which_pixels_are_valid_and_nothing_else(tiny_config, make_crops):
    crops = make_crops(tiny_config(), with_labels=True)
    masked, seen = (
        make_views(crops, mean_pixel=(1, 2, 3), ignore_id=255, mask_cutout=mask).unlabeled for mask in (True, False)
    )
    np.testing.assert_array_equal(masked.weak, seen.weak)
    np.testing.assert_array_equal(masked.strong, seen.strong)
    cut = np.zeros((33, 33), bool)
    cut[-8:, -8:] = True
    real = np.arange(33)[:, None] < 30
    np.testing.assert_array_equal(masked.valid, np.broadcast_to(real & ~cut, masked.valid.shape))
    np.testing.assert_array_equal(seen.valid, np.broadcast_to(real, seen.valid.shape))
    np.testing.assert_array_equal(seen.label == 255, (crops.unlabeled.label == 255) | ~np.asarray(seen.valid))
    assert (np.asarray(masked.strong)[:, -8:, -8:] == [1, 2, 3]).all()


def test_a_shared_projection_is_one_kernel():
    settings = {
        "backbone": "resnet14_beta",
        "num_classes": 3,
        "width": 4,
        "head_width": 8,
        "low_level_width": 4,
        "multi_grid": (2,),
        "projection_dim": 8,
    }
    separate, shared = (create_model(**settings, shared_projection=x) for x in (False, True))
    trees = [jax.eval_shape(model.init, jax.random.key(0))[0] for model in (separate, shared)]
    assert set(trees[0]["projection"]["conv5"]) == {"weak", "strong"}
    assert set(trees[1]["projection"]["conv5"]) == {"shared"}
    for part in ("backbone", "head"):
        assert trees[0][part] == trees[1][part]
    params, own = (jax.jit(model.init)(jax.random.key(0))[0] for model in (shared, separate))
    kernel = max(jax.tree.leaves(params["projection"]["conv5"]["shared"]), key=lambda x: x.ndim)
    channels = kernel.shape[-2]
    x = {"conv5": jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2, channels)), jnp.float32)}
    weak, strong = (shared.project(params, x, branch=branch)["conv5"] for branch in ("weak", "strong"))
    np.testing.assert_array_equal(weak, strong)
    weak, strong = (separate.project(own, x, branch=branch)["conv5"] for branch in ("weak", "strong"))
    assert np.abs(weak - strong).max() > 1e-3


def program(function, *arguments):
    """The traced program without the addresses of objects in it."""
    return re.sub(r"0x[0-9a-f]+", "", str(function.trace(*arguments).jaxpr))


def test_before_the_delay_the_step_is_the_supervised_one(tiny_config):
    """The same program, so that parameters, statistics and gradients are those of the baseline."""
    shardings = make_shardings(1)
    settings = {"num_classes": 7, "ignore_id": 255, "shardings": shardings}
    delayed = build.build_functions(tiny_config(loss__delay=2), **settings)
    inputs = abstract_inputs(tiny_config(), delayed, shardings)
    assert [delayed.step(number) for number in (1, 2)] == [delayed.supervised_step] * 2
    assert [delayed.step(number) for number in (3, 4, 6)] == [delayed.train_step] * 3
    baseline = build.build_functions(tiny_config(objective="supervised"), **settings)
    at_once = build.build_functions(tiny_config(), **settings)
    assert at_once.step(1) is at_once.train_step
    assert [delayed.norms(number) for number in (2, 3)] == [delayed.supervised_norms, delayed.gradient_norms]
    supervised = program(baseline.train_step, *inputs)
    assert program(delayed.supervised_step, *inputs) == supervised
    whole = program(at_once.train_step, *inputs)
    assert program(delayed.train_step, *inputs) == whole != supervised


def test_gradient_norms_are_those_of_each_weighted_loss_alone(state, batch):
    model, shardings = toy_model(), make_shardings(1)
    settings = SETTINGS | {"feature_loss": "pixel_consistency"}

    def bind(state, crops):
        def evaluate(params, crops, keys):
            features = objective.FeatureSettings(**{name: settings[name] for name in objective.FeatureSettings._fields})
            rest = {name: value for name, value in settings.items() if name not in features._fields}
            return objective.pc2seg(model, params, state.batch_stats, crops, keys, features=features, **rest)

        return evaluate, keys_of(crops)

    measured = make_gradient_norms(bind, parts=2, group_size=GROUP, shardings=shardings)
    train_state = TrainState(jnp.zeros((), jnp.int32), *state, opt_state={}, teacher={})
    norms = measured(train_state, batch)
    alone = {
        "supervised": {"consistency_weight": 0.0, "contrast_weight": 0.0},
        "consistency": {"contrast_weight": 0.0},
        "feature_consistency": {"consistency_weight": 0.0},
    }
    assert set(norms) == {f"gradient_norm/{name}" for name in alone}
    whole = {name: gradient(model, state, batch, **settings | changes) for name, changes in alone.items()}
    for name, found in whole.items():
        if name != "supervised":
            found = jax.tree.map(jnp.subtract, found, whole["supervised"])
        np.testing.assert_allclose(norms[f"gradient_norm/{name}"], norm(found), rtol=1e-4, err_msg=name)


WRONG = [
    ({"loss__label_loss": "l2"}, "config.loss.label_loss is 'l2', expected one of: cosine, cross_entropy"),
    ({"loss__feature_loss": "none"}, "config.loss.feature_loss is 'none', expected one of: pixel_contrast, pixel_cons"),
    ({"loss__sampling": "all"}, "config.loss.sampling is 'all', expected one of: window, full"),
    ({"loss__window": 5}, "config.loss.window is 5, expected at least config.loss.num_negatives"),
    ({"loss__delay": 6}, "config.loss.delay is 6, expected less than config.steps"),
    ({"loss__delay": -1}, "config.loss.delay is -1, expected 0 or more"),
    ({"loss__feature_loss": "image_contrast", "group_size": 1}, "a group holds one image"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_settings_are_refused_in_one_sentence(tiny_config, changes, message):
    with pytest.raises(UserError) as error:
        validate(tiny_config(**changes), build.CHOICES)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_settings_of_the_configuration_are_those_of_the_objective(tiny_config):
    bound = build.build_objective(tiny_config(), 255)
    assert bound.func is objective.pc2seg
    features = set(objective.FeatureSettings._fields)
    assert set(bound.keywords) == (set(SETTINGS) - {"teacher"} - features) | {"mesh", "features"}
    assert bound.keywords["features"].num_negatives == 10


@pytest.mark.parametrize(
    ("exact", "scarce", "found", "words"),
    [
        (1.0, 0.0, 10.0, None),
        (0.96, 0.01, 9.8, None),
        (0.6, 0.1, 8.0, "30% of the anchors are certain of fewer than 10 negatives in their window"),
        (0.0, 1.0, 3.0, "anchors have 3.0 negatives on average instead of 10, because their groups offer no more"),
        (1.0, 1.0, 3.0, "anchors have 3.0 negatives on average instead of 10, because their groups offer no more"),
        (1.0, 1.0, 0.0, "anchors have 0.0 negatives on average instead of 10"),
    ],
)
def test_missing_negatives_are_told_with_their_cause(tiny_config, exact, scarce, found, words):
    """A window cannot tell of an anchor with fewer candidates than N; the log does not blame it then."""
    values = {"exact_fraction": exact, "scarce_fraction": scarce, "num_negatives": found}
    values = {"loss": 1.0} | {f"contrast/{name}": value for name, value in values.items()}
    sentence = warn_of_draws(values, tiny_config())
    assert (words in sentence and "--config.loss.num_negatives" in sentence) if words else sentence == ""
    assert warn_of_draws({"loss": 1.0}, tiny_config()) == ""
