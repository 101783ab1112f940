"""Published figures of accelerators, to put measured and compiled numbers into proportion."""

from typing import NamedTuple


class Chip(NamedTuple):
    """memory: bytes that one device of JAX has. flops: bfloat16 FLOP/s at most, dense. Both as published."""

    memory: int
    flops: float


_GB = 10**9
# By `device.device_kind`; a TPU v2 to v3 chip counts as two devices and is left out, as they are no longer offered.
CHIPS = {
    "TPU v4": Chip(32 * _GB, 275e12),
    "TPU v5 lite": Chip(16 * _GB, 197e12),
    "TPU v5": Chip(95 * _GB, 459e12),
    "TPU v5p": Chip(95 * _GB, 459e12),
    "TPU v6 lite": Chip(32 * _GB, 918e12),
    "NVIDIA A100-SXM4-40GB": Chip(40 * _GB, 312e12),
    "NVIDIA A100-SXM4-80GB": Chip(80 * _GB, 312e12),
    "NVIDIA H100 80GB HBM3": Chip(80 * _GB, 989e12),
    "NVIDIA H200": Chip(141 * _GB, 989e12),
}
