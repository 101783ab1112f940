"""Recording what the devices do in some steps, for xprof."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from pc2seg_jax.files import AnyPath, WrittenHere
from pc2seg_jax.types import Tree


class Profiler:
    """Records the steps first..last (of the lead) in `folder`: `pip install xprof`, then `xprof <folder>`.

    Of a run that continues behind `first`, or ends before `last`, the steps that there are. Use as a context manager.
    """

    def __init__(self, folder: AnyPath, steps: tuple[int, int] | None):
        self._folder = folder
        self._first, self._last = steps if steps and jax.process_index() == 0 else (0, 0)
        self._records = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._end()

    def _end(self) -> None:
        if self._records:
            self._records = False
            jax.profiler.stop_trace()
            self._written.close()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the dispatch of a step."""
        if not self._first <= number <= self._last:
            yield
            return
        if not self._records:
            self._written = WrittenHere(self._folder)
            jax.profiler.start_trace(str(self._written.folder))
            self._records = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def after(self, number: int, results: Tree) -> None:
        """Ends the recording with the last of its steps, whose results are waited for."""
        if self._records and number == self._last:
            jax.block_until_ready(results)
            self._end()
