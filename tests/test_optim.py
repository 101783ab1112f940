"""The optimiser against the numbers and the loop that define it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pc2seg_jax import build, optim


def test_the_schedule_has_the_paper_s_values():
    schedule = optim.make_schedule(learning_rate=0.007, power=0.9, steps=30_000)
    expected = {0: 0.007, 1: 0.00699979, 15_000: 0.00375121, 29_999: 6.53914e-7, 30_000: 0.0, 30_001: 0.0, 10**6: 0.0}
    for step, value in expected.items():
        # float32 rounds 1 - 29999/30000 = 3.3e-5 by up to 6e-8, a relative error of 1e-3
        tolerance = 2e-3 if step == 29_999 else 1e-6
        np.testing.assert_allclose(float(schedule(step)), value, rtol=tolerance)


def test_three_steps_are_the_loop_that_defines_them():
    rng = np.random.default_rng(0)
    start = {
        "conv": {"kernel": rng.normal(size=(3, 3, 4, 5))},
        "norm": {"scale": rng.normal(size=5), "bias": rng.normal(size=5)},
    }
    steps, rate, momentum, decay = 10, 0.3, 0.9, 0.05
    schedule = optim.make_schedule(learning_rate=rate, power=0.9, steps=steps)
    optimizer = optim.make_optimizer(schedule, momentum=momentum, weight_decay=decay)
    gradients = [jax.tree.map(lambda w: rng.normal(size=w.shape), start) for _ in range(3)]

    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), start)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(jax.tree.map(jnp.float32, gradient), state, params)
        params = jax.tree.map(jnp.add, params, updates)

    for group, name, decayed in (("conv", "kernel", True), ("norm", "scale", False), ("norm", "bias", False)):
        w, v = start[group][name], 0.0
        for t, gradient in enumerate(gradients):
            v = momentum * v + gradient[group][name] + (decay * w if decayed else 0.0)
            w = w - rate * (1 - t / steps) ** 0.9 * v
        np.testing.assert_allclose(params[group][name], w, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def network(tiny_config):
    model = build.build_model(tiny_config(), 4)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    decayed = jax.tree_util.tree_leaves(optim.decay_mask(params))
    return {
        "/".join(entry.key for entry in path): (leaf, flag) for (path, leaf), flag in zip(leaves, decayed, strict=True)
    }


def test_exactly_the_kernels_that_are_not_depthwise_are_decayed(network):
    for name, (leaf, flag) in network.items():
        depthwise = "depthwise" in name and name.endswith("conv/kernel")
        assert flag == (leaf.ndim == 4 and not depthwise), name
        if depthwise:
            assert leaf.shape[:3] == (3, 3, 1)


def test_the_network_has_decayed_and_undecayed_tensors_of_every_kind(network):
    flags = {name: flag for name, (_, flag) in network.items()}
    assert [name for name, flag in flags.items() if name.startswith("projection/") and flag] == [
        "projection/conv5/strong/conv/kernel",
        "projection/conv5/weak/conv/kernel",
    ]
    assert flags["head/logits/conv/kernel"]
    assert not flags["head/logits/conv/bias"]
    assert flags["head/aspp1_pointwise/conv/kernel"]
    assert not flags["head/aspp1_depthwise/conv/kernel"]
    assert flags["backbone/conv1_1/conv/kernel"]  # one input channel per colour, but not depthwise
    assert not flags["backbone/conv1_1/bn/scale"]
