"""The published network: sizes, and the numbers that the reference implementation gives for deterministic weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pc2seg_jax.models import BACKBONES, create_model
from pc2seg_jax.models.resnet import ResNetBeta


def flat(tree):
    """{'a/b/c': leaf} of nested dicts."""
    return {"/".join(entry.key for entry in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize(
    ("backbone", "num_classes", "backbone_size", "head_size", "tensors", "kernels"),
    [
        ("resnet50_beta", 21, 23_631_808, 3_188_101, 209, 65),
        ("resnet50_beta", 19, 23_631_808, 3_187_587, 209, 65),
        ("resnet101_beta", 21, 42_623_936, 3_188_101, 362, 116),
    ],
)
def test_parameter_counts_are_the_published_ones(backbone, num_classes, backbone_size, head_size, tensors, kernels):
    model = create_model(backbone=backbone, num_classes=num_classes)
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
    size = {part: sum(leaf.size for leaf in jax.tree.leaves(params[part])) for part in params}
    assert size == {"backbone": backbone_size, "head": head_size, "projection": 2 * (262_144 + 128)}
    names = list(flat({"backbone": params["backbone"], "head": params["head"]}))
    assert len(names) == tensors
    assert sum(name.endswith("kernel") for name in names) - 5 == kernels  # the 5 depthwise kernels are not decayed
    assert {leaf.dtype for leaf in jax.tree.leaves((params, batch_stats))} == {jnp.dtype("float32")}
    assert all(type(node) is dict for node in (params, params["head"], params["head"]["decoder"], batch_stats))
    norms = {name.removesuffix("/scale") for name in names if name.endswith("/scale")}
    assert {name.rsplit("/", 1)[0] for name in flat(batch_stats)} == norms


def tf_name(path):
    """Name of a tensor in a TensorFlow checkpoint, from its path in params or batch_stats."""
    part, *scope, kind, leaf = path.split("/")
    if part == "backbone":
        scope = [entry.replace("unit", "unit_") + "/bottleneck_v1" if "unit" in entry else entry for entry in scope]
        scope = ["resnet_v1_50", *scope]
    elif scope == ["logits"]:
        scope = ["logits", "semantic"]
    kernel = "depthwise_weights" if scope[-1].endswith("_depthwise") else "weights"
    suffix = {
        "conv/kernel": kernel,
        "conv/bias": "biases",
        "bn/scale": "BatchNorm/gamma",
        "bn/bias": "BatchNorm/beta",
        "bn/mean": "BatchNorm/moving_mean",
        "bn/var": "BatchNorm/moving_variance",
    }[f"{kind}/{leaf}"]
    return "/".join([*scope, suffix])


def uniform_fill(name, count):
    """The deterministic numbers in [0, 1) that the reference values were computed with."""
    offset = sum(map(ord, name)) % 1000
    q = np.sin((np.arange(count) + offset) * 12.9898 + 78.233) * 43758.5453
    return q - np.floor(q)


def fill(tree, prefix=""):
    filled = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(value, dict):
            filled[key] = fill(value, path)
            continue
        # [kh, kw, C, 1] of TensorFlow and [kh, kw, 1, C] of Flax have the same C-order, so no transposition is needed.
        a = uniform_fill(tf_name(path), value.size).reshape(value.shape) - 0.5
        if key == "kernel":
            a = a * np.sqrt(12) * 0.8 * np.sqrt(2 / np.prod(value.shape[:3]))
        else:
            a = {"scale": 1 + 0.2 * a, "var": 1 + 0.4 * a}.get(key, 0.2 * a)
        filled[key] = a.astype(np.float32)
    return filled


@pytest.fixture(scope="module")
def reference():
    """R50-beta, 21 classes, and an input of two 65 x 65 images, all filled deterministically."""
    params, batch_stats = jax.eval_shape(create_model(backbone="resnet50_beta", num_classes=21).init, jax.random.key(0))
    params.pop("projection")
    x = (255 * uniform_fill("input", 2 * 65 * 65 * 3)).reshape(2, 65, 65, 3).astype(np.float32)
    return fill(params), fill(batch_stats), x


def assert_reference(tensor, tolerance, mean, std, largest, first, last):
    """tolerance: a function of the standard deviation of the reference."""
    tensor = np.asarray(tensor, np.float64)
    found = [tensor.mean(), tensor.std(), np.abs(tensor).max(), *tensor[0, 0, 0, :3], *tensor[1, -1, -1, -3:]]
    np.testing.assert_allclose(found, [mean, std, largest, *first, *last], rtol=0, atol=tolerance(std))


def relative(std):
    return 1e-4 * std


BLOCK4 = {
    (1, 1, 1): (1.85906, 2.1261, 17.0918, (0.082662, 4.782918, 2.90597), (0.008856, 0.132924, 4.375518)),
    (1, 2, 4): (1.52504, 1.87955, 16.7423, (0, 2.773415, 0.375669), (1.346318, 0.356017, 4.847191)),
}
LOGITS = {
    (1, 1, 1): (-0.0560288, 0.806991, 2.13006, (-0.054947, 0.111, 0.652252), (-0.116779, 0.207918, 0.532386)),
    (1, 2, 4): (-0.047986, 0.712389, 1.89042, (-0.026137, 0.04127, 0.525965), (-0.086767, 0.277565, 0.62673)),
}
LOW_LEVEL = (-0.00777727, 0.479944, 1.81175, (-0.133981, -0.294024, -0.402807), (-0.08711, -0.059059, 0.029393))


@pytest.mark.parametrize("multi_grid", [(1, 1, 1), (1, 2, 4)])
def test_evaluation_gives_the_numbers_of_the_reference_implementation(reference, multi_grid):
    params, batch_stats, x = reference
    model = create_model(backbone="resnet50_beta", num_classes=21, multi_grid=multi_grid)
    # The projection is part of the tree; its values do not matter for logits and features.
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0))
    params = params | {"projection": jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes["projection"])}
    outputs, moments = jax.jit(lambda *args: model.apply(*args, train=False))(params, batch_stats, x)
    assert outputs.features.shape == (2, 5, 5, 2048)
    assert outputs.logits.shape == (2, 17, 17, 21)
    assert moments == {}
    assert_reference(outputs.features, relative, *BLOCK4[multi_grid])
    assert_reference(outputs.logits, relative, *LOGITS[multi_grid])


def reference_backbone(group_size=None):
    def build():
        return ResNetBeta(
            BACKBONES["resnet50_beta"],
            width=64,
            output_stride=16,
            multi_grid=(1, 1, 1),
            epsilon=1e-5,
            group_size=group_size,
            dtype=jnp.float32,
            rngs=nnx.Rngs(0),
        )

    return nnx.graphdef(nnx.eval_shape(build))


@pytest.mark.parametrize("train", [False, True])
def test_backbone_gives_the_numbers_of_the_reference_implementation(reference, train):
    params, batch_stats, x = reference
    graph = reference_backbone()

    @jax.jit
    def run(params, batch_stats, x):
        return nnx.merge(graph, params, batch_stats)(x * (2 / 255) - 1, train=train)

    features = run(params["backbone"], batch_stats["backbone"], x)
    if train:
        expected = (1.04848, 1.16652, 9.31627, (1.521123, 0.861857, 0), (0.245984, 2.136008, 2.030422))
        assert_reference(features["conv5"], lambda std: 2e-3, *expected)
    else:
        assert features["low_level"].shape == (2, 17, 17, 256)
        assert_reference(features["low_level"], relative, *LOW_LEVEL)
        assert_reference(features["conv5"], relative, *BLOCK4[1, 1, 1])
