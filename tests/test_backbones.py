"""The backbones: where they shrink, what they return, what rematerialisation leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pc2seg_jax.models import BACKBONES, CONTRAST_LAYERS, create_model
from pc2seg_jax.models.resnet import beta_schedule, torch_schedule


def test_schedule_of_strides_and_dilations():
    r50 = (3, 4, 6, 3)
    at16, at8, at32 = (beta_schedule(r50, stride, (1, 2, 4)) for stride in (16, 8, 32))
    assert at16[0] == [(1, 1), (1, 1), (2, 1)]
    assert at16[1] == [(1, 1), (1, 1), (1, 1), (2, 1)]
    assert at16[2] == [(1, 1)] * 6
    assert at16[3] == [(1, 2), (1, 4), (1, 8)]
    assert at8[0] == [(1, 1), (1, 1), (2, 1)]
    assert at8[1] == [(1, 1)] * 4
    assert at8[2] == [(1, 2)] * 6
    assert at8[3] == [(1, 4), (1, 8), (1, 16)]
    assert at32[2] == [(1, 1)] * 5 + [(2, 1)]
    assert at32[3] == [(1, 1), (1, 2), (1, 4)]
    assert beta_schedule(r50, 16, (1, 1, 1))[3] == [(1, 2)] * 3


def test_torch_schedule_of_strides_and_dilations():
    r50 = (3, 4, 6, 3)
    at32, at16, at8 = (torch_schedule(r50, stride, (1, 1, 1)) for stride in (32, 16, 8))
    assert at32 == [[(1, 1)] * 3, *([(2, 1)] + [(1, 1)] * (count - 1) for count in r50[1:])]
    assert at16[:3] == at32[:3]
    assert at16[3] == [(1, 1), (1, 2), (1, 2)]
    assert at8[:2] == at32[:2]
    assert at8[2] == [(1, 1)] + [(1, 2)] * 5
    assert at8[3] == [(1, 2), (1, 4), (1, 4)]
    assert torch_schedule(r50, 16, (1, 2, 4))[3] == [(1, 1), (1, 4), (1, 8)]


@pytest.mark.parametrize(("backbone", "multi_grid"), [("resnet26_beta", (1, 1)), ("resnet50_beta", (1, 1, 1))])
def test_low_level_feature_is_at_stride_4(backbone, multi_grid):
    def run(x):
        trunk = BACKBONES[backbone].build(
            width=4,
            remat=False,
            output_stride=16,
            multi_grid=multi_grid,
            epsilon=1e-5,
            group_size=None,
            dtype=jnp.float32,
            rngs=nnx.Rngs(0),
        )
        return trunk(x, train=False)

    features = jax.eval_shape(run, jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32))
    assert features["low_level"].shape == (1, 17, 17, 16)


@pytest.mark.parametrize("backbone", ["resnet50_beta", "resnet50", "xception65"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_features_of_every_backbone_have_the_strides_they_promise(backbone, output_stride):
    model = create_model(
        backbone=backbone, num_classes=3, width=16, output_stride=output_stride, contrast_layers=CONTRAST_LAYERS
    )
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, 65, 129, 3), jnp.float32)
    outputs, _ = jax.eval_shape(lambda *args: model.features(*args, train=False), params, batch_stats, x)
    widths = BACKBONES[backbone].feature_widths(16) | {"encoder": 256, "decoder": 256}
    # The torch layout has its strides in the first unit, so that block 2 ends at stride 8.
    strides = {"low_level": 4, "conv3": 8 if backbone == "resnet50" else output_stride, "decoder": 4}
    for name in ("low_level", *CONTRAST_LAYERS):
        stride = strides.get(name, output_stride)
        assert outputs[name].shape == (1, 64 // stride + 1, 128 // stride + 1, widths[name]), name


def test_every_block_of_xception_is_rematerialised():
    """Its values are not compared: the compiler takes a minute, and the mechanism is that of the ResNets."""
    settings = {"num_classes": 3, "width": 4, "head_width": 8, "group_size": 2}
    model = create_model(backbone="xception65", multi_grid=(1, 1, 1), remat=True, **settings)
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))

    def loss(params, batch_stats, x):
        keys = jax.random.split(jax.random.key(1), len(x))
        return jnp.sum(model.apply(params, batch_stats, x, train=True, keys=keys)[0].logits)

    text = str(jax.make_jaxpr(loss)(params, batch_stats, jnp.zeros((2, 33, 33, 3))))
    blocks = [name for name in params["backbone"] if "_flow_block" in name]
    assert text.count("remat2[") == len(blocks) == 6


@pytest.mark.parametrize(("backbone", "multi_grid"), [("resnet26_beta", (1, 1))])
def test_rematerialised_blocks_change_no_value(backbone, multi_grid):
    """Outputs, moments and gradient of the compiled network with and without."""
    x = np.random.default_rng(0).uniform(0, 255, (2, 33, 33, 3)).astype(np.float32)
    results = []
    for remat in (False, True):
        model = create_model(
            backbone=backbone, multi_grid=multi_grid, remat=remat, num_classes=3, width=4, head_width=8, group_size=2
        )
        params, batch_stats = jax.jit(model.init)(jax.random.key(0))

        @jax.jit
        def gradient(params, batch_stats, x, model=model):
            def loss(params):
                outputs, moments = model.apply(
                    params, batch_stats, x, train=True, keys=jax.random.split(jax.random.key(1), len(x))
                )
                return jnp.mean(jnp.square(outputs.logits - 1.0)), (outputs.logits, moments)

            return jax.grad(loss, has_aux=True)(params)

        assert ("remat" in str(jax.make_jaxpr(gradient)(params, batch_stats, x))) == remat
        results.append(jax.device_get(gradient(params, batch_stats, x)))
    for plain, again in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(again, plain, rtol=0, atol=1e-4 * np.abs(plain).max() + 1e-7)
