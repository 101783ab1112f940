"""What the text of a compiled program says: collective operations, and the memory traffic of a GPU."""

import collections
import re
from typing import NamedTuple

_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_BITS = re.compile(r"[0-9]+")
_COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|ragged-all-to-all"
# %name = shape kind(operands...) of one instruction; asynchronous ones are counted where they start.
_INSTRUCTION = re.compile(rf"= (?P<shape>\(.*?\)|\S+) (?P<kind>{_COLLECTIVES})(?P<start>-start)?\(")
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\) -> .* \{$")
_ANY_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>\(.*?\)|\S+) (?P<kind>[\w-]+)\((?P<rest>.*)$"
)
_CALLED = re.compile(r"(?:body|calls|to_apply)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{(.*?)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NOTHING = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "partition-id", "replica-id")


class Collective(NamedTuple):
    """All collective operations of one kind on one type of number. bytes: that one device contributes, in total."""

    kind: str
    dtype: str
    operations: int
    bytes: int


class Traffic(NamedTuple):
    """What one run of a program launches, and the bytes of all operands and results of these kernels."""

    kernels: int
    bytes: int


def find_collectives(text: str) -> list[Collective]:
    """The collective operations of a compiled program, the largest kinds first. text: `compiled.as_text()`."""
    operations, sizes = collections.Counter(), collections.Counter()
    for instruction in _INSTRUCTION.finditer(text):
        arrays = [(dtype, _bytes(dtype, dims)) for dtype, dims in _ARRAY.findall(instruction["shape"])]
        if instruction["start"] and instruction["kind"] != "all-reduce":  # a pair of operands and results
            arrays = arrays[: len(arrays) // 2]
        for dtype in {dtype for dtype, _ in arrays}:
            operations[instruction["kind"], dtype] += 1
        for dtype, size in arrays:
            sizes[instruction["kind"], dtype] += size
    return [Collective(*key, operations[key], size) for key, size in sizes.most_common()]


def find_traffic(text: str) -> Traffic:
    """Of a program compiled for a GPU, `compiled.as_text()`: every operand and result of a kernel counts as a whole.

    So a kernel that reads a part of an operand is counted with too much, and one whose operands are in the cache with
    too much as well. Loops count as often as they run, where the compiler knows; of branches, the costliest.
    """
    computations, entry = collections.defaultdict(dict), None
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = found["name"]
            entry = current if found["entry"] else entry
        elif found := _ANY_INSTRUCTION.match(line):
            computations[current][found["name"]] = found
    return _traffic_of(computations, entry)


def _traffic_of(computations: dict[str, dict[str, re.Match]], name: str) -> Traffic:
    kernels, total = 0, 0
    for instruction in computations[name].values():
        kind, rest = instruction["kind"], instruction["rest"]
        if kind in _NOTHING or kind.endswith("-done"):
            continue
        inside, times = Traffic(0, 0), 1
        if kind == "conditional" and (branches := _BRANCHES.search(rest)):
            names = [branch.strip().lstrip("%") for branch in branches[1].split(",")]
            inside = max((_traffic_of(computations, branch) for branch in names), key=lambda traffic: traffic.bytes)
        elif kind in ("while", "call", "async-start") and (called := _CALLED.search(rest)):
            inside = _traffic_of(computations, called[1])
            times = int(trips[1]) if (trips := _TRIPS.search(rest)) else 1
        else:
            operands = re.findall(r"%([\w.-]+)", rest.partition("), ")[0])
            shapes = [computations[name][operand]["shape"] for operand in operands if operand in computations[name]]
            arrays = [array for shape in (instruction["shape"], *shapes) for array in _ARRAY.findall(shape)]
            inside = Traffic(1, sum(_bytes(*array) for array in arrays))
        kernels += times * inside.kernels
        total += times * inside.bytes
    return Traffic(kernels, total)


def _bytes(dtype: str, dims: str) -> int:
    """Of one array; "pred" has 8 bits."""
    count = 1
    for size in filter(None, dims.split(",")):
        count *= int(size)
    bits = _BITS.search(dtype)
    return count * (int(bits[0]) if bits else 8) // 8
