"""From a jaxpr to ONNX: a rule for every primitive that the networks here contain at inference, and no other.

What depends on constants alone is computed now. Batch normalisation goes into the convolution before it. Images, sizes
and batch stay symbolic.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.extend.core
import numpy as np
import onnx
from onnx import helper, numpy_helper

from pc2seg_jax.errors import UserError
from pc2seg_jax.onnx_graph import IR_VERSION, OPSET, Graph, Value, identity

ELEMENTWISE = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "abs": "Abs",
    "exp": "Exp",
    "lt": "Less",
    "and": "And",
}
FOLDED = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
INLINED = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")
# Of alternatives by platform, the one where convolutions are convolutions (models/layers.py).
PLATFORM = "tpu"


def to_onnx(
    jaxpr: jax.extend.core.ClosedJaxpr, *, input_name: str, axes: Sequence[str], output_name: str, metadata: dict
) -> onnx.ModelProto:
    """The ONNX model of a function of one array.

    Args:
      jaxpr: of that function, whose input may have symbolic dimensions (`jax.export.symbolic_shape`).
      input_name, output_name: what to call them.
      axes: names of the axes of the input, which those of the output that have the same size get, too.
      metadata: texts by name.

    Raises:
      UserError: naming a primitive, or a use of one, that has no rule here.
    """
    (invar,), (outvar,) = jaxpr.jaxpr.invars, jaxpr.jaxpr.outvars
    names = {str(dim): name for dim, name in zip(invar.aval.shape, axes, strict=True)}
    graph = Graph({str(dim): (input_name, axis) for axis, dim in enumerate(invar.aval.shape)})
    start = Value(input_name, invar.aval.shape, identity(len(axes)))
    (result,) = _convert(graph, jaxpr.jaxpr, jaxpr.consts, [start])
    result = graph.full(result, outvar.aval.shape)
    graph.add("Identity", graph.arrange(result, identity(len(result.dims))))
    graph.nodes[-1].output[0] = output_name

    def describe(name: str, aval: Any) -> onnx.ValueInfoProto:
        shape = [dim if isinstance(dim, int) else names.get(str(dim), str(dim)) for dim in aval.shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype)), shape)

    built = helper.make_graph(
        graph.nodes,
        "segmentation",
        [describe(input_name, invar.aval)],
        [describe(output_name, outvar.aval)],
        [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
    )
    model = helper.make_model(
        built, producer_name="pc2seg_jax", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    helper.set_model_props(model, metadata)
    return model


def _convert(graph: Graph, jaxpr: Any, consts: Sequence, arguments: Sequence) -> list:
    """Values or arrays of the outputs of a jaxpr."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*map(np.asarray, consts), *arguments), strict=True))
    uses = Counter(id(atom) for equation in jaxpr.eqns for atom in equation.invars)
    uses.update(id(atom) for atom in jaxpr.outvars)

    def read(atom: Any) -> Value | np.ndarray:
        if isinstance(atom, jax.extend.core.Literal):
            return np.asarray(atom.val, atom.aval.dtype)
        return values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        once = all(uses[id(atom)] == 1 for atom in equation.invars)
        results = _convert_equation(graph, equation, inputs, fold=once)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _convert_equation(graph: Graph, equation: Any, inputs: list, *, fold: bool) -> list:
    name, parameters = equation.primitive.name, equation.params
    if name in INLINED:
        inner = parameters["jaxpr"] if "jaxpr" in parameters else parameters["call_jaxpr"]
        return _convert(graph, inner.jaxpr, inner.consts, inputs)
    if name == "platform_index":
        fitting = (i for i, names in enumerate(parameters["platforms"]) if names is None or PLATFORM in names)
        return [np.asarray(next(fitting), np.int32)]
    if name == "cond" and isinstance(inputs[0], np.ndarray):
        branch = parameters["branches"][int(inputs[0])]
        return _convert(graph, branch.jaxpr, branch.consts, inputs[1:])
    aval = equation.outvars[0].aval
    shapes = [atom.aval.shape for atom in equation.invars]
    known = all(isinstance(x, np.ndarray) for x in inputs) and name != "dim_as_value"
    if known and _is_static(*shapes, aval.shape):
        whole = [np.broadcast_to(x, shape) for x, shape in zip(inputs, shapes, strict=True)]
        return [np.asarray(equation.primitive.bind(*whole, **parameters))]
    if fold and name in FOLDED and graph.is_open(inputs[0]) and _per_channel(inputs[1], inputs[0]):
        return [inputs[0]._replace(name=graph.fold(inputs[0].name, FOLDED[name], inputs[1]))]
    if name == "max" and isinstance(inputs[1], np.ndarray) and not inputs[1].any():
        return [graph.elementwise("Relu", inputs[:1], aval.shape)]
    if name in ELEMENTWISE:
        return [graph.elementwise(ELEMENTWISE[name], inputs, aval.shape)]
    if name not in RULES:
        raise _unknown(f"the primitive {name!r}")
    if name not in BROADCASTING:
        inputs = [_whole(graph, x, shape) for x, shape in zip(inputs, shapes, strict=True)]
    try:
        return [RULES[name](graph, inputs, aval, **parameters)]
    except NotImplementedError as error:
        raise _unknown(f"{error} of the primitive {name!r}") from error


