"""Counting operations and reading collectives, against sums over layer shapes and programs written by hand."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pc2seg_jax import compile_report, gpus, parallel
from pc2seg_jax.chips import CHIPS
from pc2seg_jax.errors import UserError
from pc2seg_jax.flops import count_flops
from pc2seg_jax.models import create_model
from pc2seg_jax.programs import Traffic, find_collectives, find_traffic


def flops(function, *arguments):
    return count_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def zeros(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products_loops_alternatives_and_repetitions_are_counted():
    x, y = zeros(3, 5, 7), zeros(3, 7, 11)
    product = 2 * 3 * 5 * 7 * 11
    assert flops(jnp.matmul, x, y) == product
    assert flops(jax.jit(jnp.matmul), x, y) == product
    assert (
        flops(lambda x, y: jax.lax.fori_loop(0, 4, lambda i, z: z + x @ y, jnp.zeros((3, 5, 11))), x, y) == 4 * product
    )
    assert flops(lambda x, y: jax.lax.cond(True, lambda: x @ y, lambda: jnp.zeros((3, 5, 11))), x, y) == product
    mesh = parallel.make_shardings(4).mesh
    split = jax.sharding.PartitionSpec("data")
    on_devices = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(split, split), out_specs=split)
    assert flops(on_devices, zeros(4, 5, 7), zeros(4, 7, 11)) == product * 4 / 3  # of all devices together
    loss = lambda x, y: jnp.sum(jnp.square(x @ y))  # noqa: E731
    assert flops(jax.grad(loss, argnums=(0, 1)), x, y) == 3 * product
    assert flops(jax.grad(jax.checkpoint(loss), argnums=(0, 1)), x, y) == 4 * product


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_counts_the_taps_that_meet_a_number(stride, dilation, groups):
    """Forward and both gradients each need one multiply-add per tap, channel pair and image."""
    x, kernel = zeros(2, 9, 9, 4), zeros(3, 3, 4 // groups, 8)

    def convolve(x, kernel):
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(dilation, dilation)] * 2,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        return jnp.sum(y * y)

    out = (9 - 1) // stride + 1
    along = sum(0 <= o * stride + (k - 1) * dilation < 9 for o in range(out) for k in range(3))
    forward = 2 * 2 * along**2 * (4 // groups) * 8
    assert flops(convolve, x, kernel) == forward
    assert flops(jax.grad(convolve, argnums=(0, 1)), x, kernel) == 3 * forward


def test_the_network_needs_what_its_layer_shapes_say():
    """ResNet-50 of the torch layout at 225 x 225, stride 32: 1x1 and 3x3 convolutions layer by layer."""
    model = create_model(backbone="resnet50", num_classes=21, output_stride=32, multi_grid=(1, 1, 1), dropout_rate=0.0)
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
    images = zeros(2, 225, 225, 3)
    found = flops(lambda p, s, x: model.features(p, s, x, train=False)[0], params, batch_stats, images)

    macs, cells, width_in = 113**2 * 49 * 3 * 64, [57, 29, 15, 8], 64
    for block, units in enumerate((3, 4, 6, 3)):
        width = 64 * 2**block
        for unit in range(units):
            before = cells[max(block - 1, 0)] if unit == 0 else cells[block]
            macs += before**2 * width_in * width + cells[block] ** 2 * (9 * width**2 + 4 * width**2)
            macs += cells[block] ** 2 * width_in * 4 * width if unit == 0 else 0
            width_in = 4 * width
    pyramid = 64 * 2048 * 256 + 3 * 64 * (9 * 2048 + 2048 * 256) + 2048 * 256 + 64 * 1280 * 256
    decoder = 57**2 * (256 * 48 + 9 * 304 + 304 * 256 + 9 * 256 + 256 * 256 + 256 * 21)
    expected = 2 * 2 * (macs + pyramid + decoder)
    assert 0.95 < found / expected < 1.01  # padding is not counted; interpolation is a small product


TEXT = """
  %a = f32[] all-reduce(%x), channel_id=1, to_apply=%sum
  %b.1 = (bf16[2,3]{1,0:T(8,128)S(1)}, /*index=1*/f32[4]{0}) all-reduce-start(%y, %z), replica_groups={}
  %c = (bf16[2,3], bf16[8,3]) all-gather-start(%y), dimensions={0}
  %d = bf16[8,3] all-gather-done(%c)
  %e = pred[16]{0} collective-permute(%p), metadata={op_name="all-to-all(x)"}
  %f = f32[9] add(%all-reduce.3, %g)
"""


def test_collectives_are_read_from_a_program():
    found = {(c.kind, c.dtype): (c.operations, c.bytes) for c in find_collectives(TEXT)}
    assert found == {
        ("all-reduce", "f32"): (2, 4 + 16),
        ("all-reduce", "bf16"): (1, 12),
        ("all-gather", "bf16"): (1, 12),
        ("collective-permute", "pred"): (1, 16),
    }


def test_a_program_that_jaxlib_cannot_read_has_no_list_of_collectives():
    class OfNewerCompiler:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: async-update instruction should have 1 operands but sees 3")

    assert compile_report._read_collectives(OfNewerCompiler()) is None


PROGRAM = """
%inner (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %never_counted = f32[4]{0} negate(%p)
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[4]{0} get-tuple-element(%state), index=1
  %fusion.1 = f32[4]{0} fusion(%x), kind=kLoop, calls=%inner
  ROOT %t = (s32[], f32[4]{0}) tuple(%i, %fusion.1)
}

