"""Endless training batches and finite evaluation batches as numpy arrays.

Training input is a pure function of (seed, step). Position k = step * batch_size + row of a stream reads, in epoch
k // n, element k % n of that epoch's permutation, augmented by a key of (seed, stream, epoch, example). So a restart at
any step continues exactly, without reading what came before, and hosts read disjoint rows of one global batch.
"""

import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from pc2seg_jax.data.augment import AugmentParams, augment_labeled, augment_unlabeled
from pc2seg_jax.data.sources import Source
from pc2seg_jax.errors import UserError
from pc2seg_jax.types import LabeledCrops, UnlabeledCrops

# First numbers after the seed in every key, so that no two uses of randomness in a run share one.
LABELED_ORDER, UNLABELED_ORDER, LABELED_AUGMENTATION, UNLABELED_AUGMENTATION = range(4)


def labeled_stream(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    augment: AugmentParams,
    shard: tuple[int, int] = (0, 1),
    num_threads: int | None = None,
    prefetch: int = 2,
) -> Iterator[LabeledCrops]:
    """Endless weakly augmented labelled batches.

    Args:
      batch_size: B, images of the global batch, of all hosts together.
      seed, start_step: batch i of the iterator is the batch of step start_step + i.
      shard: (h, n): host h of n gets the rows [h B / n, (h + 1) B / n) of every global batch.
      num_threads: images in work at a time, by default as many as there are cores. Does not change the batches.
      prefetch: batches that are made ahead.

    Raises:
      UserError: B is not divisible by the hosts, the source has no masks, or (while iterating) a file is unreadable.
    """
    if source.read_mask is None:
        raise UserError("The labelled images have no masks: give every image of the labelled list a mask.")
    at = functools.partial(_position, len(source.ids), seed, LABELED_ORDER)

    def example(k: int) -> LabeledCrops:
        epoch, index = at(k)
        key = seed, LABELED_AUGMENTATION, epoch, index
        return augment_labeled(source.read_image(index), source.read_mask(index), key, augment)

    return _stream(example, source, batch_size, start_step, shard, num_threads, prefetch)


def unlabeled_stream(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    augment: AugmentParams,
    shard: tuple[int, int] = (0, 1),
    num_threads: int | None = None,
    prefetch: int = 2,
) -> Iterator[UnlabeledCrops]:
    """Endless batches of weak views with the recipes of the strong ones; no `label` where the source has no masks.

    Arguments and errors are those of `labeled_stream`, with U in place of B.
    """
    at = functools.partial(_position, len(source.ids), seed, UNLABELED_ORDER)

    def example(k: int) -> UnlabeledCrops:
        epoch, index = at(k)
        mask = None if source.read_mask is None else source.read_mask(index)
        key = seed, UNLABELED_AUGMENTATION, epoch, index
        return augment_unlabeled(source.read_image(index), mask, key, augment)

    return _stream(example, source, batch_size, start_step, shard, num_threads, prefetch)


