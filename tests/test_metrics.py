import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from metrics_twins import IGNORE, boundary_loops, calibration_loops, confusion_loops

from pc2seg_jax.ops.boundary import boundary_counts, boundary_iou
from pc2seg_jax.ops.calibration import BINS, CalibrationCounts, calibration_counts, expected_calibration_error
from pc2seg_jax.ops.metrics import confusion_matrices, iou_per_class, mean_iou, pixel_accuracy


def random_pair(shape, num_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice([*range(num_classes), IGNORE], size=shape).astype(np.int32)
    return labels, rng.integers(0, num_classes, shape).astype(np.int32)


def one_matrix(labels, predictions, num_classes, ignore_id=IGNORE):
    """Of a list of pixels."""
    pair = (np.array(x)[None, None] for x in (labels, predictions))
    return np.asarray(confusion_matrices(*pair, num_classes=num_classes, ignore_id=ignore_id)[0])


@pytest.mark.parametrize("shape", [(1, 1, 17), (3, 5, 7), (2, 1, 8192), (2, 91, 91), (1, 1, 1)])
def test_confusion_matrices_equal_the_loop(shape):
    labels, predictions = random_pair(shape)
    expected = [confusion_loops(x, y, 4) for x, y in zip(labels, predictions, strict=True)]
    for f in (confusion_matrices, jax.jit(confusion_matrices, static_argnames=("num_classes", "ignore_id"))):
        matrices = f(labels, predictions, num_classes=4, ignore_id=IGNORE)
        assert matrices.dtype == jnp.int32
        np.testing.assert_array_equal(matrices, expected)


def test_rows_are_truth_and_columns_prediction():
    assert one_matrix([2], [0], 3)[2, 0] == 1


def test_an_ignore_id_that_is_a_class_id_is_not_counted():
    np.testing.assert_array_equal(one_matrix([0, 1], [0, 1], 2, ignore_id=0), [[0, 0], [0, 1]])


def test_counts_are_exact_beyond_the_integers_of_float32():
    pixels = 2**24 + 3
    zeros = jnp.zeros((1, 1, pixels), jnp.uint8)
    count = jax.jit(confusion_matrices, static_argnames=("num_classes", "ignore_id"))
    assert count(zeros, zeros, num_classes=1, ignore_id=IGNORE)[0, 0, 0] == pixels


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
def test_a_sharded_batch_gives_the_same_counts_and_only_they_travel():
    labels, predictions = random_pair((8, 9, 9))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    data, replicated = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    f = jax.jit(
        lambda a, b: confusion_matrices(a, b, num_classes=4, ignore_id=IGNORE),
        in_shardings=(data, data),
        out_shardings=replicated,
    )
    text = f.lower(labels, predictions).compile().as_text()
    assert text.count(" all-gather(") == 1
    for collective in ("all-reduce(", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in text
    expected = [confusion_loops(x, y, 4) for x, y in zip(labels, predictions, strict=True)]
    np.testing.assert_array_equal(f(labels, predictions), expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_mean_iou_is_that_of_scikit_learn(seed):
    """Random masks with ignored pixels and classes that are absent, in the truth, the prediction or both."""
    rng = np.random.default_rng(seed)
    present, predicted = (rng.choice(7, rng.integers(1, 6), replace=False) for _ in range(2))
    labels = np.where(rng.uniform(size=(3, 20, 30)) < 0.2, IGNORE, rng.choice(present, (3, 20, 30)))
    predictions = rng.choice(predicted, (3, 20, 30))
    counted = labels != IGNORE
    ours = np.asarray(confusion_matrices(labels, predictions, num_classes=7, ignore_id=IGNORE)).sum(0)
    theirs = sklearn.metrics.confusion_matrix(labels[counted], predictions[counted], labels=range(7))
    np.testing.assert_array_equal(ours, theirs)
    appearing = np.union1d(labels[counted], predictions[counted])
    expected = sklearn.metrics.jaccard_score(labels[counted], predictions[counted], labels=appearing, average="macro")
    assert mean_iou(ours) == pytest.approx(expected, abs=1e-12)
    assert pixel_accuracy(ours) == sklearn.metrics.accuracy_score(labels[counted], predictions[counted])


def test_mean_iou_of_the_known_example():
    matrix = one_matrix([0, 0, 1, 1, 3], [0, 1, 1, 1, 3], 5)
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


def batch_of(sizes, padded, num_classes=3, seed=0):
    """Blobs in the corner of a larger canvas: labels with ignored pixels and padding, and predictions."""
    rng = np.random.default_rng(seed)
    labels = np.full((len(sizes), *padded), IGNORE, np.int32)
    predictions = rng.integers(0, num_classes, labels.shape).astype(np.int32)
    for i, (height, width) in enumerate(sizes):
        coarse = rng.integers(0, num_classes, (-(-height // 8), -(-width // 8)))
        truth = np.kron(coarse, np.ones((8, 8), int))[:height, :width]
        labels[i, :height, :width] = np.where(rng.uniform(size=truth.shape) < 0.02, IGNORE, truth)
        shifted = np.roll(truth, (1, -2), (0, 1))
        noisy = rng.uniform(size=truth.shape) < 0.03
        predictions[i, :height, :width] = np.where(noisy, predictions[i, :height, :width], shifted)
    return labels, predictions


def test_boundary_counts_equal_the_loop_whatever_the_padding():
    sizes = [(40, 61), (97, 97), (5, 90), (1, 1)]  # widths of 1, 3, 2 and 1 pixels
    labels, predictions = batch_of(sizes, (97, 97))
    f = jax.jit(boundary_counts, static_argnames=("num_classes", "ignore_id"))
    counts = f(labels, predictions, np.array(sizes), num_classes=3, ignore_id=IGNORE)
    for i, (height, width) in enumerate(sizes):
        expected = boundary_loops(labels[i, :height, :width], predictions[i, :height, :width], 3)
        np.testing.assert_array_equal(counts[i], expected)


def test_boundaries_are_those_of_opencv():
    """The erosion with which the paper of Boundary IoU defines them."""
    labels, predictions = batch_of([(97, 81)], (97, 81), seed=3)
    labels = np.where(labels == IGNORE, 0, labels)
    counts = boundary_counts(labels, predictions, np.array([(97, 81)]), num_classes=3, ignore_id=IGNORE)[0]
    for c in range(3):
        outlines = []
        for mask in (labels[0] == c, predictions[0] == c):
            framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
            inner = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=round(0.02 * np.hypot(97, 81)))
            outlines.append(mask & (inner[1:-1, 1:-1] == 0))
        truth, predicted = outlines
        np.testing.assert_array_equal(counts[:, c], [(truth & predicted).sum(), truth.sum(), predicted.sum()])


def test_boundary_iou_of_a_perfect_and_of_a_missing_class():
    labels, _ = batch_of([(33, 33)], (33, 33))
    size = np.array([(33, 33)])
    perfect = boundary_counts(labels, np.where(labels == IGNORE, 0, labels), size, num_classes=4, ignore_id=IGNORE)[0]
    np.testing.assert_array_equal(boundary_iou(perfect), [1, 1, 1, np.nan])
    wrong = boundary_counts(labels, np.full_like(labels, 3), size, num_classes=4, ignore_id=IGNORE)[0]
    np.testing.assert_array_equal(boundary_iou(wrong), [0, 0, 0, 0])


def test_calibration_counts_equal_the_loop():
    labels, _ = random_pair((2, 9, 11), num_classes=3)
    logits = 3 * np.random.default_rng(1).normal(size=(2, 9, 11, 3))
    probabilities = np.array(jax.nn.softmax(jnp.float32(logits)))
    probabilities[0, 0, 0] = 1, 0, 0
    counts = jax.jit(calibration_counts, static_argnames="ignore_id")(labels, probabilities, ignore_id=IGNORE)
    for i in range(2):
        expected = calibration_loops(labels[i], probabilities[i], BINS)
        np.testing.assert_array_equal((counts.pixels[i], counts.correct[i]), expected[:2])
        np.testing.assert_allclose(counts.confidence[i], expected[2], rtol=1e-5)
    assert counts.pixels.sum() == (labels != IGNORE).sum()


def test_the_calibration_error_of_known_counts():
    pixels, correct, confidence = np.zeros((3, BINS))
    pixels[[8, 14]] = 30, 10
    correct[[8, 14]] = 15, 10
    confidence[[8, 14]] = 30 * 0.6, 10 * 0.98
    expected = (30 * 0.1 + 10 * 0.02) / 40
    assert expected_calibration_error(CalibrationCounts(pixels, correct, confidence)) == pytest.approx(expected)
    assert np.isnan(expected_calibration_error(CalibrationCounts(*np.zeros((3, BINS)))))
