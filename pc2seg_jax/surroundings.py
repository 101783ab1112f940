"""What a run's numbers depend on besides its configuration and data: versions and hardware."""

import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import pc2seg_jax

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


def describe() -> dict[str, Any]:
    """Of this process: {"versions": {name: version}, "hardware": one line}.

    It asks for the devices, which a process then holds: where other processes train, call it after them.
    """
    import jax

    devices = jax.devices()
    processor = _processor()
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return {
        "versions": {
            "pc2seg_jax": pc2seg_jax.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
        "hardware": f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} CPU cores"
        + (f" ({processor})" if processor else "")
        + processes,
    }


def _processor() -> str:
    """The processor's name where the system tells it, else ""."""
    info = pathlib.Path("/proc/cpuinfo")
    for line in info.read_text(errors="replace").splitlines() if info.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return " ".join(value.split())
    return ""