def _is_static(*shapes: tuple) -> bool:
    return not any(jax.export.is_symbolic_dim(dim) for shape in shapes for dim in shape)


def _whole(graph: Graph, x: Value | np.ndarray, shape: tuple) -> Value | np.ndarray:
    """With every axis that was broadcast; constants stay constants where their size is one."""
    return np.broadcast_to(x, shape) if isinstance(x, np.ndarray) and _is_static(shape) else graph.full(x, shape)


def _unknown(what: str) -> UserError:
    return UserError(
        f"the network contains {what}, which the converter to ONNX does not know: leave onnx out of --formats, or add "
        "a rule to pc2seg_jax/onnx_primitives.py"
    )


def _per_channel(numbers: Any, image: Value) -> bool:
    """Whether these are constants, one for every channel of the output of a convolution or one for all."""
    if not isinstance(numbers, np.ndarray):
        return False
    channels = image.order[1]
    return all(size == 1 for axis, size in enumerate(numbers.shape) if axis != channels)


def _cast(graph: Graph, inputs: list, aval: Any, **_: Any) -> Value:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
    return graph.elementwise("Cast", inputs, aval.shape, to=kind)


def _select(graph: Graph, inputs: list, aval: Any) -> Value:
    condition, *cases = inputs
    if len(cases) != 2:
        raise NotImplementedError(f"{len(cases)} cases")
    return graph.elementwise("Where", [condition, *reversed(cases)], aval.shape)


def _dim_as_value(graph: Graph, inputs: list, aval: Any, *, dim: Any) -> Value:
    scalar = graph.add("Squeeze", graph.size(dim), graph.constant(np.array([0], np.int64)))
    return Value(graph.add("Cast", scalar, to=helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))), (), ())


def _iota(graph: Graph, inputs: list, aval: Any, *, dimension: int, **_: Any) -> Value:
    if aval.ndim != 1 or inputs:
        raise NotImplementedError(f"{aval.ndim} axes")
    end = _dim_as_value(graph, [], aval, dim=aval.shape[dimension])
    start, step = (graph.constant(np.asarray(number, aval.dtype)) for number in (0, 1))
    return Value(graph.add("Range", start, end.name, step), aval.shape, (0,))


def _broadcast_in_dim(graph: Graph, inputs: list, aval: Any, *, broadcast_dimensions: tuple, **_: Any) -> Any:
    """Only new axes of size 1: nodes broadcast on their own, and `Graph.full` does it for those that do not."""
    x = inputs[0]
    dims = x.shape if isinstance(x, np.ndarray) else x.dims
    placed = [1] * aval.ndim
    for dim, axis in zip(dims, broadcast_dimensions, strict=True):
        placed[axis] = dim
    if isinstance(x, np.ndarray):
        return x.reshape(placed)
    new = [axis for axis in range(aval.ndim) if axis not in broadcast_dimensions]
    if not new:
        return x
    name = graph.arrange(x, identity(len(dims)))
    return Value(graph.add("Unsqueeze", name, graph.constant(np.array(new))), tuple(placed), identity(aval.ndim))


def _without(order: tuple[int, ...], axes: Sequence[int]) -> tuple[int, ...]:
    """The order of the axes that remain, counted anew."""
    remaining = [axis for axis in order if axis not in axes]
    return tuple(sorted(remaining).index(axis) for axis in remaining)


def _squeeze(graph: Graph, inputs: list, aval: Any, *, dimensions: tuple, **_: Any) -> Value:
    (x,) = inputs
    where = graph.constant(np.array([x.order.index(axis) for axis in dimensions]))
    dims = tuple(dim for axis, dim in enumerate(x.dims) if axis not in dimensions)
    return Value(graph.add("Squeeze", x.name, where), dims, _without(x.order, dimensions))


def _reduce(operation: str) -> Callable:
    def rule(graph: Graph, inputs: list, aval: Any, *, axes: tuple, **_: Any) -> Value:
        (x,) = inputs
        where = sorted(x.order.index(axis) for axis in axes)
        if operation == "ReduceMax":  # its axes became an input in opset 18, those of ReduceSum in 13
            name = graph.add(operation, x.name, axes=where, keepdims=0)
        else:
            name = graph.add(operation, x.name, graph.constant(np.array(where)), keepdims=0)
        dims = tuple(dim for axis, dim in enumerate(x.dims) if axis not in axes)
        return Value(name, dims, _without(x.order, axes))

    return rule


