"""The compiled step: one result on any number of devices, one compilation, all-reduces only, a pure function."""

import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import IGNORE, NUM_CLASSES

from pc2seg_jax import build, step
from pc2seg_jax.models.functional import Model
from pc2seg_jax.objective import Result
from pc2seg_jax.ops.losses import Average
from pc2seg_jax.ops.views import make_views
from pc2seg_jax.parallel import make_shardings, shard_batch
from pc2seg_jax.types import Crops, LabeledCrops

STEPS = 3


@pytest.fixture(scope="module")
def config(tiny_config):
    """Groups of two in batches of 8 + 8: inside a device where there are 4 devices, over two devices where there are 8.

    Uniform negatives, because a weight that depends on the prediction may flip a draw by rounding; small steps,
    because the differences that rounding makes in a gradient grow with every step that follows it.
    """
    return tiny_config(loss__strategy="uniform", optim__learning_rate=1e-5)


@pytest.fixture(scope="module")
def batches(config, make_crops):
    return [make_crops(config, seed=i) for i in range(STEPS)]


@pytest.fixture(scope="module")
def one_device(config, batches, make_parts):
    """Final state and metrics of three steps on one device, on the host."""
    return run(make_parts(config, 1), batches)


@pytest.fixture(scope="module")
def inside(config, batches, make_parts):
    """The same on four devices, compiled ahead of time so that the program can be read."""
    parts = make_parts(config, 4)
    batch = shard_batch(batches[0], parts.shardings.data)
    compiled = parts.train_step.lower(parts.init(config.seed), batch).compile()
    return run(parts, batches, compiled), compiled


def run(parts, batches, train_step=None):
    state, metrics = parts.init(0), []
    for batch in batches:
        state, values = (train_step or parts.train_step)(state, shard_batch(batch, parts.shardings.data))
        metrics.append({name: np.asarray(value) for name, value in values.items()})
    return jax.device_get(state), metrics


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)))


def assert_same(found, expected):
    """Equal up to float32 sums in another order.

    Forward values agree to about 1e-6. Gradients pass through batch norms over 18 and fewer numbers, which amplify
    rounding, and through ReLUs that it may switch: the accumulated gradients (the momentum) agree to about 1e-4 of
    their norm, up to 2e-3 where a ReLU switches. Sharing statistics or averaging in a wrong way is an error of order 1.
    """
    (state, metrics), (other, other_metrics) = found, expected
    for a, b in zip(metrics, other_metrics, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        for name in a.keys() - {"consistency", "pseudo_label/share"}:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-3, atol=1e-6, err_msg=name)
        # Rounding may move a pixel to another class, but never out of the mean over all.
        per_class = np.nan_to_num(a["consistency"]) @ a["pseudo_label/share"]
        np.testing.assert_allclose(per_class, a["loss/consistency"], rtol=2e-3, atol=1e-6)
    assert int(state.step) == int(other.step) == STEPS
    momentum, other_momentum = state.opt_state[1].trace, other.opt_state[1].trace
    assert norm(jax.tree.map(np.subtract, momentum, other_momentum)) < 5e-3 * norm(other_momentum)
    for a, b in ((state.params, other.params), (state.batch_stats, other.batch_stats)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)


def test_groups_inside_a_device_give_the_result_of_one_device(inside, one_device):
    assert_same(inside[0], one_device)


@pytest.mark.parametrize(("accumulate", "devices"), [(4, 1), (2, 2)])
def test_a_batch_in_parts_gives_the_result_of_the_whole(config, batches, make_parts, one_device, accumulate, devices):
    """One device sees one group of each stream at a time; so do two devices."""
    parted = config.copy_and_resolve_references()
    parted.accumulate = accumulate
    assert_same(run(make_parts(parted, devices), batches), one_device)


def test_groups_that_devices_share_give_the_result_of_one_device(config, batches, make_parts, one_device):
    assert_same(run(make_parts(config, 8), batches), one_device)


def test_counting_the_parts_needs_no_network(config):
    """The compiler removes it, because what the losses are divided by depends on the data alone."""
    model, objective = build.build_model(config, NUM_CLASSES), build.build_objective(config, IGNORE)

    def count(params, batch_stats, crops):
        inputs = crops, step.image_keys(jax.random.key(0), crops)

        def of_part(part):
            crops, keys = step.take_part(inputs, part, parts=2, group_size=config.group_size)
            batch = make_views(crops, mean_pixel=build.mean_pixel(config), ignore_id=IGNORE)
            return objective(model, params, batch_stats, batch, keys, teacher={}).counts()

        return step.accumulate(of_part, 2)

    state = jax.eval_shape(model.init, jax.random.key(0))
    text = jax.jit(count).lower(*state, build.batch_shapes(config)).compile().as_text()
    assert not re.search(r" (convolution|dot)\(", text)


