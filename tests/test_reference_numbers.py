"""The published network: sizes, and the numbers that the reference implementation gives for deterministic weights."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pc2seg_jax import optim
from pc2seg_jax.models import create_model, deterministic


def flat(tree):
    """{'a/b/c': leaf} of nested dicts."""
    return {"/".join(entry.key for entry in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize(
    ("backbone", "num_classes", "backbone_size", "head_size", "tensors", "kernels"),
    [
        ("resnet50_beta", 21, 23_631_808, 3_188_101, 209, 65),
        ("resnet50_beta", 19, 23_631_808, 3_187_587, 209, 65),
        ("resnet101_beta", 21, 42_623_936, 3_188_101, 362, 116),
        ("resnet50", 21, 23_508_032, 3_188_101, 203, 63),
        ("resnet101", 21, 42_500_160, 3_188_101, 356, 114),
        ("xception65", 21, 37_867_312, 3_188_101, 440, 79),
        ("xception65", 81, 37_867_312, 3_203_521, 440, 79),
    ],
)
def test_parameter_counts_are_the_published_ones(backbone, num_classes, backbone_size, head_size, tensors, kernels):
    model = create_model(backbone=backbone, num_classes=num_classes)
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
    size = {part: sum(leaf.size for leaf in jax.tree.leaves(params[part])) for part in params}
    assert size == {"backbone": backbone_size, "head": head_size, "projection": 2 * (262_144 + 128)}
    names = list(flat({"backbone": params["backbone"], "head": params["head"]}))
    assert len(names) == tensors
    decayed = optim.decay_mask({"backbone": params["backbone"], "head": params["head"]})
    assert sum(jax.tree.leaves(decayed)) == kernels
    assert {leaf.dtype for leaf in jax.tree.leaves((params, batch_stats))} == {jnp.dtype("float32")}
    assert all(type(node) is dict for node in (params, params["head"], params["head"]["decoder"], batch_stats))
    norms = {name.removesuffix("/scale") for name in names if name.endswith("/scale")}
    assert {name.rsplit("/", 1)[0] for name in flat(batch_stats)} == norms


def assert_reference(tensor, tolerance, mean, std, largest, first, last):
    """tolerance: a function of the standard deviation of the reference."""
    expected = [mean, std, largest, *first, *last]
    np.testing.assert_allclose(deterministic.describe(tensor), expected, rtol=0, atol=tolerance(std))


def relative(std):
    return 1e-4 * std


R50, XCEPTION = "resnet50_beta", "xception65"
EVALUATION = {
    (R50, (1, 1, 1)): {
        "conv5": (1.85906, 2.1261, 17.0918, (0.082662, 4.782918, 2.90597), (0.008856, 0.132924, 4.375518)),
        "low_level": (
            -0.00777727,
            0.479944,
            1.81175,
            (-0.133981, -0.294024, -0.402807),
            (-0.08711, -0.059059, 0.029393),
        ),
        "logits": (-0.0560288, 0.806991, 2.13006, (-0.054947, 0.111, 0.652252), (-0.116779, 0.207918, 0.532386)),
    },
    (R50, (1, 2, 4)): {
        "conv5": (1.52504, 1.87955, 16.7423, (0, 2.773415, 0.375669), (1.346318, 0.356017, 4.847191)),
        "logits": (-0.047986, 0.712389, 1.89042, (-0.026137, 0.04127, 0.525965), (-0.086767, 0.277565, 0.62673)),
    },
    (XCEPTION, (1, 1, 1)): {
        "conv5": (0.912192, 1.36587, 11.4005, (4.919522, 2.861266, 0.631083), (0, 1.057332, 4.5861)),
        "low_level": (0.0131705, 0.602619, 2.82275, (0.568144, -0.265703, 0.208804), (0.149762, -0.559927, 0.292952)),
        "logits": (0.00208839, 0.458458, 1.2692, (-0.408791, 0.058195, 0.14534), (-0.068616, 0.234042, 0.354649)),
    },
}


def deterministic_network(backbone, multi_grid, *, train):
    return deterministic.run(backbone, output_stride=16, multi_grid=multi_grid, size=65, num_classes=21, train=train)


@pytest.mark.parametrize(("backbone", "multi_grid"), EVALUATION)
def test_evaluation_gives_the_numbers_of_the_reference_implementation(backbone, multi_grid):
    tensors = deterministic_network(backbone, multi_grid, train=False)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "conv5": (2, 5, 5, 2048),
        "low_level": (2, 17, 17, 256),
        "logits": (2, 17, 17, 21),
    }
    for name, numbers in EVALUATION[backbone, multi_grid].items():
        assert_reference(tensors[name], relative, *numbers)


def test_training_gives_the_numbers_of_the_reference_implementation():
    expected = (1.04848, 1.16652, 9.31627, (1.521123, 0.861857, 0), (0.245984, 2.136008, 2.030422))
    features = deterministic_network(R50, (1, 1, 1), train=True)["conv5"]
    assert_reference(features, lambda std: 2e-3, *expected)


def test_the_command_prints_the_numbers():
    command = [sys.executable, "-m", "pc2seg_jax.models.fixture", "--multi_grid=1,2,4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logits = re.search(r"^logits +2 x 17 x 17 x 21 +(.*)$", done.stdout, re.MULTILINE)[1].replace(";", "").split()
    mean, std, largest, first, last = EVALUATION[R50, (1, 2, 4)]["logits"]
    np.testing.assert_allclose(np.float64(logits), [mean, std, largest, *first, *last], rtol=0, atol=1e-4 * std)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--multi_grid=a", "--multi_grid=a is not a list"),
        ("--multi_grid=1,2", "expected 3 factors"),
        ("--size=64", "16k"),
    ],
)
def test_wrong_flags_of_the_command_are_named(flag, message):
    done = subprocess.run([sys.executable, "-m", "pc2seg_jax.models.fixture", flag], capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: [^\n]*{re.escape(message)}[^\n]*\n", done.stderr)