def _transpose(graph: Graph, inputs: list, aval: Any, *, permutation: tuple) -> Value:
    (x,) = inputs
    dims = tuple(x.dims[axis] for axis in permutation)
    return Value(x.name, dims, tuple(permutation.index(axis) for axis in x.order))


def _concatenate(graph: Graph, inputs: list, aval: Any, *, dimension: int) -> Value:
    values = [graph.full(x, x.shape) if isinstance(x, np.ndarray) else x for x in inputs]
    order = values[0].order
    names = [graph.arrange(value, order) for value in values]
    return Value(graph.add("Concat", *names, axis=order.index(dimension)), aval.shape, order)


def _pad(graph: Graph, inputs: list, aval: Any, *, padding_config: tuple) -> Value:
    x, filling = inputs
    if any(interior for _, _, interior in padding_config) or not isinstance(filling, np.ndarray):
        raise NotImplementedError("padding between elements")
    sides = [padding_config[axis][side] for side in (0, 1) for axis in x.order]
    return Value(graph.add("Pad", x.name, graph.shape(sides), graph.constant(filling)), aval.shape, x.order)


def _slice(
    graph: Graph, inputs: list, aval: Any, *, start_indices: tuple, limit_indices: tuple, strides: tuple | None
) -> Value:
    (x,) = inputs
    strides = strides or (1,) * len(x.dims)
    cut = [
        axis
        for axis, (start, end, stride) in enumerate(zip(start_indices, limit_indices, strides, strict=True))
        if start != 0 or stride != 1 or end != x.dims[axis]
    ]
    if not cut:
        return x
    starts, ends = (graph.shape(indices[axis] for axis in cut) for indices in (start_indices, limit_indices))
    axes, steps = ([x.order.index(axis) for axis in cut], [strides[axis] for axis in cut])
    constants = [graph.constant(np.array(numbers, np.int64)) for numbers in (axes, steps)]
    return Value(graph.add("Slice", x.name, starts, ends, *constants), aval.shape, x.order)


def _dot(graph: Graph, inputs: list, aval: Any, *, dimension_numbers: tuple, **_: Any) -> Value:
    """The product of a matrix with one axis of a tensor, stored so that the tensor is not transposed if possible."""
    contracted, batch = dimension_numbers
    values = [graph.full(x, x.shape) if isinstance(x, np.ndarray) else x for x in inputs]
    matrix = 0 if len(values[0].dims) == 2 else 1
    m, x = values[matrix], values[1 - matrix]
    if any(batch) or len(m.dims) != 2 or len(contracted[0]) != 1:
        raise NotImplementedError("a product that is not one of a matrix with one axis")
    (of_m,), (of_x,) = contracted[matrix], contracted[1 - matrix]
    rest = [axis for axis in range(len(x.dims)) if axis != of_x]
    # Where the axes of the tensor, and in place of the contracted one the matrix's other axis, are in the result.
    results = [0, *range(1, len(x.dims))] if matrix == 0 else [len(rest), *range(len(rest))]
    place = dict(zip((of_x, *rest), results, strict=True))
    if len(x.order) > 1 and x.order[-2] == of_x:
        order = x.order
        name = graph.add("MatMul", graph.arrange(m, (1 - of_m, of_m)), x.name)
    else:
        order = (*(axis for axis in x.order if axis != of_x), of_x)
        name = graph.add("MatMul", graph.arrange(x, order), graph.arrange(m, (of_m, 1 - of_m)))
    return Value(name, aval.shape, tuple(place[axis] for axis in order))


def _convolution(graph: Graph, inputs: list, aval: Any, **parameters: Any) -> Value:
    x, kernel = inputs
    lhs, rhs, out = parameters["dimension_numbers"]
    if not isinstance(kernel, np.ndarray) or set(parameters["lhs_dilation"]) != {1}:
        raise NotImplementedError("a kernel that is not constant, or a dilated image")
    if parameters["batch_group_count"] != 1:
        raise NotImplementedError("groups of images")
    starts, ends = zip(*parameters["padding"], strict=True)
    name = graph.convolution(
        graph.arrange(x, lhs),
        kernel.transpose(rhs),
        strides=parameters["window_strides"],
        pads=[int(padding) for padding in (*starts, *ends)],
        dilations=parameters["rhs_dilation"],
        group=parameters["feature_group_count"],
    )
    return Value(name, aval.shape, tuple(out))


# Rules that take inputs with axes that are still to be broadcast.
BROADCASTING = ("convert_element_type", "select_n", "broadcast_in_dim", "stop_gradient")
RULES: dict[str, Callable] = {
    "convert_element_type": _cast,
    "select_n": _select,
    "dim_as_value": _dim_as_value,
    "iota": _iota,
    "broadcast_in_dim": _broadcast_in_dim,
    "squeeze": _squeeze,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "transpose": _transpose,
    "concatenate": _concatenate,
    "pad": _pad,
    "slice": _slice,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "stop_gradient": lambda graph, inputs, aval, **_: inputs[0],
}
