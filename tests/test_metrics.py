import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pc2seg_jax.ops.metrics import confusion_matrix, iou_per_class, mean_iou, pixel_accuracy

IGNORE = 255


def confusion_loops(labels, predictions, num_classes):
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for truth, predicted in zip(labels.ravel(), predictions.ravel(), strict=True):
        if truth != IGNORE:
            matrix[truth, predicted] += 1
    return matrix


def random_pair(shape, num_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice([*range(num_classes), IGNORE], size=shape).astype(np.int32)
    return labels, rng.integers(0, num_classes, shape).astype(np.int32)


@pytest.mark.parametrize("shape", [(17,), (3, 5, 7), (2, 8192), (2, 91, 91), (1, 1)])
def test_confusion_matrix_equals_the_loop(shape):
    labels, predictions = random_pair(shape)
    expected = confusion_loops(labels, predictions, 4)
    for f in (confusion_matrix, jax.jit(confusion_matrix, static_argnames=("num_classes", "ignore_id"))):
        matrix = f(labels, predictions, num_classes=4, ignore_id=IGNORE)
        assert matrix.dtype == jnp.int32
        np.testing.assert_array_equal(matrix, expected)


def test_rows_are_truth_and_columns_prediction():
    matrix = confusion_matrix(np.array([2]), np.array([0]), num_classes=3, ignore_id=IGNORE)
    assert matrix[2, 0] == 1


def test_an_ignore_id_that_is_a_class_id_is_not_counted():
    matrix = confusion_matrix(np.array([0, 1]), np.array([0, 1]), num_classes=2, ignore_id=0)
    np.testing.assert_array_equal(matrix, [[0, 0], [0, 1]])


def test_counts_are_exact_beyond_the_integers_of_float32():
    pixels = 2**24 + 3
    zeros = jnp.zeros((1, pixels), jnp.uint8)
    count = jax.jit(confusion_matrix, static_argnames=("num_classes", "ignore_id"))
    assert count(zeros, zeros, num_classes=1, ignore_id=IGNORE)[0, 0] == pixels


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
def test_a_sharded_batch_gives_the_same_counts_with_one_all_reduce():
    labels, predictions = random_pair((8, 9, 9))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    data, replicated = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    f = jax.jit(
        lambda a, b: confusion_matrix(a, b, num_classes=4, ignore_id=IGNORE),
        in_shardings=(data, data),
        out_shardings=replicated,
    )
    text = f.lower(labels, predictions).compile().as_text()
    assert text.count(" all-reduce(") == 1
    for collective in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in text
    np.testing.assert_array_equal(f(labels, predictions), confusion_loops(labels, predictions, 4))


def test_mean_iou_of_the_known_example():
    matrix = confusion_matrix(np.array([0, 0, 1, 1, 3]), np.array([0, 1, 1, 1, 3]), num_classes=5, ignore_id=IGNORE)
    np.testing.assert_allclose(iou_per_class(matrix), [1 / 2, 2 / 3, np.nan, 1, np.nan])
    assert mean_iou(matrix) == pytest.approx(0.722222, abs=1e-6)
    assert pixel_accuracy(matrix) == pytest.approx(0.8)


def test_a_class_that_is_only_predicted_counts_as_zero():
    np.testing.assert_array_equal(iou_per_class(np.array([[3, 1], [0, 0]])), [0.75, 0])
    assert mean_iou(np.array([[3, 1], [0, 0]])) == 0.375


def test_iou_equals_the_loop_over_pixels():
    labels, predictions = random_pair((4, 11, 11), seed=5)
    counted = labels != IGNORE
    iou = iou_per_class(confusion_loops(labels, predictions, 4))
    for c in range(4):
        truth, predicted = (labels == c) & counted, (predictions == c) & counted
        assert iou[c] == (truth & predicted).sum() / (truth | predicted).sum()


def test_empty_matrices_give_nan():
    empty = np.zeros((3, 3), np.int64)
    assert np.isnan(iou_per_class(empty)).all()
    assert np.isnan(mean_iou(empty))
    assert np.isnan(pixel_accuracy(empty))


def test_counts_accumulated_over_a_split_may_exceed_int32():
    assert pixel_accuracy(np.diag([2**40, 2**40])) == 1
