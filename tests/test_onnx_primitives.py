"""From jaxprs to ONNX: functions in which layout, broadcasting and folding can go wrong, and backbones, against jax."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from strong_weights import strong

from pc2seg_jax import build, exporting, onnx_file, onnx_primitives
from pc2seg_jax.errors import UserError
from pc2seg_jax.models import xception
from pc2seg_jax.weights import placement


def dots(x):
    """A matrix on either side, against the first, the middle and the last axis."""
    m = jnp.arange(18.0).reshape(3, 6) / 18 + x.shape[0]
    y = jnp.einsum("ij,bjk->ibk", m, x.transpose(0, 2, 1))
    return jnp.einsum("ibk,nb->nki", y, x.sum(2).transpose(1, 0)) @ jnp.ones((3, 2))


def part(x, axis, start, end, stride=1):
    return jax.lax.slice_in_dim(x, start, end, stride, axis)


def convolved(x):
    """A convolution whose result, scaled, is read twice."""
    numbers = ("NHWC", "HWIO", "NHWC")
    kernel = jnp.arange(12.0).reshape(2, 2, 1, 3)
    y = jax.lax.conv_general_dilated(x[..., None], kernel, (2, 1), ((1, 0), (0, 1)), dimension_numbers=numbers)
    y = y * jnp.arange(3.0) - 1
    return y.sum() * y - jax.nn.relu(y)


FUNCTIONS = {
    "dots": dots,
    "transposed": lambda x: (
        part(part(x.transpose(2, 0, 1), 0, 0, 6, 2), 2, 1, x.shape[1]) + jnp.arange(x.shape[1] - 1, dtype=jnp.float32)
    ),
    "joined": lambda x: jnp.concatenate([x, jnp.broadcast_to(part(x, 1, 0, 1).max(0), x.shape), jnp.ones_like(x)], 1),
    "chosen": lambda x: jnp.where(part(x, 2, 0, 1) < x, jnp.exp(1 - jnp.abs(x)), 2.0).sum((0, 2)),
    "padded": lambda x: jnp.pad(x.transpose(1, 0, 2), ((1, 0), (0, 2), (0, 0)), constant_values=-3),
    "convolved": convolved,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_converter_equals_jax(name):
    """Where axes are stored in another order, are still to be broadcast, or a convolution is read twice."""
    function = FUNCTIONS[name]
    b, h = jax.export.symbolic_shape("b, h", constraints=["h >= 5"])
    jaxpr = jax.jit(function).trace(jax.ShapeDtypeStruct((b, h, 6), jnp.float32)).jaxpr
    model = onnx_primitives.to_onnx(jaxpr, input_name="x", axes=("b", "h", "w"), output_name="y", metadata={})
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for shape in ((1, 5, 6), (3, 8, 6)):
        x = np.random.default_rng(shape).normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(session.run(None, {"x": x})[0], function(jnp.asarray(x)), rtol=1e-5, atol=1e-5)


def test_an_unknown_primitive_is_named():
    jaxpr = jax.jit(jnp.sin).trace(jax.ShapeDtypeStruct((3,), jnp.float32)).jaxpr
    with pytest.raises(UserError, match=r"the primitive 'sin', .*: leave onnx out of --formats, or add a rule to"):
        onnx_primitives.to_onnx(jaxpr, input_name="x", axes=("n",), output_name="y", metadata={})


@pytest.mark.parametrize(("backbone", "width"), [("resnet50_beta", 4), ("xception65", 2)])
def test_the_published_backbones_become_programs_for_every_size(tiny_config, backbone, width, tmp_path, monkeypatch):
    blocks = [(name, min(units, 1), *rest) for name, units, *rest in xception.BLOCKS]  # not 16 equal ones
    monkeypatch.setattr(xception, "BLOCKS", tuple(blocks))
    config = tiny_config(model__backbone=backbone, model__width=width, model__multi_grid=(1, 2, 4))
    model = build.build_model(config, 7)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    weights = placement.flatten(*(strong(tree, rng) for tree in shapes))
    network = exporting.Network(model, weights, shapes[0]["projection"], build.mean_pixel(config))
    exporting.write_stablehlo(network, tmp_path, "inside")
    onnx_file.write_onnx(network.whole(), exporting.symbolic_images(), tmp_path / "model.onnx", description={})
    images = rng.integers(0, 256, (1, 30, 49, 3), dtype=np.uint8)
    program = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    right = program.call(images)
    assert np.std(right, axis=(0, 1, 2)).max() > 0.001
    np.testing.assert_allclose(onnx_file.open_onnx(tmp_path / "model.onnx")(images), right, rtol=0, atol=1e-4)
