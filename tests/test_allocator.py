"""Memory that is freed and used again: fewer page faults in a real process, and where nothing is touched."""

import ctypes
import importlib.util
import os
import platform
import subprocess
import sys
import types

import pytest

from pc2seg_jax.allocator import keep_freed_memory

PROGRAM = """
import resource
from pc2seg_jax import cli

def main(argv):
    import jax

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def sums(x):
        y = jax.lax.optimization_barrier(x + 1.0)  # a temporary of 64 MB, 16,384 pages
        return y.sum(0) + y.sum(1)

    step = jax.jit(sums)
    x = jax.numpy.ones((4096, 4096))
    for _ in range(3):
        step(x).block_until_ready()
    before = faults()
    for _ in range(10):
        step(x).block_until_ready()
    print(faults() - before)

cli.run(main)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_program_finds_its_temporaries_where_it_left_them():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16384  # of 163,840


@pytest.mark.parametrize(
    ("environment", "installed", "library", "asked"),
    [
        ({}, (), "glibc", True),
        ({"JAX_PLATFORMS": "cpu"}, ("libtpu",), "glibc", True),
        ({"JAX_PLATFORMS": "cuda,cpu"}, ("jax_plugins",), "glibc", False),
        ({}, ("jax_plugins",), "glibc", False),
        ({}, ("libtpu",), "glibc", False),
        ({"MALLOC_ARENA_MAX": "4"}, (), "glibc", False),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, (), "glibc", False),
        ({}, (), "", False),
    ],
)
def test_only_a_processor_s_own_commands_ask_for_it(monkeypatch, environment, installed, library, asked):
    settings = {}
    for name in ("JAX_PLATFORMS", "GLIBC_TUNABLES", *(n for n in os.environ if n.startswith("MALLOC_"))):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(platform, "libc_ver", lambda: (library, ""))
    mallopt = lambda name, value: settings.update({name: value}) or 1  # noqa: E731
    monkeypatch.setattr(ctypes, "CDLL", lambda name: types.SimpleNamespace(mallopt=mallopt))
    assert keep_freed_memory() == asked
    assert settings == ({-8: 1, -3: 2**30, -1: 2**31 - 1} if asked else {})
