"""The input is a pure function of (seed, step); evaluation sees every image once."""

import pathlib
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from pc2seg_jax import build
from pc2seg_jax.data.augment import AugmentParams
from pc2seg_jax.data.pipeline import evaluation_batches, labeled_stream, unlabeled_stream
from pc2seg_jax.data.sources import array_source
from pc2seg_jax.errors import UserError

FULL = AugmentParams(crop_size=(33, 33), cutout_size=10)
PLAIN = AugmentParams(
    crop_size=(9, 9), scales=(1.0,), flip_probability=0, brightness=0, contrast=0, saturation=0, hue=0, cutout_size=0
)
STREAMS = {"labeled": labeled_stream, "unlabeled": unlabeled_stream}


def noise(count, size=(30, 40), masks=True):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    ids = [f"image_{i}" for i in range(count)]
    return array_source(images, rng.integers(0, 4, (count, *size), dtype=np.uint8) if masks else None, ids)


def numbered(count):
    """Image i has the grey value i everywhere, so a batch tells which images it holds."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 9, 9, 3))
    return array_source(np.ascontiguousarray(images), images[..., 0].copy(), [str(i) for i in range(count)])


def take(stream, steps):
    return list(islice(stream, steps))


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for a, b in zip(batch, other, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)


def indices(stream, steps):
    return np.concatenate([batch[0][:, 0, 0, 0].astype(int) for batch in take(stream, steps)])


@pytest.mark.parametrize("kind", STREAMS)
def test_shapes_and_types_are_those_that_a_run_compiles_for(kind, tiny_config):
    batch = take(STREAMS[kind](noise(5), batch_size=4, seed=0, start_step=0, augment=FULL), 1)[0]
    config = tiny_config(batch_labeled=4, batch_unlabeled=4, data__unlabeled_masks=True)
    expected = getattr(build.batch_shapes(config), kind)
    assert type(batch) is type(expected)
    assert {k: (x.shape, x.dtype) for k, x in batch._asdict().items()} == {
        k: (x.shape, x.dtype) for k, x in expected._asdict().items()
    }


def test_unlabeled_batches_have_no_label_without_masks():
    batch = take(unlabeled_stream(noise(3, masks=False), batch_size=2, seed=0, start_step=0, augment=FULL), 1)[0]
    assert batch.label is None


@pytest.mark.parametrize("kind", STREAMS)
def test_a_restart_continues_exactly(kind):
    arguments = {"batch_size": 4, "seed": 3, "augment": FULL}
    whole = take(STREAMS[kind](noise(7), start_step=0, **arguments), 6)
    tail = take(STREAMS[kind](noise(7), start_step=4, **arguments), 2)
    assert_same(whole[4:], tail)


@pytest.mark.parametrize("kind", STREAMS)
def test_parallel_calls_do_not_change_the_input(kind):
    arguments = {"batch_size": 4, "seed": 3, "start_step": 1, "augment": FULL}
    one = take(STREAMS[kind](noise(7), num_threads=1, prefetch=1, **arguments), 4)
    many = take(STREAMS[kind](noise(7), num_threads=4, prefetch=3, **arguments), 4)
    assert_same(one, many)


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_the_rows_of_one_global_batch(kind, hosts):
    """Over more than three epochs of 5 images, from a start in the middle of one."""
    arguments = {"batch_size": 8, "seed": 1, "start_step": 2, "augment": FULL}
    whole = take(STREAMS[kind](noise(5), **arguments), 3)
    parts = [take(STREAMS[kind](noise(5), shard=(host, hosts), **arguments), 3) for host in range(hosts)]
    joined = [type(whole[0])(*map(np.concatenate, zip(*batches, strict=True))) for batches in zip(*parts, strict=True)]
    assert_same(whole, joined)


@pytest.mark.parametrize("kind", STREAMS)
def test_a_start_after_a_million_steps_reads_nothing_before(kind):
    """An image is read for its shape and one more for every place in the batch, at most twice with prefetching."""
    reads = []
    source = noise(50)
    counting = source._replace(read_image=lambda index: (reads.append(index), source.read_image(index))[1])
    arguments = {"batch_size": 4, "seed": 3, "augment": FULL, "prefetch": 1}
    far = take(STREAMS[kind](counting, start_step=1_000_000, **arguments), 1)
    assert len(reads) <= 1 + 3 * 4
    k = 1_000_000 * 4 + np.arange(4)
    expected = [np.random.default_rng((3, list(STREAMS).index(kind), i // 50)).permutation(50)[i % 50] for i in k]
    assert set(expected) <= set(reads)
    assert_same(far, take(STREAMS[kind](source, start_step=1_000_000, **arguments), 1))


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_every_epoch_is_a_permutation(kind, count):
    stream = STREAMS[kind](numbered(count), batch_size=4, seed=5, start_step=0, augment=PLAIN)
    order = indices(stream, 3 * count)[: 12 * count].reshape(12, count)
    np.testing.assert_array_equal(np.sort(order, 1), np.broadcast_to(np.arange(count), order.shape))
    if count > 2:
        assert len({tuple(epoch) for epoch in order}) > 6


def test_seed_and_stream_change_the_order_and_the_augmentation():
    def order(kind, seed):
        return indices(STREAMS[kind](numbered(50), batch_size=25, seed=seed, start_step=0, augment=PLAIN), 2)

    orders = {tuple(order(kind, seed)) for kind in STREAMS for seed in (0, 1)}
    assert len(orders) == 4
    one_image = noise(1)
    weak = [
        take(stream(one_image, batch_size=1, seed=seed, start_step=0, augment=FULL), 1)[0][0]
        for stream in STREAMS.values()
        for seed in (0, 1)
    ]
    assert len({x.tobytes() for x in weak}) == 4


def test_one_image_is_augmented_differently_in_every_epoch():
    batch = take(unlabeled_stream(noise(1), batch_size=8, seed=0, start_step=0, augment=FULL), 1)[0]
    assert len({x.tobytes() for x in batch.amounts}) == 8
    assert len({x.tobytes() for x in batch.image}) > 5  # a small image has few crops


@pytest.mark.parametrize(("count", "batch_size", "batches"), [(7, 3, 3), (6, 3, 2), (1, 4, 1)])
def test_evaluation_sees_every_image_once_and_in_order(count, batch_size, batches):
    source = noise(count)
    out = list(evaluation_batches(source, batch_size=batch_size, pad_size=(33, 49)))
    assert len(out) == batches
    assert all(batch.image.shape == (batch_size, 33, 49, 3) for batch in out)
    images, labels, windows = (np.concatenate(x) for x in zip(*out, strict=True))
    assert (images.dtype, labels.dtype, windows.dtype) == (np.uint8, np.uint8, np.int32)
    for index in range(count):
        np.testing.assert_array_equal(images[index, :30, :40], source.read_image(index))
        np.testing.assert_array_equal(labels[index, :30, :40], source.read_mask(index))
    np.testing.assert_array_equal(windows[:count], [[0, 0, 30, 40]] * count)
    np.testing.assert_array_equal(windows[count:], np.zeros((len(windows) - count, 4)))


def test_evaluation_names_the_image_that_is_too_large():
    with pytest.raises(UserError, match=r"image_0 is 30x40 .* 33x33.*raise the evaluation size"):
        next(evaluation_batches(noise(2), batch_size=2, pad_size=(33, 33)))


def test_streams_refuse_what_cannot_work():
    arguments = {"seed": 0, "start_step": 0, "augment": FULL}
    with pytest.raises(UserError, match="Batch size 4 cannot be split over 3 hosts"):
        unlabeled_stream(noise(2), batch_size=4, shard=(0, 3), **arguments)
    with pytest.raises(UserError, match="labelled images have no masks"):
        labeled_stream(noise(2, masks=False), batch_size=4, **arguments)
    with pytest.raises(UserError, match="have no masks"):
        evaluation_batches(noise(2, masks=False), batch_size=4, pad_size=(33, 49))


def test_array_source_refuses_wrong_arrays():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="images must be uint8"):
        array_source(images.astype(np.float32), None, ["a", "b"])
    with pytest.raises(ValueError, match="images must be uint8"):
        array_source(images, None, ["a"])
    with pytest.raises(ValueError, match="masks must be"):
        array_source(images, np.zeros((2, 4, 5), np.uint8), ["a", "b"])


WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None  # any import of it raises ImportError
sys.path[:0] = {paths!r}
import conftest
from pc2seg_jax import build, training
config = conftest._tiny_config()
batch = next(training.training_batches(config, build.build_dataset(config), 0))
print(batch.unlabeled.image.shape[0])
"""


def run_alone(code):
    paths = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parent.parent)]
    command = [sys.executable, "-c", code.format(paths=paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_batches_of_arrays_and_files_need_no_tensorflow():
    done = run_alone(WITHOUT_TENSORFLOW)
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr


LEFT_OPEN = """
import sys, time
sys.path[:0] = {paths!r}
from test_pipeline import FULL, labeled_stream, noise
source = noise(9)
slow = source._replace(read_image=lambda index: (time.sleep(0.02), source.read_image(index))[1])
stream = labeled_stream(slow, batch_size=16, seed=0, start_step=0, augment=FULL)
print(len(next(stream).image))
"""


def test_a_program_may_end_while_batches_are_in_work():
    done = run_alone(LEFT_OPEN)
    assert (done.returncode, done.stdout) == (0, "16\n"), done.stderr
    assert "Traceback" not in done.stderr
