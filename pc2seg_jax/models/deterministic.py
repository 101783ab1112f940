"""Networks with deterministic weights and input, to compare with another implementation.

Every tensor is filled from its name in a TensorFlow checkpoint: with the flattened C-order index i and p = (sum of the
character codes of the name) mod 1000, u = frac(sin((i + p) * 12.9898 + 78.233) * 43758.5453) and a = u - 1/2; kernels
are a * sqrt(12) * 0.8 * sqrt(2 / fan), gamma 1 + 0.2 a, moving_variance 1 + 0.4 a, everything else 0.2 a. The input is
255 u of the name "input", two images. Of each tensor: mean, standard deviation, largest absolute value, the first three
numbers and the last three.
"""

import jax
import numpy as np

from pc2seg_jax.models.functional import create_model
from pc2seg_jax.models.tensor_names import tensorflow_name
from pc2seg_jax.types import Tree


def deterministic(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers u in [0, 1) of a name, float64."""
    offset = sum(map(ord, name)) % 1000
    q = np.sin((np.arange(np.prod(shape)) + offset) * 12.9898 + 78.233) * 43758.5453
    return (q - np.floor(q)).reshape(shape)


def fill(tree: Tree, backbone: str, prefix: str) -> Tree:
    """The tree with every leaf (anything with a shape) replaced by its deterministic values, float32."""
    filled = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}"
        if isinstance(value, dict):
            filled[key] = fill(value, backbone, path)
            continue
        # [kh, kw, C, 1] of TensorFlow and [kh, kw, 1, C] of ours have the same C-order: nothing is transposed.
        a = deterministic(tensorflow_name(path, backbone), value.shape) - 0.5
        if key == "kernel":
            a = a * np.sqrt(12) * 0.8 * np.sqrt(2 / np.prod(value.shape[:3]))
        else:
            a = {"scale": 1 + 0.2 * a, "var": 1 + 0.4 * a}.get(key, 0.2 * a)
        filled[key] = a.astype(np.float32)
    return filled


def run(
    backbone: str, *, output_stride: int, multi_grid: tuple[int, ...], size: int, num_classes: int, train: bool
) -> dict[str, np.ndarray]:
    """The last feature, the low-level feature and the logits of the deterministic network."""
    model = create_model(
        backbone=backbone,
        num_classes=num_classes,
        output_stride=output_stride,
        multi_grid=multi_grid,
        dropout_rate=0.0,
        group_size=None,
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params, batch_stats = ({part: fill(tree[part], backbone, part) for part in ("backbone", "head")} for tree in shapes)
    # Part of the tree, without influence on what is printed.
    projection = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes[0]["projection"])
    params |= {"projection": projection}
    images = (255 * deterministic("input", (2, size, size, 3))).astype(np.float32)
    outputs, _ = jax.jit(lambda *args: model.features(*args, train=train))(params, batch_stats, images)
    return {name: np.asarray(outputs[name], np.float32) for name in ("conv5", "low_level", "logits")}


def describe(tensor: np.ndarray) -> list[float]:
    """Mean, standard deviation, largest absolute value, [0, 0, 0, :3], [1, -1, -1, -3:]."""
    values = tensor.astype(np.float64)
    return [values.mean(), values.std(), np.abs(values).max(), *values[0, 0, 0, :3], *values[1, -1, -1, -3:]]
