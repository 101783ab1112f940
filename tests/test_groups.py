"""Groups on one device, on several, and over the whole batch: one result, and no more communication than needed."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pc2seg_jax.ops.contrastive import pixel_contrast
from pc2seg_jax.ops.image_contrast import image_contrast
from pc2seg_jax.parallel import make_shardings, map_groups
from pc2seg_jax.programs import find_collectives
from pc2seg_jax.types import GroupSpan

IMAGES, SIZE, DIM, CLASSES = 16, 4, 8, 5
FAST_COMPILE = {"xla_backend_optimization_level": 0}


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    shape = (IMAGES, SIZE, SIZE)
    return {
        "weak": rng.standard_normal((*shape, DIM)).astype(np.float32),
        "strong": rng.standard_normal((*shape, DIM)).astype(np.float32),
        "probs": rng.dirichlet(np.full(CLASSES, 0.5), shape).astype(np.float32),
        "valid": rng.random(shape) > 0.2,
        "label": rng.integers(0, CLASSES, shape).astype(np.int32),
    }


def contrast(images, keys, span, **options):
    label = images["label"]
    features = (images[name] for name in ("weak", "strong", "probs", "valid"))
    settings = {"strategy": "different_image_pseudo_label", "num_negatives": 6} | options
    loss, _, stats = pixel_contrast(*features, keys, label=label, span=span, **settings)
    return {"loss": loss, "found": stats.num_negatives, "false": stats.false_negative_rate}


def pooled(images, keys, span):
    del keys
    loss, _ = image_contrast(images["weak"], images["strong"], images["valid"], span=span)
    return {"loss": loss}


FUNCTIONS = {
    "window": lambda *args: contrast(*args, window=30),
    "full": lambda *args: contrast(*args, method="full", block_size=32),
    "image": pooled,
}


def evaluate(function, x, group_size, devices):
    """((mean loss, outputs), gradients to both views), compiled for so many devices; and the compiled program."""
    shardings = make_shardings(devices)
    keys = jax.random.split(jax.random.key(3), IMAGES // group_size)

    def mean_loss(weak, strong, rest):
        images = rest | {"weak": weak, "strong": strong}
        found = map_groups(function, images, keys, group_size=group_size, mesh=shardings.mesh)
        return jnp.mean(found["loss"]), found

    run = jax.jit(
        jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True),
        in_shardings=(shardings.data,) * 3,
        compiler_options=FAST_COMPILE,
    )
    rest = {name: value for name, value in x.items() if name not in ("weak", "strong")}
    arguments = x["weak"], x["strong"], rest
    compiled = run.lower(*arguments).compile()
    return jax.device_get(compiled(*jax.device_put(arguments, shardings.data))), compiled.as_text()


@pytest.fixture(scope="module")
def one_device():
    made = {}

    def expected(name, group_size):
        if (name, group_size) not in made:
            made[name, group_size] = evaluate(FUNCTIONS[name], inputs(), group_size, 1)[0]
        return made[name, group_size]

    return expected


@pytest.mark.parametrize(
    ("name", "group_size", "devices"),
    [
        ("window", 2, 8),  # a group on every device
        ("window", 4, 8),  # two devices share a group
        ("window", 16, 8),  # all devices share the batch
        ("window", 8, 2),
        ("full", 4, 8),
        ("full", 16, 8),
        ("image", 4, 8),
        ("image", 16, 8),
    ],
)
def test_any_number_of_devices_gives_the_result_of_one(one_device, name, group_size, devices):
    found, text = evaluate(FUNCTIONS[name], inputs(), group_size, devices)
    expected = one_device(name, group_size)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, expected)
    if "found" in found[0][1]:  # the same negatives
        np.testing.assert_array_equal(found[0][1]["found"], expected[0][1]["found"])
        np.testing.assert_array_equal(found[0][1]["false"], expected[0][1]["false"])

    kinds = collections.Counter(collective.kind for collective in find_collectives(text))
    shared = group_size * devices > IMAGES
    assert set(kinds) <= ({"all-reduce", "all-gather", "reduce-scatter"} if shared else {"all-reduce"})
    if shared:
        assert "all-gather" in kinds
        # One gradient comes back to its owners; the mean is a scalar, and every device keeps the results of its own.
        reduced = [c.bytes for c in find_collectives(text) if c.kind == "all-reduce"]
        assert sum(reduced) <= 64


def test_groups_that_devices_cannot_share_evenly_have_the_same_result():
    """12 images on 8 devices, and 3 images a device in groups of 4: left to the compiler."""
    shardings = make_shardings(4)
    x = {name: value[:12] for name, value in inputs().items()}
    keys = jax.random.split(jax.random.key(3), 3)
    found = [
        jax.jit(lambda x, mesh=mesh: map_groups(FUNCTIONS["window"], x, keys, group_size=4, mesh=mesh))(x)
        for mesh in (shardings.mesh, None)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), *found)


def test_a_group_belongs_to_its_own_images_and_key():
    x = inputs()
    keys = jax.random.split(jax.random.key(3), 4)
    found = jax.jit(lambda x: map_groups(FUNCTIONS["window"], x, keys, group_size=4))(x)
    second = {name: value[None, 4:8] for name, value in x.items()}
    alone = jax.jit(lambda x: FUNCTIONS["window"](x, keys[1:2], GroupSpan()))(second)
    np.testing.assert_allclose(found["loss"][4:8], alone["loss"][0], rtol=2e-5, atol=1e-6)