def test_the_step_is_compiled_once(config, make_parts, one_device):
    assert make_parts(config, 1).train_step._cache_size() == 1
    assert make_parts(config, 1).init._cache_size() == 1


def test_devices_only_sum(inside):
    text = inside[1].as_text()
    found = set(re.findall(r"\b(all-[a-z]+|collective-[a-z]+|reduce-scatter|ragged-all-to-all)(?:-start)?\(", text))
    assert found == {"all-reduce"}


def test_the_step_is_a_pure_function(config, batches, make_parts, one_device):
    again = run(make_parts(config, 1), batches)
    jax.tree.map(np.testing.assert_array_equal, again, one_device)


def test_randomness_is_a_function_of_seed_and_step():
    """With an objective that only draws a number."""
    shardings = make_shardings(1)
    schedule = optax.constant_schedule(0.5)
    optimizer = optax.sgd(schedule)

    def objective(model, params, batch_stats, batch, keys, *, teacher):
        one = jnp.ones(())
        drawn = jax.vmap(jax.random.uniform)(keys.labeled)
        terms = {
            "loss": Average(params["w"].sum(), one),
            "drawn": Average(drawn[0], one),
            "other": Average(drawn[1], one),
        }
        return Result(terms, {"loss": 1.0}, ())

    def draws(seed, start=0):
        model = Model(None, None, None, None, None)
        views = {"mean_pixel": (0.0, 0.0, 0.0), "ignore_id": IGNORE, "mask_cutout": True}
        bind = step.make_binding(model, objective, seed=seed, **views)
        settings = {"teacher_momentum": 0.0, "parts": 1, "group_size": 1, "shardings": shardings}
        train_step = step.make_train_step(model, bind, optimizer, schedule, **settings)
        params = {"w": jnp.ones(3)}
        state = step.TrainState(jnp.asarray(start, jnp.int32), params, {}, optimizer.init(params), {})
        values = []
        crops = Crops(LabeledCrops(jnp.zeros((2, 1, 1, 3)), jnp.zeros((2, 1, 1)), jnp.zeros((2, 4))))
        for _ in range(4):
            state, metrics = train_step(state, crops)
            values += [float(metrics["drawn"]), float(metrics["other"])]
            assert float(metrics["learning_rate"]) == 0.5
        np.testing.assert_array_equal(state.params["w"], np.full(3, -1.0))
        return values

    first = draws(0)
    assert len(set(first)) == 8
    assert draws(0) == first
    assert draws(0, start=2)[:4] == first[4:]
    assert not set(draws(1)) & set(first)


def test_the_teacher_is_the_moving_average_of_the_network(tiny_config, make_crops, make_parts):
    """Three steps against the recursion in float64."""
    config = tiny_config()
    parts = make_parts(config)
    state = parts.init(0)
    student = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.teacher), student)
    expected = jax.tree.map(np.float64, student)
    for i in range(STEPS):
        state, _ = parts.train_step(state, shard_batch(make_crops(config, seed=i), parts.shardings.data))
        student = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
        expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, expected, student)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), state.teacher, expected)
    moved = jax.tree.map(
        lambda x, y: float(np.abs(x - y).max()), student["params"], jax.device_get(state.teacher["params"])
    )
    assert min(jax.tree.leaves(moved["backbone"])) > 0


def test_the_seed_decides_the_initial_weights(config, make_parts):
    init = make_parts(config, 1).init
    kernels = [init(seed).params["backbone"]["conv1_1"]["conv"]["kernel"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 0.1


BLOCKED = """
import sys
sys.modules["tensorflow"] = None  # any import of it raises ImportError
import pc2seg_jax
import conftest, jax
config = conftest._tiny_config(objective="supervised")
from pc2seg_jax import build, parallel
shardings = parallel.make_shardings(1)
functions = build.build_functions(
    config, num_classes=conftest.NUM_CLASSES, ignore_id=conftest.IGNORE, shardings=shardings
)
batch = conftest.random_crops(config)
state, metrics = functions.train_step(functions.init(0), parallel.shard_batch(batch, shardings.data))
print("loss", float(metrics["loss"]))
"""


def test_a_step_on_ready_made_batches_needs_no_tensorflow():
    tests = pathlib.Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    done = subprocess.run([sys.executable, "-c", BLOCKED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, loss = done.stdout.split()
    assert name == "loss"
    assert 0 < float(loss) < 10
