"""Published figures of accelerators, to put measured and compiled numbers into proportion."""

from typing import NamedTuple


class Chip(NamedTuple):
    """Figures of one device of JAX, as published; None: not known here.

    memory: bytes. flops: bfloat16 FLOP/s at most, dense. hbm: bytes per second from and to memory.
    ici: bytes per second that it sends to its neighbours over all its links together, while it receives as many.

    Source of hbm and ici of a TPU: the pages "TPU v5e", "TPU v5p" and "TPU v6e" of the Cloud TPU documentation. They
    state ICI for both directions, twice our number: 400, 1,200 and 800 GB/s per chip; earlier editions state one,
    1,600, 4,800 and 3,584 Gbit/s, the last more than today's. The all-reduce bandwidth of a pod of 256 chips, 51.2
    (v5e) and 102.4 TB/s (v6e), is 256 times our 200 and 400 GB/s. Of a GPU: NVIDIA's data sheets, SXM.
    """

    memory: int
    flops: float
    hbm: float | None = None
    ici: float | None = None


_GB = 10**9
# By `device.device_kind`; a TPU v2 to v3 chip counts as two devices and is left out, as they are no longer offered.
CHIPS = {
    "TPU v4": Chip(32 * _GB, 275e12),
    "TPU v5 lite": Chip(16 * _GB, 197e12, 819e9, 200e9),
    "TPU v5": Chip(95 * _GB, 459e12, 2765e9, 600e9),
    "TPU v5p": Chip(95 * _GB, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip(32 * _GB, 918e12, 1638e9, 400e9),
    "NVIDIA A100-SXM4-40GB": Chip(40 * _GB, 312e12, 1555e9),
    "NVIDIA A100-SXM4-80GB": Chip(80 * _GB, 312e12, 2039e9),
    "NVIDIA H100 80GB HBM3": Chip(80 * _GB, 989e12, 3350e9),
    "NVIDIA H200": Chip(141 * _GB, 989e12, 4800e9),
}
