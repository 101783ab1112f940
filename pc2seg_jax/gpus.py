"""NVIDIA GPUs that are not at hand: what their compiler has to know of them, and what a compiled program moves."""

import collections
import re
from typing import NamedTuple

from pc2seg_jax.chips import CHIPS

_GIGA = 10**9


class _Target(NamedTuple):
    """device_kind: of JAX, a key of `CHIPS`. capability: of computing. cores: multiprocessors, of so many float32 units
    and bytes of shared memory, of which one block may have some. l2: bytes of the cache. clock: Hz.
    """

    device_kind: str
    capability: tuple[int, int]
    cores: int
    units: int
    shared: int
    shared_of_block: int
    l2: int
    clock: float


# Source: the architecture white papers and the CUDA programming guide's table of compute capabilities.
TARGETS = {
    "a100": _Target("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 164 * 1024, 163 * 1024, 40 * 2**20, 1.41 * _GIGA),
    "h100": _Target("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 228 * 1024, 227 * 1024, 50 * 2**20, 1.98 * _GIGA),
    "h200": _Target("NVIDIA H200", (9, 0), 132, 128, 228 * 1024, 227 * 1024, 50 * 2**20, 1.98 * _GIGA),
}
# Kernels cannot be tried out where there is no GPU, and Triton's, untried, do not take all shapes.
COMPILER_OPTIONS = {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": "False"}


def describe(name: str) -> str:
    """What XLA calls the target configuration of a GPU, a text of its protocol buffers. name: a key of `TARGETS`."""
    target = TARGETS[name]
    chip = CHIPS[target.device_kind]
    return f"""
        platform_name: "CUDA"
        device_description_str: "{target.device_kind}"
        dnn_version_info {{ major: 9 minor: 10 }}
        gpu_device_info {{
          cuda_compute_capability {{ major: {target.capability[0]} minor: {target.capability[1]} }}
          core_count: {target.cores} fpus_per_core: {target.units} clock_rate_ghz: {target.clock / _GIGA}
          threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          shared_memory_per_block: 49152 shared_memory_per_block_optin: {target.shared_of_block}
          shared_memory_per_core: {target.shared} l2_cache_size: {target.l2}
          memory_bandwidth: {int(chip.hbm)} device_memory_size: {chip.memory}
        }}"""


class Traffic(NamedTuple):
    """What one run of a program launches, and the bytes of all operands and results of these kernels."""

    kernels: int
    bytes: float


_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>\(.*?\)|\S+) (?P<kind>[\w-]+)\((?P<rest>.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+[0-9]+\w*)\[([0-9,]*)\]")
_CALLED = re.compile(r"(?:body|calls|to_apply)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{(.*?)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NOTHING = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "partition-id", "replica-id")


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
        elif found := _INSTRUCTION.match(line):
            computations[current][found["name"]] = found
    return _traffic_of(computations, entry)


def _traffic_of(computations: dict[str, dict[str, re.Match]], name: str) -> Traffic:
    kernels, total = 0, 0.0
    for instruction in computations[name].values():
        kind, rest = instruction["kind"], instruction["rest"]
        if kind in _NOTHING or kind.endswith("-done"):
            continue
        inside, times = Traffic(0, 0.0), 1
        if kind == "conditional" and (branches := _BRANCHES.search(rest)):
            names = [branch.strip().lstrip("%") for branch in branches[1].split(",")]
            inside = max((_traffic_of(computations, branch) for branch in names), key=lambda traffic: traffic.bytes)
        elif kind in ("while", "call", "async-start") and (called := _CALLED.search(rest)):
            inside = _traffic_of(computations, called[1])
            times = int(trips[1]) if (trips := _TRIPS.search(rest)) else 1
        else:
            operands = re.findall(r"%([\w.-]+)", rest.partition("), ")[0])
            shapes = [computations[name][operand]["shape"] for operand in operands if operand in computations[name]]
            inside = Traffic(1, sum(map(_bytes, (instruction["shape"], *shapes))))
        kernels += times * inside.kernels
        total += times * inside.bytes
    return Traffic(kernels, total)


def _bytes(shape: str) -> float:
    """Of an array or a tuple of arrays, as in a program's text."""
    total = 0.0
    for dtype, dims in _ARRAY.findall(shape):
        count = 1
        for size in filter(None, dims.split(",")):
            count *= int(size)
        total += count * (1 if dtype == "pred" else int(re.search("[0-9]+", dtype)[0]) / 8)
    return total
