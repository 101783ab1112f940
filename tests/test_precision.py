"""bfloat16 activations, and nothing else in bfloat16: what the numbers say and what the traced program says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pc2seg_jax import build, compile_report, parallel
from pc2seg_jax.models import deterministic
from pc2seg_jax.models.functional import create_model


@pytest.mark.parametrize("backbone", ["resnet50_beta", "xception65"])
def test_features_in_bfloat16_point_where_those_in_float32_do(backbone):
    """Cosine of every image's features on the deterministic network above 0.999."""
    settings = {"output_stride": 16, "multi_grid": (1, 1, 1), "size": 65, "num_classes": 21, "train": False}
    exact = deterministic.run(backbone, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deterministic, "create_model", lambda **kwargs: create_model(dtype=jnp.bfloat16, **kwargs))
        rough = deterministic.run(backbone, **settings)
    for name in ("conv5", "low_level", "logits"):
        for a, b in zip(exact[name].astype(np.float64), rough[name].astype(np.float64), strict=True):
            assert np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.999, name
        assert not np.array_equal(exact[name], rough[name])


def equations(jaxpr):
    """Every equation, whatever it is inside of."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def trace(tiny_config):
    """The traced training step and its state."""
    config = tiny_config(model__dtype="bfloat16")
    shardings = parallel.make_shardings(1)
    functions = build.build_functions(config, num_classes=7, ignore_id=255, shardings=shardings)
    state, batch = compile_report.abstract_inputs(config, functions, shardings)
    return functions.train_step.trace(state, batch), state


@pytest.fixture(scope="module")
def traced(tiny_config):
    return trace(tiny_config)


def test_no_float_has_64_bits_even_where_jax_allows_them(tiny_config):
    """By default JAX turns every float64 into float32, and nothing could be seen."""
    with jax.enable_x64(True):
        wide, _ = trace(tiny_config)
    for equation in equations(wide.jaxpr.jaxpr):
        assert "float64" not in {str(variable.aval.dtype) for variable in equation.outvars}, equation


def test_the_state_stays_in_float32(traced):
    after, metrics = traced[0].out_info
    for leaf in jax.tree.leaves((after.params, after.batch_stats, after.opt_state, after.teacher, metrics)):
        assert leaf.dtype in (jnp.float32, jnp.int32)


def test_convolutions_logits_and_projections_multiply_in_bfloat16(traced):
    """Operands have one type, so that nothing is cast up on the way; gradients included."""
    step, state = traced
    logits, projection = state.params["head"]["logits"], state.params["projection"]["conv5"]["weak"]
    kernels = [layer["conv"]["kernel"].shape[2:] for layer in (logits, projection)]
    convolutions, products = 0, {}
    for equation in equations(step.jaxpr.jaxpr):
        operands = [variable.aval for variable in equation.invars]
        result = equation.outvars[0].aval if equation.outvars else None
        if equation.primitive.name == "conv_general_dilated":
            convolutions += 1
            assert {str(x.dtype) for x in (*operands, result)} == {"bfloat16"}, equation
        elif equation.primitive.name == "dot_general":
            for kernel in kernels:
                if kernel in (operands[1].shape, result.shape):  # forward, and the gradient of the kernel
                    assert {str(x.dtype) for x in operands} == {"bfloat16"}, equation
                    assert result.dtype == jnp.float32, equation
                    products.setdefault(kernel, []).append(result.shape == kernel)
    assert convolutions > 10
    assert sorted(products[kernels[0]]) == [False, False, True]  # the weak pass, and the other with its gradient
    assert sorted(products[kernels[1]]) == [False, False, True, True]  # weak and strong


def test_no_sum_runs_in_bfloat16(traced):
    """Sums over pixels, in gradients above all, lose everything after 8 bits."""
    sums = [equation for equation in equations(traced[0].jaxpr.jaxpr) if equation.primitive.name == "reduce_sum"]
    assert len(sums) > 100
    for equation in sums:
        assert equation.outvars[0].aval.dtype != jnp.bfloat16, equation
