"""How the C library of a process keeps memory, for commands that compute on this machine's own processor."""

import ctypes
import importlib.util
import os
import platform

# Of malloc.h, where an option takes an int.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
GIGABYTE = 2**30


def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed for what is allocated next, where JAX computes on the CPU; whether it was asked to.

    XLA's CPU client allocates the temporaries of a program anew in every call. By default glibc hands blocks as large
    as these back to the kernel, which fills each page with zeros when it is touched again: measured, a twentieth
    to a quarter of the time of a small network's training step. One arena, as only the first keeps more than 64 MB in a
    row; blocks of 1 GB and more are still handed back, and so is what is free at its end beyond 2 GB.

    To be called before JAX starts its threads, which would have arenas of their own. It leaves alone what the
    environment says of malloc, and hosts of accelerators, whose many threads of the input would wait for one another.
    """
    first = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    accelerated = first != "cpu" if first else any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))
    told = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if accelerated or told or platform.libc_ver()[0] != "glibc":
        return False
    settings = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: GIGABYTE, M_TRIM_THRESHOLD: 2 * GIGABYTE - 1}
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(name, value) for name, value in settings.items()])
