"""Endless training batches and finite evaluation batches as numpy arrays.

Training input is a pure function of (seed, step). Position k = step * batch_size + row of a stream reads, in epoch
k // n, element k % n of that epoch's permutation, with an augmentation seed folded from k. So a restart at any step
continues exactly, without reading what came before, and hosts read disjoint rows of one global batch.
"""

from collections.abc import Iterator

import numpy as np

from pc2seg_jax.data.augment import AugmentParams, augment_labeled, augment_unlabeled, pad_to
from pc2seg_jax.data.quiet_tensorflow import tf
from pc2seg_jax.data.sources import Source, explain
from pc2seg_jax.errors import UserError
from pc2seg_jax.types import Labeled, Unlabeled

# Folded into the seed, so that the streams of one run are independent of each other.
STREAMS = {Labeled: 1, Unlabeled: 2}


def labeled_stream(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    augment: AugmentParams,
    shard: tuple[int, int] = (0, 1),
    num_parallel_calls: int = 2,
    prefetch: int = 2,
) -> Iterator[Labeled]:
    """Endless weakly augmented labelled batches.

    Args:
      batch_size: B, images of the global batch, of all hosts together.
      seed, start_step: batch i of the iterator is the batch of step start_step + i.
      shard: (h, n): host h of n gets the rows [h B / n, (h + 1) B / n) of every global batch.

    Raises:
      UserError: B is not divisible by the hosts, the source has no masks, or (while iterating) a file is unreadable.
    """
    if source.read_mask is None:
        raise UserError("The labelled images have no masks: give every image of the labelled list a mask.")

    def example(index, example_seed):
        return augment_labeled(source.read_image(index), source.read_mask(index), example_seed, augment)

    return _stream(
        source,
        example,
        Labeled,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        shard=shard,
        num_parallel_calls=num_parallel_calls,
        prefetch=prefetch,
    )


def unlabeled_stream(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    augment: AugmentParams,
    shard: tuple[int, int] = (0, 1),
    num_parallel_calls: int = 2,
    prefetch: int = 2,
) -> Iterator[Unlabeled]:
    """Endless batches of aligned weak and strong views; `label` is None where the source has no masks.

    Arguments and errors are those of `labeled_stream`, with U in place of B.
    """

    def example(index, example_seed):
        mask = None if source.read_mask is None else source.read_mask(index)
        *views, label = augment_unlabeled(source.read_image(index), mask, example_seed, augment)
        return tuple(views) if label is None else (*views, label)

    return _stream(
        source,
        example,
        Unlabeled,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        shard=shard,
        num_parallel_calls=num_parallel_calls,
        prefetch=prefetch,
    )


def evaluation_batches(
    source: Source, *, batch_size: int, pad_size: tuple[int, int], mean_pixel, ignore_id: int
) -> Iterator[Labeled]:
    """All images of a source once and in order, padded at the bottom and the right to [B, *pad_size].

    The last batch is filled up with images of the mean pixel whose labels are all the ignore id, so every batch has one
    shape and no image is dropped or counted twice.

    Raises:
      UserError: the source has no masks, an image is larger than `pad_size`, or (while iterating) a file is unreadable.
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

    def example(index):
        return pad_to(source.read_image(index), source.read_mask(index), pad_size, mean_pixel, ignore_id)

    count = len(source.ids)
    blank = np.empty((*pad_size, 3), np.float32), np.full(pad_size, ignore_id, np.int32)
    blank[0][:] = mean_pixel
    filler = tf.data.Dataset.from_tensors(blank).repeat(-count % batch_size)
    dataset = tf.data.Dataset.range(count).map(example, num_parallel_calls=2).concatenate(filler)
    return _as_numpy(dataset.batch(batch_size, drop_remainder=True).prefetch(1), Labeled)


def _stream(source: Source, example, kind, *, batch_size, seed, start_step, shard, num_parallel_calls, prefetch):
    """Iterates over `example(element index, example seed)` of one host, in the order of the global positions."""
    host, hosts = shard
    count = len(source.ids)
    if count == 0:
        raise UserError("The list of training images is empty: add at least one image.")
    if batch_size < 1 or batch_size % hosts:
        raise UserError(f"Batch size {batch_size} cannot be split over {hosts} hosts: use a positive multiple of them.")
    rows = batch_size // hosts
    fold = tf.random.experimental.stateless_fold_in
    stream_seed = fold(tf.constant([seed, 0], tf.int64), STREAMS[kind])
    order_seed, augment_seed = fold(stream_seed, 0), fold(stream_seed, 1)

    @tf.autograph.experimental.do_not_convert  # no Python control flow over tensors, so skip the slow rewriting
    def at(element):
        k = element // rows * batch_size + host * rows + element % rows
        index = tf.random.experimental.index_shuffle(k % count, fold(order_seed, k // count), count - 1)
        return example(index, fold(augment_seed, k))

    dataset = tf.data.Dataset.counter(start_step * rows).map(at, num_parallel_calls=num_parallel_calls)
    return _as_numpy(dataset.batch(rows, drop_remainder=True).prefetch(prefetch), kind)


def _as_numpy(dataset: tf.data.Dataset, kind):
    """Iterates over a dataset of tuples as `kind` of numpy arrays, turning read errors into UserError."""
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.max_intra_op_parallelism = 1  # parallel over examples; a crop is too small to split
    batches = dataset.with_options(options).as_numpy_iterator()
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            known = explain(error)
            if known is None:
                raise
            raise known from None
        yield kind(*batch)
