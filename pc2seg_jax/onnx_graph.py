"""An ONNX graph while it is built: values with the order in which their axes are stored, sizes as expressions.

jaxprs of our networks are written for images [B, h, w, F], ONNX convolutions for [B, F, h, w]. A value remembers how it
is stored, so that the graph is transposed where it begins and where it ends, and nowhere between.
"""

import ast
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import NodeProto, helper

# Read by every runtime of the last years; nothing newer is needed.
OPSET, IR_VERSION = 17, 8

# What expressions of symbolic dimensions consist of. Div is floordiv because what is divided is never negative.
OPERATORS = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}
FUNCTIONS = {"floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min"}


class Value(NamedTuple):
    """An output of a node.

    dims: sizes of its axes as the jaxpr counts them, ints or symbolic; 1 where the jaxpr has broadcast it, because ONNX
      broadcasts on its own. order: position k of the stored tensor is axis order[k] of the jaxpr.
    """

    name: str
    dims: tuple
    order: tuple[int, ...]


def identity(rank: int) -> tuple[int, ...]:
    return tuple(range(rank))


class Convolution(NamedTuple):
    """A convolution whose output nothing has read yet: a scale or shift per channel can still go into its numbers."""

    inputs: list[str]  # of the node, which hold the names of kernel and bias at last
    kernel: np.ndarray  # [channels out, ...] float64
    bias: np.ndarray  # [channels out] float64


class Graph:
    """Nodes and constants.

    Args:
      sizes: names of the symbolic dimensions with the (input, axis) that has their value.
    """

    def __init__(self, sizes: dict[str, tuple[str, int]]):
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._known: dict[Any, str] = {}
        self._open: dict[str, Convolution] = {}
        self._sizes = sizes
        self._count = 0

    def new_name(self, kind: str) -> str:
        self._count += 1
        return f"{kind.lower()}_{self._count}"

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """The name of the output of a node; an equal one that exists already is taken."""
        key = operation, inputs, str(sorted(attributes.items()))
        if key not in self._known:
            for name in inputs:
                self._close(name)
            name = self._known[key] = self.new_name(operation)
            self.nodes.append(helper.make_node(operation, list(inputs), [name], name=name, **attributes))
        return self._known[key]

    def constant(self, array: np.ndarray) -> str:
        """The name of a constant; equal small ones are one."""
        array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 4096 else None
        if key in self._known:
            return self._known[key]
        name = self.new_name("constant")
        self.constants[name] = array
        if key is not None:
            self._known[key] = name
        return name

    # Sizes: int64 tensors [1].

    def size(self, dim: Any) -> str:
        """The value of a dimension, int64 [1]. A symbolic one is read as JAX prints it: 16*floordiv(h+14, 16)+1."""
        return self._evaluate(ast.parse(str(dim).replace("^", "**"), mode="eval").body)

    def _evaluate(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=int(number)):
                return self.constant(np.array([number], np.int64))
            case ast.Name(id=name) if name in self._sizes:
                tensor, axis = self._sizes[name]
                return self.add("Gather", self.add("Shape", tensor), self.constant(np.array([axis], np.int64)))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.add("Neg", self._evaluate(operand))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return self.add(OPERATORS[type(op)], self._evaluate(left), self._evaluate(right))
            case ast.Call(func=ast.Name(id=name), args=arguments) if name in FUNCTIONS:
                return self.add(FUNCTIONS[name], *map(self._evaluate, arguments))
        raise NotImplementedError(f"the size {ast.unparse(node)}")

    def shape(self, dims: Iterable) -> str:
        """The name of an int64 vector of sizes."""
        dims = tuple(dims)
        if all(isinstance(dim, int | np.integer) for dim in dims):
            return self.constant(np.array(dims, np.int64))
        return self.add("Concat", *map(self.size, dims), axis=0)

    # Layout.

    def arrange(self, value: Value | np.ndarray, order: Sequence[int]) -> str:
        """The name of the value stored in this order of axes."""
        order = tuple(order)
        if isinstance(value, np.ndarray):
            return self.constant(value.transpose(order))
        if value.order == order:
            return value.name
        return self.add("Transpose", value.name, perm=[value.order.index(axis) for axis in order])

    def full(self, value: Value | np.ndarray, dims: tuple) -> Value:
        """The value with all axes in the size that the jaxpr gives them."""
        if isinstance(value, np.ndarray):
            value = Value(self.constant(value), value.shape, identity(value.ndim))
        if value.dims == tuple(dims):
            return value
        name = self.add("Expand", value.name, self.shape(dims[axis] for axis in value.order))
        return Value(name, dims, value.order)

    def elementwise(
        self, operation: str, values: Sequence[Value | np.ndarray], dims: tuple, **attributes: Any
    ) -> Value:
        """A node that broadcasts its inputs, in the order of the first one that is computed and has all axes."""
        computed = [value for value in values if isinstance(value, Value) and len(value.dims) == len(dims)]
        whole = [value for value in computed if value.dims == dims] or computed
        order = whole[0].order if whole else identity(len(dims))
        names, known = [], []
        for value in values:
            shape = value.shape if isinstance(value, np.ndarray) else value.dims
            names.append(self.arrange(value, order if len(shape) == len(dims) else ()))
            known.append(shape if len(shape) == len(dims) else (1,) * len(dims))
        # An axis is 1 still where none of the inputs has it.
        result = tuple(dim if any(shape[i] == dim for shape in known) else 1 for i, dim in enumerate(dims))
        return Value(self.add(operation, *names, **attributes), result, order)

    # Convolutions, and batch normalisation inside them.

    def convolution(self, image: str, kernel: np.ndarray, **attributes: Any) -> str:
        """Appends a convolution [B, F, h, w] by [channels out, F / groups, kh, kw] with a bias of 0."""
        self._close(image)
        name = self.new_name("Conv")
        inputs = [image, name + "_kernel", name + "_bias"]
        self.nodes.append(helper.make_node("Conv", inputs, [name], name=name, **attributes))
        self._open[name] = Convolution(inputs, kernel.astype(np.float64), np.zeros(len(kernel)))
        return name

    def is_open(self, value: Any) -> bool:
        return isinstance(value, Value) and value.name in self._open

    def fold(self, name: str, change: Callable, channels: np.ndarray) -> str:
        """Applies `change` (multiply, add, subtract; one number per channel) to a convolution, which is renamed.

        The former name is gone, so that a graph that reads the convolution without the change cannot be built.
        """
        convolution = self._open.pop(name)
        numbers = np.broadcast_to(channels.astype(np.float64).ravel(), convolution.bias.shape)
        kernel = convolution.kernel
        if change is np.multiply:
            kernel = kernel * numbers.reshape(-1, *(1,) * (kernel.ndim - 1))
        (node,) = (node for node in self.nodes if node.output[0] == name)
        node.output[0] = self.new_name("Conv")
        self._open[node.output[0]] = Convolution(convolution.inputs, kernel, change(convolution.bias, numbers))
        return node.output[0]

    def _close(self, name: str) -> None:
        """Makes the numbers of a convolution final, because another node reads its output."""
        convolution = self._open.pop(name, None)
        if convolution is not None:
            for key, array in zip(convolution.inputs[1:], (convolution.kernel, convolution.bias), strict=True):
                self.constants[key] = array.astype(np.float32)
