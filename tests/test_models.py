"""The network as pure functions: geometry, groups, what a pass depends on and what it may change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pc2seg_jax.errors import UserError
from pc2seg_jax.models import BACKBONES, CONTRAST_LAYERS, create_classifier, create_model
from pc2seg_jax.models.backbones import resnet_beta

SMALL = {
    "backbone": "tiny",
    "num_classes": 3,
    "width": 4,
    "head_width": 8,
    "low_level_width": 4,
    "multi_grid": (2,),
    "group_size": 2,
    "projection_dim": 6,
}


@pytest.fixture(scope="module", autouse=True)
def tiny_backbone():
    """One unit per block, two in the first so that there is an identity shortcut: compiles in half the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", resnet_beta((2, 1, 1, 1)))
        yield


def flat(tree):
    """{'a/b/c': leaf} of nested dicts."""
    return {"/".join(entry.key for entry in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def images(batch, side=33, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (batch, side, side, 3)).astype(np.float32)


def keys_of(x, key):
    """One key per image."""
    return jax.random.split(key, len(x))


@pytest.fixture(scope="module")
def small():
    model = create_model(**SMALL)
    params, batch_stats = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    return model, params, batch_stats


@pytest.fixture(scope="module")
def small_train(small):
    """Outputs, moments and the gradient of a function of the first group's logits by (params, images)."""

    # Compiling is all the time this takes, so it is told not to optimise.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def compiled(params, batch_stats, x, key):
        def first_group(params, x):
            outputs, moments = small[0].apply(params, batch_stats, x, train=True, keys=keys_of(x, key))
            return jnp.sum(jnp.square(outputs.logits[:2] - 1.0)), (outputs, moments)

        gradient, (outputs, moments) = jax.grad(first_group, argnums=(0, 1), has_aux=True)(params, x)
        return outputs, moments, gradient

    return lambda *args: jax.device_get(compiled(*args))  # numpy, so that indexing in a test compiles nothing


@pytest.fixture(scope="module")
def small_eval(small):
    compiled = jax.jit(lambda params, stats, x: small[0].apply(params, stats, x, train=False))
    return lambda *args: jax.device_get(compiled(*args))


# ---- geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "output_stride", "contrast_layer"),
    [
        *((65, stride, layer) for stride, layer in zip((16, 8, 16, 8, 16), CONTRAST_LAYERS, strict=True)),
        *((97, stride, "conv5") for stride in (8, 16)),
        (65, 8, "conv5"),
    ],
)
def test_shapes(side, output_stride, contrast_layer):
    model = create_model(**SMALL | {"output_stride": output_stride, "contrast_layers": (contrast_layer,)})
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, side, 2 * side - 1, 3), jnp.float32)
    outputs, _ = jax.eval_shape(lambda *args: model.apply(*args, train=False), params, batch_stats, x)
    stride = 4 if contrast_layer == "decoder" else output_stride
    width = {"conv3": 32, "conv4": 64, "conv5": 128, "encoder": 8, "decoder": 8}[contrast_layer]
    h, w = (side - 1) // stride + 1, (2 * side - 2) // stride + 1
    assert {name: x.shape for name, x in outputs.features.items()} == {contrast_layer: (2, h, w, width)}
    assert outputs.logits.shape == (2, (side - 1) // 4 + 1, (2 * side - 2) // 4 + 1, 3)
    projected = jax.eval_shape(lambda p, f: model.project(p, f, branch="weak"), params, outputs.features)[
        contrast_layer
    ]
    assert projected.shape == (2, h, w, 6)
    assert projected.dtype == jnp.float32


def test_corner_aligned_geometry_commutes_with_flips(small, small_eval):
    """Mirroring input and all kernels mirrors the output: no layer pads or resizes lopsidedly."""
    _, params, batch_stats = small
    x = images(3)
    mirrored = jax.tree.map(lambda leaf: leaf[:, ::-1] if leaf.ndim == 4 else leaf, params)
    outputs, _ = small_eval(params, batch_stats, x)
    flipped, _ = small_eval(mirrored, batch_stats, x[:, :, ::-1])
    np.testing.assert_allclose(flipped.logits[:, :, ::-1], outputs.logits, rtol=0, atol=1e-4 * outputs.logits.std())
    mirrored_back = flipped.features["conv5"][:, :, ::-1]
    np.testing.assert_allclose(mirrored_back, outputs.features["conv5"], rtol=0, atol=1e-4)


# ---- grouped batch normalisation -------------------------------------------------------------------------------------


def test_groups_do_not_see_each_other(small, small_train):
    """Outputs, moments and gradients of one group are the same whatever the other group holds."""
    _, params, batch_stats = small
    a, b = images(4, seed=0), images(4, seed=1)
    key = jax.random.key(0)
    outputs, moments, (_, gradient) = small_train(params, batch_stats, a, key)
    mixed = np.concatenate([a[:2], b[2:]])
    mixed_outputs, mixed_moments, (_, mixed_gradient) = small_train(params, batch_stats, mixed, key)
    assert np.all(gradient[2:] == 0)
    assert np.any(gradient[:2] != 0)
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(mixed_gradient[:2], gradient[:2], rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(mixed_outputs.logits[:2], outputs.logits[:2], rtol=0, atol=1e-5)
    for name, leaf in flat(moments).items():
        np.testing.assert_allclose(flat(mixed_moments)[name][0], leaf[0], rtol=1e-4, atol=1e-5)
    stem = moments["backbone"]["conv1_1"]["bn"]["mean"]
    assert not np.allclose(mixed_moments["backbone"]["conv1_1"]["bn"]["mean"][1], stem[1], atol=1e-5)


def test_batch_that_is_no_multiple_of_the_group_is_refused(small):
    model, params, batch_stats = small
    with pytest.raises(ValueError, match="3 images cannot be divided into groups of 2"):
        model.apply(params, batch_stats, images(3), train=True, keys=keys_of(images(3), jax.random.key(0)))


def test_moments_are_those_of_the_layer_input(small, small_train):
    """The stem's moments, from the images by a loop over kernel positions in numpy."""
    _, params, batch_stats = small
    x = images(4)
    _, moments, _ = small_train(params, batch_stats, x, jax.random.key(0))
    assert jax.tree.structure(moments) == jax.tree.structure(batch_stats)
    padded = np.pad(x * (2 / 255) - 1, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = np.asarray(params["backbone"]["conv1_1"]["conv"]["kernel"])
    y = sum(padded[:, i : i + 33 : 2, j : j + 33 : 2] @ kernel[i, j] for i in range(3) for j in range(3))
    groups = y.reshape(2, -1, y.shape[-1])
    mean, unbiased = groups.mean(1), groups.var(1, ddof=1)
    np.testing.assert_allclose(moments["backbone"]["conv1_1"]["bn"]["mean"], mean, rtol=0, atol=1e-5)
    np.testing.assert_allclose(moments["backbone"]["conv1_1"]["bn"]["var"], unbiased, rtol=1e-4)


def test_statistics_follow_the_decay_of_their_part(small, small_train):
    _, params, batch_stats = small
    model = create_model(**SMALL | {"backbone_decay": 0.9, "head_decay": 0.25})
    _, moments, _ = small_train(params, batch_stats, images(4), jax.random.key(0))
    updated = flat(jax.jit(model.update_statistics)(batch_stats, moments))
    assert jax.tree.structure(updated) == jax.tree.structure(flat(batch_stats))
    moments = flat(moments)
    for name, running in flat(batch_stats).items():
        decay = 0.9 if name.startswith("backbone") else 0.25
        expected = decay * np.asarray(running) + (1 - decay) * np.asarray(moments[name]).mean(0)
        np.testing.assert_allclose(updated[name], expected, rtol=1e-5, atol=1e-6)


def test_default_decays_are_the_published_ones(small):
    model, _, batch_stats = small
    moments = jax.tree.map(lambda leaf: np.ones((1, *leaf.shape), np.float32), batch_stats)
    zeros = jax.tree.map(np.zeros_like, batch_stats)
    for name, leaf in flat(jax.jit(model.update_statistics)(zeros, moments)).items():
        np.testing.assert_allclose(leaf, 0.05 if name.startswith("backbone") else 0.0003, rtol=1e-3)


# ---- what a pass depends on ------------------------------------------------------------------------------------------


def test_jit_equals_eager_and_no_input_changes(small, small_train):
    model, params, batch_stats = small
    before = jax.tree.map(np.array, (params, batch_stats))
    x, key = images(4), jax.random.key(3)
    eager, eager_moments = model.apply(params, batch_stats, x, train=True, keys=keys_of(x, key))
    jax.tree.map(np.testing.assert_array_equal, (params, batch_stats), before)
    jitted, jitted_moments, _ = small_train(params, batch_stats, x, key)
    np.testing.assert_allclose(jitted.logits, eager.logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(jitted.features["conv5"], eager.features["conv5"], rtol=0, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), jitted_moments, eager_moments)


def test_dropout_acts_in_training_only_and_follows_its_key(small, small_train, small_eval):
    model, params, batch_stats = small
    x = images(4)
    a, b, again = (small_train(params, batch_stats, x, jax.random.key(seed))[0] for seed in (0, 1, 0))
    np.testing.assert_array_equal(a.logits, again.logits)
    assert not np.array_equal(a.logits, b.logits)
    np.testing.assert_array_equal(a.features["conv5"], b.features["conv5"])  # dropout comes after the backbone
    first, second = (small_eval(params, batch_stats, images(3))[0] for _ in range(2))
    np.testing.assert_array_equal(first.logits, second.logits)
    with pytest.raises(ValueError, match="needs keys"):
        model.apply(params, batch_stats, x, train=True)


def test_evaluation_treats_every_image_alone(small, small_eval):
    _, params, batch_stats = small
    x = images(3)
    together, _ = small_eval(params, batch_stats, x)
    mixed, _ = small_eval(params, batch_stats, np.stack([255 - x[0], x[1], np.zeros_like(x[2])]))
    np.testing.assert_allclose(together.logits[1], mixed.logits[1], rtol=0, atol=1e-5)
    assert not np.allclose(together.logits[0], mixed.logits[0], rtol=0, atol=1e-5)


def test_projections_are_separate_linear_maps(small):
    model, params, _ = small
    features = np.random.default_rng(0).normal(size=(2, 3, 3, 128)).astype(np.float32)
    for branch in ("weak", "strong"):
        conv = params["projection"]["conv5"][branch]["conv"]
        expected = features @ np.asarray(conv["kernel"])[0, 0] + np.asarray(conv["bias"])
        np.testing.assert_allclose(
            model.project(params, {"conv5": features}, branch=branch)["conv5"], expected, rtol=0, atol=1e-5
        )
    kernels = [params["projection"]["conv5"][branch]["conv"]["kernel"] for branch in ("weak", "strong")]
    assert not np.array_equal(*kernels)


def test_every_parameter_but_the_projections_gets_a_gradient(small, small_train):
    _, params, batch_stats = small
    _, _, (gradient, _) = small_train(params, batch_stats, images(4), jax.random.key(0))
    for name, leaf in flat(gradient).items():
        assert np.all(np.isfinite(leaf)), name
        assert np.any(leaf != 0) != name.startswith("projection"), name


def test_bfloat16_keeps_parameters_and_logits_in_float32(small, small_eval):
    _, params, batch_stats = small
    x = images(3)
    model = create_model(**SMALL | {"dtype": jnp.bfloat16})
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    outputs, _ = jax.jit(lambda *args: model.apply(*args, train=False))(params, batch_stats, x)
    assert outputs.features["conv5"].dtype == jnp.bfloat16
    assert outputs.logits.dtype == jnp.float32
    assert model.project(params, outputs.features, branch="strong")["conv5"].dtype == jnp.float32
    exact, _ = small_eval(params, batch_stats, x)
    error = np.abs(outputs.logits - exact.logits).mean() / exact.logits.std()
    assert error < 0.05


# ---- initial values, errors, classifier ------------------------------------------------------------------------------


def test_init_is_a_function_of_its_key(small):
    model, params, _ = small
    init = jax.jit(model.init)
    again, other = (init(jax.random.key(seed))[0] for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    kernels = [name for name in flat(params) if name.endswith("kernel")]
    assert all(not np.array_equal(flat(params)[name], flat(other)[name]) for name in kernels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "resnet51"}, "backbone is 'resnet51'"),
        ({"contrast_layers": ("conv2",)}, r"contrast_layers is \('conv2',\)"),
        ({"multi_grid": (1, 2, 4)}, "expected 1 factors"),
        ({"output_stride": 12}, "output_stride is 12"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(UserError, match=message):
        create_model(**SMALL | change)


def test_image_sides_that_do_not_keep_corners_aligned_are_refused(small):
    model, params, batch_stats = small
    with pytest.raises(UserError, match="16k \\+ 1"):
        model.apply(params, batch_stats, images(2, 64), train=False)


def test_classifier_shares_the_backbone_tree(small):
    _, params, batch_stats = small
    keys = ("backbone", "num_classes", "width", "multi_grid", "group_size")
    classifier = create_classifier(**{key: SMALL[key] for key in keys})
    class_params, class_stats = jax.jit(classifier.init)(jax.random.key(0))
    shape = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
    assert shape(class_params["backbone"]) == shape(params["backbone"])
    assert shape(class_stats["backbone"]) == shape(batch_stats["backbone"])
    apply = jax.jit(classifier.apply, static_argnames="train")
    logits, moments = apply(class_params, class_stats, images(4, 40), train=True)
    assert logits.shape == (4, 3)
    assert logits.dtype == jnp.float32
    updated = classifier.update_statistics(class_stats, moments)
    assert jax.tree.structure(updated) == jax.tree.structure(class_stats)
    assert apply(class_params, updated, images(1, 40), train=False)[1] == {}
