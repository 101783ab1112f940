"""Floating-point operations of a traced function: what its products of matrices and its convolutions need at least."""

import math
from collections.abc import Iterator
from typing import Any


def count_flops(jaxpr: Any) -> float:
    """FLOPs of all matrix products and convolutions of a jaxpr, 2 per multiply-add; everything else is not counted.

    A convolution counts the taps that meet a number: neither padding nor the zeros that a strided convolution's
    gradient puts between numbers. A loop counts as often as it runs, of alternatives the largest counts (platforms have
    one formula each), and what the backward pass repeats counts again.

    jaxpr: of the whole, unpartitioned function, e.g. `jitted.trace(...).jaxpr`.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":
            total += max(count_flops(branch.jaxpr) for branch in equation.params["branches"])
        else:
            inner = sum(count_flops(sub) for sub in _inner(equation.params))
            times = {"scan": lambda p: p["length"], "shard_map": lambda p: p["mesh"].size}  # the inside is a device's
            total += inner * times.get(name, lambda p: 1)(equation.params)
    return total


def _inner(params: dict) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "jaxpr"):  # closed
                yield item.jaxpr
            elif hasattr(item, "eqns"):
                yield item


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
    p = equation.params
    lhs, rhs = (variable.aval.shape for variable in equation.invars)
    numbers = p["dimension_numbers"]
    out = equation.outvars[0].aval.shape
    batch, features = (out[axis] for axis in numbers.out_spec[:2])
    taps = 1
    for i, (left, right, to) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        taps *= _taps(
            lhs[left],
            rhs[right],
            out[to],
            stride=p["window_strides"][i],
            padding=p["padding"][i][0],
            lhs_dilation=p["lhs_dilation"][i],
            rhs_dilation=p["rhs_dilation"][i],
        )
    # The kernel's input axis already is that of one feature group; with batch groups an output feature sees one group.
    return 2.0 * batch * features * rhs[numbers.rhs_spec[1]] * taps


def _taps(size: int, kernel: int, out: int, *, stride: int, padding: int, lhs_dilation: int, rhs_dilation: int) -> int:
    """Pairs of an output position and a kernel position that meet a number, along one axis."""
    count = 0
    for k in range(kernel):
        for o in range(out):
            position = o * stride - padding + k * rhs_dilation
            count += 0 <= position <= (size - 1) * lhs_dilation and position % lhs_dilation == 0
    return count