%small (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %copy.1 = f32[4]{0} copy(%a)
}

%large (b: f32[4]) -> f32[4] {
  %b = f32[4]{0} parameter(0)
  %copy.2 = f32[4]{0} copy(%b)
  ROOT %copy.3 = f32[4]{0} copy(%copy.2), metadata={op_name="f(%b), g"}
}

ENTRY %main (y: bf16[2,8], start: (s32[], f32[4])) -> f32[4] {
  %y = bf16[2,8]{1,0} parameter(0)
  %start = (s32[], f32[4]{0}) parameter(1)
  %gemm = (bf16[2,2]{1,0}, s8[16]{0}) custom-call(%y, %y), custom_call_target="__cublas$gemm"
  %loop = (s32[], f32[4]{0}) while(%start), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %z = f32[4]{0} get-tuple-element(%loop), index=1
  ROOT %either = f32[4]{0} conditional(%i, %z, %z), branch_computations={%small, %large}
}
"""


def test_traffic_is_read_from_a_program():
    """A product of 64 bytes by itself to 8 + 16, five times 16 to 16, and the costlier branch, twice 16 to 16."""
    found = find_traffic(PROGRAM)
    assert found == (1 + 5 + 2, (2 * 32 + 8 + 16) + 5 * 32 + 2 * 32)


@pytest.mark.parametrize("name", gpus.TARGETS)
def test_a_gpu_that_is_not_at_hand_is_described_as_published(name):
    text, chip = gpus.describe(name), CHIPS[gpus.TARGETS[name].device_kind]
    assert f"device_memory_size: {chip.memory}" in text
    assert f"memory_bandwidth: {chip.hbm:.0f}" in text
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize(
    ("topology", "expected"),
    [("h200:many", "a number of GPUs of one machine, and the compiler"), ("x9", "or one of a100, h100, h200")],
)
def test_an_unknown_topology_is_refused(topology, expected):
    with pytest.raises(UserError, match=f"--topology={topology} cannot be described .*{expected}"):
        compile_report.topology_devices(topology)


def test_the_report_of_the_real_step(tiny_config):
    """Two devices only sum: gradients, losses and batch moments, a few numbers per parameter in all."""
    config = tiny_config(objective="supervised", batch_labeled=4)
    _, report = compile_report.compile_step(config, num_classes=7, shardings=parallel.make_shardings(2))
    assert report.devices == 2
    assert report.images == 4
    assert {c.kind for c in report.collectives} == {"all-reduce"}
    trained = report.parameters - 2 * config.model.projection_dim * (128 + 1)  # no projection learns from labels
    assert 4 * trained < sum(c.bytes for c in report.collectives) < 6 * trained
    assert report.memory["arguments"] > 4 * 2 * report.parameters  # weights and momentum
    text = compile_report.table(report)
    for part in ("2 x cpu", f"{report.parameters:,}", "all-reduce", "per image"):
        assert part in text
    chip = next(iter(CHIPS))
    assert f"of its {CHIPS[chip].memory / 1e9:.0f} GB" in compile_report.table(report._replace(device_kind=chip))
    assert "collectives      unknown, as this jaxlib cannot" in compile_report.table(report._replace(collectives=None))
    untold = report._replace(memory=report.memory | {"temporary": 0})
    assert ["the sum is too small" in compile_report.table(x) for x in (report, untold)] == [False, True]
    moved = report._replace(traffic=Traffic(12, 4.8e12), device_kind="NVIDIA H200")
    assert "memory traffic   4800.0 GB in 12 kernels\n  at full speed  1000.0 ms" in compile_report.table(moved)
    parted = tiny_config(objective="supervised", batch_labeled=4, accumulate=2)
    again = compile_report.step_flops(parted, num_classes=7, shardings=parallel.make_shardings(1))
    np.testing.assert_allclose(again, report.flops)


def compile_elsewhere(*arguments):
    """The report of another compiler, in a process of its own: it does not know the XLA flags of these tests."""
    root = pathlib.Path(__file__).parent.parent
    command = [sys.executable, "-m", "pc2seg_jax.compile_tpu", f"--config={root / 'configs' / 'shapes.py'}:study"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([*command, *arguments], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "all-reduce" in done.stdout
    assert not re.search("all-gather|all-to-all|collective-permute|reduce-scatter", done.stdout)
    return done.stdout


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_pod_that_is_not_at_hand():
    text = compile_elsewhere("--topology=v5e:2x2", "--config.objective=supervised", "--config.group_size=2")
    assert "4 x TPU v5 lite" in text
    assert "of its 16 GB" in text


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda12_plugin") is None, reason="jax-cuda12-plugin is not installed")
def test_gpus_that_are_not_at_hand():
    text = compile_elsewhere("--topology=h200:2", "--config.objective=supervised", "--config.group_size=2")
    assert "2 x NVIDIA H200" in text
    assert "of its 141 GB" in text
    assert re.search("memory traffic .* GB in [0-9,]+ kernels", text)