def evaluation_batches(
    source: Source, *, batch_size: int, pad_size: tuple[int, int], shard: tuple[int, int] = (0, 1)
) -> Iterator[LabeledCrops]:
    """All images of a source once and in order, padded at the bottom and the right to [B, *pad_size].

    The last batch is filled up with empty images, all padding, so every batch has one shape and no image is dropped or
    counted twice. shard: as in `labeled_stream`; every host has the same number of batches.

    Raises:
      UserError: B is not divisible by the hosts, the source has no masks, an image is larger than `pad_size`, or (while
        iterating) a file is unreadable.
    """
    if source.read_mask is None:
        raise UserError("The images to evaluate have no masks: give every image of the validation list a mask.")
    too_large = (source.sizes > pad_size).any(1)
    if too_large.any():
        worst = int(too_large.argmax())
        (height, width), name = source.sizes[worst], source.ids[worst]
        raise UserError(
            f"Image {name} is {height}x{width} (height x width), larger than the evaluation size "
            f"{pad_size[0]}x{pad_size[1]}: raise the evaluation size, or shrink the images with max_side."
        )
    count, (first, rows) = len(source.ids), _rows_of_host(batch_size, shard)

    def example(step: int, row: int) -> LabeledCrops:
        index = step * batch_size + first + row
        image, label = np.zeros((*pad_size, 3), np.uint8), np.zeros(pad_size, np.uint8)
        if index >= count:
            return LabeledCrops(image, label, np.zeros(4, np.int32))
        pixels = source.read_image(index)
        height, width = pixels.shape[:2]
        image[:height, :width], label[:height, :width] = pixels, source.read_mask(index)
        return LabeledCrops(image, label, np.array([0, 0, height, width], np.int32))

    return _batches(range(-(-count // batch_size)), example, rows, num_threads=None, prefetch=1)


def available_cores() -> int:
    """Cores that this process may use; of all where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _position(count: int, seed: int, use: int, k: int) -> tuple[int, int]:
    """(epoch, example) of position k of a stream over `count` examples."""
    epoch, place = divmod(k, count)
    return epoch, int(_permutation(count, seed, use, epoch)[place])


@functools.lru_cache(maxsize=8)  # two streams, each between two epochs
def _permutation(count: int, seed: int, use: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, use, epoch)).permutation(count)


def _stream(example: Callable, source: Source, batch_size, start_step, shard, num_threads, prefetch) -> Iterator:
    """Iterates over the rows of one host, in the order of the global positions."""
    if not source.ids:
        raise UserError("The list of training images is empty: add at least one image.")
    first, rows = _rows_of_host(batch_size, shard)

    def at(step: int, row: int) -> NamedTuple:
        return example(step * batch_size + first + row)

    return _batches(itertools.count(start_step), at, rows, num_threads, prefetch)


def _rows_of_host(batch_size: int, shard: tuple[int, int]) -> tuple[int, int]:
    """(first, count) of the rows that a host has of every global batch."""
    host, hosts = shard
    if batch_size < 1 or batch_size % hosts:
        raise UserError(f"Batch size {batch_size} cannot be split over {hosts} hosts: use a positive multiple of them.")
    rows = batch_size // hosts
    return host * rows, rows


def _batches(steps: Iterable[int], example: Callable, rows: int, num_threads: int | None, prefetch: int) -> Iterator:
    """One batch of `example(step, row)`, row = 0 .. rows - 1, for every step.

    Threads suffice, because decoding, resizing and colour are done by libraries that release the interpreter's lock.
    They write straight into the arrays of the batch. tf.data was tried and costs more: it copies every example twice,
    turns every error into one of its own, and may hang where a program ends while it calls Python.

    Args:
      example: returns a named tuple of arrays, with None for what is missing.
      prefetch: batches that are in work behind the one that is waited for.
    """
    pool = ThreadPoolExecutor(num_threads or available_cores(), "example")
    template = None

    def start(step: int) -> tuple[NamedTuple, list[Future]]:
        nonlocal template
        template = template or example(step, 0)
        batch = type(template)(*(None if x is None else np.empty((rows, *x.shape), x.dtype) for x in template))

        def put(row: int) -> None:
            for array, x in zip(batch, example(step, row), strict=True):
                if array is not None:
                    array[row] = x

        return batch, [pool.submit(put, row) for row in range(rows)]

    queue = deque()
    try:
        for step in steps:
            queue.append(start(step))
            if len(queue) > prefetch:
                yield _finished(*queue.popleft())
        while queue:
            yield _finished(*queue.popleft())
    finally:
        for _, futures in queue:
            for future in futures:
                future.cancel()
        pool.shutdown(wait=False)


def _finished(batch: NamedTuple, futures: list[Future]) -> NamedTuple:
    for future in futures:
        future.result()
    return batch
