"""NVIDIA GPUs that are not at hand: what their compiler has to know of them."""

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
